"""How sure it is that two texts are in different languages."""

from functools import cache
import hashlib

from py3langid.langid import MODEL_DIR, MODEL_FILE, LanguageIdentifier


@cache  # 0.7 s, once for each process
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def model_version() -> str:
    """Name and hash of the model whose probabilities the threshold is stated in."""
    content = (MODEL_DIR / MODEL_FILE).read_bytes()
    return f"py3langid@{hashlib.sha256(content).hexdigest()[:12]}"


def in_different_languages(one: str, other: str) -> float:
    """The probability that they are, by py3langid's probabilities of the 139 languages it knows.

    Both texts are short, and then these are spread over many languages: two English sentences may well
    get 0.8. Only values near 1 say something.
    """
    likely, also = (dict(_identifier().rank(text)) for text in (one, other))
    return 1.0 - float(sum(probability * also[language] for language, probability in likely.items()))
