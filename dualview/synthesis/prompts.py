"""The prompts that we ship: files of the folder prompts/ beside this module."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
import hashlib
from importlib import resources
import re
from string import Template
from typing import Literal

from dualview.engines import Turn
from dualview.errors import InputError
from dualview.records import Passage, Seed

_FOLDER = resources.files("dualview.synthesis") / "prompts"
_ROLES: Mapping[str, Literal["user", "assistant"]] = {"[user]": "user", "[assistant]": "assistant"}


@dataclass(frozen=True)
class Prompt:
    version: str  # NAME@HASH: changes with every change of the wording
    turns: tuple[tuple[Literal["user", "assistant"], Template], ...]

    def fill(self, **values: str) -> tuple[Turn, ...]:
        """The turns with every $placeholder replaced.

        Raises InputError where the prompt asks for something else than it is given here, as when a
        prompt for writing is named as a judge's.
        """
        for _, template in self.turns:
            unknown = set(template.get_identifiers()) - set(values)
            if unknown:
                raise InputError(
                    f"prompt {self.version}: has no value for ${min(unknown)};"
                    f" this use of a prompt offers ${', $'.join(values)}"
                )
        return tuple(Turn(role, template.substitute(values)) for role, template in self.turns)


@cache
def load(name: str) -> Prompt:
    """The prompt in prompts/NAME.txt: turns, each under a line [user] or [assistant].

    Raises InputError with the names that exist.
    """
    known = {file.name[:-4]: file for file in _FOLDER.iterdir() if file.name.endswith(".txt")}
    if name not in known:
        raise InputError(f"prompt: there is no `{name}`; expected one of {', '.join(sorted(known))}")
    text = known[name].read_text(encoding="utf-8")
    _, *parts = re.split(rf"^({'|'.join(map(re.escape, _ROLES))})\n", text, flags=re.MULTILINE)
    return Prompt(
        version=f"{name}@{hashlib.sha256(text.encode()).hexdigest()[:12]}",
        turns=tuple(
            (_ROLES[mark], Template(body.strip())) for mark, body in zip(parts[::2], parts[1::2], strict=True)
        ),
    )


def writing_prompt(prompt: Prompt, seed: Seed, target: Passage) -> tuple[Turn, ...]:
    """Asks for an instruction under which `target`, one of the instruction negatives, is the positive."""
    others = [passage.full_text for passage in seed.instruction_negatives if passage.id != target.id]
    return prompt.fill(
        query=seed.query,
        instruction=seed.instruction,
        positive=seed.positive.full_text,
        target=target.full_text,
        others="\n\n".join(others),
    )


def judging_prompt(prompt: Prompt, query: str, instruction: str, passage: Passage) -> tuple[Turn, ...]:
    """Asks for yes or no; what the passages of one row share stands in front."""
    return prompt.fill(query=query, instruction=instruction, passage=passage.full_text)
