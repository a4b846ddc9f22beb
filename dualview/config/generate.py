"""Settings of jobs/generate.py."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dualview.config.base import Pool, Positive, Settings, Several, Share
from dualview.config.engines import HttpEngine, Price, ScriptedEngine, VllmEngine
from dualview.config.sources import BeirSource, DraftsSource, PromptrieverSource, TuplesSource
from dualview.records import Condition


class FacetsWriter(Settings):
    """No LLM: the complement is composed from the attributes of the passages."""

    kind: Literal["facets"]
    seed: int
    negation_share: Share  # complements that negate the original requirement
    same_facet_share: Share  # another value of the same attribute; the rest take another attribute
    exclusion_share: Share  # among the complements that are no negation
    compound_share: Share  # complements with a second requirement, which N* meets as well


class Sampling(Settings):
    prompt: str  # a file of dualview/synthesis/prompts, without .txt
    temperature: Annotated[float, Field(ge=0)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    max_tokens: Positive
    seed: int


class LlmWriter(Sampling):
    kind: Literal["llm"]
    drafts: Positive  # for each target; of those that are accepted the one with the largest surplus is taken


class GivenWriter(Settings):
    """Nothing is written: the source brings the drafts."""

    kind: Literal["given"]


class Bootstrap(Sampling):
    """For seeds without an instruction: an LLM writes one, and the judge finds what breaks it."""

    lengths: Annotated[Several[Literal["short", "medium", "long"]], Field(min_length=1)]
    styles: Annotated[Several[Literal["plain", "negated", "background", "persona"]], Field(min_length=1)]
    max_instruction_negatives: Positive


class LlmRewording(Sampling):
    kind: Literal["llm"]
    num: Positive  # of each instruction


class VocabularyRewording(Settings):
    """Other templates and phrases for the same requirements: exact by construction."""

    kind: Literal["vocabulary"]
    num: Positive
    seed: int


class Exam(Settings):
    """Gold pairs that an LLM judge answers before the first shard."""

    num_pairs: Annotated[int, Field(ge=2)]  # half of them relevant, half not
    min_auc: Share  # below it the run's rows are written but not marked trainable
    seed: int
    # Whose labels are the gold; null: those of this run's own source.
    gold: Annotated[TuplesSource | PromptrieverSource, Field(discriminator="kind")] | None


class LlmJudge(Settings):
    kind: Literal["llm"]
    prompt: str
    query_prompt: str | None  # for the query alone; needed where `query` is one of the conditions
    min_margin: Annotated[float, Field(ge=0)]  # closer to 0 than this: undecided
    exam: Exam


class AttributesJudge(Settings):
    """Reads the requirements of an instruction and looks them up in the passage's attributes."""

    kind: Literal["attributes"]


class Cells(Settings):
    """Which cells of the relevance matrix are judged: passages of the seed x these conditions."""

    conditions: Annotated[Several[Condition], Field(min_length=1)]
    hard_negatives: bool  # besides the positive and the instruction negatives: labels that nobody gave


class Accept(Settings):
    """Whose verdicts decide, and on which conditions; on each, every labelled passage must be right.

    With `none` no verdict decides: what the rules let through is trained on, to learn what verification buys.
    """

    judge: Literal["llm", "attributes", "none"]
    conditions: Annotated[Several[Condition], Field(min_length=1)]


class Benchmarks(Settings):
    """Texts that must not be trained on: queries and instructions of what will be evaluated."""

    # .jsonl (keys as in synthesis/contamination.py) or .txt (a text a line), local or at s3://
    paths: Annotated[Several[str], Field(min_length=1)]
    max_shared_words: Positive  # a longer run of words shared with one of them is contamination


class Rules(Settings):
    min_words: Positive
    max_words: Positive
    max_sentences: Positive
    max_copied_words: Positive  # a longer run of words taken from a passage is a leak
    max_similarity_to_original: Share  # Jaccard index of the word sets
    # How sure it must be that instruction and query are in different languages; null: not asked. 0.99 rejected
    # none of 13,000 English pairs (the largest value was 0.88), and all sentences of ten other languages.
    other_language: Annotated[float, Field(gt=0, lt=1)] | None
    benchmarks: Benchmarks | None


class NearDuplicates(Settings):
    """Rows of the same query whose new instructions are nearly the same: only a run's first is trained on."""

    threshold: Annotated[float, Field(ge=0.5, le=1)]  # Jaccard index of the instructions' runs of words
    num_perm: Annotated[int, Field(ge=16)]  # hash functions of MinHash: for each row 4 bytes of memory each
    ngram: Positive  # words in a run


class Budget(Settings):
    """Over all attempts and resumes of the run; when one is used up, the run ends and can go on later."""

    tokens: Positive | None
    dollars: Annotated[float, Field(gt=0)] | None
    gpu_hours: Annotated[float, Field(gt=0)] | None


class Synthesis(Settings):
    """What decides a row, given its seed and the engine."""

    bootstrap: Bootstrap | None
    targets: Positive | Literal["all"]  # instruction negatives of a seed that get a complement each, in order
    writer: Annotated[FacetsWriter | LlmWriter | GivenWriter, Field(discriminator="kind")]
    rules: Rules
    judges: Several[Annotated[LlmJudge | AttributesJudge, Field(discriminator="kind")]]
    cells: Cells
    accept: Accept | None  # null: this run only writes, another one judges (source of kind drafts)
    rewording: Annotated[LlmRewording | VocabularyRewording, Field(discriminator="kind")] | None


class GenerateConfig(Synthesis):
    output: str  # s3://bucket/prefix, file:///folder or a plain path
    source: Annotated[
        TuplesSource | PromptrieverSource | BeirSource | DraftsSource,
        Field(discriminator="kind"),
    ]
    engine: Annotated[VllmEngine | HttpEngine | ScriptedEngine, Field(discriminator="kind")] | None
    near_duplicates: NearDuplicates | None  # null: not looked for
    price: Price | None  # null: no account in dollars
    budget: Budget | None
    rows_per_shard: Positive
    shards_in_flight: Positive  # per actor
    actors: Pool
    min_accepted_share: (
        Share  # of the last 500 rows: with fewer the run stops, for an engine may answer nonsense
    )
    trail: str | None  # a local JSONL file for the progress of the run

    @model_validator(mode="after")
    def _dollars_have_a_price(self) -> Self:
        if self.budget is not None and self.budget.dollars is not None and self.price is None:
            raise ValueError("budget.dollars needs `price`, for example price: {per_gpu_hour: 2.5, ...}")
        return self
