"""The judge's exam: gold pairs that an LLM judge answers before its verdicts may train anything.

A 135M model reaches an AUC of 0.50 here, the toss of a coin, while its answers look well-formed.
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

NUM_BINS = 10  # of p(yes), for the calibration
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
    """Original instructions with the passages that the examples' own labels call relevant or not.

    Half of them (rounded down) are relevant. Raises InputError where the examples do not hold as many.
    """
    relevant = [GoldPair(example.query, example.instruction, example.positive, True) for example in examples]
    irrelevant = [
        GoldPair(example.query, example.instruction, passage, False)
        for example in examples
        for passage in example.instruction_negatives
    ]
    return _half_of_each(relevant, irrelevant, num_pairs, rng, "the examples have")


def flip_pairs(collection: FlipCollection, num_pairs: int, rng: random.Random) -> list[GoldPair]:
    """Both instructions of a query with the passages that are relevant under one of them.

    A passage is gold under an instruction if it is relevant under it, and no if it is so only under
    the other. Half (rounded down) are relevant. Raises InputError where the collection lacks pairs.
    """
    relevant: list[GoldPair] = []
    irrelevant: list[GoldPair] = []
    for query in collection.queries:
        for view, instruction in query.instructions.items():
            own = query.relevant[view]
            others = {id: None for ids in query.relevant.values() for id in ids if id not in own}
            for ids, gold, pairs in ((own, True, relevant), (others, False, irrelevant)):
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


# --- answers and marks ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ValidationResult:
    auc: float  # area under the ROC curve, 0.5 for a coin
    agreement: float  # share of pairs where (margin > 0) is the gold answer
    ece: float | None  # expected calibration error of p(yes); None where no pair is decided
    num_pairs: int
    num_undecided: int


async def validate_judge(engine: Engine, settings: LlmJudge, pairs: Sequence[GoldPair]) -> ValidationResult:
    """Asks the judge about every pair, and grades what it says."""
    margins = await ask_pairs(engine, settings, pairs)
    return grade(as_floats(margins), np.array([pair.gold for pair in pairs]))


async def ask_pairs(engine: Engine, settings: LlmJudge, pairs: Sequence[GoldPair]) -> list[float | None]:
    """The judge's margin for every pair, all of them asked at the same time."""
    return await asyncio.gather(
        *(ask(engine, settings, pair.query, pair.instruction, pair.passage) for pair in pairs)
    )


def as_floats(margins: Sequence[float | None]) -> Floats:
    """None, a pair that the judge cannot tell, becomes NaN."""
    return np.array([np.nan if margin is None else margin for margin in margins], dtype=np.float64)


def grade(margins_P: Floats, golds_P: Bools) -> ValidationResult:
    """An undecided pair (NaN) counts as answered wrongly and surely, but has no probability to calibrate."""
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
    """Margins in which an undecided pair is wrong, and surer than every other."""
    surest = 1 + np.nanmax(np.abs(np.append(margins_P, 0.0)))
    return np.where(np.isnan(margins_P), np.where(golds_P, -surest, surest), margins_P)


# --- measures -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bin:
    """Decided pairs of like p(yes); calibrated where its two shares are equal."""

    low: float  # of p(yes); each bin holds its low end, the last one both
    high: float
    num_pairs: int
    mean_probability: float
    share_relevant: float


@dataclass(frozen=True, slots=True)
class Kept:
    """What a threshold keeps: the pairs whose score is at least it."""

    threshold: float
    num_kept: int
    precision: float  # share of hits among them, with its 95% interval
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Measurement:
    result: ValidationResult
    auc_low: float  # 95% interval
    auc_high: float
    bins: tuple[Bin, ...]
    at_min_margin: Kept | None  # verdicts with |margin| >= the config's min_margin; a hit is a right one
    min_margin: Kept | None  # the smallest min_margin that reaches the precision; None: none does
    min_yes: Kept | None  # the same for the margin itself: pairs called relevant; a hit is one that is


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
    """All that gold labels say about a judge with these margins (NaN: undecided); queries: P of them.

    The thresholds are chosen on the pairs that they are reported on: the precision on others is
    rather somewhere in its interval than at its value.
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
    """95% percentile bootstrap of the AUC over queries, for pairs of one query are alike. [Efron 1979]

    Draws without a relevant or without an irrelevant pair have no AUC and are drawn again.
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
    """Decided pairs by p(yes) = 1 / (1 + exp(-margin)), in bins of equal width; empty ones are left out.

    p is that of yes against no: what a model gives to other words is no part of it. [Guo et al. 2017]
    """
    decided_P = ~np.isnan(margins_P)
    golds = golds_P[decided_P]
    probabilities = (1 + np.tanh(margins_P[decided_P] / 2)) / 2  # exp would overflow for a sure "no"
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
    """The smallest score from which on at least this share of the pairs are hits; None where none is.

    Of all that reach the precision it keeps the most pairs. A score that is NaN is never kept.
    """
    told_P = ~np.isnan(scores_P)
    if not (told_P & hits_P).any():
        return None
    precisions, _, thresholds = precision_recall_curve(hits_P[told_P], scores_P[told_P])
    reaching = thresholds[precisions[:-1] >= wanted_precision]
    return kept(queries, scores_P, hits_P, float(reaching[0])) if len(reaching) else None


def kept(queries: Sequence[str], scores_P: Floats, hits_P: Bools, threshold: float) -> Kept | None:
    """What the threshold keeps; None where that is nothing."""
    kept_P = scores_P >= threshold
    if not kept_P.any():
        return None
    low, high = _share_interval(np.array(queries)[kept_P], hits_P[kept_P])
    return Kept(threshold, int(kept_P.sum()), float(np.mean(hits_P[kept_P])), low, high)


def _share_interval(queries_P: NDArray[np.str_], hits_P: Bools) -> tuple[float, float]:
    """95% interval of a share of pairs: Wilson's, over as many of them as they are worth.

    Pairs of one query are alike: the more their hits come query by query, the fewer they are worth. Where all are hits,
    or none is, nothing shows how alike they are, and a query counts once. A bootstrap over queries has no width
    there, and is far too narrow near it, which is where thresholds are looked for.
    [Wilson 1927; the effective size of a clustered sample, Korn and Graubard 1998]
    """
    _, query_P = np.unique(queries_P, return_inverse=True)
    pairs_Q, hits_Q = np.bincount(query_P), np.bincount(query_P, weights=hits_P)
    num_queries, num, share = len(pairs_Q), len(hits_P), float(np.mean(hits_P))
    worth = float(num_queries)
    if num_queries > 1 and 0 < share < 1:
        of_queries = ((hits_Q - share * pairs_Q) ** 2).sum() * num_queries / (num_queries - 1)
        of_pairs = num * share * (1 - share) * num / (num - 1)  # the same, were each of another query
        worth = num / max(1.0, of_queries / of_pairs)
    center = share + _Z**2 / (2 * worth)
    half = _Z * math.sqrt(share * (1 - share) / worth + (_Z / (2 * worth)) ** 2)
    low, high = ((center + side) / (1 + _Z**2 / worth) for side in (-half, half))
    return max(0.0, min(low, share)), min(1.0, max(high, share))  # rounding aside, they are in order
