"""The data types that every package shares. Imports no other module of dualview."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

ACCEPTED = "accepted"
WRITTEN = "written"  # passed the rules; not judged yet
# For counts only: an accepted row that repeats another. Never stored in a row, because rows never change.
NEAR_DUPLICATE = "near_duplicate"

# Why a request did not become a training row. The list is closed: a shard with any other status is refused.
REASONS = (
    "no_original",  # no original instruction was written, or the judge says that the positive breaks it
    "no_instruction_negative",  # no mined passage is on topic and breaks the new original instruction
    "declined",  # the writer says that there is no such instruction
    "unparseable",  # no answer block, several, or an empty one
    "truncated",  # the answer ended at the token limit
    "not_confirmed",  # a judge contradicts a label of the example
    "not_flipped",  # a judge's verdict under the new instruction is wrong for some passage
    "undecided",  # a judge could not decide on some passage
    "bad_length",  # shorter or longer than the rules allow
    "meta_language",  # talks about passages, numbers or the task
    "leaks_passage",  # copies a sequence of words from a passage
    "near_original",  # too similar to the original instruction, or a rewording identical to its text
    "meaning_changed",  # a rewording under which a judge's verdict on some passage changed
    "other_language",  # not in the query's language
    "contaminated",  # shares a sequence of words with a benchmark query or instruction
    "engine_error",  # the engine refused this request or failed on it
    "poison",  # this request crashes the engine
)

# What relevance is judged under: the query alone, or the query with one of the two instructions.
Condition = Literal["query", "original", "new"]


@dataclass(frozen=True, slots=True)
class Requirement:
    """One demand on an attribute: its value must be (include) or must not be `value`."""

    include: bool
    facet: str
    value: str

    def holds(self, attributes: Mapping[str, str]) -> bool | None:
        """Whether a passage with these attributes satisfies it; None if the facet is unknown."""
        if self.facet not in attributes:
            return None
        return (attributes[self.facet] == self.value) == self.include


def all_hold(requirements: Iterable[Requirement], attributes: Mapping[str, str]) -> bool | None:
    """False if any requirement fails, True if all hold, otherwise None (also for no requirements)."""
    answers = [requirement.holds(attributes) for requirement in requirements]
    if False in answers:
        return False
    return True if answers and None not in answers else None


@dataclass(frozen=True, slots=True)
class Passage:
    id: str
    text: str
    title: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)  # facet -> value, as stated in the text

    @property
    def full_text(self) -> str:
        """Title and text as one string: what encoders and language models read."""
        return f"{self.title} {self.text}".strip()


@dataclass(frozen=True, slots=True)
class SourceExample:
    """A query with an original instruction and labelled passages: the input of synthesis.

    A plain example comes from a corpus without instructions. It has neither instruction nor instruction negatives;
    synthesis adds them first.
    """

    id: str
    query_id: str  # of the information need; all its phrasings share it
    query: str
    instruction: str
    positive: Passage
    instruction_negatives: tuple[Passage, ...]  # on topic, but break the instruction
    hard_negatives: tuple[Passage, ...] = ()
    requirements: tuple[Requirement, ...] = ()  # of the instruction, if known


@dataclass(frozen=True, slots=True)
class Verdict:
    """One judge's relevance judgement of one passage under one condition."""

    judge: str
    condition: Condition
    passage_id: str
    expected: bool | None  # the example's label; None: unlabelled, so the verdict is a new label
    margin: float | None  # log p(yes) - log p(no); None if the judge could not decide

    @property
    def surplus(self) -> float | None:
        """The margin towards the expected label; negative if the verdict is wrong. None if either is unknown."""
        if self.margin is None or self.expected is None:
            return None
        return self.margin if self.expected else -self.margin


@dataclass(frozen=True, slots=True)
class Draft:
    """One answer of a writer, and its status."""

    condition: Condition  # the instruction asked for: "new", or "original" for a plain example
    answer: str  # complete
    instruction: str  # "" if the answer contains none
    status: str  # ACCEPTED, WRITTEN or one of REASONS
    surplus: float | None  # the smallest of its deciding verdicts; None if it was not judged


@dataclass(frozen=True, slots=True)
class Rewording:
    """A paraphrase of one of the row's instructions. Use it only if it was accepted."""

    condition: Condition
    instruction: str
    status: str  # ACCEPTED if no verdict on the example's passages changes, else one of REASONS


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a row comes from, in enough detail to reproduce it."""

    writer: str  # "attributes" or the engine's model and revision
    prompt: str  # name and hash of the writing prompt, or of the vocabulary
    sampling: str  # canonical JSON
    judges: tuple[str, ...]
    judge_model: str  # the engine's model and revision; "" if no LLM judges
    code_version: str
    written_in: str  # fingerprint of the run that wrote the drafts; "" if it is this run
    run: str  # fingerprint of the run
    shard: int
    attempt: str


@dataclass(frozen=True, slots=True)
class DualView:
    """One finished request: an example, its complementary instruction, and the outcome.

    Under (query, new_instruction) the passage `target_id` (N*) is the positive; the example's positive
    and its other instruction negatives are not relevant. [2604.18845, section 3]
    """

    example: SourceExample
    target_id: str
    new_instruction: str  # "" if none was written
    new_requirements: tuple[Requirement, ...]
    status: str  # ACCEPTED, WRITTEN or one of REASONS
    trainable: bool  # accepted, and not by an LLM judge that failed validation
    verdicts: tuple[Verdict, ...]  # on new_instruction; `drafts` summarises those on the other drafts
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
    labels: Mapping[str, str] = field(default_factory=dict)  # scores are also reported per label
    # The bootstrap resamples queries with the same topic together; "" groups equal queries only.
    topic: str = ""


@dataclass(frozen=True, slots=True)
class FlipCollection:
    """A collection like FollowIR's: only the instruction changes, and the labels with it."""

    name: str
    passages: Mapping[str, Passage]
    queries: tuple[FlipQuery, ...]
