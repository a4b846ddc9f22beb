"""Documents every key of the configs from the schemas, for `--describe` and configs/reference.md.

python -m dualview.config.reference > configs/reference.md
"""

from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import fill
from types import NoneType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen, MultipleOf
from pydantic.fields import FieldInfo
from pydantic.types import StringConstraints

from dualview.config.adapt import AdaptConfig
from dualview.config.base import Settings
from dualview.config.evaluate import EvaluateConfig
from dualview.config.generate import GenerateConfig
from dualview.config.judge import JudgeConfig
from dualview.config.loading import members
from dualview.config.study import StudyConfig
from dualview.config.train import TrainConfig

SCHEMAS: dict[str, type[Settings]] = {
    "generate": GenerateConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "adapt": AdaptConfig,
    "judge": JudgeConfig,
    "study": StudyConfig,
}
COLUMNS = 100


@dataclass(frozen=True)
class Key:
    """A key of a config, or one `kind` of its value."""

    path: tuple[str, ...]  # `*` for any item of a list or any name of a mapping
    kind: str | None  # None for the key itself, otherwise one kind of its value
    type: str
    meaning: str


def keys_of(schema: type[Settings], path: tuple[str, ...] = ()) -> Iterator[Key]:
    """All keys: `output` first, then in the order of the schema, each followed by its nested keys."""
    for name in sorted(schema.model_fields, key=lambda name: name != "output"):
        field = schema.model_fields[name]
        if name == "kind":
            continue
        if name in schema.one_of:
            type_text = (
                f"{_type_of(field).removesuffix(' or null')}; exactly one of {', '.join(schema.one_of)}"
            )
        else:
            default = "" if field.is_required() else f"; {_json(field.default)} by default"
            type_text = f"{_type_of(field)}{default}"
        yield Key((*path, name), None, type_text, _one_line(field.description))
        yield from _below(field.annotation, (*path, name))


def _below(annotation: Any, path: tuple[str, ...]) -> Iterator[Key]:
    for member in members(annotation):
        if isinstance(member, type) and issubclass(member, Settings):
            if kind := member.model_fields.get("kind"):
                for name in get_args(kind.annotation):
                    yield Key(path, name, "", _one_line(member.__doc__))
                    if name == get_args(kind.annotation)[-1]:  # kinds of one class share its keys
                        yield from keys_of(member, path)
            else:
                yield from keys_of(member, path)
        elif get_origin(member) in (tuple, dict):
            yield from _below(get_args(member)[0 if get_origin(member) is tuple else 1], (*path, "*"))


def describe(schema: type[Settings]) -> str:
    """All keys with type, default and meaning, as indented text, COLUMNS wide."""
    lines = [_one_line(schema.__doc__), ""]
    for key in keys_of(schema):
        # A key of a kind is indented one level deeper than its path.
        indent = "  " * (2 * len([part for part in key.path if part != "*"]) - 2)
        if key.kind:
            lines.append(f"{indent}  kind: {key.kind}")
            lines += _wrapped(key.meaning, f"{indent}      ", f"{indent}      ")
        else:
            lines += _wrapped(f"{key.path[-1]}: {key.type}", indent, f"{indent}      ")
            lines += _wrapped(key.meaning, f"{indent}      ", f"{indent}      ")
    return "\n".join(lines)


def reference() -> str:
    """The keys of all verbs as Markdown."""
    parts = [
        "# Keys of the configs",
        "",
        "Generated from the schemas by `python -m dualview.config.reference > configs/reference.md`;",
        "`dualview VERB --describe` prints the same. A key without a default is required. `*` stands for any item of a",
        "list or any name of a mapping.",
    ]
    for verb, schema in SCHEMAS.items():
        parts += ["", f"## {verb}", "", _one_line(schema.__doc__), ""]
        parts += ["| key | value | meaning |", "|---|---|---|"]
        for key in keys_of(schema):
            path = ".".join(key.path)
            name = f"`{path}`: `kind: {key.kind}`" if key.kind else f"`{path}`"
            parts.append(f"| {name} | {_cell(key.type)} | {_cell(key.meaning)} |")
    return "\n".join(parts)


def _wrapped(text: str, first: str, further: str) -> list[str]:
    if not text:
        return []
    return [fill(text, COLUMNS, initial_indent=first, subsequent_indent=further, break_on_hyphens=False)]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _type_of(field: FieldInfo) -> str:
    return _type(field.annotation, field.metadata)


def _type(annotation: Any, metadata: list[Any]) -> str:
    if get_origin(annotation) is Annotated:
        inner, *further = get_args(annotation)
        return _type(inner, [*(part for each in further for part in _constraints(each)), *metadata])
    if get_origin(annotation) in (Union, type(int | str)):
        types = [_type(member, metadata) for member in get_args(annotation)]
        return " or ".join(dict.fromkeys(types))  # several kinds are named once
    return _plain_type(annotation, [part for each in metadata for part in _constraints(each)])


def _plain_type(annotation: Any, metadata: list[Any]) -> str:
    bounds = _bounds(metadata)
    if annotation is NoneType:
        return "null"
    if annotation is bool:
        return "true or false"
    if annotation is int:
        return f"integer{bounds}"
    if annotation is float:
        return f"number{bounds}"
    if annotation is str:
        return "text without /" if any(isinstance(part, StringConstraints) for part in metadata) else "text"
    if get_origin(annotation) is Literal:
        return _listed(
            [f"`{value}`" if isinstance(value, str) else str(value) for value in get_args(annotation)]
        )
    if get_origin(annotation) is tuple:
        inner = get_args(annotation)
        if inner[-1] is not Ellipsis:
            return f"list of {len(inner)} items"
        least = next((part.min_length for part in metadata if isinstance(part, MinLen)), 0)
        return f"list{f' of at least {least}' if least else ''} of {_plural(_type(inner[0], []))}"
    if get_origin(annotation) is dict:
        return f"mapping of names to {_plural(_type(get_args(annotation)[1], []))}"
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return "one of the kinds below" if "kind" in annotation.model_fields else "mapping"
    return "any value"


def _constraints(metadata: Any) -> list[Any]:
    return list(metadata.metadata) if isinstance(metadata, FieldInfo) else [metadata]


def _bounds(metadata: list[Any]) -> str:
    found = []
    least, most = (
        [getattr(part, name) for part in metadata if isinstance(part, bound)]
        for bound, name in ((Ge, "ge"), (Le, "le"))
    )
    if least and most:
        return f" from {least[0]} to {most[0]}"
    for part in metadata:
        match part:
            case Gt(gt=bound):
                found.append(f"> {bound}")
            case Ge(ge=bound):
                found.append(f">= {bound}")
            case Lt(lt=bound):
                found.append(f"< {bound}")
            case Le(le=bound):
                found.append(f"<= {bound}")
            case MultipleOf(multiple_of=step):
                found.append(f"multiple of {step}")
    return f" {', '.join(found)}" if found else ""


def _plural(type: str) -> str:
    words = {"text": "texts", "mapping": "mappings", "one of the kinds below": "the kinds below"}
    return words.get(type, type)


def _listed(values: list[str]) -> str:
    return " or ".join([", ".join(values[:-1]), values[-1]] if len(values) > 1 else values)


def _json(value: Any) -> str:
    return "null" if value is None else str(value)


if __name__ == "__main__":
    print(reference())
