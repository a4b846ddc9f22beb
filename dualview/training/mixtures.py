"""Which examples of which sources a run trains on: exact counts of instances, or shares of a budget."""

from collections.abc import Mapping
from dataclasses import dataclass
import random

from dualview.config.train import Part, TrainConfig
from dualview.errors import InputError


@dataclass(slots=True)
class Draw:
    """How a part uses one of its examples."""

    num_rows: int  # the first so many of its trainable rows
    times: int = 1  # in an epoch


def num_views(part: Part, num_rows: int) -> int:
    """Instances of an example with so many rows: its original view and a complementary one for each row."""
    return 1 + num_rows if part.views in ("both", "apart") else 1


def instances_of_parts(config: TrainConfig) -> list[int]:
    """How many instances each part is to give: its own number, or its share of the budget, rounded down."""
    parts = config.mixture.parts
    if parts[0].weight is None:
        return [part.num_instances or 0 for part in parts]
    total = config.budget.instances or (config.budget.steps or 0) * config.batch.instances
    weights = [part.weight or 0.0 for part in parts]
    return [int(total * weight / sum(weights)) for weight in weights]


def draw(part: Part, num_rows_of: Mapping[str, int], num_instances: int, seed: int) -> dict[str, Draw]:
    """The examples that give `num_instances`, in an order drawn by `example`; num_rows_of: of its trainable rows.

    Every arm of a comparison draws the same examples first: an arm of original views goes through twice as
    many as an arm of both views at the same budget. A part with num_instances gives just that many: where
    the last example has more views than are left, its last rows are left out, and InputError is raised where
    the data holds too few, or an original view would stand alone. A part with a weight gives whole examples,
    again and again where there are too few.
    """
    order = sorted(num_rows_of)
    random.Random(seed).shuffle(order)
    drawn: dict[str, Draw] = {}
    left, least = num_instances, num_views(part, 1)
    while order and left >= least:
        before = left
        for id in order:
            views = num_views(part, num_rows_of[id])
            if left < (views if part.weight is not None else least):
                break
            if id in drawn:
                drawn[id].times += 1
            else:
                drawn[id] = Draw(num_rows_of[id] if views <= left else left - 1)
            left -= min(views, left)
        if part.num_instances is not None or left == before:
            break
    if part.num_instances is not None and left:
        raise InputError(
            f"mixture: {num_instances} instances were asked for, but {part.data} fills {num_instances - left}"
            f" from {len(order)} examples with trainable rows, an example giving at least {least} for views:"
            f" {part.views}; expected a number that it can fill exactly, for example {num_instances - left}"
        )
    if not drawn:
        raise InputError(
            f"mixture: {part.data} gives no instance at all; it has {len(order)} trainable examples"
        )
    return drawn
