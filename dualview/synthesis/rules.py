"""Cheap checks of a draft instruction, before any judge is asked."""

from collections.abc import Iterable
import re

from dualview.config.generate import Rules
from dualview.records import SourceExample
from dualview.synthesis.contamination import BenchmarkTexts
from dualview.synthesis.language import in_different_languages
from dualview.synthesis.words import num_sentences, runs, words

# References to the passages in the writer's prompt, to their roles, or to its task.
# "Passages about countries in Africa" and plain "documents" are legitimate in an instruction.
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
    """Return the first of bad_length, meta_language, leaks_passage, near_original, other_language and contaminated
    that applies, or None.

    `benchmarks` are the loaded `rules.benchmarks`. The example's query and instruction are checked against them too:
    every instruction for a benchmark query is contaminated.
    """
    draft_words = words(instruction)
    if not rules.min_words <= len(draft_words) <= rules.max_words:
        return "bad_length"
    if num_sentences(instruction) > rules.max_sentences:
        return "bad_length"
    if _META.search(instruction):
        return "meta_language"
    passages = (example.positive, *example.instruction_negatives, *example.hard_negatives)
    if shares_run(draft_words, (passage.full_text for passage in passages), rules.max_copied_words + 1):
        return "leaks_passage"
    if _jaccard(set(draft_words), set(words(example.instruction))) > rules.max_similarity_to_original:
        return "near_original"
    # The original instruction is in the query's language, and identifies it better than a query of two words.
    if rules.other_language is not None and (
        in_different_languages(instruction, f"{example.query} {example.instruction}") >= rules.other_language
    ):
        return "other_language"
    if benchmarks is not None and any(
        map(benchmarks.overlap, (instruction, example.query, example.instruction))
    ):
        return "contaminated"
    return None


def shares_run(draft_words: list[str], texts: Iterable[str], length: int) -> bool:
    """Whether a run of `length` of the lower-case `draft_words` occurs in one of the texts, ignoring case."""
    draft_runs = set(runs(draft_words, length))
    return any(
        run in draft_runs
        for text in map(str.lower, texts)
        if _may_share_run(draft_words, text, length)
        for run in runs(words(text), length)
    )


def _may_share_run(draft_words: list[str], text: str, length: int) -> bool:
    """False only if no run of `length` words can occur in the text. Much cheaper than splitting it into words."""
    num_consecutive = 0
    for word in draft_words:
        num_consecutive = num_consecutive + 1 if word in text else 0
        if num_consecutive == length:
            return True
    return False


def _jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b) if a | b else 1.0
