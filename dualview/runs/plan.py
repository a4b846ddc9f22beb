"""The plan of a generate run: its inputs, cut into numbered shards of fixed examples. Inputs may be added later."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
import json
from typing import Any
from uuid import uuid4

from dualview.config.base import canonical_json, fingerprint
from dualview.config.generate import GenerateConfig
from dualview.config.renames import with_new_names
from dualview.errors import InputError
from dualview.runs.manifest import differences, pin_manifest
from dualview.storage import Store

PLAN_KEY = "plan.json"


@dataclass(frozen=True)
class Input:
    """A list of examples, in the same order as long as the checksum is the same.

    `stamp` and `index` save its source from reading it again; they are not compared.
    """

    name: str
    num_rows: int  # examples
    checksum: str
    num_bad: int = field(default=0, compare=False)  # further rows, which are not valid examples
    bad: tuple[tuple[int, str], ...] = field(default=(), compare=False)  # the first of them: number, reason
    stamp: str = field(default="", compare=False)  # see storage.Entry
    index: str = field(default="", compare=False)  # where its examples are; private to its source


@dataclass(frozen=True)
class Shard:
    """Rows start to stop (exclusive) of one input."""

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
    settings: Mapping[str, Any]  # all that determines the rows, as JSON values
    inputs: tuple[Input, ...]  # at the first planning
    rows_per_shard: int
    extensions: tuple[tuple[Input, ...], ...] = ()  # added later

    @cached_property
    def fingerprint(self) -> str:
        """Unchanged when the run grows, so that old and new rows belong to the same run."""
        first = [[source.name, source.num_rows, source.checksum] for source in self.inputs]
        return fingerprint([self.settings, first, self.rows_per_shard])

    @cached_property
    def all_inputs(self) -> tuple[Input, ...]:
        return self.inputs + tuple(source for extension in self.extensions for source in extension)

    def input_of(self, shard: Shard) -> Input:
        return next(source for source in self.all_inputs if source.name == shard.input)

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """All inputs in order, each cut into shards of rows_per_shard; the last of an input may be shorter."""
        spans = [
            (source, start, min(start + self.rows_per_shard, source.num_rows))
            for source in self.all_inputs
            for start in range(0, source.num_rows, self.rows_per_shard)
        ]
        return tuple(
            Shard(index, source.name, start, stop) for index, (source, start, stop) in enumerate(spans)
        )


def plan_run(store: Store, settings: Mapping[str, Any], inputs: Sequence[Input], rows_per_shard: int) -> Plan:
    """Creates the run's plan, or continues with the existing one and adds the inputs that are new to it.

    The shards of an extended plan are the previous ones, followed by those of the new inputs. An input may be
    left out once its shards are finished. Raises InputError, naming the differences, if there is a plan with
    other settings or rows_per_shard, if an input has changed, or if an unfinished input is missing.
    """
    if repeated := [name for name, count in Counter(source.name for source in inputs).items() if count > 1]:
        raise InputError(f"input {repeated[0]}: is listed more than once")
    if not any(source.num_rows for source in inputs):
        raise InputError("the inputs have no rows; expected at least one example")
    plan = Plan(json.loads(canonical_json(settings)), tuple(inputs), rows_per_shard)
    metadata = {
        "fingerprint": plan.fingerprint,
        "num_shards": len(plan.shards),
        "inputs": [asdict(source) for source in inputs],
    }
    pinned = {"settings": plan.settings, "rows_per_shard": rows_per_shard}
    pin_manifest(store, PLAN_KEY, pinned, metadata, deciding=_with_new_names)
    while True:
        plan = read_plan(store)
        _check_inputs(store, plan, inputs)
        known = {source.name for source in plan.all_inputs}
        new = [asdict(source) for source in inputs if source.name not in known]
        if not new:
            _list_bad_rows(store, plan)
            return plan
        # If another driver extends the plan at the same time, one put wins and the other looks again for new inputs.
        data = json.dumps({"inputs": new}, indent=2, ensure_ascii=False).encode()
        store.put_new(_extension_key(len(plan.extensions) + 1), data, attempt=uuid4().hex)


def _extension_key(number: int) -> str:
    return numbered("plan", number, "json")


def numbered(name: str, number: int, suffix: str) -> str:
    """A file about the inputs that the run began with (0), or about its extensions."""
    return f"{name}-{number:04d}.{suffix}" if number else f"{name}.{suffix}"


def _check_inputs(store: Store, plan: Plan, inputs: Sequence[Input]) -> None:
    given = {source.name: source for source in inputs}
    for stored in plan.all_inputs:
        if stored.name in given and given[stored.name] != stored:
            changed = differences(_compared(stored), _compared(given[stored.name]))
            raise InputError(
                f"{store.url}: input {stored.name} has changed since the run was planned ({changed});"
                " restore it, put new examples in files of their own, or choose another output"
            )
    absent = {source.checksum: source.name for source in plan.all_inputs if source.name not in given}
    if not absent:
        return
    known = {source.name for source in plan.all_inputs}
    for source in inputs:
        if source.name not in known and source.checksum in absent:
            raise InputError(
                f"{store.url}: input {source.name} has the content of {absent[source.checksum]}, which the run"
                " was planned with; use the old name, or choose another output"
            )
    finished = finished_keys(store)
    to_do = Counter(shard.input for shard in plan.shards if shard.key not in finished)
    if unread := [name for name in absent.values() if to_do[name]]:
        raise InputError(
            f"{store.url}: the run was planned with input {unread[0]}, which is no longer among the inputs,"
            f" and {to_do[unread[0]]} of its shards are still to do; put it back, or choose another output"
        )


def _compared(source: Input) -> dict[str, Any]:
    return {"checksum": source.checksum, "rows": source.num_rows}


def _list_bad_rows(store: Store, plan: Plan) -> None:
    """Writes bad_rows.jsonl: the number of bad rows of each input that has any, and the first of them."""
    existing = {entry.key for entry in store.list("bad_rows")}
    for number, inputs in enumerate((plan.inputs, *plan.extensions)):
        key = numbered("bad_rows", number, "jsonl")
        lines = []
        for source in inputs:
            if source.num_bad:
                lines.append({"input": source.name, "num_bad": source.num_bad, "num_listed": len(source.bad)})
                lines += [{"input": source.name, "row": row, "reason": why} for row, why in source.bad]
        if lines and key not in existing:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            store.put_new(key, text.encode(), attempt=uuid4().hex)


def known_inputs(store: Store, settings: Mapping[str, Any]) -> tuple[Input, ...]:
    """The inputs that a run of these settings has planned already; () if there is no such run."""
    if not store.list(PLAN_KEY):
        return ()
    plan = read_plan(store)
    return () if differences(plan.settings, json.loads(canonical_json(settings))) else plan.all_inputs


def read_plan(store: Store) -> Plan:
    """The plan with its extensions. Raises InputError if there is none or it cannot be read."""
    key = PLAN_KEY
    extensions: list[tuple[Input, ...]] = []
    try:
        content = _with_new_names(json.loads(store.get(key)))
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


def _with_new_names(content: Mapping[str, Any]) -> dict[str, Any]:
    """A plan that an earlier version stored, with today's names of settings."""
    return {**content, "settings": with_new_names(GenerateConfig, content["settings"])}


def _inputs_of(content: Mapping[str, Any]) -> tuple[Input, ...]:
    return tuple(
        Input(**{**source, "bad": tuple((row, why) for row, why in source["bad"])})
        for source in content["inputs"]
    )


def finished_keys(store: Store) -> set[str]:
    """The keys of the finished shards, found by one listing."""
    return {entry.key for entry in store.list("data/")}
