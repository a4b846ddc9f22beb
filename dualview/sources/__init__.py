"""Where examples come from. A source lists what it would read before anything is read."""

from collections.abc import Sequence
from typing import Protocol

from dualview.config.sources import BeirSource, DraftsSource, PromptrieverSource, TuplesSource
from dualview.errors import InputError
from dualview.records import SourceExample
from dualview.runs.plan import Input
from dualview.runs.run import open_run
from dualview.sources.drafts import Drafts
from dualview.sources.files import MapFunction
from dualview.sources.promptriever import Promptriever
from dualview.sources.tuples import Tuples
from dualview.vocabulary import Vocabulary, read_vocabulary


class Source(Protocol):
    """SourceExamples in a fixed order. Can be pickled, so that it travels to other processes."""

    def inputs(self, known: Sequence[Input] = (), each: MapFunction = map) -> list[Input]:
        """What would be read. Raises InputError, before any work, where it is not as expected.

        Of an input that is `known` to a run already and untouched since, nothing is read again. `each` maps
        a function over many files; what it is given can be pickled, so that other processes may take part.
        """

    def read(self, source: Input, start: int, stop: int) -> list[SourceExample]:
        """SourceExamples start to stop (without stop) of one input."""


SourceConfig = TuplesSource | PromptrieverSource | BeirSource | DraftsSource


def open_source(settings: SourceConfig) -> Source:
    """The source that a generate config names. Touches nothing yet."""
    match settings:
        case TuplesSource():
            return Tuples(settings.paths, settings.max_bad_share)
        case PromptrieverSource():
            return Promptriever(settings.paths, settings.max_bad_share)
        case DraftsSource():
            return Drafts(settings.run)
        case BeirSource():
            raise InputError(
                "source: the negatives of a beir collection are mined when its run begins, and not before;"
                " name the files under mined/ of a run that has begun, with kind tuples"
            )


def vocabulary_of(settings: SourceConfig) -> Vocabulary | None:
    """How the source's requirements are said, where it names a vocabulary; drafts have that of their own source.

    Raises InputError where the file is missing or wrong.
    """
    match settings:
        case TuplesSource():
            path = settings.vocabulary
        case DraftsSource():
            path = open_run(settings.run).plan.settings.get("source", {}).get("vocabulary")
        case PromptrieverSource() | BeirSource():
            path = None
    return read_vocabulary(path) if path is not None else None
