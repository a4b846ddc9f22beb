"""Previews a run's requests to its engine."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from dualview.config.generate import LlmJudge, LlmRewording, LlmWriter, Synthesis
from dualview.engines import Turn
from dualview.records import Passage, SourceExample
from dualview.synthesis import prompts
from dualview.synthesis.shard import tasks_of

Conversation = tuple[Turn, ...]

_UNWRITTEN = "(the instruction that is still to be written)"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of a row."""

    use: str  # "write", "judge", "judge the query alone", "original", "reword"
    prompt: Conversation
    max_tokens: int


def fill_prompts(settings: Synthesis, example: SourceExample) -> Mapping[str, Conversation]:
    """Map each use to its first prompt for this example.

    Raises InputError if a prompt is meant for another use.
    """
    first: dict[str, Conversation] = {}
    for asked in requests_of(settings, example):
        first.setdefault(asked.use, asked.prompt)
    return first


def requests_of(settings: Synthesis, example: SourceExample) -> Iterator[Asked]:
    """Yield every request of the example's rows if no draft is rejected and all rewordings are judged.

    A placeholder of about the same length replaces each instruction that is not written yet.
    """
    if (bootstrap := settings.bootstrap) and not example.instruction:
        negatives = example.hard_negatives[: bootstrap.max_instruction_negatives]
        length, style = bootstrap.lengths[0], bootstrap.styles[0]
        prompt = prompts.original_prompt(prompts.load(bootstrap.prompt), example, negatives, length, style)
        yield Asked("original", prompt, bootstrap.max_tokens)
        yield from _judged(settings, example, _UNWRITTEN, (example.positive, *example.hard_negatives))
        yield from _judged(settings, example, None, example.hard_negatives)
        example = replace(example, instruction=_UNWRITTEN, instruction_negatives=negatives)
    passages = (example.positive, *example.instruction_negatives)
    for task in tasks_of(example, settings.targets):
        if not task.target_id:
            continue
        num_drafts = 1
        if isinstance(writer := settings.writer, LlmWriter):
            num_drafts = writer.drafts
            target = next(
                negative for negative in example.instruction_negatives if negative.id == task.target_id
            )
            prompt = prompts.writing_prompt(prompts.load(writer.prompt), example, target)
            for _ in range(num_drafts):
                yield Asked("write", prompt, writer.max_tokens)
        if settings.accept is None:
            continue
        instructions = {"query": None, "original": example.instruction, "new": _UNWRITTEN}
        for condition in settings.judgements.conditions:
            for _ in range(num_drafts if condition == "new" else 1):
                yield from _judged(settings, example, instructions[condition], passages)
            if settings.judgements.hard_negatives:
                yield from _judged(settings, example, instructions[condition], example.hard_negatives)
        if isinstance(rewording := settings.rewording, LlmRewording):
            for instruction in (example.instruction, _UNWRITTEN):
                for number in range(rewording.num):
                    form = prompts.FORMS[number % len(prompts.FORMS)]
                    prompt = prompts.rewording_prompt(
                        prompts.load(rewording.prompt), example.query, instruction, form
                    )
                    yield Asked("reword", prompt, rewording.max_tokens)
                    yield from _judged(settings, example, instruction, passages)


def _judged(
    settings: Synthesis, example: SourceExample, instruction: str | None, passages: Sequence[Passage]
) -> Iterator[Asked]:
    use = "judge the query alone" if instruction is None else "judge"
    for judge in settings.judges:
        if isinstance(judge, LlmJudge):
            name = judge.query_prompt if instruction is None else judge.prompt
            assert name is not None  # check_parts
            for passage in passages:
                prompt = prompts.judging_prompt(prompts.load(name), example.query, instruction, passage)
                yield Asked(use, prompt, 1)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Upper bounds for a whole run, from a sample of its examples: rejected drafts cause fewer requests."""

    requests: int
    prompt_tokens: int
    completion_tokens: int


def estimate(
    settings: Synthesis,
    sample: Sequence[SourceExample],
    num_examples: int,
    count_tokens: Callable[[Conversation], int],
) -> Estimate:
    """Scale the sample's requests up to `num_examples`."""
    asked = [request for example in sample for request in requests_of(settings, example)]
    scale = num_examples / max(len(sample), 1)
    return Estimate(
        round(len(asked) * scale),
        round(sum(count_tokens(request.prompt) for request in asked) * scale),
        round(sum(request.max_tokens for request in asked) * scale),
    )
