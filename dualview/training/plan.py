"""Plan a rank's work for a step: the texts it encodes, the views it scores, and their labels."""

# V = views, D = passages of the batch, H = embedding size

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import random

import numpy as np
from numpy.typing import NDArray
import torch

from dualview.config.train import TrainConfig
from dualview.errors import InputError
from dualview.models import Side
from dualview.retrieval.encoder import Tokens
from dualview.training.batches import Batch, deal, make_batch
from dualview.training.groups import POSITIVE
from dualview.training.prepared import Prepared

RETAINED_TEXTS_PER_STEP = 8


@dataclass(frozen=True)
class Texts:
    """The texts of a step, split into chunks over ranks. Chunks and order hold indices into `tokens`."""

    side: Side
    tokens: Sequence[Tokens]
    chunks: Sequence[tuple[int, ...]]  # this rank's
    order: Sequence[int]  # texts of all ranks, in rank order
    counts: Sequence[int]  # texts by rank

    @property
    def places(self) -> list[int]:
        """Indices of this rank's texts, in chunk order."""
        return [place for chunk in self.chunks for place in chunk]

    @property
    def rows(self) -> torch.Tensor:
        """For each text, the row of its vector among the vectors of all ranks, in rank order."""
        return torch.from_numpy(np.argsort(self.order))


def share_texts(
    side: Side, tokens: Sequence[Tokens], rank: int, world_size: int, chunk_tokens: int, *, padded: bool
) -> Texts:
    dealt = deal([len(text) for text in tokens], world_size, chunk_tokens, padded=padded)
    of_ranks = [[place for chunk in chunks for place in chunk] for chunks in dealt]
    order = [place for places in of_ranks for place in places]
    return Texts(side, tokens, dealt[rank], order, [len(places) for places in of_ranks])


@dataclass(frozen=True)
class Work:
    """All that a rank needs for a step; prepared while the previous step computes."""

    batch: Batch
    queries: Texts  # the views, then the retained texts
    passages: Texts | None  # None: their vectors are looked up
    retained: Sequence[int]
    num_tokens: int  # of all ranks
    padding_share: float  # of the tokens that this rank encodes
    views: Sequence[int]  # this rank's
    view_rows: torch.Tensor  # of their vectors, among this rank's queries
    retained_rows: torch.Tensor
    relation_VD: torch.Tensor
    known_VD: torch.Tensor | None
    margins_VD: torch.Tensor | None
    frozen_DH: torch.Tensor | None
    num_views: int  # of all ranks
    seed: int

    @property
    def texts(self) -> list[Texts]:
        """The texts to encode: queries, and passages unless their vectors are looked up."""
        return [self.queries] if self.passages is None else [self.queries, self.passages]

    @property
    def chunks(self) -> list[tuple[int, int]]:
        """This rank's chunks, as (index into `texts`, index into its chunks)."""
        return [
            (side, number) for side, texts in enumerate(self.texts) for number in range(len(texts.chunks))
        ]


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
    padded: bool = True,
) -> Work:
    """A rank's share of a step. padded: whether the encoder pads the texts of a chunk to the longest.

    With negatives "worker", a rank takes every world_size-th group and does not see other ranks' passages;
    raises InputError if there are then fewer groups than ranks.
    """
    settings = config.batch
    alone = settings.negatives == "worker"
    members = [prepared.group(index) for index in groups]
    if alone:
        _check_shares(len(members), world_size)
    num_hard_negatives = [part.num_hard_negatives for part in config.mixture.parts]
    shown = members[rank::world_size] if alone else members
    batch = make_batch(prepared, shown, settings, num_hard_negatives, f"{config.seed}:{epoch}")
    retained = retained_of_step(len(retained_tokens), config, step)
    if alone:
        retained = retained[rank::world_size]
    sharing = (0, 1) if alone else (rank, world_size)
    query_tokens: list[Tokens] = [*batch.view_tokens, *(retained_tokens[text] for text in retained)]
    queries = share_texts("query", query_tokens, *sharing, settings.chunk_tokens, padded=padded)
    passages = None
    if frozen is None:
        passage_tokens = [prepared.tokens(passage) for passage in batch.passages]
        passages = share_texts("document", passage_tokens, *sharing, settings.chunk_tokens, padded=padded)
    encoded = [texts for texts in (queries, passages) if texts is not None]
    views = [place for place in queries.places if place < len(batch.views)]
    is_view = np.array(queries.places) < len(batch.views)
    relation_VD = batch.relation(views)
    if not (relation_VD == POSITIVE).any(axis=1).all():
        raise ValueError("a view has no positive among the passages of its batch; this is a bug")
    leaves_out, distils = config.loss.false_negative_margin is not None, bool(config.loss.distillation)
    return Work(
        batch=batch,
        queries=queries,
        passages=passages,
        retained=retained,
        num_tokens=sum(len(text) for texts in encoded for text in texts.tokens)
        * (world_size if alone else 1),
        padding_share=_padding_share(encoded) if padded else 0.0,
        views=views,
        view_rows=torch.from_numpy(is_view.nonzero()[0]),
        retained_rows=torch.from_numpy((~is_view).nonzero()[0]),
        relation_VD=torch.from_numpy(relation_VD),
        known_VD=torch.from_numpy(batch.of_same_query(views)) if leaves_out else None,
        margins_VD=torch.from_numpy(batch.margins(views)) if distils else None,
        frozen_DH=torch.from_numpy(frozen(batch.passages)) if frozen is not None else None,
        num_views=sum(len(group.views) for group in members),
        seed=random.Random(f"{config.seed}:{step}:{rank}").getrandbits(62),
    )


def _check_shares(num_groups: int, world_size: int) -> None:
    if num_groups < world_size:
        raise InputError(
            f"workers.num: {world_size} ranks cannot share a step of {num_groups} groups with negatives: worker;"
            f" expected at most {num_groups} workers, or a larger batch.instances"
        )


def _padding_share(shared: Sequence[Texts]) -> float:
    lengths = [[len(texts.tokens[place]) for place in chunk] for texts in shared for chunk in texts.chunks]
    return 1.0 - sum(map(sum, lengths)) / sum(len(chunk) * max(chunk) for chunk in lengths)


def retained_of_step(num_texts: int, config: TrainConfig, step: int) -> list[int]:
    if config.loss.base_distillation == 0:
        return []
    rng = random.Random(f"{config.seed}:{step}")
    return rng.sample(range(num_texts), min(RETAINED_TEXTS_PER_STEP, num_texts))
