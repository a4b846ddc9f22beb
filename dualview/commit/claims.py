"""An output is what it was first claimed for: settings that differ are refused, and told."""

from collections.abc import Callable, Iterator, Mapping
import json
from typing import Any
from uuid import uuid4

from dualview.config.base import canonical_json
from dualview.errors import InputError
from dualview.storage import Store

_NUM_DIFFERENCES_SHOWN = 3


def claim(
    store: Store,
    key: str,
    content: Mapping[str, Any],
    notes: Mapping[str, Any],
    deciding: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
) -> None:
    """Makes `content` what the output is, or finds that it already is.

    `notes` stand beside it for human readers, and are not compared; of the content only what `deciding`
    leaves of it. Raises InputError, saying what differs, where the output was claimed with other content.
    """
    text = json.dumps({**notes, **content}, indent=2, ensure_ascii=False)
    if store.put_new(key, text.encode(), attempt=uuid4().hex):
        return
    try:
        standing = json.loads(store.get(key))
        claimed = deciding({name: value for name, value in standing.items() if name not in notes})
    except (ValueError, AttributeError, KeyError):
        raise InputError(
            f"{store.url}/{key}: is not a JSON object of such settings; choose another output"
        ) from None
    if told := differences(claimed, deciding(json.loads(json.dumps(content)))):
        raise InputError(
            f"{store.url}: holds a run with other settings ({told});"
            " choose another output, or put the settings back"
        )


def differences(there: Any, here: Any) -> str:
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
