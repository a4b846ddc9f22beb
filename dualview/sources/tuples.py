"""Examples from JSONL or Parquet files in the layout of arrow.EXAMPLE_SCHEMA.

Each row is one example. A JSON line has the columns as keys, and attributes as an object:

    {"id": "s1", "query_id": "q1", "query": "main ports", "instruction": "Only islands.",
     "positive": {"id": "p1", "text": "..."}, "instruction_negatives": [{"id": "p2", "text": "..."}]}

`hard_negatives` and `requirements`, and a passage's `title` and `attributes`, are optional and may be null. Any other
key is refused, because a misspelt key would silently drop data.

An example may lack both an instruction and instruction negatives. Synthesis then adds them, taking the negatives from
its hard negatives, of which it needs at least one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
import json
from typing import Any

from dualview.errors import InputError
from dualview.records import Passage, Requirement, SourceExample
from dualview.runs.plan import Input
from dualview.sources.files import Layout, MapFunction, read_examples, survey

_EXAMPLES = {
    "id": "chad-1",
    "query_id": "ports",
    "query": "main ports",
    "instruction": "Only countries that are islands.",
    "text": "Chad: Central Africa; landlocked.",
    "title": "Chad",
    "facet": "region",
    "value": "africa",
}
_PASSAGE_EXAMPLE = '{"id": "chad-1", "text": "Chad: Central Africa; landlocked."}'
_REQUIREMENT_EXAMPLE = '{"include": true, "facet": "region", "value": "africa"}'


@dataclass(frozen=True)
class Tuples:
    """Files that end in .jsonl or .parquet, and folders of such files; local or at s3://bucket/prefix.

    Other files in a folder are ignored.
    """

    paths: tuple[str, ...]
    max_bad_share: float

    def inputs(self, known: Sequence[Input] = (), each: MapFunction = map) -> list[Input]:
        """Check every row of every file and return one input per file: see files.survey."""
        return survey(self.paths, LAYOUT, self.max_bad_share, known, each)

    def read(self, source: Input, start: int, stop: int) -> list[SourceExample]:
        return read_examples(source, start, stop, LAYOUT)


# --- one row --------------------------------------------------------------------------------------


Keys = dict[str, None]  # a set in a fixed order, for error messages

_NOT_INSTRUCTED: Keys = dict.fromkeys(("id", "query_id", "query", "positive"))
_INSTRUCTED: Keys = dict.fromkeys(
    ("id", "query_id", "query", "instruction", "positive", "instruction_negatives")
)
_OPTIONAL: Keys = dict.fromkeys(("instruction", "instruction_negatives", "hard_negatives", "requirements"))
_PASSAGE_REQUIRED: Keys = dict.fromkeys(("id", "text"))
_PASSAGE_OPTIONAL: Keys = dict.fromkeys(("title", "attributes"))
_REQUIREMENT_REQUIRED: Keys = dict.fromkeys(("include", "facet", "value"))


def _example(row: Any, where: str) -> SourceExample:
    """Parse a row. Raises InputError with the place, what was expected, and an example."""
    instructed = not isinstance(row, dict) or bool(row.get("instruction") or row.get("instruction_negatives"))
    row = _checked_object(
        row, where, _INSTRUCTED if instructed else _NOT_INSTRUCTED, _OPTIONAL, '{"id": "example-1", ...}'
    )
    example = SourceExample(
        id=_text(row, "id", where),
        query_id=_text(row, "query_id", where),
        query=_text(row, "query", where),
        instruction=_text(row, "instruction", where) if instructed else "",
        positive=_passage(row["positive"], f"{where}, positive"),
        instruction_negatives=_passages(row, "instruction_negatives", where),
        hard_negatives=_passages(row, "hard_negatives", where),
        requirements=tuple(
            _requirement(item, f"{where}, requirements[{index}]")
            for index, item in enumerate(_list(row, "requirements", where, _REQUIREMENT_EXAMPLE))
        ),
    )
    if instructed and not example.instruction_negatives:
        raise InputError(
            f"{where}: `instruction_negatives` is empty; expected at least one passage that breaks the"
            f" instruction, for example [{_PASSAGE_EXAMPLE}]"
        )
    if not instructed and not example.hard_negatives:
        raise InputError(
            f"{where}: has neither an instruction nor hard negatives; expected an `instruction` with"
            f" `instruction_negatives`, or `hard_negatives` to select them from, for example [{_PASSAGE_EXAMPLE}]"
        )
    _check_distinct(example, where)
    return example


def _check_distinct(example: SourceExample, where: str) -> None:
    roles = {example.positive.id: "positive"}
    for role in ("instruction_negatives", "hard_negatives"):
        for index, passage in enumerate(getattr(example, role)):
            place = f"{role}[{index}]"
            if passage.id in roles:
                raise InputError(
                    f"{where}: {place} has the same id {passage.id!r} as {roles[passage.id]};"
                    " expected each passage in one role only"
                )
            roles[passage.id] = place
    # A text may have only one label. Hard negatives with the text of a labelled passage are dropped in training.
    texts = {example.positive.full_text: "the positive"}
    for index, passage in enumerate(example.instruction_negatives):
        place = f"instruction_negatives[{index}]"
        if passage.full_text in texts:
            raise InputError(
                f"{where}: {place} has the same text as {texts[passage.full_text]};"
                " expected a different passage that breaks the instruction"
            )
        texts[passage.full_text] = place


def _passages(row: dict[str, Any], key: str, where: str) -> tuple[Passage, ...]:
    return tuple(
        _passage(item, f"{where}, {key}[{index}]")
        for index, item in enumerate(_list(row, key, where, _PASSAGE_EXAMPLE))
    )


def _passage(value: Any, where: str) -> Passage:
    columns = _checked_object(value, where, _PASSAGE_REQUIRED, _PASSAGE_OPTIONAL, _PASSAGE_EXAMPLE)
    title, attributes = columns.get("title") or "", columns.get("attributes") or {}
    if not isinstance(title, str):
        raise _unexpected(title, "title", where, "a string", json.dumps(_EXAMPLES["title"]))
    if attributes and not (
        isinstance(attributes, dict) and all(isinstance(item, str) for item in attributes.values())
    ):
        raise _unexpected(attributes, "attributes", where, "an object of strings", '{"region": "africa"}')
    return Passage(_text(columns, "id", where), _text(columns, "text", where), title, attributes)


def _requirement(value: Any, where: str) -> Requirement:
    columns = _checked_object(value, where, _REQUIREMENT_REQUIRED, {}, _REQUIREMENT_EXAMPLE)
    if not isinstance(columns["include"], bool):
        raise _unexpected(columns["include"], "include", where, "true or false", "true")
    return Requirement(columns["include"], _text(columns, "facet", where), _text(columns, "value", where))


def _checked_object(value: Any, where: str, required: Keys, optional: Keys, example: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object, for example {example}, but found {value!r:.60}")
    if not value.keys() >= required.keys():
        missing = next(key for key in required if key not in value)
        raise InputError(f"{where}: has no `{missing}`; expected an object with that key, like {example}")
    if len(value) > len(required) and (unknown := value.keys() - required.keys() - optional.keys()):
        first = next(key for key in value if key in unknown)
        raise InputError(
            f"{where}: unknown key `{first}`; expected one of {', '.join((*required, *optional))}"
        )
    return value


def _text(columns: dict[str, Any], key: str, where: str) -> str:
    value = columns[key]
    if not isinstance(value, str) or not value.strip():
        raise _unexpected(value, key, where, "a non-empty string", json.dumps(_EXAMPLES[key]))
    return value


def _list(row: dict[str, Any], key: str, where: str, example: str) -> list[Any]:
    value = row.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise _unexpected(value, key, where, "a list", f"[{example}]")
    return value


def _unexpected(value: Any, key: str, where: str, expected: str, example: str) -> InputError:
    return InputError(f"{where}: `{key}` is {value!r:.60}; expected {expected}, for example {example}")


LAYOUT = Layout(id_column="id", parse=_example, plain_apart=False)
