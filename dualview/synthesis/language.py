"""The probability that two texts are in different languages."""

from functools import cache
import hashlib

from py3langid.langid import MODEL_DIR, MODEL_FILE, LanguageIdentifier


@cache  # takes 0.7 s
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def model_version() -> str:
    """Name and hash of the language model that the threshold refers to."""
    content = (MODEL_DIR / MODEL_FILE).read_bytes()
    return f"py3langid@{hashlib.sha256(content).hexdigest()[:12]}"


def in_different_languages(one: str, other: str) -> float:
    """The probability that the languages differ, from py3langid's distributions over 139 languages.

    Short texts have flat distributions: two English sentences can score 0.8. Only values near 1 are conclusive.
    """
    first, second = (dict(_identifier().rank(text)) for text in (one, other))
    return 1.0 - float(sum(probability * second[language] for language, probability in first.items()))
