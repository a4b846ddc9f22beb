"""The nouns that walk through the rooms. Imports nothing of ours."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

ACCEPTED = "accepted"
WRITTEN = "written"  # keeps the rules, and waits for the pass that judges
# How accepted rows are counted that repeat another; in no row, as rows never change.
NEAR_DUPLICATE = "near_duplicate"

# Why a request did not become a training row. A closed list: a shard with any other word is refused.
REASONS = (
    "no_original",  # no original instruction could be written, or the judge denies that the positive obeys it
    "no_instruction_negative",  # no mined passage is on topic and breaks the written original instruction
    "declined",  # the writer says that no such instruction exists
    "unparseable",  # no answer block, or more than one, or an empty one
    "truncated",  # the answer ended at the token limit
    "not_confirmed",  # a judge denies what the example says of its own passages
    "not_flipped",  # a judge's verdict on some passage under the new instruction is the wrong one
    "undecided",  # a judge could not tell for some passage
    "bad_length",  # shorter or longer than the rules allow
    "meta_language",  # talks about passages, numbers or the task
    "leaks_passage",  # copies a run of words from a passage
    "near_original",  # says what the original instruction says, or a rewording says its text again
    "meaning_changed",  # of a rewording: a judge's verdict on some passage is not what it was
    "other_language",  # not in the query's language
    "contaminated",  # shares a run of words with a benchmark's query or instruction
    "engine_error",  # the engine refused or failed this one request
    "poison",  # this request kills the engine
)

# What a passage may be relevant under: the query alone, or with one of the two instructions.
Condition = Literal["query", "original", "new"]


@dataclass(frozen=True, slots=True)
class Requirement:
    """One demand on an attribute: its value must be (include) or must not be `value`."""

    include: bool
    facet: str
    value: str

    def holds(self, attributes: Mapping[str, str]) -> bool | None:
        """Whether a passage with these attributes satisfies it; None where the facet is unknown."""
        if self.facet not in attributes:
            return None
        return (attributes[self.facet] == self.value) == self.include


def all_hold(requirements: Iterable[Requirement], attributes: Mapping[str, str]) -> bool | None:
    """False if any requirement fails, True if all hold, None otherwise (and for no requirements)."""
    answers = [requirement.holds(attributes) for requirement in requirements]
    if False in answers:
        return False
    return True if answers and None not in answers else None


@dataclass(frozen=True, slots=True)
class Passage:
    id: str
    text: str
    title: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)  # facet -> value, as the text shows

    @property
    def full_text(self) -> str:
        """What an encoder or a model reads: title and text as one string."""
        return f"{self.title} {self.text}".strip()


@dataclass(frozen=True, slots=True)
class SourceExample:
    """A query with an original instruction and labelled passages: what synthesis starts from.

    A plain example, from a corpus without instructions, has neither instruction nor instruction negatives;
    synthesis finds them before anything else.
    """

    id: str
    query_id: str  # one information need; its phrasings share it
    query: str
    instruction: str
    positive: Passage
    instruction_negatives: tuple[Passage, ...]  # on topic, break the instruction
    hard_negatives: tuple[Passage, ...] = ()
    requirements: tuple[Requirement, ...] = ()  # what the instruction demands, where it is known


@dataclass(frozen=True, slots=True)
class Verdict:
    """One cell of the relevance matrix, (condition, passage), as one judge sees it."""

    judge: str
    condition: Condition
    passage_id: str
    expected: bool | None  # should it be relevant? None: the example does not say, the verdict is a new label
    margin: float | None  # log p(yes) - log p(no); None where the judge could not tell

    @property
    def surplus(self) -> float | None:
        """How far the judge is on the expected side; below 0 on the other. None where either is unknown."""
        if self.margin is None or self.expected is None:
            return None
        return self.margin if self.expected else -self.margin


@dataclass(frozen=True, slots=True)
class Draft:
    """One answer of a writer, and how it did."""

    condition: Condition  # which instruction was asked for: "new", or "original" for a plain example
    answer: str  # whole
    instruction: str  # "" where the answer holds none
    status: str  # ACCEPTED, WRITTEN or one of REASONS
    surplus: float | None  # the smallest of its deciding verdicts; None where it was not judged


@dataclass(frozen=True, slots=True)
class Rewording:
    """Another wording of one of the row's instructions; to be used only if it was accepted."""

    condition: Condition
    instruction: str
    status: str  # ACCEPTED: the judge's verdicts on the example's passages stay; else one of REASONS


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a row comes from; enough to write it again."""

    writer: str  # "attributes" or the engine's model and revision
    prompt: str  # name and hash of the writing prompt, or of the vocabulary
    sampling: str  # canonical JSON
    judges: tuple[str, ...]
    judge_model: str  # the engine's model and revision; "" where no LLM judges
    code_version: str
    written_in: str  # fingerprint of the run whose drafts were judged; "" where they are this run's own
    run: str  # fingerprint of the run
    shard: int
    attempt: str


@dataclass(frozen=True, slots=True)
class DualView:
    """One finished request: an example, the complementary instruction, and what became of it.

    Under (query, new_instruction) the passage `target_id` (N*) is the positive; the example's positive
    and its other instruction negatives are not relevant. [2604.18845, section 3]
    """

    example: SourceExample
    target_id: str
    new_instruction: str  # "" where none was written
    new_requirements: tuple[Requirement, ...]
    status: str  # ACCEPTED, WRITTEN or one of REASONS
    trainable: bool  # accepted, and by a judge that passed its exam
    verdicts: tuple[Verdict, ...]  # on new_instruction; those on other drafts are summed up in `drafts`
    drafts: tuple[Draft, ...]
    rewordings: tuple[Rewording, ...]
    prompt_tokens: int
    completion_tokens: int
    lineage: Lineage


@dataclass(frozen=True, slots=True)
class FlipQuery:
    """One query under two instructions, "original" and "changed", over listed candidates."""

    id: str
    query: str
    instructions: Mapping[str, str]
    relevant: Mapping[str, tuple[str, ...]]  # instruction name -> ids of the passages that obey it
    candidates: tuple[str, ...]
    labels: Mapping[str, str] = field(default_factory=dict)  # scores are also reported apart by these
    # Queries that name the same one are drawn together by the bootstrap; "": only with equal queries.
    topic: str = ""


@dataclass(frozen=True, slots=True)
class FlipCollection:
    """A collection in FollowIR's shape: labels change when only the instruction does."""

    name: str
    passages: Mapping[str, Passage]
    queries: tuple[FlipQuery, ...]
