"""Settings of `dualview generate`."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dualview.config.base import Pool, Positive, Settings, Several, Share
from dualview.config.engines import CONNECTION, HttpEngine, Price, ScriptedEngine, VllmEngine
from dualview.config.sources import BeirSource, DraftsSource, PromptrieverSource, TuplesSource
from dualview.records import Condition


class AttributesWriter(Settings):
    """No LLM: the complement is composed from the attributes of the passages."""

    kind: Literal["attributes"]
    seed: int
    """Random seed of the choices."""
    negation_share: Share
    """Share of the complements that negate the original requirement."""
    same_attribute_share: Share
    """Share of the complements that ask for another value of the same attribute; what is left takes another
    attribute."""
    exclusion_share: Share
    """Share of exclusions among the complements that are no negation."""
    compound_share: Share
    """Share of the complements with a second requirement, which N* meets as well."""


class Sampling(Settings):
    """How an LLM is asked."""

    prompt: str
    """A file of dualview/synthesis/prompts, without .txt."""
    temperature: Annotated[float, Field(ge=0)]
    """Sampling temperature; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)]
    """Nucleus sampling: the probability mass that is sampled from."""
    max_tokens: Positive
    """Longest answer, in tokens."""
    seed: int
    """Random seed of the sampling."""


class LlmWriter(Sampling):
    """An LLM writes the complement."""

    kind: Literal["llm"]
    drafts: Positive
    """Drafts for each target; of the accepted ones the one with the largest surplus is taken."""


class PrecomputedWriter(Settings):
    """Nothing is written: the source brings the drafts."""

    kind: Literal["precomputed"]


class Bootstrap(Sampling):
    """For examples without an instruction: an LLM writes one, and the judge finds what breaks it."""

    lengths: Annotated[Several[Literal["short", "medium", "long"]], Field(min_length=1)]
    """Lengths of instruction to ask for; one is drawn for each example."""
    styles: Annotated[Several[Literal["plain", "negated", "background", "persona"]], Field(min_length=1)]
    """Styles of instruction to ask for; one is drawn for each example."""
    max_instruction_negatives: Positive
    """Most instruction negatives that an example gets."""


class LlmRewording(Sampling):
    """An LLM rewords the instruction."""

    kind: Literal["llm"]
    num: Positive
    """Rewordings of each instruction."""


class VocabularyRewording(Settings):
    """Other templates and phrases for the same requirements: exact by construction."""

    kind: Literal["vocabulary"]
    num: Positive
    """Rewordings of each instruction."""
    seed: int
    """Random seed of the choices."""


class JudgeValidation(Settings):
    """Gold pairs that an LLM judge answers before the first shard."""

    num_pairs: Annotated[int, Field(ge=2)]
    """Number of gold pairs, half of them relevant and half not."""
    min_auc: Share
    """Lowest ROC AUC to pass; below it the run's rows are written but not marked trainable."""
    seed: int
    """Random seed of the draw."""
    gold: Annotated[TuplesSource | PromptrieverSource, Field(discriminator="kind")] | None
    """Whose labels are the gold; null takes those of this run's own source."""


class LlmJudge(Settings):
    """An LLM answers yes or no at its first token."""

    kind: Literal["llm"]
    prompt: str
    """A file of dualview/synthesis/prompts, without .txt: query, instruction and passage."""
    query_prompt: str | None
    """The prompt for a query without an instruction; null where `query` is none of the conditions."""
    min_margin: Annotated[float, Field(ge=0)]
    """Margin log p(yes) - log p(no) below which, in absolute value, a verdict is undecided."""
    validation: JudgeValidation
    """Gold pairs that the judge answers before the first shard."""


class AttributesJudge(Settings):
    """Reads the requirements of an instruction and looks them up in the passage's attributes."""

    kind: Literal["attributes"]


class Judgements(Settings):
    """Which cells of the relevance matrix are judged: passages of the example x these conditions."""

    conditions: Annotated[Several[Condition], Field(min_length=1)]
    """What passages are judged under: the query alone, the original instruction, the new one."""
    hard_negatives: bool
    """Judge the hard negatives too, besides the positive and the instruction negatives."""


class Accept(Settings):
    """Whose verdicts decide, and on which conditions; on each, every labelled passage must be right.

    With `none` no verdict decides: what the rules let through is trained on, to learn what verification buys.
    """

    judge: Literal["llm", "attributes", "none"]
    """Whose verdicts decide; `none` accepts what the rules let through, to measure what verification buys."""
    conditions: Annotated[Several[Condition], Field(min_length=1)]
    """Conditions under which every labelled passage must be right."""


class ContaminationTexts(Settings):
    """Texts that must not be trained on: queries and instructions of what will be evaluated."""

    paths: Annotated[Several[str], Field(min_length=1)]
    """JSONL files (keys as in synthesis/contamination.py) or .txt files (a text a line), local or at
    s3://."""
    max_shared_words: Positive
    """Longest run of words that a row may share with a benchmark's text."""


class Rules(Settings):
    min_words: Positive
    """Fewest words of an instruction."""
    max_words: Positive
    """Most words of an instruction."""
    max_sentences: Positive
    """Most sentences of an instruction."""
    max_copied_words: Positive
    """Longest run of words that an instruction may take from a passage; a longer one is a leak."""
    max_similarity_to_original: Share
    """Largest Jaccard index of the word sets of the new and the original instruction."""
    other_language: Annotated[float, Field(gt=0, lt=1)] | None
    """Probability from which instruction and query count as different languages; null does not check. 0.99
    rejected none of 13,000 English pairs (the largest value was 0.88) and every sentence in ten other
    languages."""
    benchmarks: ContaminationTexts | None
    """Benchmark texts that must not appear in training data; null does not check."""


class NearDuplicates(Settings):
    """Rows of the same query whose new instructions are nearly the same: only a run's first is trained on."""

    threshold: Annotated[float, Field(ge=0.5, le=1)]
    """Jaccard index of two instructions' word n-grams from which they are near-duplicates."""
    num_perm: Annotated[int, Field(ge=16)]
    """Hash functions of MinHash; each takes 4 bytes of memory a row."""
    ngram: Positive
    """Words in an n-gram."""


class Budget(Settings):
    """Limits over all attempts and resumes of the run, any number of them.

    When one is used up, the run ends and can go on later.
    """

    tokens: Positive | None = None
    """Most tokens, of prompts and answers."""
    dollars: Annotated[float, Field(gt=0)] | None = None
    """Most dollars; needs `price`."""
    gpu_hours: Annotated[float, Field(gt=0)] | None = None
    """Most GPU hours."""


class Synthesis(Settings):
    """What decides a row, given its example and the engine."""

    bootstrap: Bootstrap | None
    """How examples without an instruction get one; null where all examples have theirs."""
    targets: Positive | Literal["all"]
    """Instruction negatives of an example that get a complement each, in order; `all` for every one."""
    writer: Annotated[AttributesWriter | LlmWriter | PrecomputedWriter, Field(discriminator="kind")]
    """Who writes the complementary instructions."""
    rules: Rules
    """What a written instruction must look like."""
    judges: Several[Annotated[LlmJudge | AttributesJudge, Field(discriminator="kind")]]
    """Judges of the relevance matrix; [] for none."""
    judgements: Judgements
    """Which cells of the relevance matrix are judged."""
    accept: Accept | None
    """Which verdicts accept a row; null only writes, and a later run with a source of kind `drafts`
    judges."""
    rewording: Annotated[LlmRewording | VocabularyRewording, Field(discriminator="kind")] | None
    """Other wordings of accepted instructions; null makes none."""


class GenerateConfig(Synthesis):
    """Writes complementary instructions and verifies them."""

    renamed: ClassVar[Mapping[str, str]] = {
        "cells": "judgements",
        "judges.*.exam": "judges.*.validation",
        "writer.kind=facets": "writer.kind=attributes",
        "writer.kind=given": "writer.kind=precomputed",
        "writer.same_facet_share": "writer.same_attribute_share",
        "source.mining.min_margin": "source.mining.relative_margin",
    }

    output: str
    """Where the run goes: s3://bucket/prefix, file:///folder or a plain path."""
    source: Annotated[
        TuplesSource | PromptrieverSource | BeirSource | DraftsSource,
        Field(discriminator="kind"),
    ]
    """Where examples come from."""
    engine: Annotated[VllmEngine | HttpEngine | ScriptedEngine, Field(discriminator="kind")] | None
    """The LLM that writes and judges; null where none does."""
    near_duplicates: NearDuplicates | None
    """Near-duplicates within the run; null does not look for them."""
    price: Price | None
    """Prices for the account in dollars; null keeps none."""
    budget: Budget | None
    """Limits of the run; null sets none."""
    rows_per_shard: Positive
    """SourceExamples of a shard, which is one Parquet file."""
    shards_in_flight: Positive
    """Shards that an actor works on at once."""
    actors: Pool
    """Actors that hold the engine."""
    min_accepted_share: Share
    """Smallest accepted share of the last 500 rows; below it the run stops, because the engine may be
    answering nonsense."""
    trail: str | None
    """Local JSONL file for the progress of the run; null writes none."""

    def deciding(self) -> dict[str, Any]:
        """The settings, as JSON values, that decide what the rows will be."""
        return self.model_dump(mode="json", exclude=_NOT_DECIDING)

    @model_validator(mode="after")
    def _dollars_have_a_price(self) -> Self:
        if self.budget is not None and self.budget.dollars is not None and self.price is None:
            raise ValueError("budget.dollars needs `price`, for example price: {per_gpu_hour: 2.5, ...}")
        return self


_NOT_DECIDING: dict[str, bool | set[str]] = {
    # Where, how fast and how far the work is done.
    **dict.fromkeys(
        ("output", "shards_in_flight", "actors", "price", "budget", "min_accepted_share", "trail"), True
    ),
    # The plan compares these itself: the size of shards, and inputs one by one, so that more may come.
    "rows_per_shard": True,
    "source": {"paths", "max_bad_share"},
    "engine": CONNECTION,
}
