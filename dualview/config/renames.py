"""Renamed keys and values, which are accepted under their old names for one version.

The `renamed` mapping of a config class is old path -> new path. Paths are dotted; `*` is any item of a list or any name
of a mapping, and `PATH=VALUE` on both sides renames a value; a new path of "" removes a key. They apply in order, each
to the result of the previous:

    renamed = {"watching": "logging", "logging.logs": "logging.folder", "source.kind=drafts": "source.kind=candidates"}
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import yaml

from dualview.config.base import Settings
from dualview.errors import InputError

SINCE = "0.2"
REFUSED_FROM = "0.3"


def rename(schema: type[Settings], content: Any) -> list[tuple[str, str]]:
    """Replaces old names in `content`, in place. Returns a pair of dotted paths (old, new) for each; "" if removed.

    Raises InputError if a key is present under both names.
    """
    renamed = []
    for old, new in schema.renamed.items():
        old_path, _, old_value = old.partition("=")
        new_path, _, new_value = new.partition("=")
        for path in list(_matches(content, tuple(old_path.split(".")))):
            target = _filled(new_path, old_path, path)
            parent = _at(content, path[:-1])
            key = _key(parent, path[-1])
            if old_value:
                if parent[key] == yaml.safe_load(old_value):
                    parent[key] = yaml.safe_load(new_value)
                    renamed.append((f"{'.'.join(path)}: {old_value}", f"{'.'.join(target)}: {new_value}"))
                continue
            value = parent.pop(key)
            if new:
                _put(content, target, value, old=".".join(path))
            _drop_if_empty(content, path[:-1])
            renamed.append((".".join(path), ".".join(target)))
    return renamed


def with_new_names(schema: type[Settings], stored: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of settings that an earlier version stored with a run, with current names, for comparison."""
    content = deepcopy(dict(stored))
    rename(schema, content)
    return content


def _matches(content: Any, pattern: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The paths in `content` that match the pattern."""
    if not pattern:
        yield ()
        return
    first, *remaining = pattern
    if isinstance(content, dict):
        keys = [key for key in content if first in ("*", str(key))]
    elif isinstance(content, list):
        keys = [number for number in range(len(content)) if first in ("*", str(number))]
    else:
        return
    for key in keys:
        for path in _matches(content[key], tuple(remaining)):
            yield (str(key), *path)


def _filled(new: str, old: str, path: tuple[str, ...]) -> tuple[str, ...]:
    """The new path, with each `*` replaced by its match in the old one."""
    stars = iter([part for part, pattern in zip(path, old.split("."), strict=True) if pattern == "*"])
    return tuple(next(stars) if part == "*" else part for part in new.split("."))


def _at(content: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        content = content[_key(content, part)]
    return content


def _put(content: Any, path: tuple[str, ...], value: Any, old: str) -> None:
    *parents, last = path
    for part in parents:
        key = _key(content, part)
        # Of the same type, because loading.py distinguishes a _Path from a plain mapping.
        content = content[key] if isinstance(content, list) else content.setdefault(key, type(content)())
    if last in content:
        raise InputError(
            f"`{old}` and `{'.'.join(path)}` are the old and the new name of the same key; keep the new one"
        )
    content[last] = value


def _drop_if_empty(content: Any, path: tuple[str, ...]) -> None:
    """Deletes the mapping at `path` if it is empty, and then its parents that are empty too."""
    while path and _at(content, path) == {} and isinstance(parent := _at(content, path[:-1]), dict):
        del parent[_key(parent, path[-1])]
        path = path[:-1]


def _key(content: Any, part: str) -> Any:
    if isinstance(content, list):
        return int(part)
    return next((key for key in content if str(key) == part), part)
