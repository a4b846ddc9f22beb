"""Writers: draft the complementary instruction for an example and a target, and original instructions."""

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

_NUM_MINED_SHOWN = 4  # mined passages in the prompt for an original instruction


@dataclass(frozen=True, slots=True)
class Written:
    """A writer's result: an instruction, or the reason why there is none."""

    answer: str
    instruction: str  # "" if there is none
    requirements: tuple[Requirement, ...]  # of the instruction, as far as known
    reason: str | None  # one of records.REASONS


async def write(
    engine: Engine, settings: Sampling, prompt: tuple[Turn, ...], name: str, vocabulary: Vocabulary | None
) -> Written:
    """Ask the LLM for one instruction. `name` determines the sampling seed, so it is the same in any shard."""
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
    """Write `writer.drafts` complementary instructions, each with its own sampling seed."""
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
    """Compose the complement from attributes; declined if no instruction flips every label."""
    composed = attributes.compose(example, target, writer, vocabulary)
    if composed is None:
        return Written("", "", (), "declined")
    instruction, requirements = composed
    return Written(instruction, instruction, requirements, None)


async def write_original(
    engine: Engine, settings: Bootstrap, example: SourceExample, vocabulary: Vocabulary | None
) -> Written:
    """Write an original instruction for a plain example.

    The example's id determines the draw of length, style and passages in the prompt.
    """
    rng = random.Random(f"{settings.seed}:{example.id}")
    prompt = prompts.original_prompt(
        prompts.load(settings.prompt),
        example,
        rng.sample(example.hard_negatives, min(_NUM_MINED_SHOWN, len(example.hard_negatives))),
        rng.choice(settings.lengths),
        rng.choice(settings.styles),
    )
    return await write(engine, settings, prompt, f"{example.id}:original", vocabulary)


def _sampling_seed(name: str) -> int:
    """Derive a seed below 2**31, the limit of engines."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) >> 1
