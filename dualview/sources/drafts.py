"""The rows of a generate run that only wrote drafts, as the source of a run that judges them."""

from collections.abc import Sequence
from dataclasses import dataclass

from dualview.arrow import dual_views_from_table
from dualview.errors import InputError
from dualview.records import DualView, SourceExample
from dualview.runs.plan import Input
from dualview.runs.run import open_run
from dualview.runs.shards import read_shard
from dualview.sources.files import MapFunction
from dualview.storage import open_store


@dataclass(frozen=True)
class Drafts:
    """Each shard of the run is an input."""

    run: str

    def inputs(self, known: Sequence[Input] = (), each: MapFunction = map) -> list[Input]:  # noqa: ARG002  listing is cheap
        """Raises InputError if the run does not exist or is not finished: its rows could still change."""
        run = open_run(self.run)
        if not run.is_complete:
            raise InputError(
                f"source.run: the generate run at {run.store.url} is not finished; finish it first"
            )
        return [
            Input(shard.key, sum(summary["statuses"].values()), summary["attempt"])
            for shard, summary in zip(run.plan.shards, run.summaries(), strict=True)
        ]

    def read(self, source: Input, start: int, stop: int) -> list[SourceExample]:
        """Read the distinct examples of these rows."""
        return list({row.example.id: row.example for row in self.rows(source, start, stop)}.values())

    def rows(self, source: Input, start: int, stop: int) -> list[DualView]:
        table = read_shard(open_store(self.run), source.name)
        return dual_views_from_table(table.slice(start, stop - start))
