"""Scores of one query, from rankings: lists of passage ids, best first, each id once.

`grades` maps passage ids to relevance; ids that are missing, 0 or negative are not relevant. All
values are fractions. Formulas and cutoffs are those of trec_eval, p-MRR that of FollowIR.
"""

from collections.abc import Collection, Mapping, Sequence
from math import fsum, log2, sqrt

from dualview.retrieval.ranking import Ranking


def ndcg(ranking: Sequence[str], grades: Mapping[str, int], k: int) -> float:
    """nDCG@k with linear gain: sum of grade / log2(rank + 1), over that of the best order. [trec_eval ndcg_cut]

    0 where nothing is relevant.
    """
    ideal = _discounted_gain(sorted(grades.values(), reverse=True)[:k])
    return _discounted_gain([grades.get(id, 0) for id in ranking[:k]]) / ideal if ideal else 0.0


def _discounted_gain(gains: Sequence[int]) -> float:
    return sum(max(gain, 0) / log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def average_precision(ranking: Sequence[str], grades: Mapping[str, int], k: int) -> float:
    """Precision at the rank of each relevant passage in the first k, over all relevant. [trec_eval map_cut]

    Its mean over queries is MAP@k. 0 where nothing is relevant.
    """
    relevant = _relevant(grades)
    num_found, total = 0, 0.0
    for rank, id in enumerate(ranking[:k], start=1):
        if id in relevant:
            num_found += 1
            total += num_found / rank
    return total / len(relevant) if relevant else 0.0


def recall(ranking: Sequence[str], grades: Mapping[str, int], k: int) -> float:
    """Share of the relevant passages among the first k. [trec_eval recall] 0 where nothing is relevant."""
    relevant = _relevant(grades)
    return len(relevant.intersection(ranking[:k])) / len(relevant) if relevant else 0.0


def precision(ranking: Sequence[str], grades: Mapping[str, int], k: int) -> float:
    """Share of the first k places with a relevant passage. [trec_eval P]"""
    return len(_relevant(grades).intersection(ranking[:k])) / k


def reciprocal_rank(ranking: Sequence[str], grades: Mapping[str, int]) -> float:
    """1 / rank of the first relevant passage, 0 where none is ranked. [trec_eval recip_rank]"""
    relevant = _relevant(grades)
    return next((1 / rank for rank, id in enumerate(ranking, start=1) if id in relevant), 0.0)


def _relevant(grades: Mapping[str, int]) -> set[str]:
    return {id for id, grade in grades.items() if grade > 0}


def p_mrr(original: Sequence[str], changed: Sequence[str], stopped: Collection[str]) -> float:
    """Mean change of rank, -1..1, over the passages that stopped being relevant when the instruction changed.

    Positive where they dropped. A passage missing from a ranking has the rank after its last.
    [2403.15246; calculate_pmrr of mteb 2.26.24, for one query] Raises ValueError if none stopped.
    """
    if not stopped:
        raise ValueError("p-MRR is undefined for a query where no passage stopped being relevant")
    before, after = _ranks(original), _ranks(changed)
    changes = (rank_change(before.get(id, len(before) + 1), after.get(id, len(after) + 1)) for id in stopped)
    return fsum(changes) / len(stopped)  # the same to the last bit in whatever order a set gives them


def _ranks(ranking: Sequence[str]) -> dict[str, int]:
    return {id: rank for rank, id in enumerate(ranking, start=1)}


def rank_change(before: int, after: int) -> float:
    return after / before - 1 if before >= after else 1 - before / after


def pair_accuracy(ranking: Sequence[str], relevant: Collection[str], others: Collection[str]) -> float:
    """Share of the pairs (relevant, other) that the ranking puts in this order.

    Every id must be ranked (KeyError). Raises ValueError if there is no pair.
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

    In rank and in score, strictly; a passage that is first already need not rise. A passage missing from a
    ranking has the rank after its last and the score 0. [2410.23841]
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

    `others` stopped being relevant under the instruction. Rewarded is who rises, or stays, under the instruction
    and falls under its reversal; -1 for the opposite of both, which the paper asks for and its code never reaches.
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
