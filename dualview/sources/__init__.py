"""Sources of examples. A source lists and checks its inputs before a run reads them."""

from collections.abc import Sequence
from typing import Protocol

from dualview.config.sources import BeirSource, DraftsSource, PromptrieverSource, SourceConfig, TuplesSource
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
    """Source examples in a fixed order. Can be pickled, for use in other processes."""

    def inputs(self, known: Sequence[Input] = (), each: MapFunction = map) -> list[Input]:
        """List the inputs. Raises InputError, before any work, if one is invalid.

        An input that is already `known` to a run and unchanged since is not read again. `each` maps a function over
        many files; its arguments can be pickled, so it may use other processes.
        """

    def read(self, source: Input, start: int, stop: int) -> list[SourceExample]:
        """Read examples start to stop (exclusive) of one input."""


def open_source(settings: SourceConfig) -> Source:
    """Build the source that a generate config names, without any I/O."""
    match settings:
        case TuplesSource():
            return Tuples(settings.paths, settings.max_bad_share)
        case PromptrieverSource():
            return Promptriever(settings.paths, settings.max_bad_share)
        case DraftsSource():
            return Drafts(settings.run)
        case BeirSource():
            raise InputError(
                "source: a generate run mines the negatives of a beir collection when it starts;"
                " to read them, use kind tuples with the files under mined/ of a run that has started"
            )


def vocabulary_of(settings: SourceConfig) -> Vocabulary | None:
    """Read the vocabulary that the source names, if any; drafts use that of the run that wrote them.

    Raises InputError if the file is missing or invalid.
    """
    match settings:
        case TuplesSource():
            path = settings.vocabulary
        case DraftsSource():
            path = open_run(settings.run).plan.settings.get("source", {}).get("vocabulary")
        case PromptrieverSource() | BeirSource():
            path = None
    return read_vocabulary(path) if path is not None else None
