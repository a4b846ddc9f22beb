"""What a step sees: a function of (groups, seed, step), whatever the number of ranks."""

# V = views of the batch, D = distinct passages of the batch

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
import random

import numpy as np
from numpy.typing import NDArray

from dualview.errors import InputError
from dualview.records import Passage, all_hold
from dualview.training.groups import LEFT_OUT, NEGATIVE, POSITIVE, Group, View


@dataclass(frozen=True)
class Batch:
    """The whole step, over all ranks: each passage once, however many groups share it."""

    views: tuple[View, ...]
    passages: tuple[Passage, ...]
    relation_VD: NDArray[np.int8]


Candidates = Mapping[str, Sequence[Passage]]  # query id -> every passage that is on its topic


def candidates_of(groups: Iterable[Group]) -> Candidates:
    """All passages that the groups of a query have among them, by id."""
    by_query: defaultdict[str, dict[str, Passage]] = defaultdict(dict)
    for group in groups:
        by_query[group.query_id].update((passage.id, passage) for passage in group.passages)
    return {query_id: [passages[id] for id in sorted(passages)] for query_id, passages in by_query.items()}


def make_batch(groups: Sequence[Group], candidates: Candidates) -> Batch:
    """Both views of a group stand in one batch, and every passage of the batch meets every view.

    The passages are those of the groups, and those that `candidates` (which may be empty) has for
    their queries. A view labels the passages of its own group. Other passages of the same query are
    labelled by the view's requirements, where they are known, and left out where they are not: they
    are on topic, so nothing else tells. Passages of other queries are negatives.
    """
    passages: dict[str, Passage] = {}
    queries_of: defaultdict[str, set[str]] = defaultdict(set)
    for query_id in dict.fromkeys(group.query_id for group in groups):
        own = (passage for group in groups if group.query_id == query_id for passage in group.passages)
        for passage in chain(own, candidates.get(query_id, ())):
            passages.setdefault(passage.id, passage)
            queries_of[passage.id].add(query_id)
    views = [(group.query_id, view) for group in groups for view in group.views]
    relation_VD = np.full((len(views), len(passages)), NEGATIVE, dtype=np.int8)
    for v, (query_id, view) in enumerate(views):
        for d, passage in enumerate(passages.values()):
            if passage.id in view.labels:
                relation_VD[v, d] = view.labels[passage.id]
            elif query_id in queries_of[passage.id]:
                relation_VD[v, d] = _LABEL_OF[all_hold(view.requirements, passage.attributes)]
    return Batch(tuple(view for _, view in views), tuple(passages.values()), relation_VD)


_LABEL_OF = {True: POSITIVE, False: NEGATIVE, None: LEFT_OUT}


class Sampler:
    """Which groups make up step 0, 1, 2, ...; no state, so that resuming is asking again.

    An epoch deals every query's groups, in an order drawn from (seed, epoch), into blocks of one
    query, and the blocks into steps of `queries` blocks. Groups left over at the end of a query or
    an epoch wait for the next epoch.
    """

    def __init__(self, groups: Sequence[Group], *, instances: int, queries: int, seed: int) -> None:
        self.groups = groups
        self.seed = seed
        self.instances = instances
        self.blocks_per_step = queries
        views_per_group = max((len(group.views) for group in groups), default=1)
        if instances % (queries * views_per_group):
            raise InputError(
                f"batch.instances: {instances} cannot be dealt evenly to {queries} queries with groups of"
                f" {views_per_group} views; expected a multiple of {queries * views_per_group}"
            )
        self.groups_per_block = instances // (queries * views_per_group)
        self.of_query: defaultdict[str, list[int]] = defaultdict(list)
        for index, group in enumerate(groups):
            self.of_query[group.query_id].append(index)
        num_blocks = sum(len(members) // self.groups_per_block for members in self.of_query.values())
        self.steps_per_epoch = num_blocks // queries
        if self.steps_per_epoch == 0:
            raise InputError(
                f"batch: {len(groups)} groups of {len(self.of_query)} queries do not fill one step of"
                f" {queries} queries x {self.groups_per_block} groups"
            )
        self._epoch_blocks: tuple[int, list[list[int]]] = (-1, [])

    def steps_for(self, num_instances: int) -> int:
        """The steps that spend this budget. Raises InputError where it is not a multiple of a step's."""
        if num_instances % self.instances:
            raise InputError(
                f"mixture.num_instances: {num_instances} is not a multiple of batch.instances,"
                f" {self.instances}; for example {num_instances - num_instances % self.instances}"
            )
        return num_instances // self.instances

    def step(self, step: int) -> list[Group]:
        """The groups of one step, in order."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if self._epoch_blocks[0] != epoch:
            self._epoch_blocks = (epoch, list(self._blocks(epoch)))
        start = within * self.blocks_per_step
        blocks = self._epoch_blocks[1][start : start + self.blocks_per_step]
        return [self.groups[index] for block in blocks for index in block]

    def _blocks(self, epoch: int) -> Iterator[list[int]]:
        rng = random.Random(f"{self.seed}:{epoch}")
        blocks = []
        for query_id in sorted(self.of_query):
            members = self.of_query[query_id].copy()
            rng.shuffle(members)
            size = self.groups_per_block
            blocks += [members[n : n + size] for n in range(0, len(members) - size + 1, size)]
        rng.shuffle(blocks)
        return iter(blocks)


def share_of(lengths: Sequence[int], rank: int, world_size: int) -> list[int]:
    """Which items this rank encodes: dealt out by length, so that every rank gets the same work.

    The shares of all ranks differ in size by one at the most and make up the whole.
    """
    order = sorted(range(len(lengths)), key=lambda n: (lengths[n], n))
    return order[rank::world_size]
