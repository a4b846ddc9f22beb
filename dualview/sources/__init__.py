"""Where seeds come from. A source lists what it would read before anything is read."""

from typing import Protocol

from dualview.config import FactbookSource, TuplesSource
from dualview.records import Seed
from dualview.shards import Input
from dualview.sources.factbook import Factbook
from dualview.sources.tuples import Tuples


class Source(Protocol):
    """Seeds in a fixed order. Can be pickled, so that it travels to other processes."""

    def inputs(self) -> list[Input]:
        """What would be read. Raises InputError, before any work, where it is not as expected."""

    def read(self, input_name: str, start: int, stop: int) -> list[Seed]:
        """Rows start to stop (without stop) of one input."""


def open_source(settings: FactbookSource | TuplesSource) -> Source:
    """The source that a generate config names. Touches nothing yet."""
    match settings:
        case FactbookSource():
            return Factbook(settings.split, settings.num_seeds, settings.seed)
        case TuplesSource():
            return Tuples(settings.paths)
