"""Validates an LLM judge on gold pairs before its verdicts may be used for training.

Well-formed answers prove nothing: a 135M model's AUC is 0.50 here, which is chance.
"""

# P = pairs, S = bootstrap samples, Q = queries

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
import math
import random

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_auc_score

from dualview.config.generate import LlmJudge
from dualview.engines import Engine
from dualview.errors import InputError
from dualview.records import FlipCollection, Passage, SourceExample
from dualview.synthesis.judging import ask

NUM_BINS = 10  # of p(yes), for calibration
_Z = 1.959964  # the normal distribution's 97.5th percentile

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


# --- gold pairs -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GoldPair:
    query: str
    instruction: str
    passage: Passage
    gold: bool


def draw_gold_pairs(examples: Sequence[SourceExample], num_pairs: int, rng: random.Random) -> list[GoldPair]:
    """Draw pairs of original instructions and passages, labelled by the examples.

    Half of them (rounded down) are relevant. Raises InputError if the examples have too few.
    """
    relevant = [GoldPair(example.query, example.instruction, example.positive, True) for example in examples]
    irrelevant = [
        GoldPair(example.query, example.instruction, passage, False)
        for example in examples
        for passage in example.instruction_negatives
    ]
    return _half_of_each(relevant, irrelevant, num_pairs, rng, "the examples have")


def flip_pairs(collection: FlipCollection, num_pairs: int, rng: random.Random) -> list[GoldPair]:
    """Draw pairs of a query's instructions and the passages that are relevant under at least one of them.

    A pair is relevant if the passage is relevant under the pair's instruction, and irrelevant if it is relevant only
    under the other. Half (rounded down) are relevant. Raises InputError if the collection has too few.
    """
    relevant: list[GoldPair] = []
    irrelevant: list[GoldPair] = []
    for query in collection.queries:
        for view, instruction in query.instructions.items():
            positives = query.relevant[view]
            negatives = {id: None for ids in query.relevant.values() for id in ids if id not in positives}
            for ids, gold, pairs in ((positives, True, relevant), (negatives, False, irrelevant)):
                pairs += [GoldPair(query.query, instruction, collection.passages[id], gold) for id in ids]
    return _half_of_each(relevant, irrelevant, num_pairs, rng, f"{collection.name} has")


def _half_of_each(
    relevant: Sequence[GoldPair],
    irrelevant: Sequence[GoldPair],
    num_pairs: int,
    rng: random.Random,
    holder: str,
) -> list[GoldPair]:
    num_relevant = num_pairs // 2
    num_irrelevant = num_pairs - num_relevant
    if len(relevant) < num_relevant or len(irrelevant) < num_irrelevant:
        raise InputError(
            f"validation.num_pairs: {num_pairs} pairs need {num_relevant} positives and {num_irrelevant}"
            f" instruction negatives, but {holder} {len(relevant)} and {len(irrelevant)};"
            f" try {2 * min(len(relevant), len(irrelevant))}"
        )
    return rng.sample(relevant, num_relevant) + rng.sample(irrelevant, num_irrelevant)


# --- answers and grades ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ValidationResult:
    auc: float  # area under the ROC curve; 0.5 is chance
    agreement: float  # share of pairs where (margin > 0) equals the gold label
    ece: float | None  # expected calibration error of p(yes); None if no pair is decided
    num_pairs: int
    num_undecided: int


async def validate_judge(engine: Engine, settings: LlmJudge, pairs: Sequence[GoldPair]) -> ValidationResult:
    """Ask the judge about every pair and grade its answers."""
    margins = await ask_pairs(engine, settings, pairs)
    return grade(as_floats(margins), np.array([pair.gold for pair in pairs]))


async def ask_pairs(engine: Engine, settings: LlmJudge, pairs: Sequence[GoldPair]) -> list[float | None]:
    """Return the judge's margin for every pair; all requests are concurrent."""
    return await asyncio.gather(
        *(ask(engine, settings, pair.query, pair.instruction, pair.passage) for pair in pairs)
    )


def as_floats(margins: Sequence[float | None]) -> Floats:
    """Convert margins to an array; None (undecided) becomes NaN."""
    return np.array([np.nan if margin is None else margin for margin in margins], dtype=np.float64)


def grade(margins_P: Floats, golds_P: Bools) -> ValidationResult:
    """Grade margins. An undecided pair (NaN) counts as wrong with certainty, but not in the calibration error."""
    bins = reliability(margins_P, golds_P)
    num_decided = sum(bin.num_pairs for bin in bins)
    return ValidationResult(
        auc=float(roc_auc_score(golds_P, _answered(margins_P, golds_P))),
        agreement=float(np.mean(_right(margins_P, golds_P))),
        ece=sum(abs(bin.mean_probability - bin.share_relevant) * bin.num_pairs for bin in bins) / num_decided
        if num_decided
        else None,
        num_pairs=len(golds_P),
        num_undecided=len(golds_P) - num_decided,
    )


def _right(margins_P: Floats, golds_P: Bools) -> Bools:
    right_P: Bools = ~np.isnan(margins_P) & ((margins_P > 0) == golds_P)
    return right_P


def _answered(margins_P: Floats, golds_P: Bools) -> Floats:
    """Replace each undecided margin with a wrong one, larger than all others."""
    largest = 1 + np.nanmax(np.abs(np.append(margins_P, 0.0)))
    return np.where(np.isnan(margins_P), np.where(golds_P, -largest, largest), margins_P)


# --- measures -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bin:
    """Decided pairs with similar p(yes); calibrated if mean_probability equals share_relevant."""

    low: float  # of p(yes), inclusive; `high` is exclusive except in the last bin
    high: float
    num_pairs: int
    mean_probability: float
    share_relevant: float


@dataclass(frozen=True, slots=True)
class Kept:
    """The pairs whose score reaches a threshold."""

    threshold: float
    num_kept: int
    precision: float  # share of hits among them, with a 95% interval
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Measurement:
    result: ValidationResult
    auc_low: float  # 95% interval
    auc_high: float
    bins: tuple[Bin, ...]
    at_min_margin: (
        Kept | None
    )  # verdicts with |margin| >= the config's min_margin; a hit is a correct verdict
    min_margin: Kept | None  # at the smallest min_margin that reaches the precision; None: none does
    min_yes: Kept | None  # likewise for margins: pairs judged relevant; a hit is a relevant pair


def measure(
    queries: Sequence[str],
    golds_P: Bools,
    margins_P: Floats,
    *,
    min_margin: float,
    wanted_precision: float,
    samples: int,
    seed: int,
) -> Measurement:
    """Measure a judge with these margins (NaN: undecided) against gold labels; P queries, one per pair.

    The thresholds are chosen on the pairs that they are reported on, so expect the precision on other pairs to lie
    within the interval, not at the point estimate.
    """
    right_P = _right(margins_P, golds_P)
    low, high = auc_interval(queries, golds_P, margins_P, samples, seed)
    return Measurement(
        result=grade(margins_P, golds_P),
        auc_low=low,
        auc_high=high,
        bins=reliability(margins_P, golds_P),
        at_min_margin=kept(queries, np.abs(margins_P), right_P, min_margin),
        min_margin=smallest_threshold(queries, np.abs(margins_P), right_P, wanted_precision),
        min_yes=smallest_threshold(queries, margins_P, golds_P, wanted_precision),
    )


def auc_interval(
    queries: Sequence[str], golds_P: Bools, margins_P: Floats, samples: int, seed: int
) -> tuple[float, float]:
    """95% percentile bootstrap of the AUC over queries, because pairs of a query are correlated. [Efron 1979]

    Samples without relevant or without irrelevant pairs have no AUC and are redrawn.
    """
    answered_P = _answered(margins_P, golds_P)
    names, query_P = np.unique(np.array(queries), return_inverse=True)
    rng = np.random.default_rng(seed)
    aucs: list[float] = []
    while len(aucs) < samples:
        times_Q = rng.multinomial(len(names), np.full(len(names), 1 / len(names)))
        drawn_P = times_Q[query_P]
        if drawn_P[golds_P].any() and drawn_P[~golds_P].any():
            aucs.append(roc_auc_score(golds_P, answered_P, sample_weight=drawn_P))
    low, high = np.percentile(aucs, [2.5, 97.5])
    return float(low), float(high)


def reliability(margins_P: Floats, golds_P: Bools) -> tuple[Bin, ...]:
    """Bin decided pairs by p(yes) = 1 / (1 + exp(-margin)), with equal widths; omit empty bins.

    p is the probability of yes given yes or no: other words are ignored. [Guo et al. 2017]
    """
    decided_P = ~np.isnan(margins_P)
    golds = golds_P[decided_P]
    probabilities = (
        1 + np.tanh(margins_P[decided_P] / 2)
    ) / 2  # exp would overflow for a large negative margin
    edges = np.linspace(0, 1, NUM_BINS + 1)
    positions = np.clip(np.digitize(probabilities, edges) - 1, 0, NUM_BINS - 1)
    return tuple(
        Bin(
            low=float(edges[index]),
            high=float(edges[index + 1]),
            num_pairs=int(inside.sum()),
            mean_probability=float(probabilities[inside].mean()),
            share_relevant=float(golds[inside].mean()),
        )
        for index in range(NUM_BINS)
        if (inside := positions == index).any()
    )


def smallest_threshold(
    queries: Sequence[str], scores_P: Floats, hits_P: Bools, wanted_precision: float
) -> Kept | None:
    """Find the smallest threshold with this share of hits at or above it; None if there is none.

    Of all thresholds that reach the precision, it keeps the most pairs. NaN scores are never kept.
    """
    decided_P = ~np.isnan(scores_P)
    if not (decided_P & hits_P).any():
        return None
    precisions, _, thresholds = precision_recall_curve(hits_P[decided_P], scores_P[decided_P])
    reaching = thresholds[precisions[:-1] >= wanted_precision]
    return kept(queries, scores_P, hits_P, float(reaching[0])) if len(reaching) else None


def kept(queries: Sequence[str], scores_P: Floats, hits_P: Bools, threshold: float) -> Kept | None:
    """Measure the pairs that the threshold keeps; None if there are none."""
    kept_P = scores_P >= threshold
    if not kept_P.any():
        return None
    low, high = _share_interval(np.array(queries)[kept_P], hits_P[kept_P])
    return Kept(threshold, int(kept_P.sum()), float(np.mean(hits_P[kept_P])), low, high)


def _share_interval(queries_P: NDArray[np.str_], hits_P: Bools) -> tuple[float, float]:
    """95% Wilson interval of a share of pairs, with their effective sample size.

    Pairs of a query are correlated: the stronger the correlation, the smaller the effective size. If all pairs or none
    are hits, the correlation cannot be estimated, and each query counts once. A bootstrap over queries has zero width
    there, and is far too narrow near it, which is where thresholds are searched.
    [Wilson 1927; the effective size of a clustered sample, Korn and Graubard 1998]
    """
    _, query_P = np.unique(queries_P, return_inverse=True)
    pairs_Q, hits_Q = np.bincount(query_P), np.bincount(query_P, weights=hits_P)
    num_queries, num, share = len(pairs_Q), len(hits_P), float(np.mean(hits_P))
    effective_size = float(num_queries)
    if num_queries > 1 and 0 < share < 1:
        clustered = ((hits_Q - share * pairs_Q) ** 2).sum() * num_queries / (num_queries - 1)
        independent = num * share * (1 - share) * num / (num - 1)  # the same with each pair its own query
        effective_size = num / max(1.0, clustered / independent)
    center = share + _Z**2 / (2 * effective_size)
    half = _Z * math.sqrt(share * (1 - share) / effective_size + (_Z / (2 * effective_size)) ** 2)
    low, high = ((center + side) / (1 + _Z**2 / effective_size) for side in (-half, half))
    return max(0.0, min(low, share)), min(1.0, max(high, share))  # min and max guard against rounding
