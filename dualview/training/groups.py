"""A group: the passages of one seed once, and the views that label them."""

from collections.abc import Iterable, Mapping
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


def group_of(row: DualView, views: Literal["both", "original"], num_hard_negatives: int) -> Group:
    """The group of a finished row: its original view and, for "both", the complementary one.

    The seed's instruction negatives come first, then `num_hard_negatives` of its hard negatives.
    Those are labelled in the original view only: nobody has judged them under the new instruction.
    """
    seed = row.seed
    hard = seed.hard_negatives[:num_hard_negatives]
    original = {passage.id: NEGATIVE for passage in (*seed.instruction_negatives, *hard)}
    original[seed.positive.id] = POSITIVE
    made = [View(seed.query, seed.instruction, original, seed.requirements)]
    if views == "both":
        swapped = {passage.id: NEGATIVE for passage in (seed.positive, *seed.instruction_negatives)}
        swapped[row.target_id] = POSITIVE
        made.append(View(seed.query, row.new_instruction, swapped, row.new_requirements))
    return Group(seed.id, seed.query_id, (seed.positive, *seed.instruction_negatives, *hard), tuple(made))


def mix(rows: Iterable[DualView], mixture: Mixture, seed: int) -> list[Group]:
    """Groups with exactly `num_instances` views, drawn from the trainable rows by `seed`.

    Every arm of a comparison draws the same rows in the same order: an arm of original views goes
    through twice as many seeds as an arm of both views at the same budget.
    Raises InputError where the data holds too few.
    """
    per_group = 2 if mixture.views == "both" else 1
    trainable = [row for row in rows if row.trainable]
    if mixture.num_instances % per_group or mixture.num_instances > per_group * len(trainable):
        raise InputError(
            f"mixture.num_instances: {mixture.num_instances} was asked for, but {mixture.data} holds"
            f" {len(trainable)} trainable rows of {per_group} instance(s) each; expected a multiple of"
            f" {per_group} up to {per_group * len(trainable)}"
        )
    trainable.sort(key=lambda row: row.seed.id)
    random.Random(seed).shuffle(trainable)
    return [
        group_of(row, mixture.views, mixture.num_hard_negatives)
        for row in trainable[: mixture.num_instances // per_group]
    ]
