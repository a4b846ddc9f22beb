"""The prompts that come with dualview: the files in the folder prompts/ next to this module."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
import hashlib
from importlib import resources
import re
from string import Template
from typing import Literal

from dualview.engines import Turn
from dualview.errors import InputError
from dualview.records import Passage, SourceExample

_FOLDER = resources.files("dualview.synthesis") / "prompts"
# Forms of original instructions: many, so that an encoder does not overfit to one.
LENGTHS: Mapping[str, str] = {
    "short": "one short sentence of at most twelve words",
    "medium": "two sentences",
    "long": "a paragraph of four to six sentences, of which the requirement itself takes no more than two",
}
STYLES: Mapping[str, str] = {
    "plain": "a plain requirement for what is wanted",
    "negated": "a requirement that says what is NOT wanted, by leaving out, avoiding or excluding it",
    "background": "first a little background on why somebody searches for this, then the requirement",
    "persona": "spoken by a person who says in passing who they are, then the requirement",
}

# Forms of rewordings. The exclusion verbs vary, because an encoder that was trained on only a few takes an unknown one
# for an inclusion.
FORMS = (
    "a command with another verb; where the instruction excludes, use one of: omit, skip, filter out, disregard",
    "a statement of what makes a passage irrelevant",
    "a polite question",
    "telegraphic notes without full sentences",
    "first person: what I want, or what I do not want to see",
    "a condition: if ..., then it counts, or then it does not count; for exclusions: unless, except, other than",
    "one long sentence that begins with the reason",
    "a command with another verb; where the instruction excludes, use one of: drop, steer clear of, avoid, leave aside",
)

_ROLES: Mapping[str, Literal["user", "assistant"]] = {"[user]": "user", "[assistant]": "assistant"}


@dataclass(frozen=True)
class Prompt:
    version: str  # NAME@HASH of the prompt's text
    turns: tuple[tuple[Literal["user", "assistant"], Template], ...]

    @cached_property
    def _placeholders(self) -> frozenset[str]:
        return frozenset(name for _, template in self.turns for name in template.get_identifiers())

    @cached_property
    def _tags(self) -> re.Pattern[str]:
        """The opening and closing tags of this prompt's blocks, in any spelling."""
        names = {name for _, template in self.turns for name in re.findall(r"</(\w+)>", template.template)}
        return re.compile(rf"</?\s*({'|'.join(sorted(names)) or '(?!)'})\b[^<>]*>", re.IGNORECASE)

    def fill(self, **values: str) -> tuple[Turn, ...]:
        """Replace every $placeholder with a value that cannot close the tags around it.

        A space is inserted into the prompt's own tags in a value: "< /passage>" closes nothing. Raises InputError if
        a placeholder has no value, for example if a judge's prompt is a writing prompt.
        """
        if unknown := self._placeholders - values.keys():
            raise InputError(
                f"prompt {self.version}: has no value for ${min(unknown)};"
                f" this use provides ${', $'.join(values)}"
            )
        escaped = {
            name: self._tags.sub(lambda tag: f"< {tag[0][1:]}", value) for name, value in values.items()
        }
        return tuple(Turn(role, template.substitute(escaped)) for role, template in self.turns)


@cache
def load(name: str) -> Prompt:
    """Load prompts/NAME.txt: turns, each below a line [user] or [assistant].

    Raises InputError, listing the available names, if there is no such prompt.
    """
    files = {file.name[:-4]: file for file in _FOLDER.iterdir() if file.name.endswith(".txt")}
    if name not in files:
        raise InputError(f"prompt: there is no `{name}`; expected one of {', '.join(sorted(files))}")
    text = files[name].read_text(encoding="utf-8")
    _, *parts = re.split(rf"^({'|'.join(map(re.escape, _ROLES))})\n", text, flags=re.MULTILINE)
    return Prompt(
        version=f"{name}@{hashlib.sha256(text.encode()).hexdigest()[:12]}",
        turns=tuple(
            (_ROLES[mark], Template(body.strip())) for mark, body in zip(parts[::2], parts[1::2], strict=True)
        ),
    )


def writing_prompt(prompt: Prompt, example: SourceExample, target: Passage) -> tuple[Turn, ...]:
    """Ask for an instruction under which `target`, an instruction negative, becomes the positive."""
    others = [passage.full_text for passage in example.instruction_negatives if passage.id != target.id]
    return prompt.fill(
        query=example.query,
        instruction=example.instruction,
        positive=example.positive.full_text,
        target=target.full_text,
        others="\n\n".join(others),
    )


def judging_prompt(prompt: Prompt, query: str, instruction: str | None, passage: Passage) -> tuple[Turn, ...]:
    """Ask for yes or no, about the query alone if `instruction` is None.

    The text that a row's passages share comes first, so that engines can cache the prefix.
    """
    instructed = {} if instruction is None else {"instruction": instruction}
    return prompt.fill(query=query, **instructed, passage=passage.full_text)


def original_prompt(
    prompt: Prompt, example: SourceExample, others: Sequence[Passage], length: str, style: str
) -> tuple[Turn, ...]:
    """Ask for an instruction that the example's positive obeys and some on-topic passages in `others` break.

    `length` and `style` are keys of LENGTHS and STYLES.
    """
    return prompt.fill(
        query=example.query,
        positive=example.positive.full_text,
        others="\n\n".join(passage.full_text for passage in others),
        length=LENGTHS[length],
        style=STYLES[style],
    )


def rewording_prompt(prompt: Prompt, query: str, instruction: str, form: str) -> tuple[Turn, ...]:
    """Ask for a paraphrase in one of FORMS."""
    return prompt.fill(query=query, instruction=instruction, form=form)
