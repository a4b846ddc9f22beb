"""Metrics of one query, from rankings: lists of distinct passage ids, best first.

`grades` maps passage ids to relevance; missing ids and grades of 0 or less are not relevant. All values are
fractions. Formulas and cutoffs follow trec_eval; p-MRR follows FollowIR.
"""

from collections.abc import Collection, Mapping, Sequence
from math import fsum, log2, sqrt

from dualview.retrieval.ranking import Ranking


def ndcg(ranking: Sequence[str], grades: Mapping[str, int], k: int) -> float:
    """nDCG@k with linear gain: sum of grade / log2(rank + 1), divided by that of the ideal ranking.

    0 if nothing is relevant. [trec_eval ndcg_cut]
    """
    ideal = _discounted_gain(sorted(grades.values(), reverse=True)[:k])
    return _discounted_gain([grades.get(id, 0) for id in ranking[:k]]) / ideal if ideal else 0.0


def _discounted_gain(gains: Sequence[int]) -> float:
    return sum(max(gain, 0) / log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def average_precision(ranking: Sequence[str], grades: Mapping[str, int], k: int) -> float:
    """Sum of precision at each relevant passage in the top k, divided by the number of relevant passages.

    Its mean over queries is MAP@k. 0 if nothing is relevant. [trec_eval map_cut]
    """
    relevant = _relevant(grades)
    num_found, total = 0, 0.0
    for rank, id in enumerate(ranking[:k], start=1):
        if id in relevant:
            num_found += 1
            total += num_found / rank
    return total / len(relevant) if relevant else 0.0


def recall(ranking: Sequence[str], grades: Mapping[str, int], k: int) -> float:
    """Share of the relevant passages that are in the top k; 0 if nothing is relevant. [trec_eval recall]"""
    relevant = _relevant(grades)
    return len(relevant.intersection(ranking[:k])) / len(relevant) if relevant else 0.0


def precision(ranking: Sequence[str], grades: Mapping[str, int], k: int) -> float:
    """Share of the top k ranks that hold a relevant passage. [trec_eval P]"""
    return len(_relevant(grades).intersection(ranking[:k])) / k


def reciprocal_rank(ranking: Sequence[str], grades: Mapping[str, int]) -> float:
    """1 / rank of the first relevant passage; 0 if none is ranked. [trec_eval recip_rank]"""
    relevant = _relevant(grades)
    return next((1 / rank for rank, id in enumerate(ranking, start=1) if id in relevant), 0.0)


def _relevant(grades: Mapping[str, int]) -> set[str]:
    return {id for id, grade in grades.items() if grade > 0}


def p_mrr(original: Sequence[str], changed: Sequence[str], stopped: Collection[str]) -> float:
    """Mean rank change, -1..1, of the passages that stopped being relevant when the instruction changed.

    Positive if they dropped. A passage missing from a ranking counts as ranked just after its last one.
    [2403.15246; calculate_pmrr of mteb 2.26.24, for one query] Raises ValueError if `stopped` is empty.
    """
    if not stopped:
        raise ValueError("p-MRR is undefined for a query where no passage stopped being relevant")
    before, after = _ranks(original), _ranks(changed)
    changes = (rank_change(before.get(id, len(before) + 1), after.get(id, len(after) + 1)) for id in stopped)
    return fsum(changes) / len(stopped)  # fsum: independent of a set's iteration order


def _ranks(ranking: Sequence[str]) -> dict[str, int]:
    return {id: rank for rank, id in enumerate(ranking, start=1)}


def rank_change(before: int, after: int) -> float:
    return after / before - 1 if before >= after else 1 - before / after


def pair_accuracy(ranking: Sequence[str], relevant: Collection[str], others: Collection[str]) -> float:
    """Share of the pairs (relevant, other) that are ranked in this order.

    Raises ValueError if there is no pair, and KeyError if an id is not ranked.
    """
    if not relevant or not others:
        raise ValueError("pair accuracy is undefined without a pair")
    ranks = _ranks(ranking)
    right = sum(ranks[first] < ranks[second] for first in relevant for second in others)
    return right / (len(relevant) * len(others))


# --- InfoSearch -----------------------------------------------------------------------------------


def instruction_compliance(
    original: Ranking, instructed: Ranking, reversed: Ranking, gold: Collection[str]
) -> float:
    """SICR: share of the gold passages that rise under the instruction and fall under its reversal.

    Both rank and score must change strictly, except that a passage already ranked first need not rise. A
    passage missing from a ranking counts as ranked just after its last one, with score 0. [2410.23841]
    """

    def obeys(id: str) -> bool:
        (before, score), (rank, risen), (rank_reversed, fallen) = (
            places.get(id, (len(places) + 1, 0.0)) for places in ranked
        )
        rises = (rank < before and risen > score) or (rank == before == 1 and risen >= score)
        return rises and rank_reversed > before and fallen < score

    ranked = [_ranks_and_scores(ranking) for ranking in (original, instructed, reversed)]
    return sum(map(obeys, gold)) / len(gold)


def _ranks_and_scores(ranking: Ranking) -> dict[str, tuple[int, float]]:
    return {id: (rank, score) for rank, (id, score) in enumerate(zip(*ranking, strict=True), start=1)}


_REWARDED_DEPTH = 20


def instruction_sensitivity(
    original: Sequence[str],
    instructed: Sequence[str],
    reversed: Sequence[str],
    gold: Collection[str],
    others: Collection[str],
) -> float:
    """WISE: mean over the gold passages of a reward or a penalty, -1..1. [2410.23841 and its code]

    others: passages that stopped being relevant under the instruction. A passage is rewarded if it does not fall
    under the instruction and falls under its reversal. The opposite of both gives -1, as in the paper; in its code
    that branch is unreachable.
    """
    ranks = [_ranks(ranking) for ranking in (original, instructed, reversed)]

    def reward(id: str) -> float:
        before, rank, rank_reversed = (places.get(id, len(places) + 1) for places in ranks)
        if rank <= before < rank_reversed:
            if before < len(gold) + len(others) and rank == 1:
                return 1
            if before <= _REWARDED_DEPTH:
                return (1 - (before - rank) / _REWARDED_DEPTH) / sqrt(rank)
            return 0.01
        if rank_reversed < before < rank:
            return -1
        return (before - rank) / rank if before <= rank else (rank_reversed - before) / before

    return fsum(map(reward, gold)) / len(gold)
