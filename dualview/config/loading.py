"""Loads settings from YAML. Unknown keys are errors, and every error is one sentence."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
import logging
from pathlib import Path
import re
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError
import yaml

from dualview.config.base import Settings
from dualview.config.renames import REFUSED_FROM, SINCE, rename
from dualview.errors import InputError

logger = logging.getLogger(__name__)

SettingsType = TypeVar("SettingsType", bound=Settings)


def load(
    schema: type[SettingsType],
    path: str,
    assignments: Sequence[str] = (),
    changes: Sequence[Mapping[str, Any]] = (),
) -> SettingsType:
    """Reads `path` and the files it extends, applies `changes` and then `assignments`, and validates the result.

    Each mapping in `changes` is merged like a file that extends `path`. An assignment `a.b=c` replaces the value of its
    key; c is YAML. Raises InputError with the file, the key, the expected and the found value.
    """
    content = _change_all(schema, _read(schema, path), changes, path)
    for assignment in assignments:
        key, value = _parsed(assignment)
        content = _change(schema, content, key, _Whole(value), f"--set {assignment}")
    return _checked(schema, content, path)


def settings_of(
    schema: type[SettingsType],
    config: str | Path | Mapping[str, Any] | SettingsType,
    changes: Mapping[str, Any],
) -> SettingsType:
    """Settings from a YAML file, a mapping or a config, with changes merged like a file that extends it."""
    if isinstance(config, schema) and not changes:
        return config
    if isinstance(config, str | Path):
        return load(schema, str(config), changes=[changes])
    content = config.model_dump(mode="json") if isinstance(config, Settings) else dict(config)
    return _checked(schema, _change_all(schema, content, [changes], schema.__name__), schema.__name__)


def _checked(schema: type[SettingsType], content: dict[str, Any], path: str) -> SettingsType:
    _rename(schema, content, path)
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: {_first_error(error, content)}") from None


# --- files ----------------------------------------------------------------------------------------


def _read(schema: type[Settings], path: str, extending: tuple[str, ...] = ()) -> dict[str, Any]:
    """The content of a file, merged onto the file it extends; `extending` is the chain of files that extend it."""
    content = _parse(path, extending)
    if "extends" not in content:
        _rename(schema, content, path)
        return content
    base = content.pop("extends")
    if not isinstance(base, str):
        raise InputError(f"{path}: `extends`: expected the path of a file, for example `extends: base.yaml`")
    base_path = str(Path(path).parent / base)
    chain = (*extending, path)
    if Path(base_path).resolve() in [Path(file).resolve() for file in chain]:
        raise InputError(
            f"{path}: `extends`: the files extend each other: {' -> '.join((*chain, base_path))}"
        )
    return _change_all(schema, _read(schema, base_path, chain), [content], path)


def _parse(path: str, extending: tuple[str, ...]) -> dict[str, Any]:
    try:
        content = _yaml(Path(path).read_text())
    except OSError as error:
        expected = f"{extending[-1]} extends it" if extending else "expected a YAML file"
        raise InputError(f"{path}: cannot be read ({error.strerror}); {expected}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date such as 2026-13-01
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        problem = str(getattr(error, "problem", error)).splitlines()[0]
        raise InputError(f"{path}{line}: is not valid YAML ({problem})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected keys and values, for example `output: s3://bucket/run`")
    return content


class _Loader(yaml.SafeLoader):
    """Also reads 1e-5 as a number, as YAML 1.2 and everybody else does; YAML 1.1 wants 1.0e-5."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def _parsed(assignment: str) -> tuple[str, Any]:
    key, equals, value = assignment.partition("=")
    if not equals or not key:
        raise InputError(f"--set {assignment}: expected KEY=VALUE, for example --set actors.num=2")
    try:
        return key, _yaml(value)
    except (yaml.YAMLError, ValueError):
        raise InputError(f"--set {assignment}: `{value}` is not a YAML value") from None


def _rename(schema: type[Settings], content: Any, where: str) -> None:
    try:
        for old, new in rename(schema, content):
            change = f"renamed to `{new}`" if new else "removed"
            _warn(f"{where}: `{old}` was {change} in {SINCE}; {REFUSED_FROM} will refuse the old name")
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


@cache
def _warn(sentence: str) -> None:
    """Logs a warning once, even if a study reads the same file several times."""
    logger.warning(sentence)


# --- changes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Whole:
    """A value that replaces the old one instead of being merged, even if both are mappings."""

    value: Any


class _Path(dict[str, Any]):
    """The nesting of a dotted key, to distinguish it from a mapping in a file."""


def _change_all(
    schema: type[Settings], content: dict[str, Any], changes: Sequence[Mapping[str, Any]], path: str
) -> dict[str, Any]:
    for change in changes:
        for key, value in change.items():
            content = _change(schema, content, str(key), value, f"{path}: `{key}`")
    return content


def _change(
    schema: type[Settings], content: dict[str, Any], key: str, value: Any, where: str
) -> dict[str, Any]:
    nested: Any = value
    for part in reversed(key.split(".")):
        nested = _Path({part: nested})
    _rename(schema, nested, where)
    changed: dict[str, Any] = _merged(content, nested, [schema], key, where)
    return changed


def _merged(base: Any, change: Any, types: Sequence[Any], name: str, where: str) -> Any:
    """`change` merged onto `base`: mappings merge, numbers index lists, everything else replaces.

    A mapping of another `kind` also replaces. `types` are the schema's types for this value; setting a key removes the
    keys that are mutually exclusive with it.
    """
    if isinstance(change, _Whole):
        return change.value
    if not isinstance(change, dict):
        return change
    if isinstance(base, list):
        items = list(base)
        for key, inner in change.items():
            if not (str(key).isdecimal() and int(key) < len(items)):
                raise InputError(f"{where}: no item `{key}` in a list of {len(items)}; items count from 0")
            items[int(key)] = _merged(items[int(key)], inner, _under(types, key), key, where)
        return items
    if isinstance(change, _Path) and not isinstance(base, dict | None):
        raise InputError(f"{where}: `{name}` has a single value, not keys")
    if not isinstance(base, dict) or (
        not isinstance(change, _Path) and change.get("kind", base.get("kind")) != base.get("kind")
    ):
        base = {}
    excluded = {key for group in _exclusive(types) if _sets(change, group) for key in group} - change.keys()
    kept = {key: value for key, value in base.items() if key not in excluded}
    return kept | {
        key: _merged(base.get(key), inner, _under(types, key), key, where) for key, inner in change.items()
    }


def _exclusive(types: Sequence[Any]) -> list[tuple[str, ...]]:
    return [member.one_of for member in types if isinstance(member, type) and issubclass(member, Settings)]


def _sets(change: Mapping[str, Any], group: Sequence[str]) -> bool:
    return any(change.get(key) not in (None, _Whole(None)) for key in group)


def _under(types: Sequence[Any], key: Any) -> list[Any]:
    """The types that values of these types have under a key."""
    found: list[Any] = []
    for member in types:
        if isinstance(member, type) and issubclass(member, Settings):
            if field := member.model_fields.get(key):
                found += members(field.annotation)
        elif get_origin(member) in (tuple, dict):
            found += members(get_args(member)[0 if get_origin(member) is tuple else 1])
    return found


def members(annotation: Any) -> Iterator[Any]:
    """The types of a union, or the one type itself."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from members(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for member in get_args(annotation):
            yield from members(member)
    else:
        yield annotation


# --- sentences ------------------------------------------------------------------------------------


def _first_error(error: ValidationError, content: dict[str, Any]) -> str:
    first = error.errors()[0]
    key = _key(first["loc"], content)
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    match first["type"]:
        case "extra_forbidden":
            return f"unknown key `{key}`; remove it or look for a misspelling{more}"
        case "missing":
            return f"missing key `{key}`; it has no default{more}"
        case "value_error":  # from one of our validators
            message = first["msg"].removeprefix("Value error, ")
            return f"`{key}`: {message}{more}" if key else f"{message}{more}"
        case _:
            return f"`{key}`: {first['msg']}, but found {first['input']!r}{more}"


def _key(location: tuple[int | str, ...], content: Any) -> str:
    """The location of a pydantic error, as a dotted key of the file."""
    parts = []
    for part in location:
        if isinstance(content, dict) and part == content.get("kind"):
            continue  # pydantic also names the member of a union
        parts.append(str(part))
        with suppress(LookupError, TypeError):  # a missing key has no content
            content = content[part]
    return ".".join(parts)
