"""What a step sees: a function of (groups, seed, step), whatever the number of ranks."""

# V = views, D = distinct passages of the batch, W = ranks

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby
import random

import numpy as np
from numpy.typing import NDArray

from dualview.config.train import BatchConfig
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
    settings: BatchConfig,
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
    Groups that fill no block or step come first in the next epoch. Groups of different sections, and of
    different parts where batches are homogeneous, never share a step; their steps come in mixed order.

    Raises InputError where a group can never be in a step, and where groups that share no step with others
    do not fill one.
    """

    def __init__(self, prepared: Prepared, settings: BatchConfig, *, homogeneous: bool, seed: int) -> None:
        self._prepared, self._settings, self._seed = prepared, settings, seed
        lane = prepared.section.astype(np.int64) * (1 + int(prepared.part.max()))
        self._lane = lane + prepared.part if homogeneous else lane
        self._refuse_what_never_fits()
        self._begin()
        self._refuse_what_fills_no_step()

    def _begin(self) -> None:
        steps, left = self._plan(0, ())
        self._starts = [0]  # first step of each epoch that was planned
        self._epoch = (0, steps, left)

    def step(self, step: int) -> tuple[int, list[int]]:
        """The epoch of a step, and its groups in order."""
        if step < self._starts[self._epoch[0]]:
            self._begin()
        epoch, steps, left = self._epoch
        while step >= self._starts[epoch] + len(steps):
            self._starts.append(self._starts[epoch] + len(steps))
            epoch += 1
            steps, left = self._plan(epoch, left)
            self._epoch = (epoch, steps, left)
        return epoch, steps[step - self._starts[epoch]]

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

    def uses(self, num_steps: int) -> NDArray[np.int64]:
        """How often each group is in the first num_steps steps; (groups,)."""
        used = np.zeros(self._prepared.num_groups, dtype=np.int64)
        for step in range(num_steps):
            np.add.at(used, self.step(step)[1], 1)
        return used

    def _plan(self, epoch: int, carried: Sequence[int]) -> tuple[list[list[int]], list[int]]:
        """The steps of an epoch, and the groups that are left for the next; carried: what the one before left."""
        rng = random.Random(f"{self._seed}:{epoch}")
        groups = np.repeat(np.arange(self._prepared.num_groups), self._prepared.times)
        late: list[list[int]] = []  # steps with a carried group, and then the others
        steps: list[list[int]] = []
        left: list[int] = []
        for lane in np.unique(self._lane).tolist():
            own = [group for group in carried if self._lane[group] == lane]
            new = groups[self._lane[groups] == lane].tolist()
            rng.shuffle(new)
            of_lane, num_late, left_of_lane = self._fill(own, new, rng)
            late += of_lane[:num_late]
            steps += of_lane[num_late:]
            left += left_of_lane
        rng.shuffle(steps)
        return late + steps, left

    def _fill(
        self, carried: list[int], new: list[int], rng: random.Random
    ) -> tuple[list[list[int]], int, list[int]]:
        """The steps of one lane, how many of them, at the front, hold a carried group, and the groups left over."""
        capacity, num_queries = self._settings.instances, self._settings.queries
        order = [*carried, *new]  # blocks and steps are lists of places in it
        size_of = self._prepared.num_views[order].tolist()
        blocks, left = [[place] for place in range(len(order))], []
        if num_queries:
            blocks = []
            query_of = self._prepared.query[order].tolist()
            by_query = sorted(range(len(order)), key=query_of.__getitem__)  # stable: carried groups first
            for _, own in groupby(by_query, key=query_of.__getitem__):
                places = list(own)
                full, rest = pack([size_of[place] for place in places], capacity // num_queries)
                blocks += [[places[item] for item in block] for block in full]
                left += [places[item] for item in rest]
            rng.shuffle(blocks)
            # Those with the most carried groups first.
            blocks.sort(key=lambda block: sum(place >= len(carried) for place in block))
        full, rest = pack([sum(size_of[place] for place in block) for block in blocks], capacity)
        left += [place for item in rest for place in blocks[item]]
        steps = [[place for item in step for place in blocks[item]] for step in full]
        num_late = sum(min(step) < len(carried) for step in steps)
        steps.sort(key=lambda step: min(step) >= len(carried))
        return (
            [[order[place] for place in step] for step in steps],
            num_late,
            [order[place] for place in sorted(left)],
        )

    def _refuse_what_never_fits(self) -> None:
        """Raises InputError for groups whose size no number of those that may join them makes up to a step."""
        prepared, settings = self._prepared, self._settings
        capacity = settings.instances // (settings.queries or 1)
        query = prepared.query if settings.queries else np.zeros(prepared.num_groups, np.int64)
        kinds, kind_of = np.unique(
            np.stack([self._lane, query, prepared.num_views]), axis=1, return_inverse=True
        )
        sizes: dict[tuple[int, int], list[int]] = {}
        for lane, of_query, size in kinds.T.tolist():
            sizes.setdefault((lane, of_query), []).append(size)
        is_lost = np.array(
            [not _add_up(sizes[lane, of_query], capacity - size) for lane, of_query, size in kinds.T.tolist()]
        )
        lost = np.flatnonzero(is_lost[kind_of.ravel()])
        if not len(lost):
            return
        if settings.queries:
            where = f"a block of {capacity} instances from one query"
            expected = "fewer batch.queries, or batch.queries: null"
        else:
            where = f"a step of {capacity} instances"
            expected = "another number of batch.instances"
        raise InputError(
            f"batch: {len(lost):,} of {prepared.num_groups:,} groups can never be in {where}, for example"
            f" {prepared.group(int(lost[0])).id} of {prepared.num_views[lost[0]]} instances; expected {expected}"
        )

    def _refuse_what_fills_no_step(self) -> None:
        """Raises InputError for groups that share steps with no others and do not fill one in an epoch."""
        prepared, settings = self._prepared, self._settings
        filled = {int(self._lane[step[0]]) for step in self._epoch[1]}
        for lane in np.unique(self._lane).tolist():
            if lane not in filled:
                own = self._lane == lane
                parts = ", ".join(f"mixture.parts.{part}" for part in np.unique(prepared.part[own]))
                raise InputError(
                    f"batch: the {int(own.sum()):,} groups of {parts}, of {len(np.unique(prepared.query[own])):,}"
                    f" queries, do not fill one step of {settings.instances} instances"
                    + (f" from {settings.queries} queries" if settings.queries else "")
                    + "; expected fewer batch.instances, or more data"
                )


def pack(sizes: Sequence[int], capacity: int) -> tuple[list[list[int]], list[int]]:
    """Items, by number and in order, in lists whose sizes add up to exactly `capacity`; and the items left over.

    An item joins a list only where the others can still fill it, so that no list is left open while items
    are there to make a full one.
    """
    queues: dict[int, deque[int]] = {}
    for item, size in enumerate(sizes):
        queues.setdefault(size, deque()).append(item)

    def fits(size: int, room: int) -> bool:
        if size > room or not queues[size]:
            return False
        others = tuple(
            (each, min(len(queue) - (each == size), capacity // each)) for each, queue in queues.items()
        )
        return bool(_sums(others, capacity) >> (room - size) & 1)

    full: list[list[int]] = []
    while True:
        items: list[int] = []
        room = capacity
        while room and (fitting := [size for size in queues if fits(size, room)]):
            size = min(fitting, key=lambda size: queues[size][0])
            items.append(queues[size].popleft())
            room -= size
        if room:  # nothing was taken: no list can be filled any more
            return full, sorted(item for queue in queues.values() for item in queue)
        full.append(items)


def _add_up(sizes: Sequence[int], total: int) -> bool:
    """Whether any numbers of items of these sizes add up to the total."""
    return total >= 0 and bool(_sums(tuple((size, total // size) for size in sizes), total) >> total & 1)


@lru_cache(maxsize=65536)
def _sums(counts: tuple[tuple[int, int], ...], capacity: int) -> int:
    """A number whose bit n says whether some of these items, (size, how many), add up to n; n <= capacity."""
    sums = 1
    for size, count in counts:
        some = 1
        while count:  # 1 + 2 + 4 + ... make every number of them
            some = min(some, count)
            sums |= sums << size * some
            count -= some
            some *= 2
    return sums & ((1 << capacity + 1) - 1)


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
