"""What a step sees: a function of (groups, seed, step), whatever the number of ranks."""

# V = views, D = distinct passages of the batch, W = ranks

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
import random

import numpy as np
from numpy.typing import NDArray

from dualview.config.train import Batch as BatchSettings
from dualview.errors import InputError
from dualview.records import all_hold
from dualview.training.groups import LEFT_OUT, NEGATIVE, POSITIVE
from dualview.training.prepared import Prepared, TokenGroup, TokenView

_LABEL_OF = {True: POSITIVE, False: NEGATIVE, None: LEFT_OUT}


@dataclass(frozen=True)
class Batch:
    """A whole step over all ranks: each passage once, however many groups share it."""

    group_ids: tuple[str, ...]
    views: tuple[tuple[int, TokenView], ...]  # (query, view)
    view_tokens: tuple[NDArray[np.int32], ...]
    passages: tuple[int, ...]
    prepared: Prepared
    in_batch_negatives: bool

    @cached_property
    def _column(self) -> dict[int, int]:
        return {passage: d for d, passage in enumerate(self.passages)}

    @cached_property
    def _of_query(self) -> dict[int, list[int]]:
        return {
            query: [passage for passage in self.prepared.passages_of(query) if passage in self._column]
            for query in dict.fromkeys(query for query, _ in self.views)
        }

    def relation(self, views: Sequence[int]) -> NDArray[np.int8]:
        """Rows of the relation matrix: 1 positive, -1 negative, 0 left out; (len(views), D).

        A view's own labels come first. Other passages of the same query are labelled by the view's
        requirements, where they are known, and left out where they are not: they are on topic, so nothing
        else tells. Passages of other queries are negatives, or left out without in-batch negatives.
        """
        others = NEGATIVE if self.in_batch_negatives else LEFT_OUT
        relation_VD = np.full((len(views), len(self.passages)), others, dtype=np.int8)
        for row, v in enumerate(views):
            query, view = self.views[v]
            for passage in self._of_query[query]:
                label = view.labels.get(passage)
                if label is None:
                    held = (
                        all_hold(view.requirements, self.prepared.attributes(passage))
                        if view.requirements
                        else None
                    )
                    label = _LABEL_OF[held]
                relation_VD[row, self._column[passage]] = label
        return relation_VD

    def labelled(self, views: Sequence[int]) -> NDArray[np.bool_]:
        """Where something is known of a passage: it is on the view's topic, labelled or left out."""
        known_VD = np.zeros((len(views), len(self.passages)), dtype=np.bool_)
        for row, v in enumerate(views):
            known_VD[row, [self._column[passage] for passage in self._of_query[self.views[v][0]]]] = True
        return known_VD

    def margins(self, views: Sequence[int]) -> NDArray[np.float32]:
        """The judge's margins, NaN where it gave none."""
        margins_VD = np.full((len(views), len(self.passages)), np.nan, dtype=np.float32)
        for row, v in enumerate(views):
            for passage, margin in self.views[v][1].margins.items():
                if passage in self._column:
                    margins_VD[row, self._column[passage]] = margin
        return margins_VD


def make_batch(
    prepared: Prepared,
    groups: Sequence[TokenGroup],
    settings: BatchSettings,
    num_hard_negatives: Sequence[int],
    seed: str,
) -> Batch:
    """Both views of a group stand in one batch, and every passage of the batch meets every view.

    num_hard_negatives: by part. Which of a group's hard negatives are shown, and in which wording a view,
    is drawn by (seed, group); a caller changes the seed from epoch to epoch.
    """
    passages: dict[int, None] = {}
    tokens = []
    for group in groups:
        rng = random.Random(f"{seed}:{group.id}")
        wanted = num_hard_negatives[prepared.part[group.index]]
        hard = group.hard_negatives
        shown = hard if wanted >= len(hard) else rng.sample(hard, wanted)
        passages |= dict.fromkeys((*group.passages, *shown))
        tokens += [rng.choice(view.wordings) for view in group.views]
    if settings.candidates == "queries":
        for query in dict.fromkeys(group.query for group in groups):
            passages |= dict.fromkeys(prepared.passages_of(query))
    return Batch(
        tuple(group.id for group in groups),
        tuple((group.query, view) for group in groups for view in group.views),
        tuple(tokens),
        tuple(passages),
        prepared,
        settings.negatives != "own",
    )


class Sampler:
    """Which groups make up step 0, 1, 2, ...; a function of its arguments, so that resuming is asking again.

    An epoch deals all groups, in an order drawn from (seed, epoch), into blocks of one query (where
    `settings.queries` asks for that) and the blocks into steps of exactly `settings.instances` views.
    Groups that fill no block or step wait for the next epoch. Groups of different sections, and of
    different parts where batches are homogeneous, never share a step; an epoch goes section by section.
    """

    def __init__(self, prepared: Prepared, settings: BatchSettings, *, homogeneous: bool, seed: int) -> None:
        self._prepared, self._settings, self._seed = prepared, settings, seed
        self._homogeneous = homogeneous
        self._starts = [0]  # first step of each epoch that was planned
        self._epoch: tuple[int, list[list[int]]] = (0, self._plan(0))
        if not self._epoch[1]:
            raise InputError(
                f"batch: {prepared.num_groups:,} groups of {len(set(prepared.query.tolist())):,} queries do not fill"
                f" one step of {settings.instances} instances"
                + (f" from {settings.queries} queries" if settings.queries else "")
            )

    def step(self, step: int) -> tuple[int, list[int]]:
        """The epoch of a step, and its groups in order."""
        epoch, plan = self._epoch
        if step < self._starts[epoch]:
            epoch, plan = 0, self._plan(0)
        while step >= self._starts[epoch] + len(plan):
            if epoch + 1 == len(self._starts):
                self._starts.append(self._starts[epoch] + len(plan))
            epoch += 1
            plan = self._plan(epoch)
        self._epoch = (epoch, plan)
        return epoch, plan[step - self._starts[epoch]]

    def num_steps(self, *, instances: int | None, tokens: int | None, steps: int | None) -> int:
        """The steps that spend the one budget which is not None; the last may go beyond a budget of tokens."""
        if steps is not None:
            return steps
        if instances is not None:
            return instances // self._settings.instances
        spent, step = 0, 0
        of_group = self._prepared.num_tokens()
        while spent < (tokens or 0):
            spent += int(of_group[self.step(step)[1]].sum())
            step += 1
        return step

    def _plan(self, epoch: int) -> list[list[int]]:
        prepared, capacity, num_queries = self._prepared, self._settings.instances, self._settings.queries
        rng = random.Random(f"{self._seed}:{epoch}")
        groups = np.repeat(np.arange(prepared.num_groups), prepared.times)
        lane = prepared.section.astype(np.int64) * (1 + int(prepared.part.max()))
        if self._homogeneous:
            lane = lane + prepared.part
        plan: list[list[int]] = []
        for section in np.unique(prepared.section).tolist():
            steps: list[list[int]] = []
            for own in np.unique(lane[prepared.section == section]).tolist():
                order = groups[lane[groups] == own].tolist()
                rng.shuffle(order)
                blocks = [[group] for group in order]
                if num_queries:
                    blocks = []
                    order.sort(key=prepared.query.__getitem__)  # stable: shuffled within a query
                    for members in _runs(order, prepared.query):
                        blocks += pack(
                            [[member] for member in members], prepared.num_views, capacity // num_queries
                        )
                    rng.shuffle(blocks)
                steps += pack(blocks, prepared.num_views, capacity)
            rng.shuffle(steps)
            plan += steps
        return plan


def _runs(order: Sequence[int], query: NDArray[np.int64]) -> Iterator[list[int]]:
    """Neighbours of the same query."""
    run: list[int] = []
    for group in order:
        if run and query[run[-1]] != query[group]:
            yield run
            run = []
        run.append(group)
    if run:
        yield run


def pack(blocks: Iterable[list[int]], size: NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Blocks joined, in order, into lists whose sizes add up to exactly `capacity`.

    A block that does not fit waits for the next list; one that is too large, and what fills no list, is
    left out.
    """
    full: list[list[int]] = []
    current: list[int] = []
    room = capacity
    waiting: list[tuple[int, list[int]]] = []
    for block in blocks:
        needed = int(sum(size[group] for group in block))
        if needed > capacity:
            continue
        if needed > room:
            waiting.append((needed, block))
            continue
        current, room = current + block, room - needed
        if room:
            continue
        full.append(current)
        current, room = [], capacity
        still: list[tuple[int, list[int]]] = []
        for needed, block in waiting:
            if needed <= room:
                current, room = current + block, room - needed
            else:
                still.append((needed, block))
            if not room:
                full.append(current)
                current, room = [], capacity
        waiting = still
    return full


def deal(lengths: Sequence[int], world_size: int, chunk_tokens: int) -> list[list[tuple[int, ...]]]:
    """For each rank the chunks of texts that it encodes, by place.

    Texts of like length share a chunk of at most chunk_tokens tokens, padding counted (one text at the
    least). All ranks have the same number of chunks, none of them empty, of equal work: at ZeRO stage 3
    every forward pass is a meeting of all ranks. Raises InputError for fewer texts than ranks.
    """
    if len(lengths) < world_size:
        raise InputError(
            f"workers.num: {world_size} ranks cannot share a step of {len(lengths)} texts; expected at most"
            f" {len(lengths)} workers, or a larger batch"
        )
    order = sorted(range(len(lengths)), key=lambda n: (lengths[n], n))
    bounds = [0]
    for stop in range(1, len(order) + 1):
        whole_rows = (stop - 1 - bounds[-1]) // world_size
        rows = -(-(stop - bounds[-1]) // world_size)
        if whole_rows and rows * lengths[order[stop - 1]] > chunk_tokens:
            bounds.append(bounds[-1] + whole_rows * world_size)
    if len(bounds) > 1 and len(order) - bounds[-1] < world_size:
        bounds.pop()  # a rest smaller than the ranks joins the chunks before it
    strips = [order[start:stop] for start, stop in zip(bounds, [*bounds[1:], len(order)], strict=True)]
    return [[tuple(strip[rank::world_size]) for strip in strips] for rank in range(world_size)]
