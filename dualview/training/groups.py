"""A group: the passages of one seed once, and the views that label them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
import random
from typing import Literal

from dualview.config import Mixture
from dualview.errors import InputError
from dualview.records import DualView, Passage, Requirement

POSITIVE, NEGATIVE, LEFT_OUT = 1, -1, 0


@dataclass(frozen=True, slots=True)
class View:
    """A query with one instruction, and how it labels the group's passages."""

    query: str
    instruction: str
    labels: Mapping[str, int]  # passage id -> POSITIVE or NEGATIVE; absent: left out
    requirements: tuple[Requirement, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Any number of views over shared passages. A dual view has two of each, at the least."""

    id: str
    query_id: str
    passages: tuple[Passage, ...]
    views: tuple[View, ...]


def group_of(rows: Sequence[DualView], views: Literal["both", "original"], num_hard_negatives: int) -> Group:
    """The group of a seed's finished rows: its original view and, for "both", each row's complementary one.

    The seed's instruction negatives come first, then `num_hard_negatives` of its hard negatives.
    Those are labelled in the original view only: nobody has judged them under the new instruction.
    """
    seed = rows[0].seed
    hard = seed.hard_negatives[:num_hard_negatives]
    original = {passage.id: NEGATIVE for passage in (*seed.instruction_negatives, *hard)}
    original[seed.positive.id] = POSITIVE
    made = [View(seed.query, seed.instruction, original, seed.requirements)]
    if views == "both":
        for row in rows:
            swapped = {passage.id: NEGATIVE for passage in (seed.positive, *seed.instruction_negatives)}
            swapped[row.target_id] = POSITIVE
            made.append(View(seed.query, row.new_instruction, swapped, row.new_requirements))
    return Group(seed.id, seed.query_id, (seed.positive, *seed.instruction_negatives, *hard), tuple(made))


def mix(rows: Iterable[DualView], mixture: Mixture, seed: int) -> list[Group]:
    """Groups with exactly `num_instances` views, drawn from the trainable rows by `seed`.

    Every arm of a comparison draws the same seeds in the same order: an arm of original views goes
    through twice as many as an arm of both views at the same budget. Where the last group has more
    views than the budget has left, its last rows are left out.
    Raises InputError where the data holds too few, or the budget would leave an original view alone.
    """
    of_seed: dict[str, list[DualView]] = {}
    for row in rows:
        if row.trainable:
            of_seed.setdefault(row.seed.id, []).append(row)
    drawn = [of_seed[id] for id in sorted(of_seed)]
    random.Random(seed).shuffle(drawn)
    groups: list[Group] = []
    left = mixture.num_instances
    for rows_of_seed in drawn:
        if left < (2 if mixture.views == "both" else 1):
            break
        kept = rows_of_seed[: left - 1] if mixture.views == "both" else rows_of_seed
        groups.append(group_of(kept, mixture.views, mixture.num_hard_negatives))
        left -= len(groups[-1].views)
    if left:
        each = "at least 2 instances, its views" if mixture.views == "both" else "1 instance"
        raise InputError(
            f"mixture.num_instances: {mixture.num_instances} was asked for, but {mixture.data} fills"
            f" {mixture.num_instances - left} from {len(drawn)} seeds with trainable rows, a seed giving"
            f" {each}; expected a number that it can fill exactly, for example {mixture.num_instances - left}"
        )
    return groups
