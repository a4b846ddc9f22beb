"""YAML to settings: unknown keys are refused, every error is one sentence."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
import yaml

from dualview.config.base import Settings
from dualview.errors import InputError

SettingsType = TypeVar("SettingsType", bound=Settings)


def from_command_line(
    schema: type[SettingsType], description: str | None, **flags: str
) -> tuple[SettingsType, Namespace]:
    """The settings that `--config FILE` and any `--set KEY=VALUE` name; the same for every job.

    flags: further switches of this job and their help; `dry_run` becomes --dry-run, and is in the second
    value.
    """
    parser = ArgumentParser(description=description)
    parser.add_argument("--config", required=True, metavar="FILE", help="a YAML file, see configs/")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one key of the file, for example --set actors.num=2; may be repeated",
    )
    for name, explanation in flags.items():
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=explanation)
    arguments = parser.parse_args()
    return load(schema, arguments.config, arguments.set), arguments


def load(schema: type[SettingsType], path: str, assignments: Sequence[str] = ()) -> SettingsType:
    """Reads `path`, applies `a.b=c` assignments (c is YAML), and checks everything.

    Raises InputError that names the file, the key, what was expected and what stood there.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a YAML file") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date such as 2026-13-01
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        problem = str(getattr(error, "problem", error)).splitlines()[0]
        raise InputError(f"{path}{line}: is not valid YAML ({problem})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected keys and values, for example `output: s3://bucket/run`")
    for assignment in assignments:
        _assign(content, assignment)
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: {_first_error(error, content)}") from None


def _assign(content: dict[str, Any], assignment: str) -> None:
    key, equals, value = assignment.partition("=")
    if not equals or not key:
        raise InputError(f"--set {assignment}: expected KEY=VALUE, for example --set actors.num=2")
    *parents, last = key.split(".")
    place: Any = content
    for parent in parents:
        try:
            place = place[int(parent)] if isinstance(place, list) else place.setdefault(parent, {})
        except (ValueError, IndexError):
            raise InputError(f"--set {assignment}: there is no item `{parent}` in this list") from None
        if not isinstance(place, dict | list):
            raise InputError(f"--set {assignment}: `{parent}` holds a value, not further keys")
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise InputError(f"--set {assignment}: `{value}` is not a YAML value") from None
    if isinstance(place, dict):
        place[last] = parsed
    elif last.isdigit() and int(last) < len(place):
        place[int(last)] = parsed
    else:
        raise InputError(f"--set {assignment}: there is no item `{last}` in this list")


def _first_error(error: ValidationError, content: dict[str, Any]) -> str:
    first = error.errors()[0]
    key = _key(first["loc"], content)
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    match first["type"]:
        case "extra_forbidden":
            return f"unknown key `{key}`; remove it or look for a misspelling{more}"
        case "missing":
            return f"missing key `{key}`; it has no default{more}"
        case "value_error":  # of a validator of ours, which says it all
            message = first["msg"].removeprefix("Value error, ")
            return f"`{key}`: {message}{more}" if key else f"{message}{more}"
        case _:
            return f"`{key}`: {first['msg']}, but found {first['input']!r}{more}"


def _key(location: tuple[int | str, ...], content: Any) -> str:
    """Where pydantic found an error, as dotted keys of the file."""
    parts = []
    for part in location:
        if isinstance(content, dict) and part == content.get("kind"):
            continue  # pydantic names the member of a union too
        parts.append(str(part))
        with suppress(LookupError, TypeError):  # what is missing has nothing below it
            content = content[part]
    return ".".join(parts)
