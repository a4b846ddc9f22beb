"""Draw a run's training examples from its sources, by exact instance counts or by shares of a budget."""

from collections.abc import Mapping
from dataclasses import dataclass
import random

from dualview.config.train import Part, TrainConfig
from dualview.errors import InputError


@dataclass(slots=True)
class Draw:
    """How a part uses one of its examples."""

    num_rows: int  # uses the first num_rows of its trainable rows
    times: int = 1  # per epoch


def num_views(part: Part, num_rows: int) -> int:
    """Instances of an example with num_rows rows: its original view and a complementary view for each row."""
    return 1 + num_rows if part.views in ("both", "apart") else 1


def instances_of_parts(config: TrainConfig) -> list[int]:
    """Instances that each part must provide: its num_instances, or its share of the budget, rounded down."""
    parts = config.mixture.parts
    if parts[0].weight is None:
        return [part.num_instances or 0 for part in parts]
    total = config.budget.instances or (config.budget.steps or 0) * config.batch.instances
    weights = [part.weight or 0.0 for part in parts]
    return [int(total * weight / sum(weights)) for weight in weights]


def draw(part: Part, num_rows_of: Mapping[str, int], num_instances: int, seed: int) -> dict[str, Draw]:
    """Draw examples that provide `num_instances`, in an order drawn by `seed`.

    num_rows_of: example id -> number of trainable rows. All arms of a comparison draw the same examples in
    the same order; with the same budget, an arm of original views uses twice as many as an arm of both views.
    A part with num_instances provides exactly that number and drops surplus rows of the last example.
    A part with a weight uses whole examples and repeats them if there are too few.
    Raises InputError if the data holds too few instances, or would leave an original view without its
    complement.
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
            f"mixture: {num_instances} instances requested, but {part.data} provides {num_instances - left}"
            f" from {len(order)} examples with trainable rows (at least {least} per example with views:"
            f" {part.views}); expected a number that it can fill exactly, for example {num_instances - left}"
        )
    if not drawn:
        raise InputError(
            f"mixture: {part.data} provides no instances; it has {len(order)} trainable examples"
        )
    return drawn
