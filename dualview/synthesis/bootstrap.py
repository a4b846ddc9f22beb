"""Adds an instruction to a plain example: a query with a relevant passage and mined passages.

An LLM writes the original instruction. The judge confirms that the positive obeys it, and selects the mined passages
that are relevant to the query alone but break the instruction. This makes ordinary retrieval collections usable.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from dualview.config.generate import Bootstrap, LlmJudge, Rules
from dualview.engines import Engine
from dualview.records import ACCEPTED, Draft, Passage, SourceExample
from dualview.synthesis.contamination import BenchmarkTexts
from dualview.synthesis.judging import ask
from dualview.synthesis.rules import broken_rule
from dualview.synthesis.writing import write_original
from dualview.vocabulary import Vocabulary


async def find_original(
    engine: Engine,
    settings: Bootstrap,
    judge: LlmJudge,
    example: SourceExample,
    rules: Rules,
    benchmarks: BenchmarkTexts | None,
    vocabulary: Vocabulary | None,
) -> tuple[SourceExample, Draft]:
    """Return the example with an instruction and instruction negatives, and the draft they come from.

    The example is unchanged if the draft's status is not ACCEPTED. Its instruction negatives are those that the judge
    is most certain of, at most `max_instruction_negatives`. Mined passages that obey the instruction are not negatives
    of any kind, and are dropped.
    """
    written = await write_original(engine, settings, example, vocabulary)
    draft = partial(Draft, "original", written.answer, written.instruction)
    reason = written.reason or broken_rule(written.instruction, example, rules, benchmarks)
    if reason:
        return example, draft(reason, None)

    confirmed = await ask(engine, judge, example.query, written.instruction, example.positive)
    if confirmed is None or confirmed < judge.min_margin or confirmed <= 0:
        return example, draft("no_original", confirmed)

    mined = _distinct(example)
    obeying = await asyncio.gather(
        *(ask(engine, judge, example.query, written.instruction, passage) for passage in mined)
    )
    on_topic = await asyncio.gather(*(ask(engine, judge, example.query, None, passage) for passage in mined))
    selected = _most_certain(obeying, on_topic, judge)[: settings.max_instruction_negatives]
    if not selected:
        return example, draft("no_instruction_negative", confirmed)
    with_instruction = replace(
        example,
        instruction=written.instruction,
        requirements=written.requirements,
        instruction_negatives=tuple(mined[index] for index in selected),
        hard_negatives=tuple(
            passage
            for index, passage in enumerate(mined)
            if index not in selected and (obeying[index] or 0.0) < 0
        ),
    )
    return with_instruction, draft(ACCEPTED, confirmed)


def _distinct(example: SourceExample) -> tuple[Passage, ...]:
    """Return the mined passages without repeated texts and without the positive's text.

    Otherwise one copy could become the target and the other a negative.
    """
    by_text = {example.positive.full_text: example.positive}
    for passage in example.hard_negatives:
        by_text.setdefault(passage.full_text, passage)
    return tuple(by_text.values())[1:]


def _most_certain(
    obeying: Sequence[float | None], on_topic: Sequence[float | None], judge: LlmJudge
) -> list[int]:
    """Indices of the passages that are on topic and break the instruction, the clearest violation first.

    The arguments are the judge's margins under the instruction and under the query alone.
    """
    breaking = [
        (margin, index)
        for index, (margin, topical) in enumerate(zip(obeying, on_topic, strict=True))
        if margin is not None
        and topical is not None
        and -margin >= judge.min_margin
        and margin < 0 < topical
        and topical >= judge.min_margin
    ]
    return [index for _, index in sorted(breaking)]
