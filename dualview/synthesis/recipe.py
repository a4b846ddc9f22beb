"""What all rows of a run share, and the check that its parts are compatible."""

from collections.abc import Mapping
from dataclasses import dataclass

from dualview.config.base import canonical_json, fingerprint
from dualview.config.generate import (
    AttributesJudge,
    AttributesWriter,
    LlmJudge,
    LlmRewording,
    LlmWriter,
    PrecomputedWriter,
    Synthesis,
)
from dualview.engines import Engine, Turn
from dualview.errors import InputError
from dualview.records import Lineage, Passage, SourceExample
from dualview.synthesis import prompts
from dualview.synthesis.contamination import BenchmarkTexts, load_benchmarks
from dualview.synthesis.judging import judge_name
from dualview.vocabulary import Vocabulary


@dataclass(frozen=True)
class Recipe:
    """Settings that passed check_parts, and the objects they need."""

    settings: Synthesis
    vocabulary: Vocabulary | None  # None: nothing is known about attributes
    engine: Engine | None  # None: no part uses a language model
    judges_passed: bool  # every LLM judge passed validation; irrelevant if attributes decide

    @property
    def deciding_judges(self) -> tuple[LlmJudge | AttributesJudge, ...]:
        accept = self.settings.accept
        return tuple(judge for judge in self.settings.judges if accept and judge.kind == accept.judge)

    @property
    def benchmarks(self) -> BenchmarkTexts | None:
        """Loaded once per process. Raises InputError if a file is missing or a row is invalid."""
        settings = self.settings.rules.benchmarks
        return load_benchmarks(settings) if settings else None

    @property
    def min_margins(self) -> Mapping[str, float]:
        """Map each deciding judge's name to the minimum absolute margin of its verdicts."""
        return {
            judge_name(judge): judge.min_margin if isinstance(judge, LlmJudge) else 0.0
            for judge in self.deciding_judges
        }


def check_parts(settings: Synthesis, *, has_vocabulary: bool, has_engine: bool) -> None:
    """Raises InputError if these settings cannot form a recipe. Does not need a running engine."""
    kinds = [judge.kind for judge in settings.judges]
    accept, conditions = settings.accept, settings.judgements.conditions
    if accept is None:
        for key in ("judges", "bootstrap", "rewording"):
            if getattr(settings, key):
                raise InputError(
                    f"{key}: a run with `accept: null` judges nothing; leave this empty, and set it in the run that"
                    " judges"
                )
    elif accept.judge == "none" and settings.rewording:
        raise InputError(
            "rewording: a rewording is accepted only if a judge's verdicts do not change, but accept.judge is none;"
            " set accept.judge to a judge, or rewording to null"
        )
    elif accept.judge not in (*kinds, "none"):
        raise InputError(
            f"accept.judge: {accept.judge} needs a judge of that kind, for example"
            f" `judges: [{{kind: {accept.judge}, ...}}]`; found {', '.join(kinds) or 'none'}"
        )
    elif "new" not in accept.conditions or set(accept.conditions) - set(conditions):
        raise InputError(
            f"accept.conditions: found {', '.join(accept.conditions)}; expected `new`, and otherwise only"
            f" conditions in judgements.conditions ({', '.join(conditions)})"
        )
    elif accept.judge == "attributes" and "query" in accept.conditions:
        raise InputError("accept.conditions: attributes say nothing about the query alone; remove `query`")
    if settings.bootstrap and (accept is None or accept.judge != "llm"):
        raise InputError("bootstrap: an LLM judge must confirm its instructions; set accept.judge to llm")
    if "query" in conditions or settings.bootstrap:
        for judge in settings.judges:
            if isinstance(judge, LlmJudge) and judge.query_prompt is None:
                raise InputError(
                    "judges: judging the query alone needs `query_prompt`, for example judge-query-v1"
                )
    if not has_engine and (settings.bootstrap or "llm" in (settings.writer.kind, *kinds, _kind(settings))):
        raise InputError(
            "engine: a writer, judge or rewording of kind llm needs one, for example `kind: vllm`"
        )
    by_attributes = (
        settings.writer.kind == "attributes" or "attributes" in kinds or _kind(settings) == "vocabulary"
    )
    if not has_vocabulary and by_attributes:
        raise InputError(
            "source: has no vocabulary, which the attributes writer, the attributes judge and rewording by"
            " vocabulary need; use kind llm for them, or a source of kind tuples with `vocabulary: FILE.yaml`"
        )


def _kind(settings: Synthesis) -> str | None:
    return settings.rewording.kind if settings.rewording else None


# Filled into a prompt, it exposes all of our wording. Some of its texts try to close the tags around them.
_SPECIMEN = SourceExample(
    id="specimen",
    query_id="specimen",
    query="query </query>",
    instruction="instruction </instruction>",
    positive=Passage("1", "positive </passage>", title="title"),
    instruction_negatives=(Passage("2", "target"), Passage("3", "one other"), Passage("4", "another")),
)


def prompt_versions(settings: Synthesis) -> dict[str, str]:
    """Map each use to the name and hash of its prompt, for every prompt that the run will fill.

    The hash covers the filled prompts in every possible length, style and form, not only the prompt's file.
    """
    query, instruction = _SPECIMEN.query, _SPECIMEN.instruction
    positive, (target, *others) = _SPECIMEN.positive, _SPECIMEN.instruction_negatives
    filled: dict[str, tuple[str, list[tuple[Turn, ...]]]] = {}
    if isinstance(writer := settings.writer, LlmWriter):
        prompt = prompts.load(writer.prompt)
        filled["writer"] = writer.prompt, [prompts.writing_prompt(prompt, _SPECIMEN, target)]
    if bootstrap := settings.bootstrap:
        prompt = prompts.load(bootstrap.prompt)
        filled["bootstrap"] = (
            bootstrap.prompt,
            [
                prompts.original_prompt(prompt, _SPECIMEN, others, length, style)
                for length in bootstrap.lengths
                for style in bootstrap.styles
            ],
        )
    if isinstance(rewording := settings.rewording, LlmRewording):
        prompt = prompts.load(rewording.prompt)
        variants = [prompts.rewording_prompt(prompt, query, instruction, form) for form in prompts.FORMS]
        filled["rewording"] = rewording.prompt, variants
    for number, judge in enumerate(settings.judges, start=1):
        if isinstance(judge, LlmJudge):
            prompt = prompts.load(judge.prompt)
            question = prompts.judging_prompt(prompt, query, instruction, positive)
            filled[f"judge {number}"] = judge.prompt, [question]
            if judge.query_prompt is not None:
                prompt = prompts.load(judge.query_prompt)
                question = prompts.judging_prompt(prompt, query, None, positive)
                filled[f"judge {number}, query alone"] = judge.query_prompt, [question]
    return {
        use: f"{name}@{fingerprint([[[turn.role, turn.text] for turn in turns] for turns in variants])}"
        for use, (name, variants) in filled.items()
    }


def writing_version(settings: Synthesis, vocabulary: Vocabulary | None) -> str:
    """Name and hash of the writer's prompt or vocabulary."""
    match settings.writer:
        case LlmWriter() as writer:
            return prompts.load(writer.prompt).version
        case AttributesWriter():
            assert vocabulary is not None  # check_parts
            return vocabulary_version(vocabulary)
        case PrecomputedWriter():
            return ""


def lineage(recipe: Recipe, *, run: str, shard: int, attempt: str, code_version: str) -> Lineage:
    """Build the lineage of the rows of one attempt at a shard. `run` is the run's fingerprint."""
    settings = recipe.settings
    engine_name = recipe.engine.name if recipe.engine else ""
    return Lineage(
        writer="attributes" if isinstance(settings.writer, AttributesWriter) else engine_name,
        prompt=writing_version(settings, recipe.vocabulary),
        sampling=canonical_json(settings.writer.model_dump(exclude={"kind", "prompt"})),
        judges=tuple(judge_name(judge) for judge in settings.judges),
        judge_model=engine_name if any(judge.kind == "llm" for judge in settings.judges) else "",
        code_version=code_version,
        written_in="",
        run=run,
        shard=shard,
        attempt=attempt,
    )


def vocabulary_version(vocabulary: Vocabulary) -> str:
    """Name and hash of all phrases, templates and names in a vocabulary."""
    words = fingerprint(
        [
            sorted([*key, *phrases] for key, phrases in vocabulary.phrases.items()),
            sorted([*key, *names] for key, names in vocabulary.names.items()),
            vocabulary.inclusions,
            vocabulary.exclusions,
        ]
    )
    return f"vocabulary@{words}"
