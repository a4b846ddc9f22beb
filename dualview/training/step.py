"""The loss of one step and its gradients, as one rank computes its share of them."""

# V = views, D = passages of the batch, H = embedding size, R = retained texts

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
import random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
import torch

from dualview.config.train import TrainConfig
from dualview.errors import InputError
from dualview.models import Side
from dualview.retrieval.encoder import Precision, Tokens, autocast
from dualview.training.batches import Batch, deal, make_batch
from dualview.training.collectives import gather_vectors
from dualview.training.losses import distillation, info_nce, leave_out_false_negatives, retention, truncated
from dualview.training.prepared import Prepared

RETAINED_TEXTS_PER_STEP = 8


class Learner(torch.nn.Module):
    """What is trained: an encoder, and the temperature where it is learned."""

    def __init__(
        self, encoder: SentenceTransformer, temperature: float, *, learned: bool, precision: Precision
    ) -> None:
        super().__init__()
        self.encoder, self.precision = encoder, precision
        self.temperature = Temperature(temperature, learned=learned)

    def forward(self, features: dict[str, Any], side: Side) -> torch.Tensor:
        # In here, because DeepSpeed's engine switches off on a GPU what is switched on around it.
        with autocast(self.precision, self.encoder.device):
            vectors: torch.Tensor = self.encoder(features, task=side)["sentence_embedding"]
        return vectors.to(torch.promote_types(vectors.dtype, torch.float32))


@contextmanager
def check_precision(encoder: torch.nn.Module, precision: Precision) -> Iterator[None]:
    """Raises RuntimeError where linear layers that run within are not computed in `precision`.

    The config's word is not enough: whatever lies between it and the layers may decide otherwise.
    """
    seen: set[torch.dtype] = set()
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: seen.add(output.dtype))
        for module in encoder.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    expected = torch.bfloat16 if precision == "bf16" else torch.float32
    if seen - {expected}:
        raise RuntimeError(
            f"precision: {precision}, but linear layers gave {', '.join(sorted(map(str, seen)))}; this is a defect"
        )


class Temperature(torch.nn.Module):
    """A module of its own, because ZeRO 3 gathers a parameter when its module is called."""

    def __init__(self, value: float, *, learned: bool) -> None:
        super().__init__()
        self.register_buffer("fixed", None if learned else torch.tensor([value]), persistent=False)
        self.log = torch.nn.Parameter(torch.tensor([value]).log()) if learned else None

    def forward(self) -> torch.Tensor:
        if self.log is not None:
            return self.log.exp()
        fixed: torch.Tensor = self.get_buffer("fixed")
        return fixed


@dataclass(frozen=True)
class Retained:
    """Plain texts and where the untouched encoder puts them."""

    tokens: Sequence[list[int]]
    untouched_RH: torch.Tensor


@dataclass(frozen=True)
class Texts:
    """The texts of a step that this rank encodes, in chunks, and where all ranks' texts stand."""

    side: Side
    tokens: Sequence[Tokens]
    chunks: Sequence[tuple[int, ...]]  # this rank's
    order: Sequence[int]  # places of the texts of all ranks, rank after rank
    counts: Sequence[int]  # texts by rank

    @property
    def own(self) -> list[int]:
        return [place for chunk in self.chunks for place in chunk]


def share_texts(side: Side, tokens: Sequence[Tokens], rank: int, world_size: int, chunk_tokens: int) -> Texts:
    dealt = deal([len(text) for text in tokens], world_size, chunk_tokens)
    orders = [[place for chunk in chunks for place in chunk] for chunks in dealt]
    return Texts(
        side, tokens, dealt[rank], [place for own in orders for place in own], [len(own) for own in orders]
    )


@dataclass(frozen=True)
class Work:
    """All that a rank needs for a step; made while the step before it computes."""

    batch: Batch
    queries: Texts  # the views, then the retained texts
    passages: Texts | None  # None: they are looked up
    retained: Sequence[int]
    num_tokens: int  # of all ranks
    padding_share: float  # of what this rank encodes
    views: Sequence[int]  # this rank's
    relation_VD: torch.Tensor
    known_VD: torch.Tensor | None
    margins_VD: torch.Tensor | None
    frozen_DH: torch.Tensor | None
    num_views: int  # of all ranks
    seed: int


def operations(config: TrainConfig, num_parameters: int, num_tokens: int) -> float:
    """Floating-point operations of so many tokens, attention's own left out (arXiv 2001.08361, section 2.1).

    Two a weight and token forward, four backward, two more for each time that forward is done again.
    num_parameters: those that every token passes through.
    """
    again = config.batch.gradient_cache + config.encoder.activation_checkpointing
    return float((6 + 2 * again) * num_parameters * num_tokens)


def plan_work(
    config: TrainConfig,
    prepared: Prepared,
    groups: Sequence[int],
    frozen: Callable[[Sequence[int]], NDArray[np.float32]] | None,
    retained_tokens: Sequence[list[int]],
    *,
    step: int,
    epoch: int,
    rank: int,
    world_size: int,
) -> Work:
    """A rank's share of a step.

    With negatives "worker" a rank takes every world_size-th group and knows nothing of the others' passages.
    """
    settings = config.batch
    alone = settings.negatives == "worker"
    members = [prepared.group(index) for index in groups]
    num_views = sum(len(group.views) for group in members)
    if alone and len(members) < world_size:
        raise InputError(
            f"workers.num: {world_size} ranks cannot share a step of {len(members)} groups with negatives: worker;"
            f" expected at most {len(members)} workers, or a larger batch.instances"
        )
    own = members[rank::world_size] if alone else members
    num_hard_negatives = [part.num_hard_negatives for part in config.mixture.parts]
    batch = make_batch(prepared, own, settings, num_hard_negatives, f"{config.seed}:{epoch}")
    chosen = retained_of_step(len(retained_tokens), config, step)
    own_texts = chosen[rank::world_size] if alone else chosen
    sharing = (0, 1) if alone else (rank, world_size)
    tokens: list[Tokens] = [*batch.view_tokens, *(retained_tokens[r] for r in own_texts)]
    queries = share_texts("query", tokens, *sharing, settings.chunk_tokens)
    passages = None
    if frozen is None:
        texts = [prepared.tokens(passage) for passage in batch.passages]
        passages = share_texts("document", texts, *sharing, settings.chunk_tokens)
    views = [place for place in queries.own if place < len(batch.views)]
    mine = [texts for texts in (queries, passages) if texts is not None]
    return Work(
        batch=batch,
        queries=queries,
        passages=passages,
        retained=own_texts,
        num_tokens=sum(len(text) for texts in mine for text in texts.tokens) * (world_size if alone else 1),
        padding_share=_padding_share(mine),
        views=views,
        relation_VD=torch.from_numpy(batch.relation(views)),
        known_VD=torch.from_numpy(batch.labelled(views))
        if config.loss.false_negative_margin is not None
        else None,
        margins_VD=torch.from_numpy(batch.margins(views)) if config.loss.distillation else None,
        frozen_DH=torch.from_numpy(frozen(batch.passages)) if frozen is not None else None,
        num_views=num_views,
        seed=random.Random(f"{config.seed}:{step}:{rank}").getrandbits(62),
    )


def _padding_share(shared: Sequence[Texts]) -> float:
    lengths = [[len(texts.tokens[place]) for place in chunk] for texts in shared for chunk in texts.chunks]
    return 1.0 - sum(map(sum, lengths)) / sum(len(chunk) * max(chunk) for chunk in lengths)


def retained_of_step(num_texts: int, config: TrainConfig, step: int) -> list[int]:
    if config.loss.retention == 0:
        return []
    rng = random.Random(f"{config.seed}:{step}")
    return rng.sample(range(num_texts), min(RETAINED_TEXTS_PER_STEP, num_texts))


Backward = Callable[[torch.Tensor], object]


def learn(
    learner: torch.nn.Module,
    temperature: torch.nn.Module,
    backward: Backward,
    several: Callable[[], AbstractContextManager[object]],
    work: Work,
    config: TrainConfig,
    retained: Retained,
    *,
    inputs: Callable[[Sequence[Tokens]], dict[str, Any]],
    world_size: int,
) -> torch.Tensor:
    """Gradients of this rank's share of the loss, through `backward`; returns that share, detached.

    The mean over ranks is the loss of the whole batch: every rank encodes its share of the views and of
    the passages, gathers the passages of all, and scores its own views against every passage. Averaging
    the gradients over ranks, as DeepSpeed does, gives exactly the gradient of one process that holds the
    whole batch.

    With a gradient cache every text is encoded twice, the second time chunk by chunk with the gradient of
    its vector known, so that only one chunk's activations exist at a time [GradCache, 2101.06983]; `several`
    is then a context in which `backward` may be called many times for one step. Randomness (dropout) is
    seeded for each chunk, so both passes see the same. `inputs`: texts as the encoder takes them.
    """
    texts = [work.queries, *([work.passages] if work.passages is not None else [])]

    def encode(side: int, number: int) -> torch.Tensor:
        own = texts[side]
        torch.manual_seed(work.seed + 100_000 * side + number)
        features = inputs([own.tokens[place] for place in own.chunks[number]])
        vectors: torch.Tensor = learner(features, own.side)
        return vectors

    numbers = [(side, number) for side, own in enumerate(texts) for number in range(len(own.chunks))]
    if not config.batch.gradient_cache:
        vectors = [encode(side, number) for side, number in numbers]
        loss = loss_of(_joined(numbers, vectors), temperature(), work, config, retained, world_size)
        backward(loss)
        return loss.detach()
    with torch.no_grad():
        leaves = [encode(side, number) for side, number in numbers]
    for leaf in leaves:
        leaf.requires_grad_()
    degrees = temperature().detach().requires_grad_()
    loss = loss_of(_joined(numbers, leaves), degrees, work, config, retained, world_size)
    *gradients, of_temperature = torch.autograd.grad(loss, [*leaves, degrees])
    with several():
        for (side, number), gradient in zip(numbers, gradients, strict=True):
            surrogate = (encode(side, number) * gradient).sum()
            if (side, number) == numbers[-1] and config.loss.temperature.learned:
                surrogate = surrogate + (temperature() * of_temperature).sum()
            backward(surrogate)
    return loss.detach()


def _joined(numbers: Sequence[tuple[int, int]], vectors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The vectors of each side, chunk after chunk."""
    sides = dict.fromkeys(side for side, _ in numbers)
    return [
        torch.cat([vector for (own, _), vector in zip(numbers, vectors, strict=True) if own == side])
        for side in sides
    ]


def loss_of(
    vectors: Sequence[torch.Tensor],
    temperature: torch.Tensor,
    work: Work,
    config: TrainConfig,
    retained: Retained,
    world_size: int,
) -> torch.Tensor:
    """This rank's share of the loss, from the vectors of its own query texts and passages."""
    settings, own_queries = config.loss, work.queries.own
    device = vectors[0].device
    num_views = len(work.batch.views)
    is_view = torch.tensor([place < num_views for place in own_queries], device=device)
    views_VH, texts_RH = vectors[0][is_view], vectors[0][~is_view]
    if work.passages is None:
        assert work.frozen_DH is not None
        passages_DH = work.frozen_DH.to(device)
    else:
        gathered_DH = gather_vectors(vectors[1], work.passages.counts)
        place = torch.empty(len(work.passages.order), dtype=torch.long, device=device)
        place[torch.tensor(work.passages.order, device=device)] = torch.arange(len(place), device=device)
        passages_DH = gathered_DH[place]
    relation_VD = work.relation_VD.to(device)
    sizes = settings.dimensions or (views_VH.shape[1],)
    loss = views_VH.new_zeros(())
    for size in sizes:
        scores_VD = truncated(views_VH, size) @ truncated(passages_DH, size).T
        relation_of_size = relation_VD
        if settings.false_negative_margin is not None:
            assert work.known_VD is not None
            known_VD = work.known_VD.to(device)
            relation_of_size = leave_out_false_negatives(
                scores_VD.detach(), relation_VD, known_VD, settings.false_negative_margin
            )
        of_views = info_nce(scores_VD, relation_of_size, temperature).sum()
        if work.margins_VD is not None:
            of_views = (
                of_views
                + settings.distillation
                * distillation(scores_VD, work.margins_VD.to(device), temperature).sum()
            )
        loss = loss + of_views / len(sizes)
    loss = loss * (world_size / work.num_views)
    if len(texts_RH):
        indices = [work.retained[place - num_views] for place in own_queries if place >= num_views]
        untouched_RH = retained.untouched_RH[indices].to(device)
        num_texts = min(RETAINED_TEXTS_PER_STEP, len(retained.tokens))
        loss = loss + settings.retention * (world_size / num_texts) * retention(texts_RH, untouched_RH)
    return loss


def move_back(encoder: torch.nn.Module, untouched: Mapping[str, torch.Tensor], share: float) -> None:
    """Moves every weight this share of the way back to `untouched`, a state dict of the same encoder.

    Some of what was learned is given up, and more of what was lost comes back (weight interpolation).
    """
    with torch.no_grad():
        for name, weight in encoder.state_dict().items():
            if weight.is_floating_point():
                weight.lerp_(untouched[name].to(weight), share)


def learning_rate_scale(step: int, num_steps: int, warmup_share: float) -> float:
    """Linear warm-up over the first share of the steps, then linear decay to 0."""
    warmup = max(1, round(num_steps * warmup_share))
    return min((step + 1) / warmup, (num_steps - step) / max(1, num_steps - warmup))
