"""The plan of a generate run, and the commit of its shards.

On the store of a run:

    plan.json                     what the run is; created once
    exam.json                     how the LLM judges did on gold pairs; created once
    plan-0001.json                inputs that came later; each extension is created once
    bad_rows.jsonl                rows of the inputs that are no seeds, and why (bad_rows-0001.jsonl: of the later)
    data/shard-000017.parquet     one finished shard; created once, never touched again
    near_duplicates.parquet       rows that repeat an earlier one, found when all shards stand; created once
                                  (near_duplicates-0001.parquet: again of all rows, after the first extension)
    attempts/000017/3             the third attempt at shard 17 has begun
    lost/000017/ATTEMPT           ... and another was first; what this one spent
    marks/000017/3/000005         ... and was about to do row 5 alone

An object that exists is finished and a shard without one is to do, so there is nothing to merge, to mark
done or to lock: where two attempts overlap, the first put wins and the other is dropped.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
import json
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from dualview.config.base import canonical_json, fingerprint
from dualview.costs import Spent
from dualview.errors import InputError, Interruption
from dualview.records import ACCEPTED, DUAL_VIEW_SCHEMA, REASONS, WRITTEN, DualView, dual_views_to_table
from dualview.storage import Entry, Store

PLAN_KEY = "plan.json"
EXAM_KEY = "exam.json"
NEAR_DUPLICATES_SCHEMA = pa.schema(
    [
        ("seed_id", pa.string()),
        ("target_id", pa.string()),
        ("of_seed_id", pa.string()),  # the row that it repeats, and which stays
        ("of_target_id", pa.string()),
        ("similarity", pa.float32()),
    ]
)
_NUM_DIFFERENCES_SHOWN = 3
_USUAL_FOOTER_BYTES = 64 * 2**10  # a shard's has 16 KiB for each row group


@dataclass(frozen=True)
class Input:
    """A list of seeds, in an order that does not change as long as the checksum is the same.

    `stamp` and `index` spare its source the work of reading it again: they are not compared.
    """

    name: str
    num_rows: int  # seeds
    checksum: str
    num_bad: int = field(default=0, compare=False)  # rows beside them that should have been seeds
    bad: tuple[tuple[int, str], ...] = field(default=(), compare=False)  # the first of them: number, reason
    stamp: str = field(default="", compare=False)  # storage's mark of the content, see storage.Entry
    index: str = field(default="", compare=False)  # where its seeds stand, for its source alone


@dataclass(frozen=True)
class Shard:
    """Rows start to stop (without stop) of one input."""

    index: int
    input: str  # the input's name
    start: int
    stop: int

    @property
    def key(self) -> str:
        return f"data/shard-{self.index:06d}.parquet"

    @property
    def num_rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Plan:
    settings: Mapping[str, Any]  # all that decides what the rows will be, as JSON values
    inputs: tuple[Input, ...]  # which it began with
    rows_per_shard: int
    extensions: tuple[tuple[Input, ...], ...] = ()  # which came later

    @cached_property
    def fingerprint(self) -> str:
        """Stays what it is when the run grows, so that rows of before and after are rows of one run."""
        first = [[source.name, source.num_rows, source.checksum] for source in self.inputs]
        return fingerprint([self.settings, first, self.rows_per_shard])

    @cached_property
    def all_inputs(self) -> tuple[Input, ...]:
        return self.inputs + tuple(source for extension in self.extensions for source in extension)

    def input_of(self, shard: Shard) -> Input:
        return next(source for source in self.all_inputs if source.name == shard.input)

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """All inputs in their order, each cut into shards of rows_per_shard; an input's last may be shorter."""
        spans = [
            (source, start, min(start + self.rows_per_shard, source.num_rows))
            for source in self.all_inputs
            for start in range(0, source.num_rows, self.rows_per_shard)
        ]
        return tuple(
            Shard(index, source.name, start, stop) for index, (source, start, stop) in enumerate(spans)
        )


def plan_run(store: Store, settings: Mapping[str, Any], inputs: Sequence[Input], rows_per_shard: int) -> Plan:
    """Creates the run's plan, or goes on with the one that stands; inputs that are new to it are added.

    The shards of an extended plan are those of before, and then the new inputs'. An input may be left out
    once its shards are finished. Raises InputError, saying what differs, where a plan of other settings or
    rows_per_shard stands, where an input has changed, and where one is gone that is still to be read.
    """
    if repeated := [name for name, count in Counter(source.name for source in inputs).items() if count > 1]:
        raise InputError(f"input {repeated[0]}: is listed more than once")
    if not any(source.num_rows for source in inputs):
        raise InputError("the inputs have no rows; expected at least one seed")
    plan = Plan(json.loads(canonical_json(settings)), tuple(inputs), rows_per_shard)
    notes = {
        "fingerprint": plan.fingerprint,
        "num_shards": len(plan.shards),
        "inputs": [asdict(source) for source in inputs],
    }
    claim(store, PLAN_KEY, {"settings": plan.settings, "rows_per_shard": rows_per_shard}, notes)
    while True:
        plan = read_plan(store)
        _check_inputs(store, plan, inputs)
        known = {source.name for source in plan.all_inputs}
        new = [asdict(source) for source in inputs if source.name not in known]
        if not new:
            _list_bad_rows(store, plan)
            return plan
        # Where another driver extends at the same time one put wins, and the other looks what is still new.
        data = json.dumps({"inputs": new}, indent=2, ensure_ascii=False).encode()
        store.put_new(_extension_key(len(plan.extensions) + 1), data, attempt=uuid4().hex)


def _extension_key(number: int) -> str:
    return _numbered("plan", number, "json")


def _numbered(name: str, number: int, suffix: str) -> str:
    """A file about the inputs that the run began with (0), or about its extensions."""
    return f"{name}-{number:04d}.{suffix}" if number else f"{name}.{suffix}"


def _check_inputs(store: Store, plan: Plan, inputs: Sequence[Input]) -> None:
    here = {source.name: source for source in inputs}
    for there in plan.all_inputs:
        if there.name in here and here[there.name] != there:
            differences = _differences(_compared(there), _compared(here[there.name]))
            raise InputError(
                f"{store.url}: input {there.name} has changed since the run was planned ({differences});"
                " put it back as it was, give new seeds in files of their own, or choose another output"
            )
    absent = {source.checksum: source.name for source in plan.all_inputs if source.name not in here}
    if not absent:
        return
    known = {source.name for source in plan.all_inputs}
    for source in inputs:
        if source.name not in known and source.checksum in absent:
            raise InputError(
                f"{store.url}: input {source.name} has the content of {absent[source.checksum]}, with which the"
                " run was planned; give it under its old name, or choose another output"
            )
    to_do = Counter(shard.input for shard in missing(store, plan))
    if unread := [name for name in absent.values() if to_do[name]]:
        raise InputError(
            f"{store.url}: the run was planned with input {unread[0]}, which is not among the inputs any more,"
            f" and {to_do[unread[0]]} of its shards are still to do; put it back, or choose another output"
        )


def _compared(source: Input) -> dict[str, Any]:
    return {"checksum": source.checksum, "rows": source.num_rows}


def _list_bad_rows(store: Store, plan: Plan) -> None:
    """Writes bad_rows.jsonl: for each input with bad rows how many there are, and the first of them."""
    standing = {entry.key for entry in store.list("bad_rows")}
    for number, inputs in enumerate((plan.inputs, *plan.extensions)):
        key = _numbered("bad_rows", number, "jsonl")
        lines = []
        for source in inputs:
            if source.num_bad:
                lines.append({"input": source.name, "num_bad": source.num_bad, "num_listed": len(source.bad)})
                lines += [{"input": source.name, "row": row, "reason": why} for row, why in source.bad]
        if lines and key not in standing:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            store.put_new(key, text.encode(), attempt=uuid4().hex)


def claim(store: Store, key: str, content: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
    """Makes `content` what the output is, or finds that it already is.

    `notes` stand beside it for human readers, and are not compared. Raises InputError, saying what
    differs, where the output was claimed with other content.
    """
    text = json.dumps({**notes, **content}, indent=2, ensure_ascii=False)
    if store.put_new(key, text.encode(), attempt=uuid4().hex):
        return
    try:
        standing = json.loads(store.get(key))
        claimed = {name: value for name, value in standing.items() if name not in notes}
    except (ValueError, AttributeError):
        raise InputError(f"{store.url}/{key}: is not a JSON object; choose another output") from None
    differences = _differences(claimed, json.loads(json.dumps(content)))
    if differences:
        raise InputError(
            f"{store.url}: holds a run with other settings ({differences});"
            " choose another output, or put the settings back"
        )


def known_inputs(store: Store, settings: Mapping[str, Any]) -> tuple[Input, ...]:
    """What a run of these settings knows of its inputs already; () where none stands."""
    if not store.list(PLAN_KEY):
        return ()
    plan = read_plan(store)
    return plan.all_inputs if plan.settings == json.loads(canonical_json(settings)) else ()


def read_plan(store: Store) -> Plan:
    """The plan that stands, with its extensions. Raises InputError where there is none or it cannot be read."""
    key = PLAN_KEY
    extensions: list[tuple[Input, ...]] = []
    try:
        content = json.loads(store.get(key))
        first = _inputs_of(content)
        settings, rows_per_shard = content["settings"], content["rows_per_shard"]
        while True:
            key = _extension_key(len(extensions) + 1)
            try:
                extension = store.get(key)
            except FileNotFoundError:
                return Plan(settings, first, rows_per_shard, tuple(extensions))
            extensions.append(_inputs_of(json.loads(extension)))
    except FileNotFoundError:
        raise InputError(f"no generate run at {store.url}: it has no {PLAN_KEY}") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{store.url}/{key}: is not the plan of a generate run") from None


def _inputs_of(content: Mapping[str, Any]) -> tuple[Input, ...]:
    return tuple(
        Input(**{**source, "bad": tuple((row, why) for row, why in source["bad"])})
        for source in content["inputs"]
    )


def read_exam(store: Store) -> dict[str, dict[str, Any]]:
    """Judge -> its result; empty where no exam was sat."""
    if not store.list(EXAM_KEY):
        return {}
    results: dict[str, dict[str, Any]] = json.loads(store.get(EXAM_KEY))
    return results


def _differences(there: Any, here: Any) -> str:
    """The first few, for a sentence; "" where there are none."""
    there_flat, here_flat = dict(_flatten(there)), dict(_flatten(here))
    differing = [key for key in {**there_flat, **here_flat} if there_flat.get(key) != here_flat.get(key)]
    shown = [
        f"{key}: there {there_flat.get(key, 'absent')}, here {here_flat.get(key, 'absent')}"
        for key in differing[:_NUM_DIFFERENCES_SHOWN]
    ]
    num_more = len(differing) - len(shown)
    return "; ".join([*shown, f"{num_more} more"] if num_more else shown)


def _flatten(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Leaves as (dotted key, JSON)."""
    if value and isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flatten(inner, (*path, str(key)))
    else:
        yield ".".join(path), canonical_json(value)


def missing(store: Store, plan: Plan) -> list[Shard]:
    """The shards that are still to do, found by one listing."""
    committed = {entry.key for entry in store.list("data/")}
    return [shard for shard in plan.shards if shard.key not in committed]


def is_complete(store: Store) -> bool:
    """Whether every shard of the run stands, and its near-duplicates where the plan asks for them.

    Raises InputError where there is no run.
    """
    plan = read_plan(store)
    return not missing(store, plan) and not lacks_near_duplicates(store, plan)


def commit(
    store: Store,
    shard: Shard,
    planned: Sequence[tuple[str, str]],
    rows: Sequence[DualView],
    attempt: str,
    spent: Spent,
) -> bool:
    """Puts a finished shard as one Parquet file; False if another attempt's stands already.

    planned: the (seed id, target id) of each request; "" for a target that is found on the way. The file's
    metadata has under "dualview" a JSON object: run, attempt, statuses (a count each), trainable (a count),
    and what was spent. Raises ValueError, and puts nothing, where the rows are not exactly one finished row
    for each planned request, in order: that is a bug of ours.
    """
    _check_rows(shard, planned, rows, attempt)
    summary = {
        "run": rows[0].lineage.run if rows else "",
        "attempt": attempt,
        "statuses": Counter(row.status for row in rows),
        "trainable": sum(row.trainable for row in rows),
        **asdict(spent),
    }
    table = dual_views_to_table(rows).replace_schema_metadata({"dualview": canonical_json(summary)})
    # In memory first: pyarrow's own S3 streams leave a broken object behind when writing fails.
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    return store.put_new(shard.key, buffer.getvalue().to_pybytes(), attempt)


def _check_rows(
    shard: Shard, planned: Sequence[tuple[str, str]], rows: Sequence[DualView], attempt: str
) -> None:
    problem = ""
    if len(rows) != len(planned):
        problem = f"{len(rows)} rows instead of {len(planned)}"
    elif len(set(planned)) != len(planned):
        problem = "a request is planned twice"
    elif any(
        row.seed.id != seed_id or target_id not in ("", row.target_id)
        for (seed_id, target_id), row in zip(planned, rows, strict=True)
    ):
        problem = "rows of other requests, or in another order"
    elif unknown := {row.status for row in rows} - {ACCEPTED, WRITTEN, *REASONS}:
        problem = f"unknown status {unknown}"
    elif any(row.trainable and row.status != ACCEPTED for row in rows):
        problem = "a row that was not accepted is trainable"
    elif len({row.lineage.run for row in rows}) > 1:
        problem = "rows of several runs"
    elif {(row.lineage.shard, row.lineage.attempt) for row in rows} - {(shard.index, attempt)}:
        problem = "rows of another shard or attempt"
    if problem:
        raise ValueError(f"shard {shard.index}, attempt {attempt}: {problem}")


def read_tables(store: Store, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The committed shards in order, each a table in DUAL_VIEW_SCHEMA with its metadata (see commit).

    `columns`: only these. Raises InputError where there is no run, or naming the file that is corrupt.
    """
    plan = read_plan(store)
    to_do = set(missing(store, plan))
    for shard in plan.shards:
        if shard not in to_do:
            yield read_shard(store, shard.key, columns)


def left_out_of_training(store: Store) -> frozenset[tuple[str, str]]:
    """(seed id, target id) of the near-duplicates of a finished run.

    Raises InputError where there is no finished run: what is read must not depend on how far it has come.
    """
    if not is_complete(store):
        raise InputError(f"the generate run at {store.url} is not finished; run it to its end first")
    repeated = read_near_duplicates(store, read_plan(store))
    return frozenset(zip(*(repeated[name].to_pylist() for name in ("seed_id", "target_id")), strict=True))


def trainable_rows(table: pa.Table, left_out: Collection[tuple[str, str]]) -> pa.Table:
    """The rows of one shard that are trainable and not left out; needs the columns id, target_id, trainable."""
    rows = zip(*(table[name].to_pylist() for name in ("trainable", "id", "target_id")), strict=True)
    stays = [trainable and (seed_id, target_id) not in left_out for trainable, seed_id, target_id in rows]
    return table.filter(pa.array(stays, pa.bool_()))


def read_summaries(store: Store) -> list[dict[str, Any]]:
    """What commit left in the metadata of each shard that stands, in order; only file footers are read."""

    def summary(entry: Entry) -> dict[str, Any]:
        end = _with_footer(store, entry.key)
        try:
            metadata = pq.read_metadata(pa.BufferReader(end)).metadata
            content: dict[str, Any] = json.loads(metadata[b"dualview"])
        except (pa.ArrowException, OSError, KeyError, TypeError) as error:
            raise _corrupt(store, entry.key, error) from None
        return content

    with ThreadPoolExecutor(max_workers=10) as threads:  # as many as boto3 keeps connections
        return list(threads.map(summary, store.list("data/")))


def _with_footer(store: Store, key: str) -> bytes:
    """So much of the end of a Parquet file that its metadata can be read."""
    end = store.get_end(key, _USUAL_FOOTER_BYTES)
    footer_bytes = int.from_bytes(end[-8:-4], "little") + 8  # its length and "PAR1" are the last eight
    return end if footer_bytes <= len(end) else store.get_end(key, footer_bytes)


def read_shard(store: Store, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    """One committed shard, or these columns of it. Raises InputError, naming the file, where it is corrupt."""
    data = store.get(key)
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        table = file.read(columns)
    except (pa.ArrowException, OSError) as error:
        raise _corrupt(store, key, error) from None
    schema = file.schema_arrow
    if not schema.equals(DUAL_VIEW_SCHEMA) or b"dualview" not in (schema.metadata or {}):
        raise InputError(
            f"{store.url}/{key}: expected the columns of records.DualView and a summary in the file's"
            f" metadata, found {', '.join(schema.names)}"
        )
    return table


def _corrupt(store: Store, key: str, error: Exception) -> InputError:
    reason = str(error).splitlines()[0]
    return InputError(f"{store.url}/{key}: is not a whole Parquet file of a generate run ({reason})")


# --- near-duplicates ------------------------------------------------------------------------------


def lacks_near_duplicates(store: Store, plan: Plan) -> bool:
    """Whether the plan asks for them, and nobody has looked for them yet."""
    return plan.settings.get("near_duplicates") is not None and not store.list(near_duplicates_key(plan))


def near_duplicates_key(plan: Plan) -> str:
    return _numbered("near_duplicates", len(plan.extensions), "parquet")


def put_near_duplicates(store: Store, plan: Plan, table: pa.Table) -> None:
    """Creates the run's list, in NEAR_DUPLICATES_SCHEMA; one that stands already says the same, and stays."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    store.put_new(near_duplicates_key(plan), buffer.getvalue().to_pybytes(), uuid4().hex)


def read_near_duplicates(store: Store, plan: Plan) -> pa.Table:
    """The run's list; empty where none was made. Raises InputError where it is corrupt."""
    key = near_duplicates_key(plan)
    try:
        return pq.read_table(pa.BufferReader(store.get(key)), schema=NEAR_DUPLICATES_SCHEMA)
    except FileNotFoundError:
        return NEAR_DUPLICATES_SCHEMA.empty_table()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{store.url}/{key}: is not a whole list ({reason})") from None


# --- rows that kill the engine --------------------------------------------------------------------


# A row that kills its engine leaves nothing behind but the attempts it cost. So attempts are counted, and
# from the third on the rows run one by one, each marked before it runs: the last mark of a dead attempt
# names the row that it died on. One such mark may be someone else's doing (a preempted machine), two are not.
# Where neighbour after neighbour is marked so, the engine dies of something else, and no row is to blame.
_MAX_KILLERS_IN_A_ROW = 3
_NO_ROW = 999_999


def begin_attempt(store: Store, shard: Shard, attempt: str) -> int:
    """Notes that an attempt at the shard begins; which one it is: 1, 2, 3..."""
    notes = f"attempts/{shard.index:06d}/"
    ordinal = len(store.list(notes)) + 1
    while not store.put_new(f"{notes}{ordinal}", attempt.encode(), attempt):
        ordinal += 1
    return ordinal


def mark_row(store: Store, shard: Shard, ordinal: int, row_index: int) -> None:
    """Notes that this attempt is about to run the shard's row (0-based), rows in ascending order."""
    store.put_new(f"marks/{shard.index:06d}/{ordinal}/{row_index:06d}", b"", attempt=str(ordinal))


def killers(store: Store, shard: Shard, num_requests: int) -> set[int]:
    """Rows which two or more attempts died on. To be asked before an attempt marks its own first row.

    Raises Interruption where they are too many in a row, and acquits the rows of all shards, so that a run
    that goes on with a sound engine begins its search anew.
    """
    last_marks: dict[str, int] = {}
    for entry in store.list(f"marks/{shard.index:06d}/"):  # sorted: an attempt's last mark comes last
        *_, ordinal, row_index = entry.key.split("/")
        last_marks[ordinal] = int(row_index)
    counts = Counter(last_marks.values())
    found = {row for row, count in counts.items() if count >= 2 and row < num_requests}
    num_neighbours = _MAX_KILLERS_IN_A_ROW + 1
    if any(found.issuperset(range(row, row + num_neighbours)) for row in found):
        for attempt in {entry.key.rpartition("/")[0] for entry in store.list("marks/")}:
            store.put_new(f"{attempt}/{_NO_ROW}", b"", attempt="acquittal")
        raise Interruption(
            f"{store.url}: the engine died twice on each of {num_neighbours} rows in a row"
            f" ({shard.input}, rows {shard.start} to {shard.stop - 1}), so it hardly dies of the rows;"
            " see its log and mend it"
        )
    return found


def note_lost(store: Store, shard: Shard, attempt: str, spent: Spent) -> None:
    """Keeps what an attempt spent whose shard another attempt committed first."""
    store.put_new(f"lost/{shard.index:06d}/{attempt}", json.dumps(asdict(spent)).encode(), attempt)


def spent_so_far(store: Store) -> Spent:
    """What all attempts spent that came to an end; one that died leaves no account."""
    names = [field.name for field in fields(Spent)]
    notes = [json.loads(store.get(entry.key)) for entry in store.list("lost/")]
    total = Spent()
    for note in [*read_summaries(store), *notes]:
        total += Spent(**{name: note[name] for name in names})
    return total
