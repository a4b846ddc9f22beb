"""A handle on a generate run in its store: the plan, read once, and the finished parts."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
import json
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from dualview.arrow import DUAL_VIEW_SCHEMA, dual_views_from_table
from dualview.config.base import fingerprint
from dualview.config.engines import Price
from dualview.costs import Spent
from dualview.errors import InputError
from dualview.records import ACCEPTED, NEAR_DUPLICATE, WRITTEN, DualView
from dualview.runs.attempts import read_lost
from dualview.runs.plan import Plan, Shard, finished_keys, numbered, read_plan
from dualview.runs.shards import read_shard, read_summaries, trainable_rows
from dualview.storage import Store, open_store

if TYPE_CHECKING:
    import datasets

VALIDATION_KEY = "exam.json"
NEAR_DUPLICATES_SCHEMA = pa.schema(
    [
        ("seed_id", pa.string()),
        ("target_id", pa.string()),
        ("of_seed_id", pa.string()),  # the row that it repeats, which is kept
        ("of_target_id", pa.string()),
        ("similarity", pa.float32()),
    ]
)


@dataclass(frozen=True)
class GenerateRun:
    """A generate run, finished or not, with the plan that it had when it was opened.

    Other drivers may work on the run and even extend its plan at the same time. Shards, rows and counts are always
    those of this handle's plan, so that they agree with each other; open the run again for a later plan.
    Everything else is read from the store on demand. Can be pickled.
    """

    store: Store
    plan: Plan

    # --- progress ----------------------------------------------------------------------------------

    def missing(self) -> list[Shard]:
        """The shards that are still to do, found by one listing."""
        finished = finished_keys(self.store)
        return [shard for shard in self.plan.shards if shard.key not in finished]

    @property
    def is_complete(self) -> bool:
        """Whether every shard exists, and the list of near-duplicates if the plan asks for one."""
        return not self.missing() and not self.lacks_near_duplicates

    def check_complete(self) -> None:
        """Raises InputError if the run is not complete: its rows would still change."""
        if not self.is_complete:
            raise InputError(f"the generate run at {self.store.url} is not finished; finish it first")

    # --- rows --------------------------------------------------------------------------------------

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The finished shards in order, each as a table in DUAL_VIEW_SCHEMA with the metadata of `commit`.

        `columns`: read only these. Raises InputError, naming the file, if one is corrupt.
        """
        finished = finished_keys(self.store)
        for shard in self.plan.shards:
            if shard.key in finished:
                yield read_shard(self.store, shard.key, columns)

    def rows(self) -> Iterator[DualView]:
        """All rows of the finished shards, in order: accepted ones, and rejected ones with the reason."""
        return (row for table in self.tables() for row in dual_views_from_table(table))

    def trainable_tables(self) -> Iterator[pa.Table]:
        """The rows that training uses, a table per shard, without near-duplicates.

        Raises InputError if the run is not complete.
        """
        left_out = self.left_out_of_training()
        return (trainable_rows(table, left_out) for table in self.tables())

    def trainable(self) -> Iterator[DualView]:
        """The rows of trainable_tables."""
        return (row for table in self.trainable_tables() for row in dual_views_from_table(table))

    def left_out_of_training(self) -> frozenset[tuple[str, str]]:
        """(example id, target id) of the near-duplicates. Raises InputError if the run is not complete."""
        self.check_complete()
        repeated = self.near_duplicates()
        return frozenset(zip(*(repeated[name].to_pylist() for name in ("seed_id", "target_id")), strict=True))

    def to_huggingface(self) -> "datasets.Dataset":
        """The rows that training uses as a Hugging Face data set, with the columns of DUAL_VIEW_SCHEMA.

        Memory-mapped from the cache of `datasets`, keyed by the content of the run's files.
        Raises InputError if the run is not complete, or if `datasets` is not installed.
        """
        try:
            import datasets
        except ImportError:
            raise InputError(
                "to_huggingface needs the package datasets, which is not installed; for example: pip install datasets"
            ) from None
        self.check_complete()
        files = [*self.store.list("data/"), *self.store.list(self.near_duplicates_key)]
        return datasets.Dataset.from_generator(
            _examples,
            features=datasets.Features.from_arrow_schema(DUAL_VIEW_SCHEMA),
            gen_kwargs={"run": self},
            fingerprint=fingerprint([self.store.url, [[file.key, file.stamp] for file in files]]),
        )

    # --- figures -----------------------------------------------------------------------------------

    def summaries(self) -> list[dict[str, Any]]:
        """The summary of each finished shard, in order, from its metadata; reads only file footers."""
        finished = finished_keys(self.store)
        return read_summaries(self.store, [shard.key for shard in self.plan.shards if shard.key in finished])

    def spent(self) -> Spent:
        """The cost of all attempts of the whole run, later plans included; attempts that died are not counted."""
        names = [field.name for field in fields(Spent)]
        total = Spent()
        for account in [
            *read_summaries(self.store, sorted(finished_keys(self.store))),
            *read_lost(self.store),
        ]:
            total += Spent(**{name: account[name] for name in names})
        return total

    def summary(self, price: Price | None = None) -> dict[str, Any]:
        """Counts of the finished rows, from the metadata of their shards, and the cost of the whole run.

        A near-duplicate counts as rejected. With a price, the cost in dollars is included.
        """
        statuses: Counter[str] = Counter()
        trainable = 0
        for summary in self.summaries():
            statuses.update(summary["statuses"])
            trainable += summary["trainable"]
        planned = statuses.total()
        if num_repeated := self.near_duplicates().num_rows:  # their shards count them as accepted
            statuses.update({ACCEPTED: -num_repeated, NEAR_DUPLICATE: num_repeated})
            trainable -= num_repeated
        spent = self.spent()
        rejected = {
            reason: count for reason, count in statuses.most_common() if reason not in (ACCEPTED, WRITTEN)
        }
        return {
            "planned": planned,
            "accepted": statuses[ACCEPTED],
            **({"written": statuses[WRITTEN]} if statuses[WRITTEN] else {}),
            "trainable": trainable,
            "rejected": rejected,
            "tokens": {"prompt_tokens": spent.prompt_tokens, "completion_tokens": spent.completion_tokens},
            "gpu_hours": round(spent.gpu_hours, 3),
            **({"dollars": round(spent.dollars(price), 4)} if price else {}),
            "judge_validation": self.validation,
        }

    # --- across shards -----------------------------------------------------------------------------

    @property
    def validation(self) -> dict[str, dict[str, Any]]:
        """Judge -> its result; empty until the judges have been validated."""
        try:
            results: dict[str, dict[str, Any]] = json.loads(self.store.get(VALIDATION_KEY))
        except FileNotFoundError:
            return {}
        return results

    @property
    def failed_judges(self) -> list[str]:
        """The LLM judges below the AUC that the run asks for: their verdicts must not label anything."""
        minimum = {
            f"llm:{judge['prompt']}": judge["validation"]["min_auc"]
            for judge in self.plan.settings.get("judges", ())
            if judge["kind"] == "llm"
        }
        return [
            name
            for name, result in self.validation.items()
            if result["auc"] < minimum.get(name.partition("@")[0], 0.0)
        ]

    def put_validation(self, results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Stores each judge's result unless results exist already. Returns the stored ones."""
        data = json.dumps(results, indent=2, allow_nan=False).encode()
        self.store.put_new(VALIDATION_KEY, data, uuid4().hex)
        return self.validation

    @property
    def near_duplicates_key(self) -> str:
        return numbered("near_duplicates", len(self.plan.extensions), "parquet")

    @property
    def lacks_near_duplicates(self) -> bool:
        """Whether the plan asks for a list of near-duplicates that does not exist yet."""
        is_asked_for = self.plan.settings.get("near_duplicates") is not None
        return is_asked_for and not self.store.list(self.near_duplicates_key)

    def near_duplicates(self) -> pa.Table:
        """The run's list, in NEAR_DUPLICATES_SCHEMA; empty if none was made. Raises InputError if it is corrupt."""
        try:
            data = self.store.get(self.near_duplicates_key)
        except FileNotFoundError:
            return NEAR_DUPLICATES_SCHEMA.empty_table()
        try:
            return pq.read_table(pa.BufferReader(data), schema=NEAR_DUPLICATES_SCHEMA)
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{self.store.url}/{self.near_duplicates_key}: is not a complete list ({reason})"
            ) from None

    def put_near_duplicates(self, table: pa.Table) -> None:
        """Stores the run's list, in NEAR_DUPLICATES_SCHEMA; keeps an existing one, which has the same content."""
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, compression="zstd")
        self.store.put_new(self.near_duplicates_key, buffer.getvalue().to_pybytes(), uuid4().hex)


def open_run(output: str | Store) -> GenerateRun:
    """Opens the generate run at a URL or path, for example `s3://bucket/run`, with its current plan.

    Raises InputError if there is no generate run or its plan cannot be read.
    """
    store = open_store(output) if isinstance(output, str) else output
    return GenerateRun(store, read_plan(store))


def _examples(run: GenerateRun) -> Iterator[dict[str, Any]]:
    for table in run.trainable_tables():
        yield from table.to_pylist()
