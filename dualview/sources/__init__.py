"""Where seeds come from. A source lists what it would read before anything is read."""

from typing import Protocol

from dualview.config import DraftsSource, FactbookSource, TuplesSource
from dualview.records import Seed
from dualview.shards import Input, read_plan
from dualview.sources import factbook
from dualview.sources.drafts import Drafts
from dualview.sources.factbook import Factbook
from dualview.sources.tuples import Tuples
from dualview.storage import open_store
from dualview.vocabulary import Vocabulary


class Source(Protocol):
    """Seeds in a fixed order. Can be pickled, so that it travels to other processes."""

    def inputs(self) -> list[Input]:
        """What would be read. Raises InputError, before any work, where it is not as expected."""

    def read(self, input_name: str, start: int, stop: int) -> list[Seed]:
        """Rows start to stop (without stop) of one input."""


def open_source(settings: FactbookSource | TuplesSource | DraftsSource) -> Source:
    """The source that a generate config names. Touches nothing yet."""
    match settings:
        case FactbookSource():
            return Factbook(settings.split, settings.num_seeds, settings.seed)
        case TuplesSource():
            return Tuples(settings.paths)
        case DraftsSource():
            return Drafts(settings.run)


def vocabulary_of(settings: FactbookSource | TuplesSource | DraftsSource) -> Vocabulary | None:
    """The wordings of the source's attributes, where it has any; drafts have those of their own source."""
    match settings:
        case FactbookSource():
            return factbook.vocabulary(settings.split)
        case TuplesSource():
            return None
        case DraftsSource():
            source = read_plan(open_store(settings.run)).settings.get("source", {})
            return factbook.vocabulary(source["split"]) if source.get("kind") == "factbook" else None
