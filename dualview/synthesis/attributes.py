"""Composes complementary instructions from the passages' attributes, without a language model."""

from collections.abc import Iterator
import random
from typing import Literal

from dualview.config.generate import AttributesWriter
from dualview.records import Passage, Requirement, SourceExample
from dualview.vocabulary import Vocabulary

ComplementKind = Literal["negation", "same_facet", "other_facet"]


def compose(
    example: SourceExample, target: Passage, settings: AttributesWriter, vocabulary: Vocabulary
) -> tuple[str, tuple[Requirement, ...]] | None:
    """Compose an instruction that `target` obeys and every other labelled passage breaks; None if there is none.

    The complement's kind and polarity are drawn with the shares in `settings`. If the drawn kind is impossible,
    another kind is used; polarity changes last. A compound has a second sentence with another requirement that
    `target` meets. Only values with phrases in the vocabulary are used. The result depends only on settings,
    vocabulary, example and target, so it is the same in any shard.
    """
    rng = random.Random(f"{settings.seed}:{example.id}")
    kinds = _preferred_kinds(rng.random(), settings)
    include = rng.random() >= settings.exclusion_share
    flips = [
        requirement
        for requirement in _candidates(example, target)
        if (requirement.facet, requirement.value) in vocabulary.phrases
        and _flips(requirement, example, target)
    ]
    for polarity in (include, not include):
        for kind in kinds:
            matching = [
                requirement
                for requirement in flips
                if _kind(requirement, example) == kind
                and (kind == "negation" or requirement.include == polarity)
            ]
            if matching:
                requirements = [rng.choice(matching)]
                if rng.random() < settings.compound_share:
                    further_includes = rng.random() >= settings.exclusion_share
                    requirements += _further(requirements[0], further_includes, target, vocabulary, rng)
                    rng.shuffle(requirements)
                sentences = [vocabulary.say(requirement, rng) for requirement in requirements]
                return " ".join(sentences), tuple(requirements)
    return None


def _further(
    first: Requirement, include: bool, target: Passage, vocabulary: Vocabulary, rng: random.Random
) -> list[Requirement]:
    """Draw another requirement that holds for the target, on a different facet; empty if there is none."""
    holding = [
        requirement
        for facet, value in vocabulary.phrases
        if facet != first.facet
        and (requirement := Requirement(include, facet, value)).holds(target.attributes)
    ]
    return [rng.choice(holding)] if holding else []


def _preferred_kinds(draw: float, settings: AttributesWriter) -> tuple[ComplementKind, ...]:
    """The drawn kind, then its fallbacks; `draw` is uniform in [0, 1)."""
    if draw < settings.negation_share:
        return ("negation", "same_facet", "other_facet")
    if draw < settings.negation_share + settings.same_attribute_share:
        return ("same_facet", "other_facet", "negation")
    return ("other_facet", "same_facet", "negation")


def _candidates(example: SourceExample, target: Passage) -> Iterator[Requirement]:
    """Yield every requirement that holds for the target and fails for the positive."""
    for facet, value in sorted(target.attributes.items()):
        unwanted = example.positive.attributes.get(facet)
        if unwanted is not None and unwanted != value:
            yield Requirement(True, facet, value)
            yield Requirement(False, facet, unwanted)


def _flips(requirement: Requirement, example: SourceExample, target: Passage) -> bool:
    others = [passage for passage in example.instruction_negatives if passage.id != target.id]
    return requirement.holds(target.attributes) is True and all(
        requirement.holds(passage.attributes) is False for passage in (example.positive, *others)
    )


def _kind(requirement: Requirement, example: SourceExample) -> ComplementKind:
    negated = Requirement(not requirement.include, requirement.facet, requirement.value)
    if negated in example.requirements:
        return "negation"
    if any(requirement.facet == original.facet for original in example.requirements):
        return "same_facet"
    return "other_facet"
