"""How requirements are said in words, and read back from them."""

from collections.abc import Mapping
from dataclasses import dataclass
import random
import re

from dualview.records import Requirement

# Words by which an English instruction turns a requirement into an exclusion.
_EXCLUSION_CUES = re.compile(
    r"\b(not?|never|non|exclud\w*|except|other than|apart from|avoid\w*|leave out|omit\w*|drop|skip"
    r"|ignor\w*|without|irrelevant|instead of|rather than)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Vocabulary:
    """Phrases for each facet value ("in Africa") and templates around them ("Only countries {phrase}.").

    `names` are the words by which a value is recognised in free text ("Africa", "African").
    """

    phrases: Mapping[tuple[str, str], tuple[str, ...]]  # (facet, value) -> phrases
    names: Mapping[tuple[str, str], tuple[str, ...]]
    inclusions: tuple[str, ...]
    exclusions: tuple[str, ...]

    def say(self, requirement: Requirement, rng: random.Random) -> str:
        """One wording of the requirement, a template and a phrase drawn by `rng`."""
        templates = self.inclusions if requirement.include else self.exclusions
        phrase = rng.choice(self.phrases[requirement.facet, requirement.value])
        return rng.choice(templates).format(phrase=phrase)

    def read(self, instruction: str) -> tuple[Requirement, ...]:
        """The requirements a free instruction names, one a sentence and value; () where none is recognised.

        A value named in a sentence with a word of exclusion is read as an exclusion.
        """
        found = []
        for sentence in re.split(r"(?<=[.;!?])\s+", instruction):
            include = _EXCLUSION_CUES.search(sentence) is None
            for (facet, value), names in self.names.items():
                if any(re.search(rf"\b{re.escape(name)}\b", sentence, re.IGNORECASE) for name in names):
                    found.append(Requirement(include, facet, value))
        return tuple(dict.fromkeys(found))
