"""Reads an instruction in plain words as requirements on a catalog's attributes, to mark what obeys it.

Only for the marks: values are found by their names, and ranges by words such as "before" and "at least". If nothing is
found, nothing is marked. The encoder does not use it.
"""

from collections.abc import Iterator, Sequence
import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dualview.catalog.attributes import NO, UNKNOWN, YES, Attribute
from dualview.catalog.vocabulary import is_year, spoken
from dualview.catalog.wordings import includes


class Recognised(NamedTuple):
    include: bool
    attribute: Attribute
    value: str


_NUMBER = r"(\d[\d,.]*\d|\d)(?: ?(million|billion))?"
_RANGES = (
    (rf"\bbetween {_NUMBER} and {_NUMBER}", "between"),
    (r"\b(\d{3}0)s\b", "decade"),
    (
        rf"\b(?:before|below|under|less than|fewer than|older than|earlier than|smaller than) {_NUMBER}",
        "below",
    ),
    (rf"\b(?:after|newer than|later than|above|over|more than|larger than) {_NUMBER}", "above"),
    (rf"\b(?:from|since|at least|no less than|no older than) {_NUMBER}", "from"),
)


def read(instruction: str, attributes: Sequence[Attribute]) -> list[Recognised]:
    """The requirements, clause by clause; [] if none is recognised."""
    clauses = [clause for clause in re.split(r"[.;!?](?:\s|$)|,\s|\bbut\b", instruction) if clause.strip()]
    found: list[Recognised] = []
    for clause in clauses:
        include = includes(clause)
        for attribute in attributes:
            found += [Recognised(include, attribute, value) for value in _named(clause, attribute)]
        found += [Recognised(include, attribute, value) for attribute, value in _ranges(clause, attributes)]
    return list({(needed.include, needed.attribute.name, needed.value): needed for needed in found}.values())


def obeying(found: Sequence[Recognised]) -> NDArray[np.int8] | None:
    """Whether each document meets all requirements: YES, NO or UNKNOWN; None without a requirement."""
    if not found:
        return None
    # Several inclusions of one attribute are alternatives: "comedies and dramas".
    groups: dict[tuple[bool, str], list[NDArray[np.int8]]] = {}
    for needed in found:
        groups.setdefault((needed.include, needed.attribute.name), []).append(
            needed.attribute.labels(needed.value)
        )
    answers = []
    for (include, _), labels in groups.items():
        has_one = np.max(labels, axis=0)
        answers.append(has_one if include else np.where(has_one == UNKNOWN, UNKNOWN, 1 - has_one))
    is_broken = np.any([answer == NO for answer in answers], axis=0)
    is_unknown = np.any([answer == UNKNOWN for answer in answers], axis=0)
    return np.where(is_broken, NO, np.where(is_unknown, UNKNOWN, YES)).astype(np.int8)


def _named(clause: str, attribute: Attribute) -> Iterator[str]:
    """Values of a category that the clause names, also in the plural."""
    if attribute.kind == "yes_no":
        if re.search(rf"\b{re.escape(spoken(attribute.name))}", clause, re.IGNORECASE):
            yield "yes"
    elif attribute.kind in ("category", "several"):
        known = [value for value in attribute.values_D if value is not None]
        values = set(known) if attribute.kind == "category" else {item for items in known for item in items}
        text = clause.casefold()
        for value in sorted(values):
            name = value.casefold()
            if name[:-1] in text:  # a quick look before the exact one
                forms = {name, f"{name}s", re.sub("y$", "ies", name)}
                if re.search(rf"(?<!\w)(?:{'|'.join(map(re.escape, forms))})(?!\w)", text):
                    yield value


def _ranges(clause: str, attributes: Sequence[Attribute]) -> Iterator[tuple[Attribute, str]]:
    for pattern, kind in _RANGES:
        for match in re.finditer(pattern, clause, re.IGNORECASE):
            numbers = _numbers(match)
            attribute = _about(clause, numbers[0], attributes)
            if attribute is None:
                continue
            step = 1 if is_year(attribute) or attribute.kind == "date" else 0
            match kind:
                case "between":
                    yield (
                        attribute,
                        f"{_shown(attribute, numbers[0])}..{_shown(attribute, numbers[1] + step)}",
                    )
                case "decade":
                    yield attribute, f"{_shown(attribute, numbers[0])}..{_shown(attribute, numbers[0] + 10)}"
                case "below":
                    yield attribute, f"<{_shown(attribute, numbers[0])}"
                case "above":
                    yield attribute, f">={_shown(attribute, numbers[0] + step)}"
                case "from":
                    yield attribute, f">={_shown(attribute, numbers[0])}"


def _shown(attribute: Attribute, number: float) -> str:
    return f"{number:.10g}" if attribute.kind == "number" else f"{number:.0f}"


def _numbers(match: re.Match[str]) -> list[float]:
    sizes = {"million": 1e6, "billion": 1e9, None: 1.0}
    groups = [group.lower() if group else None for group in match.groups()]
    if len(groups) == 1:  # a decade
        return [float(groups[0] or 0)]
    return [
        float((number or "0").replace(",", "").rstrip(".")) * sizes[size]
        for number, size in zip(groups[::2], groups[1::2], strict=True)
    ]


def _about(clause: str, number: float, attributes: Sequence[Attribute]) -> Attribute | None:
    """The attribute that a number is about: the one that the clause names, or a year, or the only one."""
    numeric = [attribute for attribute in attributes if attribute.kind in ("number", "date")]
    named = [attribute for attribute in numeric if spoken(attribute.name).casefold() in clause.casefold()]
    years = [attribute for attribute in numeric if is_year(attribute) or attribute.kind == "date"]
    if named:
        return named[0]
    if 1000 <= number <= 2100 and years:
        return years[0]
    return numeric[0] if len(numeric) == 1 else None
