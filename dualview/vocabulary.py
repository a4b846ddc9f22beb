"""How requirements are put into words and recognised in text.

A vocabulary is a YAML file:

    inclusions: ["Only shoes {phrase}.", "Keep shoes {phrase}."]
    exclusions: ["No shoes {phrase}.", "Leave out shoes {phrase}."]
    facets:
      colour:
        red: {phrases: [in red, of a red colour], names: [red]}
        blue: {phrases: [], names: [blue]}

Facets and values are those of the source examples' `attributes` and `requirements`. Their order in the file decides
the draws, so the same file always gives the same instructions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
import random
import re
from string import Formatter
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError
import yaml

from dualview.config.base import Settings, Several
from dualview.errors import InputError
from dualview.records import Requirement
from dualview.storage import S3Store, check_reachable, open_store

# Words that turn a requirement into an exclusion in an English instruction.
_EXCLUSION_CUES = re.compile(
    r"\b(not?|never|non|exclud\w*|except|other than|apart from|avoid\w*|leave out|omit\w*|drop|skip"
    r"|ignor\w*|without|irrelevant|instead of|rather than)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Vocabulary:
    """Phrases for each facet value ("in Africa") and templates around them ("Only countries {phrase}.").

    `names` are the words that identify a value in free text ("Africa", "African").
    """

    phrases: Mapping[tuple[str, str], tuple[str, ...]]  # (facet, value) -> phrases
    names: Mapping[tuple[str, str], tuple[str, ...]]
    inclusions: tuple[str, ...]
    exclusions: tuple[str, ...]

    def say(self, requirement: Requirement, rng: random.Random) -> str:
        """Phrase the requirement, with a template and a phrase drawn by `rng`."""
        templates = self.inclusions if requirement.include else self.exclusions
        phrase = rng.choice(self.phrases[requirement.facet, requirement.value])
        return rng.choice(templates).format(phrase=phrase)

    def read(self, instruction: str) -> tuple[Requirement, ...]:
        """Return the requirements recognised in an instruction, one per sentence and value; () if there are none.

        A value in a sentence that contains an exclusion word is an exclusion.
        """
        found = []
        for sentence in re.split(r"(?<=[.;!?])\s+", instruction):
            include = _EXCLUSION_CUES.search(sentence) is None
            for (facet, value), names in self.names.items():
                if any(re.search(rf"\b{re.escape(name)}\b", sentence, re.IGNORECASE) for name in names):
                    found.append(Requirement(include, facet, value))
        return tuple(dict.fromkeys(found))


# --- the file -------------------------------------------------------------------------------------


def _of_one_phrase(template: str) -> str:
    fields = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    if fields != ["phrase"]:
        raise ValueError("must contain {phrase} once and no other {} field")
    return template


_Text = Annotated[str, Field(min_length=1)]
_Templates = Annotated[Several[Annotated[str, AfterValidator(_of_one_phrase)]], Field(min_length=1)]


class _Value(Settings):
    phrases: Several[_Text]  # empty: recognised, never used in an instruction
    names: Annotated[Several[_Text], Field(min_length=1)]


class _File(Settings):
    inclusions: _Templates
    exclusions: _Templates
    facets: Annotated[dict[str, dict[str, _Value]], Field(min_length=1)]


_EXAMPLE = """`facets: {colour: {red: {phrases: ["in red"], names: ["red"]}}}`"""


def read_vocabulary(path: str) -> Vocabulary:
    """Read a vocabulary from a YAML file, local or at s3://.

    Raises InputError, naming the file and the key, if it cannot be read or does not have the layout above.
    """
    folder, slash, name = path.rpartition("/")
    store = open_store(folder + slash or ".")
    if isinstance(store, S3Store):
        check_reachable(store)
    try:
        content: Any = yaml.safe_load(store.get(name))
    except OSError as error:
        reason = "No such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise InputError(f"{path}: cannot be read ({reason}); expected a YAML vocabulary") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8
        problem = str(getattr(error, "problem", error)).splitlines()[0]
        raise InputError(f"{path}: is not valid YAML ({problem})") from None
    try:
        file = _File.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: {_first(error)}") from None
    words_of = {
        (facet, value): words for facet, values in file.facets.items() for value, words in values.items()
    }
    return Vocabulary(
        phrases={key: words.phrases for key, words in words_of.items() if words.phrases},
        names={key: words.names for key, words in words_of.items()},
        inclusions=file.inclusions,
        exclusions=file.exclusions,
    )


def _first(error: ValidationError) -> str:
    """Describe the first mistake in one sentence."""
    first = error.errors()[0]
    *parents, last = ("", *first["loc"])
    if last == "[key]":  # YAML parses a bare `no` as false and `2024` as a number
        key = ".".join(map(str, parents[1:-1]))
        return f'`{key}`: the name {first["input"]!r} is not a string; put it in quotes, for example "no"'
    key = ".".join(map(str, first["loc"]))
    match first["type"]:
        case "missing":
            return f"missing key `{key}`; expected inclusions, exclusions and facets, for example {_EXAMPLE}"
        case "extra_forbidden":
            return f"unknown key `{key}`; remove it or look for a misspelling"
        case "value_error":
            message = first["msg"].removeprefix("Value error, ")
            return f'`{key}`: {message}, for example "Only shoes {{phrase}}.", but found {first["input"]!r}'
        case _ if not key:
            return f"expected the keys inclusions, exclusions and facets, but found {first['input']!r:.60}"
        case _:
            return f"`{key}`: {first['msg']}, but found {first['input']!r:.60}; for example {_EXAMPLE}"
