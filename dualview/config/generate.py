"""Settings of `dualview generate`."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dualview.config.base import Pool, Positive, Settings, Several, Share
from dualview.config.engines import CONNECTION, HttpEngine, Price, ScriptedEngine, VllmEngine
from dualview.config.sources import PromptrieverSource, SourceConfig, TuplesSource
from dualview.records import Condition


class AttributesWriter(Settings):
    """Composes complements from the attributes of the passages, without an LLM."""

    kind: Literal["attributes"]
    seed: int
    """Random seed of all choices."""
    negation_share: Share
    """Share of complements that negate the original requirement."""
    same_attribute_share: Share
    """Share of complements that ask for another value of the same attribute; the remaining ones use another
    attribute."""
    exclusion_share: Share
    """Share of exclusions among the complements that are not negations."""
    compound_share: Share
    """Share of complements with a second requirement, which N* also meets."""


class Sampling(Settings):
    """Prompt and sampling parameters of an LLM."""

    prompt: str
    """Name of a file in dualview/synthesis/prompts, without .txt."""
    temperature: Annotated[float, Field(ge=0)]
    """Sampling temperature; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)]
    """Nucleus sampling: the probability mass to sample from."""
    max_tokens: Positive
    """Maximum length of an answer, in tokens."""
    seed: int
    """Random seed of sampling."""


class LlmWriter(Sampling):
    """An LLM writes the complements."""

    kind: Literal["llm"]
    drafts: Positive
    """Drafts for each target; the accepted draft with the largest surplus is used."""


class PrecomputedWriter(Settings):
    """Writes nothing: the drafts come from the source."""

    kind: Literal["precomputed"]


class Bootstrap(Sampling):
    """For examples without an instruction: an LLM writes one, and the judge finds the passages that violate it."""

    lengths: Annotated[Several[Literal["short", "medium", "long"]], Field(min_length=1)]
    """Instruction lengths to ask for; one is drawn for each example."""
    styles: Annotated[Several[Literal["plain", "negated", "background", "persona"]], Field(min_length=1)]
    """Instruction styles to ask for; one is drawn for each example."""
    max_instruction_negatives: Positive
    """Maximum number of instruction negatives per example."""


class LlmRewording(Sampling):
    """An LLM rewords instructions."""

    kind: Literal["llm"]
    num: Positive
    """Number of rewordings of each instruction."""


class VocabularyRewording(Settings):
    """Says the same requirements in other templates and phrases: exact by construction."""

    kind: Literal["vocabulary"]
    num: Positive
    """Number of rewordings of each instruction."""
    seed: int
    """Random seed of all choices."""


class JudgeValidation(Settings):
    """Validation of an LLM judge on gold pairs, before the first shard."""

    num_pairs: Annotated[int, Field(ge=2)]
    """Number of gold pairs, half of them relevant and half not."""
    min_auc: Share
    """Minimum ROC AUC; below it, the run's rows are written but not marked trainable."""
    seed: int
    """Random seed of the choice of pairs."""
    gold: Annotated[TuplesSource | PromptrieverSource, Field(discriminator="kind")] | None
    """Source of the gold labels; null uses this run's own source."""


class LlmJudge(Settings):
    """An LLM judges by the first token of its answer, yes or no."""

    kind: Literal["llm"]
    prompt: str
    """Prompt for query, instruction and passage: a file in dualview/synthesis/prompts, without .txt."""
    query_prompt: str | None
    """Prompt for a query without an instruction; null if `query` is not among the conditions."""
    min_margin: Annotated[float, Field(ge=0)]
    """Minimum absolute margin, log p(yes) - log p(no), of a verdict; below it the verdict is undecided."""
    validation: JudgeValidation
    """Validation on gold pairs, before the first shard."""


class AttributesJudge(Settings):
    """Checks the requirements of an instruction against the attributes of the passage."""

    kind: Literal["attributes"]


class Judgements(Settings):
    """The judged cells of the relevance matrix: passages of the example x conditions."""

    conditions: Annotated[Several[Condition], Field(min_length=1)]
    """Conditions that passages are judged under: the query alone, the original instruction, the new instruction."""
    hard_negatives: bool
    """Also judge the hard negatives, not only the positive and the instruction negatives."""


class Accept(Settings):
    """The verdicts that accept a row."""

    judge: Literal["llm", "attributes", "none"]
    """The judge that decides; `none` accepts every draft that passes the rules, to measure what verification gains."""
    conditions: Annotated[Several[Condition], Field(min_length=1)]
    """Conditions under which the verdict on every labelled passage must be right."""


class ContaminationTexts(Settings):
    """Texts that must not be in training data: queries and instructions of the benchmarks."""

    paths: Annotated[Several[str], Field(min_length=1)]
    """JSONL files (keys as in synthesis/contamination.py) or .txt files (one text per line), local or at s3://."""
    max_shared_words: Positive
    """Maximum length of a word sequence that a row may share with a benchmark text."""


class Rules(Settings):
    min_words: Positive
    """Minimum number of words of an instruction."""
    max_words: Positive
    """Maximum number of words of an instruction."""
    max_sentences: Positive
    """Maximum number of sentences of an instruction."""
    max_copied_words: Positive
    """Maximum length of a word sequence that an instruction may copy from a passage; a longer one is a leak."""
    max_similarity_to_original: Share
    """Maximum Jaccard index of the word sets of the new and the original instruction."""
    other_language: Annotated[float, Field(gt=0, lt=1)] | None
    """Probability from which instruction and query count as being in different languages; null does not check.
    0.99 rejected none of 13,000 English pairs (largest value 0.88) and every sentence in ten other languages."""
    benchmarks: ContaminationTexts | None
    """Benchmark texts that must not appear in training data; null does not check."""


class NearDuplicates(Settings):
    """Rows of the same query with nearly the same new instruction: only the first of a run is trained on."""

    threshold: Annotated[float, Field(ge=0.5, le=1)]
    """Jaccard index of word n-grams from which two instructions are near-duplicates."""
    num_perm: Annotated[int, Field(ge=16)]
    """Number of MinHash permutations; each takes 4 bytes of memory per row."""
    ngram: Positive
    """Number of words in an n-gram."""


class Budget(Settings):
    """Limits over all attempts of a run; any number may be set.

    The run stops when it reaches a limit, and can be resumed later.
    """

    tokens: Positive | None = None
    """Maximum number of tokens, of prompts and answers."""
    dollars: Annotated[float, Field(gt=0)] | None = None
    """Maximum cost in dollars; needs `price`."""
    gpu_hours: Annotated[float, Field(gt=0)] | None = None
    """Maximum number of GPU hours."""


class Synthesis(Settings):
    """The settings that decide a row, given its example and the engine."""

    bootstrap: Bootstrap | None
    """How examples without an instruction get one; null if all examples have one."""
    targets: Positive | Literal["all"]
    """Number of instruction negatives per example that get a complement, in order; `all` for all of them."""
    writer: Annotated[AttributesWriter | LlmWriter | PrecomputedWriter, Field(discriminator="kind")]
    """Writer of the complementary instructions."""
    rules: Rules
    """Rules that a written instruction must pass."""
    judges: Several[Annotated[LlmJudge | AttributesJudge, Field(discriminator="kind")]]
    """Judges of the relevance matrix; [] for none."""
    judgements: Judgements
    """The cells of the relevance matrix to judge."""
    accept: Accept | None
    """The verdicts that accept a row; null only writes, for a later run with a source of kind `drafts` to judge."""
    rewording: Annotated[LlmRewording | VocabularyRewording, Field(discriminator="kind")] | None
    """Rewordings of accepted instructions; null makes none."""


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
    """Location of the output: s3://bucket/prefix, file:///folder or a plain path."""
    source: Annotated[SourceConfig, Field(discriminator="kind")]
    """Source of the examples."""
    engine: Annotated[VllmEngine | HttpEngine | ScriptedEngine, Field(discriminator="kind")] | None
    """The LLM that writes and judges; null if none does."""
    near_duplicates: NearDuplicates | None
    """Near-duplicates within the run; null does not search for them."""
    price: Price | None
    """Prices, to report costs in dollars; null reports none."""
    budget: Budget | None
    """Limits of the run; null sets none."""
    rows_per_shard: Positive
    """Number of source examples per shard, which is one Parquet file."""
    shards_in_flight: Positive
    """Number of shards that an actor works on at once."""
    actors: Pool
    """Actors that hold the engine."""
    min_accepted_share: Share
    """Minimum share of accepted rows among the last 500; below it the run stops, because the engine may be answering
    nonsense."""
    trail: str | None
    """Local JSONL file that records the progress of the run; null writes none."""

    def deciding(self) -> dict[str, Any]:
        """The settings, as JSON values, that decide the rows."""
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
    # The plan checks these itself: the shard size, and each input separately, so that inputs may be added.
    "rows_per_shard": True,
    "source": {"paths", "max_bad_share"},
    "engine": CONNECTION,
}
