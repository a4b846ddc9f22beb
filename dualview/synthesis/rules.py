"""Cheap checks of a drafted instruction, before any judge is asked."""

from collections.abc import Iterable, Iterator
import re

from dualview.config import Rules
from dualview.records import Seed

# Talk about the passages that the writer was shown, about their roles, or about its exercise.
# "Passages about countries in Africa" and "documents" as such are what instructions are made of.
_TEXT = r"(?:passage|document|text|paragraph|excerpt|snippet)s?"
_ORDINAL = r"(?:first|second|third|fourth|fifth|last|former|latter|given|provided|above|target)"
_META = re.compile(
    rf"""\b(?:
      {_TEXT}\s*(?:\#|no\.|number\b)?\s*\d{{1,2}}\b         # passage 2, document #1
    | (?-i:[Pp]assage|[Dd]ocument|[Tt]ext|[Ee]xcerpt)\s+(?-i:[A-E])\b   # passage A
    | the\s+{_ORDINAL}\s+{_TEXT}\b                          # the first passage
    | {_TEXT}\s+(?:above|below)\b                           # the passages above
    | this\s+(?:passage|document|text|paragraph|excerpt)\b
    | (?:positive|negative)s?\s+(?:{_TEXT}|examples?)\b     # the positive passage
    | the\s+(?:positive|negative)s?(?:\s+(?:is|are|must|should)\b|\s*[.;]|\s*$)
    | (?:original|previous|new|old|current)\s+(?:instruction|query)\b
    | instruction\s+negatives?\b
    | (?:the|this)\s+(?:task|exercise)\b(?!\s+(?:of|force)) # the task of a parliament is a topic
    )""",
    re.IGNORECASE | re.VERBOSE,
)


def broken_rule(instruction: str, seed: Seed, rules: Rules) -> str | None:
    """The first of bad_length, meta_language, leaks_passage, near_original that applies, or None."""
    words = _words(instruction)
    if not rules.min_words <= len(words) <= rules.max_words:
        return "bad_length"
    if _META.search(instruction):
        return "meta_language"
    passages = (seed.positive, *seed.instruction_negatives, *seed.hard_negatives)
    if _shares_run(words, (_words(passage.full_text) for passage in passages), rules.max_copied_words + 1):
        return "leaks_passage"
    if _jaccard(set(words), set(_words(seed.instruction))) > rules.max_similarity_to_original:
        return "near_original"
    return None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _shares_run(words: list[str], texts: Iterable[list[str]], length: int) -> bool:
    """Whether `length` words in a row stand in one of the texts too."""
    runs = set(_runs(words, length))
    return any(run in runs for text in texts for run in _runs(text, length))


def _runs(words: list[str], length: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(length)), strict=False)


def _jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b) if a | b else 1.0
