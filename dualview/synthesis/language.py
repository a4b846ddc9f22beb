"""How sure it is that two texts are in different languages."""

from functools import cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier


@cache  # 0.7 s, once for each process
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def in_different_languages(one: str, other: str) -> float:
    """The probability that they are, by py3langid's probabilities of the 139 languages it knows.

    Both texts are short, and then these are spread over many languages: two English sentences may well
    get 0.8. Only values near 1 say something.
    """
    likely, also = (dict(_identifier().rank(text)) for text in (one, other))
    return 1.0 - float(sum(probability * also[language] for language, probability in likely.items()))
