"""The loss of one step, as one rank computes its share of it."""

# V = views, D = passages of the batch, H = embedding size, R = retained texts

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import random

from sentence_transformers import SentenceTransformer
import torch

from dualview.config import TrainConfig
from dualview.encoder import autocast, embed, encode_texts, pad_id, tokenize
from dualview.records import Passage
from dualview.training.batches import Candidates, make_batch, share_of
from dualview.training.collectives import gather_vectors
from dualview.training.groups import Group, View
from dualview.training.losses import info_nce, retention

# Plain texts are spans of this many words: short, like the queries whose meaning must stay.
RETAINED_WORDS = 14
RETAINED_TEXTS = 400
RETAINED_TEXTS_PER_STEP = 8

# A CPU core likes small chunks; the padding they save outweighs their number.
CHUNK_TOKENS = 2048


def view_text(template: str, view: View) -> str:
    """Query and instruction as the one text that the encoder reads."""
    return template.format(query=view.query, instruction=view.instruction)


def move_back(encoder: torch.nn.Module, untouched: Mapping[str, torch.Tensor], share: float) -> None:
    """Moves every weight this share of the way back to `untouched`, a state dict of the same encoder.

    Some of what was learned is given up, and more of what was lost comes back (weight interpolation).
    """
    with torch.no_grad():
        for name, weight in encoder.state_dict().items():
            if weight.is_floating_point():
                weight.lerp_(untouched[name].to(weight), share)


@dataclass(frozen=True)
class Retained:
    """Plain texts and where the untouched encoder puts them."""

    tokens: list[list[int]]
    untouched_RH: torch.Tensor


def retain(encoder: SentenceTransformer, groups: Sequence[Group], config: TrainConfig) -> Retained:
    """Spans of the passages, drawn by the seed, embedded by the encoder as it is now."""
    rng = random.Random(config.seed)
    passages = {passage.id: passage for group in groups for passage in group.passages}
    spans = []
    for name in rng.sample(sorted(passages), min(RETAINED_TEXTS, len(passages))):
        words = passages[name].text.split()
        start = rng.randrange(max(1, len(words) - RETAINED_WORDS + 1))
        spans.append(" ".join(words[start : start + RETAINED_WORDS]))
    limit = config.encoder.max_passage_tokens
    untouched_RH = encode_texts(encoder, spans, side="query", max_tokens=limit, precision=config.precision)
    return Retained(tokenize(encoder, spans, limit), untouched_RH.clone())


def step_loss(
    encoder: SentenceTransformer,
    config: TrainConfig,
    retained: Retained,
    candidates: Candidates,
    frozen: Mapping[str, torch.Tensor] | None,
    *,
    rank: int,
    world_size: int,
) -> Callable[[torch.nn.Module, Sequence[Group], int], torch.Tensor]:
    """A function (model, groups, step) -> this rank's share of the loss of a step.

    `model` is the encoder, wrapped or not. The mean over ranks is the loss of the whole batch: every
    rank encodes its share of the views and of the passages, gathers the passages of all, and scores
    its own views against every passage. Averaging the gradients over ranks, as DeepSpeed does, gives
    exactly the gradient of one process that holds the whole batch.

    frozen: passage id -> unit vector (H,), where passages are looked up and not encoded.
    """
    pad, settings = pad_id(encoder), config.encoder

    def loss_of(model: torch.nn.Module, groups: Sequence[Group], step: int) -> torch.Tensor:
        batch = make_batch(groups, candidates)
        view_tokens = tokenize(
            encoder,
            [view_text(settings.query_template, view) for view in batch.views],
            settings.max_query_tokens,
        )
        my_views = share_of(list(map(len, view_tokens)), rank, world_size)
        texts = _chosen_texts(len(retained.tokens), config, step)
        my_texts = texts[rank::world_size]

        device = next(model.parameters()).device
        with autocast(config.precision, device):
            own_H = embed(
                model,
                [view_tokens[v] for v in my_views] + [retained.tokens[r] for r in my_texts],
                pad,
                side="query",
                chunk_tokens=CHUNK_TOKENS,
            )
            views_VH, texts_RH = own_H[: len(my_views)], own_H[len(my_views) :]
            if frozen is None:
                passages_DH = encode_among_ranks(model, encoder, batch.passages, config, rank, world_size)
            else:
                passages_DH = torch.stack([frozen[passage.id] for passage in batch.passages]).to(device)

        relation_VD = torch.from_numpy(batch.relation_VD)[my_views].to(device)
        loss_V = info_nce(views_VH.float() @ passages_DH.T, relation_VD, config.loss.temperature)
        loss = loss_V.sum() * (world_size / len(view_tokens))
        if my_texts:
            untouched_RH = retained.untouched_RH[my_texts].to(device)
            share = len(my_texts) * world_size / len(texts)
            loss = loss + config.loss.retention * share * retention(texts_RH, untouched_RH)
        return loss

    return loss_of


def encode_among_ranks(
    model: torch.nn.Module,
    encoder: SentenceTransformer,
    passages: Sequence[Passage],
    config: TrainConfig,
    rank: int,
    world_size: int,
) -> torch.Tensor:
    """Unit vectors (D, H) of the passages on every rank, each encoded once, by one of them."""
    tokens = tokenize(encoder, [passage.full_text for passage in passages], config.encoder.max_passage_tokens)
    shares = [share_of(list(map(len, tokens)), other, world_size) for other in range(world_size)]
    own_DH = embed(
        model, [tokens[d] for d in shares[rank]], pad_id(encoder), side="document", chunk_tokens=CHUNK_TOKENS
    )
    gathered_DH = gather_vectors(own_DH, list(map(len, shares)))
    place = torch.empty(len(passages), dtype=torch.long)
    place[torch.tensor([d for share in shares for d in share])] = torch.arange(len(passages))
    return gathered_DH[place.to(gathered_DH.device)]


def _chosen_texts(num_texts: int, config: TrainConfig, step: int) -> list[int]:
    if config.loss.retention == 0:
        return []
    rng = random.Random(f"{config.seed}:{step}")
    return rng.sample(range(num_texts), min(RETAINED_TEXTS_PER_STEP, num_texts))


def learning_rate_scale(step: int, num_steps: int, warmup_share: float) -> float:
    """Linear warm-up over the first share of the steps, then linear decay to 0."""
    warmup = max(1, round(num_steps * warmup_share))
    return min((step + 1) / warmup, (num_steps - step) / max(1, num_steps - warmup))
