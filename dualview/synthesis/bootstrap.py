"""From a plain seed, a query with a relevant passage and mined ones, to a seed with an instruction.

An LLM writes the original instruction; the judge confirms that the positive obeys it, and finds among the
mined passages those that are relevant to the query alone and break the instruction. So an ordinary
retrieval collection is enough to start from.
"""

import asyncio
from dataclasses import replace

from dualview.config.generate import Bootstrap, LlmJudge, Rules
from dualview.engines import Engine
from dualview.records import ACCEPTED, Draft, Seed
from dualview.synthesis.contamination import BenchmarkTexts
from dualview.synthesis.judging import ask
from dualview.synthesis.rules import broken_rule
from dualview.synthesis.writing import write_original
from dualview.vocabulary import Vocabulary


async def find_original(
    engine: Engine,
    settings: Bootstrap,
    judge: LlmJudge,
    seed: Seed,
    rules: Rules,
    benchmarks: BenchmarkTexts | None,
    vocabulary: Vocabulary | None,
) -> tuple[Seed, Draft]:
    """The seed with an instruction and instruction negatives, and the draft they come from.

    The seed is unchanged where the draft's status is not ACCEPTED. Negatives are those which the judge
    is surest about, at most `max_instruction_negatives`. Mined passages that obey the instruction are
    no negatives of any kind, and are left out of the new seed.
    """
    written = await write_original(engine, settings, seed, vocabulary)
    reason = written.reason or broken_rule(written.instruction, seed, rules, benchmarks)
    if reason:
        return seed, Draft("original", written.answer, written.instruction, reason, None)

    confirmed = await ask(engine, judge, seed.query, written.instruction, seed.positive)
    if confirmed is None or confirmed < judge.min_margin or confirmed <= 0:
        return seed, Draft("original", written.answer, written.instruction, "no_original", confirmed)

    # Each text once: of two copies one could become the wanted passage and the other an unwanted one.
    distinct = {seed.positive.full_text: seed.positive}
    for passage in seed.hard_negatives:
        distinct.setdefault(passage.full_text, passage)
    mined = tuple(distinct.values())[1:]
    obeying = await asyncio.gather(
        *(ask(engine, judge, seed.query, written.instruction, passage) for passage in mined)
    )
    on_topic = await asyncio.gather(*(ask(engine, judge, seed.query, None, passage) for passage in mined))
    breaking = sorted(
        (margin, place)
        for place, (margin, topical) in enumerate(zip(obeying, on_topic, strict=True))
        if margin is not None
        and topical is not None
        and -margin >= judge.min_margin
        and margin < 0 < topical
        and topical >= judge.min_margin
    )[: settings.max_instruction_negatives]
    if not breaking:
        return seed, Draft(
            "original", written.answer, written.instruction, "no_instruction_negative", confirmed
        )
    chosen = [place for _, place in breaking]
    found = replace(
        seed,
        instruction=written.instruction,
        requirements=written.requirements,
        instruction_negatives=tuple(mined[place] for place in chosen),
        hard_negatives=tuple(
            passage
            for place, passage in enumerate(mined)
            if place not in chosen and (obeying[place] or 0.0) < 0
        ),
    )
    return found, Draft("original", written.answer, written.instruction, ACCEPTED, confirmed)
