"""Writers: from an example and a target to drafts of the complementary instruction, and of the original one."""

import asyncio
from dataclasses import dataclass
import hashlib
import random

from dualview.config.generate import AttributesWriter, Bootstrap, LlmWriter, Sampling
from dualview.engines import Engine, Request, Turn
from dualview.records import Passage, Requirement, SourceExample
from dualview.synthesis import attributes, prompts
from dualview.synthesis.parsing import parse
from dualview.vocabulary import Vocabulary

_NUM_OTHERS_SHOWN = 4  # mined passages in the prompt for an original instruction


@dataclass(frozen=True, slots=True)
class Written:
    """What a writer gave: an instruction, or the reason why there is none."""

    answer: str
    instruction: str  # "" where there is none
    requirements: tuple[Requirement, ...]  # of the instruction, as far as they are known
    reason: str | None  # one of records.REASONS


async def write(
    engine: Engine, settings: Sampling, prompt: tuple[Turn, ...], name: str, vocabulary: Vocabulary | None
) -> Written:
    """One answer of the LLM. `name` decides its sampling example, so that it is the same in whatever shard."""
    completion = await engine.complete(
        Request(
            prompt=prompt,
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=_sampling_seed(f"{settings.seed}:{name}"),
            num_logprobs=0,
        )
    )
    instruction, reason = parse(completion)
    read = vocabulary.read(instruction) if vocabulary and instruction else ()
    return Written(completion.text, instruction or "", read, reason)


async def write_complements(
    engine: Engine, writer: LlmWriter, example: SourceExample, target: Passage, vocabulary: Vocabulary | None
) -> list[Written]:
    """`writer.drafts` complementary instructions, each under its own sampling example."""
    prompt = prompts.writing_prompt(prompts.load(writer.prompt), example, target)
    return await asyncio.gather(
        *(
            write(engine, writer, prompt, f"{example.id}:{target.id}:{draft}", vocabulary)
            for draft in range(writer.drafts)
        )
    )


def compose_complement(
    writer: AttributesWriter, example: SourceExample, target: Passage, vocabulary: Vocabulary
) -> Written:
    """The complement that follows from the attributes; declined where none flips every label."""
    composed = attributes.compose(example, target, writer, vocabulary)
    if composed is None:
        return Written("", "", (), "declined")
    instruction, requirements = composed
    return Written(instruction, instruction, requirements, None)


async def write_original(
    engine: Engine, settings: Bootstrap, example: SourceExample, vocabulary: Vocabulary | None
) -> Written:
    """An original instruction for a plain example; length, style and the passages shown are drawn by the example."""
    rng = random.Random(f"{settings.seed}:{example.id}")
    prompt = prompts.original_prompt(
        prompts.load(settings.prompt),
        example,
        rng.sample(example.hard_negatives, min(_NUM_OTHERS_SHOWN, len(example.hard_negatives))),
        rng.choice(settings.lengths),
        rng.choice(settings.styles),
    )
    return await write(engine, settings, prompt, f"{example.id}:original", vocabulary)


def _sampling_seed(name: str) -> int:
    """Below 2**31, as engines ask."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) >> 1
