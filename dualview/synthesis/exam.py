"""The judge's exam: gold pairs that an LLM judge answers before its verdicts may train anything.

A 135M model reaches an AUC of 0.50 here, the toss of a coin, while its answers look well-formed.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
import math
import random

import numpy as np

from dualview.config import LlmJudge
from dualview.engines import Engine
from dualview.errors import InputError
from dualview.records import Passage, Seed
from dualview.synthesis.judging import ask


@dataclass(frozen=True, slots=True)
class ExamPair:
    query: str
    instruction: str
    passage: Passage
    gold: bool


@dataclass(frozen=True, slots=True)
class ExamResult:
    auc: float  # area under the ROC curve, 0.5 for a coin
    agreement: float  # share of pairs where (margin > 0) is the gold answer
    num_pairs: int
    num_undecided: int


def exam_pairs(seeds: Sequence[Seed], num_pairs: int, rng: random.Random) -> list[ExamPair]:
    """Original instructions with the passages that the seeds' own labels call relevant or not.

    Half of them (rounded down) are relevant. Raises InputError where the seeds do not hold as many.
    """
    relevant = [ExamPair(seed.query, seed.instruction, seed.positive, True) for seed in seeds]
    irrelevant = [
        ExamPair(seed.query, seed.instruction, passage, False)
        for seed in seeds
        for passage in seed.instruction_negatives
    ]
    num_relevant = num_pairs // 2
    num_irrelevant = num_pairs - num_relevant
    if len(relevant) < num_relevant or len(irrelevant) < num_irrelevant:
        raise InputError(
            f"exam.num_pairs: {num_pairs} pairs need {num_relevant} positives and {num_irrelevant}"
            f" instruction negatives, but the seeds have {len(relevant)} and {len(irrelevant)};"
            f" try {2 * min(len(relevant), len(irrelevant))}"
        )
    return rng.sample(relevant, num_relevant) + rng.sample(irrelevant, num_irrelevant)


async def sit_exam(engine: Engine, settings: LlmJudge, pairs: Sequence[ExamPair]) -> ExamResult:
    """Asks the judge about every pair. A pair it cannot tell counts as answered wrongly and surely."""
    answers = await asyncio.gather(
        *(ask(engine, settings, pair.query, pair.instruction, pair.passage) for pair in pairs)
    )
    golds = np.array([pair.gold for pair in pairs])
    decided = np.array([margin is not None for margin in answers])
    margins = np.array(
        [
            (-math.inf if pair.gold else math.inf) if margin is None else margin
            for pair, margin in zip(pairs, answers, strict=True)
        ]
    )
    return ExamResult(
        auc=roc_auc(margins, golds),
        agreement=float(np.mean((margins > 0) == golds)),
        num_pairs=len(pairs),
        num_undecided=int(np.sum(~decided)),
    )


def roc_auc(margins: np.ndarray, golds: np.ndarray) -> float:
    """Probability that a relevant pair has a larger margin than an irrelevant one, ties counted half.

    margins float (P,), golds bool (P,). The rank statistic of Mann and Whitney. Raises ValueError
    where one of the two classes is empty.
    """
    num_true = int(golds.sum())
    num_false = len(golds) - num_true
    if num_true == 0 or num_false == 0:
        raise ValueError("roc_auc needs both relevant and irrelevant pairs")
    _, position, num_tied = np.unique(margins, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(num_tied) - (num_tied - 1) / 2  # 1-based, of each distinct margin
    rank_sum = mean_rank[position[golds]].sum()
    return float((rank_sum - num_true * (num_true + 1) / 2) / (num_true * num_false))
