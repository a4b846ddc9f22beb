"""The loss of one step, as one rank computes its share of it."""

# V = views, D = passages of the batch, H = embedding size, R = retained texts

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import random

from sentence_transformers import SentenceTransformer
import torch

from dualview.config import TrainConfig
from dualview.encoder import autocast, embed, encode_texts, pad_id, tokenize
from dualview.training.batches import Batch, make_batch, share_of
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
    untouched_RH = encode_texts(encoder, spans, max_tokens=limit, precision=config.precision)
    return Retained(tokenize(encoder, spans, limit), untouched_RH.clone())


def rank_loss(
    model: torch.nn.Module,
    batch_tokens: tuple[list[list[int]], list[list[int]]],
    relation_VD: torch.Tensor,
    retained: tuple[list[list[int]], torch.Tensor],
    config: TrainConfig,
    *,
    pad: int,
    rank: int,
    world_size: int,
) -> torch.Tensor:
    """This rank's share of the loss of a step: the mean over ranks is the loss of the whole batch.

    Every rank encodes its share of the views and of the passages, gathers the passages of all, and
    scores its own views against every passage. Averaging the gradients over ranks, as DeepSpeed
    does, gives exactly the gradient of one process that holds the whole batch.
    """
    view_tokens, passage_tokens = batch_tokens
    my_views = share_of([len(tokens) for tokens in view_tokens], rank, world_size)
    lengths = [len(tokens) for tokens in passage_tokens]
    shares = [share_of(lengths, other, world_size) for other in range(world_size)]
    texts_RH, untouched_RH = retained
    my_texts = range(len(texts_RH))[rank::world_size]

    device = next(model.parameters()).device
    with autocast(config.precision, device):
        own_VH = embed(
            model,
            [view_tokens[v] for v in my_views] + [texts_RH[r] for r in my_texts],
            pad,
            chunk_tokens=CHUNK_TOKENS,
        )
        own_DH = embed(model, [passage_tokens[d] for d in shares[rank]], pad, chunk_tokens=CHUNK_TOKENS)
    views_VH, texts_here_RH = own_VH[: len(my_views)], own_VH[len(my_views) :]
    passages_DH = gather_vectors(own_DH, [len(share) for share in shares])
    order = torch.tensor([d for share in shares for d in share])

    loss_V = info_nce(
        views_VH @ passages_DH.T, relation_VD[my_views][:, order].to(device), config.loss.temperature
    )
    loss = loss_V.sum() * (world_size / len(view_tokens))
    if len(my_texts):
        share = len(my_texts) * world_size / len(texts_RH)
        anchors_RH = untouched_RH[list(my_texts)].to(device)
        loss = loss + config.loss.retention * share * retention(texts_here_RH, anchors_RH)
    return loss


def step_loss(
    encoder: SentenceTransformer, retained: Retained, config: TrainConfig, *, rank: int, world_size: int
) -> Callable[[torch.nn.Module, Sequence[Group], int], torch.Tensor]:
    """A function (model, groups, step) -> this rank's loss; `model` is the encoder, wrapped or not."""
    settings = config.encoder

    def loss_of(model: torch.nn.Module, groups: Sequence[Group], step: int) -> torch.Tensor:
        batch: Batch = make_batch(groups)
        views = [view_text(settings.query_template, view) for view in batch.views]
        passages = [passage.full_text for passage in batch.passages]
        chosen = _chosen_texts(len(retained.tokens), config, step)
        return rank_loss(
            model,
            (
                tokenize(encoder, views, settings.max_query_tokens),
                tokenize(encoder, passages, settings.max_passage_tokens),
            ),
            torch.from_numpy(batch.relation_VD),
            ([retained.tokens[r] for r in chosen], retained.untouched_RH[chosen]),
            config,
            pad=pad_id(encoder),
            rank=rank,
            world_size=world_size,
        )

    return loss_of


def _chosen_texts(num_texts: int, config: TrainConfig, step: int) -> list[int]:
    if config.loss.retention == 0:
        return []
    rng = random.Random(f"{config.seed}:{step}")
    return rng.sample(range(num_texts), min(RETAINED_TEXTS_PER_STEP, num_texts))


def learning_rate_scale(step: int, num_steps: int, warmup_share: float) -> float:
    """Linear warm-up over the first share of the steps, then linear decay to 0."""
    warmup = max(1, round(num_steps * warmup_share))
    return min((step + 1) / warmup, (num_steps - step) / max(1, num_steps - warmup))
