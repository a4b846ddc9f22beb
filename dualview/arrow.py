"""Schemas of source examples and dual views as Arrow tables, and the conversion in both directions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate, chain
from typing import Any

import pyarrow as pa

from dualview.records import (
    Draft,
    DualView,
    Lineage,
    Passage,
    Requirement,
    Rewording,
    SourceExample,
    Verdict,
)

_REQUIREMENT = pa.struct([("include", pa.bool_()), ("facet", pa.string()), ("value", pa.string())])
_PASSAGE = pa.struct(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("title", pa.string()),
        ("attributes", pa.map_(pa.string(), pa.string())),
    ]
)
_EXAMPLE_FIELDS = [
    ("id", pa.string()),
    ("query_id", pa.string()),
    ("query", pa.string()),
    ("instruction", pa.string()),
    ("positive", _PASSAGE),
    ("instruction_negatives", pa.list_(_PASSAGE)),
    ("hard_negatives", pa.list_(_PASSAGE)),
    ("requirements", pa.list_(_REQUIREMENT)),
]
_VERDICT = pa.struct(
    [
        ("judge", pa.string()),
        ("condition", pa.string()),
        ("passage_id", pa.string()),
        ("expected", pa.bool_()),
        ("margin", pa.float32()),
    ]
)
_DRAFT = pa.struct(
    [
        ("condition", pa.string()),
        ("answer", pa.string()),
        ("instruction", pa.string()),
        ("status", pa.string()),
        ("surplus", pa.float32()),
    ]
)
_REWORDING = pa.struct([("condition", pa.string()), ("instruction", pa.string()), ("status", pa.string())])
_LINEAGE = pa.struct(
    [
        ("writer", pa.string()),
        ("prompt", pa.string()),
        ("sampling", pa.string()),
        ("judges", pa.list_(pa.string())),
        ("judge_model", pa.string()),
        ("code_version", pa.string()),
        ("written_in", pa.string()),
        ("run", pa.string()),
        ("shard", pa.int64()),
        ("attempt", pa.string()),
    ]
)

EXAMPLE_SCHEMA = pa.schema(_EXAMPLE_FIELDS)


def _maps_as_lists(kind: pa.DataType) -> pa.DataType:
    """Replace each map of attributes, at any depth, with a list of structs (facet, value)."""
    if pa.types.is_map(kind):
        return pa.list_(pa.struct([("facet", kind.key_type), ("value", kind.item_type)]))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _maps_as_lists(field.type)) for field in kind])
    return pa.list_(_maps_as_lists(kind.value_type)) if pa.types.is_list(kind) else kind


_ATTRIBUTES = _maps_as_lists(pa.map_(pa.string(), pa.string()))
# No maps in what we write: Hugging Face datasets 5 cannot read Arrow maps.
DUAL_VIEW_SCHEMA = pa.schema(
    (name, _maps_as_lists(kind))
    for name, kind in [
        *_EXAMPLE_FIELDS,
        ("target_id", pa.string()),
        ("new_instruction", pa.string()),
        ("new_requirements", pa.list_(_REQUIREMENT)),
        ("status", pa.string()),
        ("trainable", pa.bool_()),
        ("verdicts", pa.list_(_VERDICT)),
        ("drafts", pa.list_(_DRAFT)),
        ("rewordings", pa.list_(_REWORDING)),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("lineage", _LINEAGE),
    ]
)


def examples_to_table(examples: Iterable[SourceExample]) -> pa.Table:
    """One row per example, in EXAMPLE_SCHEMA."""
    return pa.Table.from_pylist([asdict(example) for example in examples], schema=EXAMPLE_SCHEMA)


def dual_views_to_table(rows: Sequence[DualView]) -> pa.Table:
    """One flat row per dual view, in DUAL_VIEW_SCHEMA: first the example's columns, then the others."""
    examples = [row.example for row in rows]
    return pa.Table.from_arrays(
        [
            _column(examples if field.name in EXAMPLE_SCHEMA.names else rows, field)
            for field in DUAL_VIEW_SCHEMA
        ],
        schema=DUAL_VIEW_SCHEMA,
    )


# Column by column, down to the leaves: dataclasses.asdict and from_pylist take ten times as long, and were the
# largest cost of a row after the engine.
def _column(owners: Sequence[Any], field: pa.Field) -> pa.Array:
    return _array([getattr(owner, field.name) for owner in owners], field.type)


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Convert dataclasses to structs, and tuples and mappings to lists; none of them may be None."""
    if pa.types.is_struct(kind):
        return pa.StructArray.from_arrays([_column(values, field) for field in kind], fields=list(kind))
    if not pa.types.is_list(kind):
        return pa.array(values, kind)
    offsets = pa.array(accumulate(map(len, values), initial=0), pa.int32())
    if kind == _ATTRIBUTES:
        facets = pa.array(chain.from_iterable(value.keys() for value in values), pa.string())
        words = pa.array(chain.from_iterable(value.values() for value in values), pa.string())
        inner = pa.StructArray.from_arrays([facets, words], fields=list(kind.value_type))
    else:
        inner = _array(list(chain(*values)), kind.value_type)
    return pa.ListArray.from_arrays(offsets, inner, type=kind)


def dual_views_from_table(table: pa.Table) -> list[DualView]:
    """The inverse of dual_views_to_table."""
    example_columns = set(EXAMPLE_SCHEMA.names)
    rows = []
    for columns in table.to_pylist():
        view_columns = {name: value for name, value in columns.items() if name not in example_columns}
        lineage = view_columns.pop("lineage")
        rows.append(
            DualView(
                example=example_from_columns(columns),
                new_requirements=_requirements(view_columns.pop("new_requirements")),
                verdicts=tuple(Verdict(**verdict) for verdict in view_columns.pop("verdicts")),
                drafts=tuple(Draft(**draft) for draft in view_columns.pop("drafts")),
                rewordings=tuple(Rewording(**rewording) for rewording in view_columns.pop("rewordings")),
                lineage=Lineage(**{**lineage, "judges": tuple(lineage["judges"])}),
                **view_columns,
            )
        )
    return rows


def example_from_columns(columns: Mapping[str, Any]) -> SourceExample:
    """Build a SourceExample from one row of EXAMPLE_SCHEMA; other columns are ignored."""
    return SourceExample(
        id=columns["id"],
        query_id=columns["query_id"],
        query=columns["query"],
        instruction=columns["instruction"],
        positive=_passage(columns["positive"]),
        instruction_negatives=tuple(map(_passage, columns["instruction_negatives"])),
        hard_negatives=tuple(map(_passage, columns["hard_negatives"] or ())),
        requirements=_requirements(columns["requirements"] or ()),
    )


def _passage(columns: Mapping[str, Any]) -> Passage:
    return Passage(
        id=columns["id"],
        text=columns["text"],
        title=columns["title"] or "",
        attributes=dict(map(_attribute, columns["attributes"] or ())),
    )


def _attribute(item: Mapping[str, str] | tuple[str, str]) -> tuple[str, str]:
    """Facet and value, from the structs of DUAL_VIEW_SCHEMA or the map of EXAMPLE_SCHEMA."""
    return (item["facet"], item["value"]) if isinstance(item, Mapping) else item


def _requirements(items: Iterable[Mapping[str, Any]]) -> tuple[Requirement, ...]:
    return tuple(Requirement(**item) for item in items)
