"""What counts as a word and as a sentence, for rules and comparisons."""

from collections.abc import Iterator
import re

# Scripts without spaces between words: Thai, Lao, Burmese, Khmer, kana, Han. There a character counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")

# After two letters at most, a full stop is taken for an abbreviation's: "U.S. territories", "St. Lucia".
_SENTENCE_END = re.compile(r"(?<=\w{3})[.!?]+[\"')\]]*\s+(?=\S)|[。！？]+(?=.)")


def words(text: str) -> list[str]:
    """In lower case, without what stands between them."""
    return _WORD.findall(text.lower())


def runs(words: list[str], length: int) -> Iterator[tuple[str, ...]]:
    """Every run of `length` words; none where there are fewer."""
    return zip(*(words[start:] for start in range(length)), strict=False)


def num_sentences(text: str) -> int:
    """At least 1; sentences that end with an abbreviation are not told apart."""
    return 1 + len(_SENTENCE_END.findall(text.strip()))
