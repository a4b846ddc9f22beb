"""vocabulary.yaml: what instructions may ask for in a catalog, and the phrases that say it.

    noun: movies
    attributes:
      genres:
        kind: several
        values:
          Comedy: ["comedy movies", "movies of the genre comedy", ...]
      year:
        kind: number
        values:
          "<1990": ["movies from before 1990", ...]

A phrase stands for the documents with the value, in the plural. Values without phrases ([]) get drafted ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import re
from typing import Annotated, Any

from pydantic import Field, ValidationError
import yaml

from dualview.catalog.attributes import Attribute, Kind, common_values
from dualview.catalog.wordings import Split, split_of
from dualview.config.base import Settings, Several
from dualview.errors import InputError


class Asked(Settings):
    """One attribute: its values, and the phrases of each."""

    kind: Kind
    values: dict[str, Several[Annotated[str, Field(min_length=1)]]]


class CatalogVocabulary(Settings):
    noun: Annotated[str, Field(min_length=1)]
    attributes: Annotated[dict[str, Asked], Field(min_length=1)]


@dataclass(frozen=True)
class Value:
    """One value of an attribute that instructions may ask for."""

    attribute: str
    kind: Kind
    value: str
    phrases: Mapping[Split, Sequence[str]]


def draft(
    noun: str, attributes: Sequence[Attribute], min_documents: int, max_values: int
) -> CatalogVocabulary:
    """A vocabulary of the common values of each attribute. Raises InputError if there is none."""
    asked = {}
    for attribute in attributes:
        if values := common_values(attribute, min_documents, max_values):
            drafted = {value: tuple(draft_phrases(noun, attribute, value)) for value in values}
            asked[attribute.name] = Asked(kind=attribute.kind, values=drafted)
    if not asked:
        raise InputError(
            f"no attribute of the metadata has a value that at least {min_documents} documents have and as many lack;"
            ' expected for example "genre": "comedy" or "year": 1990 in the metadata of many documents'
        )
    return CatalogVocabulary(noun=noun, attributes=asked)


def to_yaml(vocabulary: CatalogVocabulary) -> str:
    """The file, with a phrase list on each line."""
    lines = [
        "# What instructions may ask for, and the phrases that say it: edit, add or remove any of it, and name the file",
        "# as `vocabulary`. A phrase stands for the documents with the value; values with [] get drafted phrases.",
        f"noun: {_quoted(vocabulary.noun)}",
        "attributes:",
    ]
    for name, asked in vocabulary.attributes.items():
        lines += [f"  {_quoted(name)}:", f"    kind: {asked.kind}", "    values:"]
        for value, phrases in asked.values.items():
            lines.append(f"      {_quoted(value)}: [{', '.join(map(_quoted, phrases))}]")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    if re.fullmatch(r"[A-Za-z][A-Za-z_]*", text) and yaml.safe_load(text) == text:
        return text
    return str(yaml.safe_dump(text, default_style='"', width=10**6, allow_unicode=True)).strip()


def parse(text: str, where: str, attributes: Sequence[Attribute]) -> CatalogVocabulary:
    """Reads the file's text. Raises InputError, naming `where`, unless it fits the attributes of the catalog."""
    try:
        content: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        problem = str(getattr(error, "problem", error)).splitlines()[0]
        raise InputError(f"{where}: is not valid YAML ({problem})") from None
    try:
        vocabulary = CatalogVocabulary.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{where}: `{key}`: {first['msg']}; expected for example"
            ' {noun: movies, attributes: {genre: {kind: category, values: {"comedy": ["comedies"]}}}}'
        ) from None
    known = {attribute.name: attribute for attribute in attributes}
    for name, asked in vocabulary.attributes.items():
        if name not in known:
            raise InputError(
                f"{where}: the metadata have no attribute {name!r}; expected one of {', '.join(known)}"
            )
        if asked.kind != known[name].kind:
            raise InputError(
                f"{where}: {name} is of kind {asked.kind}, but in the metadata it is {known[name].kind}"
            )
        for value in asked.values:
            if not (known[name].labels(value) == 1).any():
                raise InputError(f"{where}: no document has the value {value!r} of {name}")
    return vocabulary


def values_of(vocabulary: CatalogVocabulary, attributes: Sequence[Attribute]) -> list[Value]:
    """All values in the order of the file, with their phrases split by wording."""
    known = {attribute.name: attribute for attribute in attributes}
    found = []
    for name, asked in vocabulary.attributes.items():
        for value, given in asked.values.items():
            phrases = list(given) or draft_phrases(vocabulary.noun, known[name], value)
            # With few phrases, all splits share them.
            split = split_of(phrases, seed=0) if len(phrases) >= 4 else dict.fromkeys(_SPLITS, phrases)
            found.append(Value(name, asked.kind, value, split))
    return found


_SPLITS: tuple[Split, ...] = ("train", "development", "test")


# --- drafted phrases ------------------------------------------------------------------------------


def draft_phrases(noun: str, attribute: Attribute, value: str) -> list[str]:
    """English phrases for the documents with the value."""
    of, name = attribute.kind, spoken(attribute.name)
    if of == "yes_no":
        return [form.format(n=noun, a=name) for form in (_YES if value == "yes" else _NO)]
    if of in ("category", "several"):
        return [form.format(n=noun, a=name, v=value) for form in _HAVING]
    low, between, high = value.partition("..")
    forms, of_years = _RANGES, is_year(attribute)
    if of == "date" or of_years:
        forms = _TIMES
    show = (
        _shown_date if of == "date" else (lambda bound: f"{float(bound):.10g}") if of_years else _shown_number
    )
    if between:
        phrases = [form.format(n=noun, a=name, low=show(low), high=show(high)) for form in forms["between"]]
        if of_years:
            first, last = int(float(low)), int(float(high)) - 1
            phrases += [f"{noun} from {first} to {last}", f"{noun} made between {first} and {last}"]
            if last - first == 9 and first % 10 == 0:
                phrases += [f"{first}s {noun}", f"{noun} from the {first}s", f"{noun} of the {first}s"]
        return phrases
    kind = "from" if value.startswith(">=") else "below"
    bound = value.removeprefix(">=").removeprefix("<")
    phrases = [form.format(n=noun, a=name, b=show(bound)) for form in forms[kind]]
    if of_years and kind == "from":
        year = int(float(bound)) - 1
        phrases += [f"{noun} after {year}", f"anything after {year}", f"{noun} newer than {year}"]
    return phrases


_HAVING = (
    "{v} {n}",
    "{v}",
    "{n} of the {a} {v}",
    "{n} whose {a} is {v}",
    "{n} with {a} {v}",
    "{n} with the {a} {v}",
    "{n} in the {a} {v}",
    "{n} from {v}",
    "{n} by {v}",
    "{n} about {v}",
    "{n} tagged {v}",
    "{n} that are {v}",
    "{n} that belong to {v}",
    "{n} listed under {v}",
    "{n} classified as {v}",
    "{n} filed under {v}",
    "{n} labelled {v}",
    "{n} in {v}",
    "{n} of {v}",
    "{n} for {v}",
    "{n} that count as {v}",
    "{n} connected with {v}",
    "{n} that have the {a} {v}",
    "{n} where the {a} is {v}",
    "{n} which fall under {v}",
    "{a} {v}",
    "anything {v}",
    "the {a} {v}",
)
_YES = (
    "{n} with {a}",
    "{a} {n}",
    "{a}",
    "{n} where {a} is true",
    "{n} that involve {a}",
    "{n} known for {a}",
    "{n} linked to {a}",
    "{n} marked {a}",
    "{n} that have {a}",
    "anything with {a}",
)
_NO = ("{n} without {a}", "{n} where {a} is false", "{n} not marked {a}", "{n} free of {a}", "non-{a} {n}")
_RANGES: Mapping[str, Sequence[str]] = {
    "below": (
        "{n} with {a} below {b}",
        "{n} with {a} under {b}",
        "{n} whose {a} is below {b}",
        "{n} with a {a} of less than {b}",
        "{n} with less than {b} {a}",
        "{n} with fewer than {b} {a}",
        "{n} with {a} smaller than {b}",
        "{a} under {b}",
        "anything below {b} {a}",
    ),
    "from": (
        "{n} with {a} of at least {b}",
        "{n} with {a} from {b} up",
        "{n} whose {a} is {b} or more",
        "{n} with a {a} of {b} or above",
        "{n} with at least {b} {a}",
        "{n} with no less than {b} {a}",
        "{n} with more than {b} {a}",
        "{a} over {b}",
        "anything above {b} {a}",
    ),
    "between": (
        "{n} with {a} between {low} and {high}",
        "{n} with {a} from {low} to {high}",
        "{n} whose {a} is between {low} and {high}",
        "{n} with {low} to {high} {a}",
        "{a} between {low} and {high}",
    ),
}
_TIMES: Mapping[str, Sequence[str]] = {
    "below": (
        "{n} from before {b}",
        "{n} older than {b}",
        "{n} made before {b}",
        "{n} with {a} before {b}",
        "{n} whose {a} is before {b}",
        "{n} earlier than {b}",
        "{n} that predate {b}",
        "{n} prior to {b}",
        "{n} dating from before {b}",
        "{n} up to the beginning of {b}",
        "pre-{b} {n}",
        "{n} which precede {b}",
        "{n} that came out before {b}",
        "{n} released before {b}",
        "{n} that appeared before {b}",
        "anything before {b}",
    ),
    "from": (
        "{n} from {b} or later",
        "{n} since {b}",
        "{n} made in {b} or later",
        "{n} with {a} from {b} on",
        "{n} whose {a} is {b} or later",
        "{n} no older than {b}",
        "{n} that came out in {b} or afterwards",
        "{n} starting from {b}",
        "{n} dating from {b} or later",
        "{n} of {b} and later",
        "{n} after the beginning of {b}",
        "post-{b} {n}",
        "{n} released since {b}",
        "{n} that appeared in {b} or later",
        "anything from {b} on",
    ),
    "between": (
        "{n} between {low} and {high}",
        "{n} with {a} between {low} and {high}",
        "{n} with {a} from {low} until {high}",
        "{n} from {low} until before {high}",
        "anything between {low} and {high}",
        "{n} that came out between {low} and {high}",
        "{n} released between {low} and {high}",
    ),
}
_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]


def spoken(name: str) -> str:
    """An attribute's name as words: `releaseDate` and `release_date` are "release date", `genres` is "genre"."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.rpartition(".")[2])
    words = " ".join(re.split(r"[\W_]+", words)).strip()
    words = words if words.isupper() else words.lower()
    is_plural = words.endswith("s") and not words.endswith(("ss", "us", "is", "ies"))
    if words.endswith("ies") and words not in ("series", "species"):
        return f"{words[:-3]}y"
    return words[:-1] if is_plural else words


def is_year(attribute: Attribute) -> bool:
    """Whether its numbers are years: these are spoken of as points in time."""
    known = [value for value in attribute.values_D if value is not None]
    return attribute.kind == "number" and all(
        1000 <= value <= 2100 and value == int(value) for value in known
    )


def _shown_number(bound: str) -> str:
    number = float(bound)
    for size, word in ((10**9, "billion"), (10**6, "million")):
        if abs(number) >= size and number / size == round(number / size, 2):
            return f"{number / size:.10g} {word}"
    return f"{number:,.10g}" if number == int(number) else f"{number:.10g}"


def _shown_date(bound: str) -> str:
    year, *rest = bound.split("-")
    if not rest:
        return year
    month = f"{_MONTHS[int(rest[0]) - 1]} {year}"
    return month if len(rest) == 1 else f"{int(rest[1])} {month}"
