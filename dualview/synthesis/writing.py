"""Writers: from a seed and a target to drafts of the complementary instruction, and of the original one."""

import asyncio
from dataclasses import dataclass
import hashlib
import random

from dualview.config.generate import Bootstrap, FacetsWriter, LlmWriter, Sampling
from dualview.engines import Engine, Request, Turn
from dualview.records import Passage, Requirement, Seed
from dualview.synthesis import facets, prompts
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
    """One answer of the LLM. `name` decides its sampling seed, so that it is the same in whatever shard."""
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
    engine: Engine, writer: LlmWriter, seed: Seed, target: Passage, vocabulary: Vocabulary | None
) -> list[Written]:
    """`writer.drafts` complementary instructions, each under its own sampling seed."""
    prompt = prompts.writing_prompt(prompts.load(writer.prompt), seed, target)
    return await asyncio.gather(
        *(
            write(engine, writer, prompt, f"{seed.id}:{target.id}:{draft}", vocabulary)
            for draft in range(writer.drafts)
        )
    )


def compose_complement(writer: FacetsWriter, seed: Seed, target: Passage, vocabulary: Vocabulary) -> Written:
    """The complement that follows from the attributes; declined where none flips every label."""
    composed = facets.compose(seed, target, writer, vocabulary)
    if composed is None:
        return Written("", "", (), "declined")
    instruction, requirements = composed
    return Written(instruction, instruction, requirements, None)


async def write_original(
    engine: Engine, settings: Bootstrap, seed: Seed, vocabulary: Vocabulary | None
) -> Written:
    """An original instruction for a plain seed; length, style and the passages shown are drawn by the seed."""
    rng = random.Random(f"{settings.seed}:{seed.id}")
    prompt = prompts.original_prompt(
        prompts.load(settings.prompt),
        seed,
        rng.sample(seed.hard_negatives, min(_NUM_OTHERS_SHOWN, len(seed.hard_negatives))),
        rng.choice(settings.lengths),
        rng.choice(settings.styles),
    )
    return await write(engine, settings, prompt, f"{seed.id}:original", vocabulary)


def _sampling_seed(name: str) -> int:
    """Below 2**31, as engines ask."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) >> 1
