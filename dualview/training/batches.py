"""The batch of each step: a function of (groups, seed, step), independent of the number of ranks."""

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
    """One step over all ranks. A passage that several groups share occurs once."""

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

        The view's own labels take precedence. Other passages of the same query are labelled by the view's
        requirements if these are known. Otherwise they are left out: they are on topic, so their relevance
        is unknown. Passages of other queries are in-batch negatives, or left out if these are off.
        """
        other_queries = NEGATIVE if self.in_batch_negatives else LEFT_OUT
        relation_VD = np.full((len(views), len(self.passages)), other_queries, dtype=np.int8)
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

    def of_same_query(self, views: Sequence[int]) -> NDArray[np.bool_]:
        """Mask of the passages of each view's query, labelled or left out; (len(views), D)."""
        known_VD = np.zeros((len(views), len(self.passages)), dtype=np.bool_)
        for row, v in enumerate(views):
            known_VD[row, [self._column[passage] for passage in self._of_query[self.views[v][0]]]] = True
        return known_VD

    def margins(self, views: Sequence[int]) -> NDArray[np.float32]:
        """The judge's margins, NaN if it gave none; (len(views), D)."""
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
    """Build the batch of these groups. All views of a group are in it, each scored against every passage.

    num_hard_negatives: by part. A group's hard negatives and the wordings of its views are drawn by
    (seed, group); the caller changes the seed every epoch.
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
    """The groups of step 0, 1, 2, ...; a function of its arguments, so a resumed run needs no saved state.

    An epoch shuffles all groups by (seed, epoch), packs them into blocks of one query (if
    `settings.queries` is set), and packs the blocks into steps of exactly `settings.instances` views.
    Groups that fill no block or step come first in the next epoch. Groups of different sections never
    share a step, nor do those of different parts if batches are homogeneous; their steps are interleaved.

    Raises InputError if a group fits into no step, or if groups that can only share steps with each other
    do not fill one.
    """

    def __init__(self, prepared: Prepared, settings: BatchConfig, *, homogeneous: bool, seed: int) -> None:
        self._prepared, self._settings, self._seed = prepared, settings, seed
        lane = prepared.section.astype(np.int64) * (1 + int(prepared.part.max()))
        self._lane = lane + prepared.part if homogeneous else lane
        self._check_groups_fit()
        self._begin()
        self._check_steps_fill()

    def _begin(self) -> None:
        steps, left = self._plan(0, ())
        self._starts = [0]  # first step of each planned epoch
        self._epoch = (0, steps, left)

    def step(self, step: int) -> tuple[int, list[int]]:
        """The epoch of a step, and the step's groups in order."""
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
        """Steps that spend the one budget that is not None; the last step may exceed a token budget."""
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
        """How often the first num_steps steps use each group; (groups,)."""
        used = np.zeros(self._prepared.num_groups, dtype=np.int64)
        for step in range(num_steps):
            np.add.at(used, self.step(step)[1], 1)
        return used

    def _plan(self, epoch: int, carried: Sequence[int]) -> tuple[list[list[int]], list[int]]:
        """The steps of an epoch, and the groups left for the next; carried: those left by the previous one."""
        rng = random.Random(f"{self._seed}:{epoch}")
        groups = np.repeat(np.arange(self._prepared.num_groups), self._prepared.times)
        late: list[list[int]] = []  # steps with a carried group, which come first
        steps: list[list[int]] = []
        left: list[int] = []
        for lane in np.unique(self._lane).tolist():
            carried_of_lane = [group for group in carried if self._lane[group] == lane]
            new = groups[self._lane[groups] == lane].tolist()
            rng.shuffle(new)
            of_lane, num_late, left_of_lane = self._fill(carried_of_lane, new, rng)
            late += of_lane[:num_late]
            steps += of_lane[num_late:]
            left += left_of_lane
        rng.shuffle(steps)
        return late + steps, left

    def _fill(
        self, carried: list[int], new: list[int], rng: random.Random
    ) -> tuple[list[list[int]], int, list[int]]:
        """The steps of one lane, how many at the front hold a carried group, and the groups left over."""
        capacity, num_queries = self._settings.instances, self._settings.queries
        order = [*carried, *new]  # blocks and steps are lists of indices into it
        size_of = self._prepared.num_views[order].tolist()
        blocks, left = [[place] for place in range(len(order))], []
        if num_queries:
            blocks = []
            query_of = self._prepared.query[order].tolist()
            by_query = sorted(range(len(order)), key=query_of.__getitem__)  # stable: carried groups first
            for _, of_query in groupby(by_query, key=query_of.__getitem__):
                places = list(of_query)
                full, unpacked = pack([size_of[place] for place in places], capacity // num_queries)
                blocks += [[places[item] for item in block] for block in full]
                left += [places[item] for item in unpacked]
            rng.shuffle(blocks)
            # Blocks with the fewest new groups first.
            blocks.sort(key=lambda block: sum(place >= len(carried) for place in block))
        full, unpacked = pack([sum(size_of[place] for place in block) for block in blocks], capacity)
        left += [place for item in unpacked for place in blocks[item]]
        steps = [[place for item in step for place in blocks[item]] for step in full]
        num_late = sum(min(step) < len(carried) for step in steps)
        steps.sort(key=lambda step: min(step) >= len(carried))
        return (
            [[order[place] for place in step] for step in steps],
            num_late,
            [order[place] for place in sorted(left)],
        )

    def _check_groups_fit(self) -> None:
        """Raises InputError if a group and those that may join it cannot add up to a full block or step."""
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
            expected = "a different batch.instances"
        raise InputError(
            f"batch: {len(lost):,} of {prepared.num_groups:,} groups never fit into {where}, for example"
            f" {prepared.group(int(lost[0])).id} with {prepared.num_views[lost[0]]} instances; expected {expected}"
        )

    def _check_steps_fill(self) -> None:
        """Raises InputError if groups that can only share steps with each other fill none in an epoch."""
        prepared, settings = self._prepared, self._settings
        filled = {int(self._lane[step[0]]) for step in self._epoch[1]}
        for lane in np.unique(self._lane).tolist():
            if lane not in filled:
                in_lane = self._lane == lane
                parts = ", ".join(f"mixture.parts.{part}" for part in np.unique(prepared.part[in_lane]))
                raise InputError(
                    f"batch: the {int(in_lane.sum()):,} groups of {parts}"
                    f" ({len(np.unique(prepared.query[in_lane])):,} queries)"
                    f" do not fill one step of {settings.instances} instances"
                    + (f" from {settings.queries} queries" if settings.queries else "")
                    + "; expected fewer batch.instances, or more data"
                )


def pack(sizes: Sequence[int], capacity: int) -> tuple[list[list[int]], list[int]]:
    """Pack items, in order, into lists whose sizes add up to exactly `capacity`.

    Returns the lists, as indices into `sizes`, and the indices left over. An item joins a list only if the
    remaining items can still fill it, so no list stays partial while the remaining items could fill one.
    """
    queues: dict[int, deque[int]] = {}
    for item, size in enumerate(sizes):
        queues.setdefault(size, deque()).append(item)

    def fits(size: int, room: int) -> bool:
        if size > room or not queues[size]:
            return False
        remaining = tuple(
            (other, min(len(queue) - (other == size), capacity // other)) for other, queue in queues.items()
        )
        return bool(_sums(remaining, capacity) >> (room - size) & 1)

    full: list[list[int]] = []
    while True:
        items: list[int] = []
        room = capacity
        while room and (fitting := [size for size in queues if fits(size, room)]):
            size = min(fitting, key=lambda size: queues[size][0])
            items.append(queues[size].popleft())
            room -= size
        if room:  # no item was taken: no further list can be filled
            return full, sorted(item for queue in queues.values() for item in queue)
        full.append(items)


def _add_up(sizes: Sequence[int], total: int) -> bool:
    """Whether items of these sizes, any number of each, can add up to the total."""
    return total >= 0 and bool(_sums(tuple((size, total // size) for size in sizes), total) >> total & 1)


@lru_cache(maxsize=65536)
def _sums(counts: tuple[tuple[int, int], ...], capacity: int) -> int:
    """Subset sums of the items, given as (size, count): bit n is set if some add up to n; n <= capacity."""
    sums = 1
    for size, count in counts:
        taken = 1
        while count:  # 1 + 2 + 4 + ... compose every count
            taken = min(taken, count)
            sums |= sums << size * taken
            count -= taken
            taken *= 2
    return sums & ((1 << capacity + 1) - 1)


def deal(
    lengths: Sequence[int], world_size: int, chunk_tokens: int, *, padded: bool
) -> list[list[tuple[int, ...]]]:
    """For each rank, the chunks of texts that it encodes, as indices into `lengths`.

    Texts of similar length share a chunk of at most chunk_tokens tokens, padding included if `padded`, or a single
    longer text. All ranks get the same number of non-empty chunks of similar cost, because at ZeRO stage 3
    every forward pass is a collective operation. Raises InputError if there are fewer texts than ranks.
    """
    if len(lengths) < world_size:
        raise InputError(
            f"workers.num: {world_size} ranks cannot share a step of {len(lengths)} texts; expected at most"
            f" {len(lengths)} workers, or a larger batch"
        )
    order = sorted(range(len(lengths)), key=lambda n: (lengths[n], n))
    bounds = [0]
    tokens_of = [0] * world_size  # by rank, of the strip since the last bound
    for stop in range(1, len(order) + 1):
        whole_rows, rank = divmod(stop - 1 - bounds[-1], world_size)
        longest = lengths[order[stop - 1]]
        tokens_of[rank] += longest
        tokens = (whole_rows + 1) * longest if padded else tokens_of[rank]
        if whole_rows and tokens > chunk_tokens:
            bounds.append(bounds[-1] + whole_rows * world_size)
            begun = [lengths[n] for n in order[bounds[-1] : stop]]
            tokens_of = [sum(begun[rank::world_size]) for rank in range(world_size)]
    if len(bounds) > 1 and len(order) - bounds[-1] < world_size:
        bounds.pop()  # a remainder smaller than world_size joins the previous chunks
    strips = [order[start:stop] for start, stop in zip(bounds, [*bounds[1:], len(order)], strict=True)]
    return [[tuple(strip[rank::world_size]) for strip in strips] for rank in range(world_size)]
