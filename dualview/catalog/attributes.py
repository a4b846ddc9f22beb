"""Attributes of a catalog's documents: their kinds, from the metadata, and the values that an instruction may ask for.

A value is written as a text. "Comedy" and "yes" stand for themselves; numbers and dates have ranges: "<1990", ">=1990" and
"1980..1990", which contains 1980 and not 1990. Dates are compared as ISO texts.
"""

# D = documents

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
import itertools
import math
import re
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dualview.errors import InputError

Kind = Literal["category", "several", "yes_no", "number", "date"]

YES, NO, UNKNOWN = 1, 0, -1  # a label: whether a document has a value
MIN_SHARE_OF_ONE_TYPE = 0.9
_DATE = re.compile(r"\d{4}-\d{2}(-\d{2})?(?=$|T| )")
_YES_NO = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}
_SEPARATORS = ("|", ";")


@dataclass(frozen=True)
class Attribute:
    """One key of the metadata over all documents."""

    name: str
    kind: Kind
    values_D: Sequence[Any]  # str, frozenset[str] or float, by kind; None: unknown
    num_odd: int = 0  # values of another type than the attribute's, which count as unknown

    @property
    def num_known(self) -> int:
        return sum(value is not None for value in self.values_D)

    def labels(self, value: str) -> NDArray[np.int8]:
        """Whether each document has the value, (D,): YES, NO or UNKNOWN.

        Raises InputError if the value is not one of this kind of attribute.
        """
        if self.kind in ("number", "date"):
            low, high = _bounds(self, value)
            return np.array(
                [
                    UNKNOWN
                    if found is None
                    else int((low is None or found >= low) and (high is None or found < high))
                    for found in self.values_D
                ],
                np.int8,
            )
        holds = (lambda found: value in found) if self.kind == "several" else (lambda found: value == found)
        return np.array([UNKNOWN if found is None else int(holds(found)) for found in self.values_D], np.int8)


class Unusable(NamedTuple):
    """A key of the metadata that no instruction can ask for."""

    name: str
    reason: str


def attributes_of(metadata_D: Sequence[Mapping[str, Any]]) -> tuple[list[Attribute], list[Unusable]]:
    """The attributes in order of first appearance, and the keys that are none. Nested keys are joined by dots."""
    flat_D = [_flat(metadata) for metadata in metadata_D]
    names = dict.fromkeys(name for metadata in flat_D for name in metadata)
    read = [_attribute(name, [metadata.get(name) for metadata in flat_D]) for name in names]
    return (
        [found for found in read if isinstance(found, Attribute)],
        [found for found in read if isinstance(found, Unusable)],
    )


def _flat(metadata: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in metadata.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + str(name)] = value
    return found


def _attribute(name: str, raw_D: list[Any]) -> Attribute | Unusable:
    known = [value for value in raw_D if not _is_missing(value)]
    if not known:
        return Unusable(name, "no document has a value")
    kinds = Counter(_kind(value) for value in known)
    if kinds["several"] and kinds["category"]:  # one value in place of a list of one
        kinds["several"] += kinds.pop("category")
    kind, count = kinds.most_common(1)[0]
    if kind is None or count < MIN_SHARE_OF_ONE_TYPE * len(known):
        shares = ", ".join(
            f"{number / len(known):.0%} {_NAMES[found]}" for found, number in kinds.most_common()
        )
        return Unusable(name, f"its values are of mixed types ({shares})")
    if kind == "category":
        for separator in _SEPARATORS:
            if sum(separator in value for value in known if isinstance(value, str)) >= 0.2 * len(known):
                raw_D = [_split(value, separator) for value in raw_D]
                kind = "several"
                break
    values_D = [None if _is_missing(value) else _read(kind, value) for value in raw_D]
    num_odd = len(known) - sum(value is not None for value in values_D)
    return Attribute(name, kind, values_D, num_odd)


_NAMES = {
    "category": "texts",
    "several": "lists",
    "yes_no": "yes or no",
    "number": "numbers",
    "date": "dates",
    None: "something else",
}


def _is_missing(value: Any) -> bool:
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str | list | tuple) and not value)
    )


def _split(value: Any, separator: str) -> Any:
    return [part.strip() for part in value.split(separator)] if isinstance(value, str) else value


def _kind(value: Any) -> Kind | None:
    if isinstance(value, bool):
        return "yes_no"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, list | tuple):
        return "several"
    if not isinstance(value, str):
        return None
    if value.strip().casefold() in _YES_NO:
        return "yes_no"
    if _DATE.match(value):
        return "date"
    return "category" if _number(value) is None else "number"


def _number(text: str) -> float | None:
    try:
        number = float(text.replace(",", ""))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _read(kind: Kind, value: Any) -> Any:
    """The value as one of this kind; None if it is none."""
    match kind:
        case "several":
            items = value if isinstance(value, list | tuple) else [value]
            texts = [_text(item) for item in items if not _is_missing(item)]
            return frozenset(text for text in texts if text) or None
        case "category":
            return _text(value) if isinstance(value, str) else None
        case "yes_no":
            text = str(value).strip().casefold() if isinstance(value, bool | str) else ""
            return _YES_NO.get(text)
        case "number":
            number = _number(value) if isinstance(value, str) else value
            if isinstance(number, bool) or not isinstance(number, int | float):
                return None
            return float(number) if math.isfinite(number) else None
        case "date":
            found = _DATE.match(value) if isinstance(value, str) else None
            return found[0] if found else None


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return " ".join(str(value).split())


# --- ranges ---------------------------------------------------------------------------------------

Bound = float | str


def _bounds(attribute: Attribute, value: str) -> tuple[Bound | None, Bound | None]:
    """The lowest value inside and the lowest one above; None: no bound."""
    low, between, high = value.partition("..")
    if between:
        return _bound(attribute, value, low), _bound(attribute, value, high)
    if value.startswith(">="):
        return _bound(attribute, value, value.removeprefix(">=")), None
    if value.startswith("<"):
        return None, _bound(attribute, value, value.removeprefix("<"))
    raise _not_a_range(attribute, value)


def _bound(attribute: Attribute, value: str, text: str) -> Bound:
    if attribute.kind == "date" and re.fullmatch(r"\d{4}(-\d{2}(-\d{2})?)?", text):
        return text
    number = _number(text) if attribute.kind == "number" else None
    if number is None:
        raise _not_a_range(attribute, value)
    return number


def _not_a_range(attribute: Attribute, value: str) -> InputError:
    low, high = ("1980", "1990") if attribute.kind == "number" else ("2021", "2022-06")
    return InputError(
        f'{attribute.name}: {value!r} is not a range of a {attribute.kind}; expected "<{high}", ">={low}" or'
        f' "{low}..{high}"'
    )


# --- values to ask for ----------------------------------------------------------------------------


def common_values(attribute: Attribute, min_documents: int, max_values: int) -> list[str]:
    """The values that at least `min_documents` documents have and as many lack, most frequent first; ranges ascend."""
    known = [value for value in attribute.values_D if value is not None]
    if attribute.kind in ("number", "date"):
        values = _ranges(known) if attribute.kind == "number" else _ranges_of_dates(known)
    elif attribute.kind == "yes_no":
        values = ["yes"]
    else:
        each = known if attribute.kind == "category" else [item for items in known for item in items]
        values = [value for value, _ in sorted(Counter(each).items(), key=lambda pair: (-pair[1], pair[0]))]
    found = []
    for value in values:
        num_having = int((attribute.labels(value) == YES).sum())
        if min_documents <= num_having <= len(known) - min_documents:
            found.append(value)
        elif attribute.kind in ("category", "several") and num_having < min_documents:
            break
        if len(found) == max_values:
            break
    return found


_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def _ranges(known: Sequence[float]) -> list[str]:
    """Below, from and between round thresholds near the quantiles."""
    quantiles = np.quantile(known, _QUANTILES)
    low, high = float(quantiles[0]), float(quantiles[-1])
    if low > 0 and high / low > 100:  # over several orders of magnitude, one digit each
        thresholds = [float(f"{quantile:.0e}") for quantile in quantiles]
    else:
        step = _round_step((high - low) / 5) if high > low else 1.0
        thresholds = [round(round(quantile / step) * step, 10) for quantile in quantiles.tolist()]
    return _around([f"{threshold:.10g}" for threshold in sorted(set(thresholds))])


def _round_step(step: float) -> float:
    """The largest of 1, 2, 5, 10, 20, ... that is not above `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return max(digit * power for digit in (1, 2, 5) if digit * power <= step * (1 + 1e-9))


def _ranges_of_dates(known: Sequence[str]) -> list[str]:
    """The same with the first days of years, or of months if all dates are within three years."""
    dates = sorted(known)
    places = [dates[min(len(dates) - 1, int(share * len(dates)))] for share in _QUANTILES]
    by_year = int(dates[-1][:4]) - int(dates[0][:4]) > 3
    return _around(sorted({place[:4] if by_year else place[:7] for place in places}))


def _around(thresholds: Iterable[str]) -> list[str]:
    thresholds = list(thresholds)
    between = itertools.pairwise(thresholds)
    return [f"<{t}" for t in thresholds] + [f">={t}" for t in thresholds] + [f"{a}..{b}" for a, b in between]
