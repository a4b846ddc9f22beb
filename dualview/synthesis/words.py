"""Splits text into words and sentences, for rules and comparisons."""

from collections.abc import Iterator
import re

# Scripts without spaces between words: Thai, Lao, Burmese, Khmer, kana, Han. Each character counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")

# A full stop after at most two letters is taken for an abbreviation: "U.S. territories", "St. Lucia".
_SENTENCE_END = re.compile(r"(?<=\w{3})[.!?]+[\"')\]]*\s+(?=\S)|[。！？]+(?=.)")


def words(text: str) -> list[str]:
    """Split into lower-case words, without spaces and punctuation."""
    return _WORD.findall(text.lower())


def runs(words: list[str], length: int) -> Iterator[tuple[str, ...]]:
    """Yield every run of `length` consecutive words."""
    return zip(*(words[start:] for start in range(length)), strict=False)


def num_sentences(text: str) -> int:
    """Count sentences, at least 1. A sentence that ends with an abbreviation is not counted separately."""
    return 1 + len(_SENTENCE_END.findall(text.strip()))
