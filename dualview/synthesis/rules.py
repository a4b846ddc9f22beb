"""Cheap checks of a drafted instruction, before any judge is asked."""

from collections.abc import Iterable
import re

from dualview.config.generate import Rules
from dualview.records import SourceExample
from dualview.synthesis.contamination import BenchmarkTexts
from dualview.synthesis.language import in_different_languages
from dualview.synthesis.words import num_sentences, runs, words

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


def broken_rule(
    instruction: str, example: SourceExample, rules: Rules, benchmarks: BenchmarkTexts | None
) -> str | None:
    """The first that applies of bad_length, meta_language, leaks_passage, near_original, other_language and
    contaminated, or None.

    `benchmarks` are those of `rules`, loaded. The example's own query and instruction are held against them too:
    what is written for a benchmark's query is contaminated whatever it says.
    """
    own = words(instruction)
    if not rules.min_words <= len(own) <= rules.max_words or num_sentences(instruction) > rules.max_sentences:
        return "bad_length"
    if _META.search(instruction):
        return "meta_language"
    passages = (example.positive, *example.instruction_negatives, *example.hard_negatives)
    if shares_run(own, (passage.full_text for passage in passages), rules.max_copied_words + 1):
        return "leaks_passage"
    if _jaccard(set(own), set(words(example.instruction))) > rules.max_similarity_to_original:
        return "near_original"
    # The original instruction is in the query's language, and says more about it than a query of two words.
    if rules.other_language is not None and (
        in_different_languages(instruction, f"{example.query} {example.instruction}") >= rules.other_language
    ):
        return "other_language"
    if benchmarks is not None and any(
        map(benchmarks.overlap, (instruction, example.query, example.instruction))
    ):
        return "contaminated"
    return None


def shares_run(own: list[str], texts: Iterable[str], length: int) -> bool:
    """Whether `length` of the lower-case words in a row stand in one of the texts too, in any case."""
    own_runs = set(runs(own, length))
    return any(
        run in own_runs
        for text in map(str.lower, texts)
        if _may_share_run(own, text, length)
        for run in runs(words(text), length)
    )


def _may_share_run(own: list[str], text: str, length: int) -> bool:
    """False only where `length` words in a row cannot stand in the text; much cheaper than cutting it up."""
    found_in_a_row = 0
    for word in own:
        found_in_a_row = found_in_a_row + 1 if word in text else 0
        if found_in_a_row == length:
            return True
    return False


def _jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b) if a | b else 1.0
