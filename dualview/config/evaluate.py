"""Settings of `dualview evaluate`."""

from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, Strict

from dualview.config.base import Name, Pool, Positive, Settings, Several, WholeGroups
from dualview.config.sources import Bm25


class Flips(Settings):
    """A folder with corpus.jsonl and queries.jsonl: query, instructions, and relevant ids for each instruction.

    Queries may share a `topic`: the bootstrap draws them together. A query may also have `candidates` and `labels`: see
    dualview/evaluation/benchmarks/flips.py.
    """

    kind: Literal["flips"]
    name: Name
    """Name of the benchmark in the results."""
    path: str
    """A folder, s3://... or hub:OWNER/NAME."""
    original: str
    """Name of the original instruction in queries.jsonl."""
    changed: str
    """Name of the changed instruction in queries.jsonl."""


class Beir(Settings):
    """A folder with corpus.jsonl, queries.jsonl and qrels.tsv or qrels/test.tsv; no instructions."""

    kind: Literal["beir"]
    name: Name
    """Name of the benchmark in the results."""
    path: str
    """A folder, s3://... or hub:OWNER/NAME."""


class Trec(Settings):
    """TREC files: topics (`<top>` elements, or one tab-separated id and title per line) and qrels of four columns."""

    kind: Literal["trec"]
    name: Name
    """Name of the benchmark in the results."""
    corpus: str
    """File of passages: corpus.jsonl, as in BEIR."""
    topics: str
    """File of topics."""
    qrels: str
    """File of relevance judgements."""


class FollowIR(Settings):
    """Robust04, News21 or Core17 in mteb's layout on the hub, or a language of mFollowIR."""

    kind: Literal["followir"]
    name: Name
    """Name of the benchmark in the results."""
    path: str
    """A mirror: a folder, s3://..., or hub:mteb/Core17InstructionRetrieval."""
    subset: str | None
    """Language of mFollowIR: fas, rus or zho; null for the other benchmarks."""
    score: Literal["MAP@1000", "nDCG@5", "nDCG@20"]
    """Ranking metric: MAP@1000 for Robust04 and Core17, nDCG@5 for News21, nDCG@20 for mFollowIR."""


class HubBenchmark(Settings):
    """Another benchmark that is one folder, in its authors' layout (InstructIR and NevIR: in mteb's)."""

    kind: Literal["infosearch", "instructir", "nevir", "excluir"]
    name: Name
    """Name of the benchmark in the results."""
    path: str
    """A mirror: a folder, s3://..., or hub:jianqunZ/Length-v1."""


class Mair(Settings):
    """One task of MAIR, with all its parts."""

    kind: Literal["mair"]
    name: Name
    """Name of the benchmark in the results."""
    queries: str
    """A mirror of hub:MAIR-Bench/MAIR-Queries."""
    docs: str
    """A mirror of hub:MAIR-Bench/MAIR-Docs."""
    task: str
    """Name of the task: IFEval, InstructIR, ..."""


class EncoderModel(Settings):
    """An encoder that sentence-transformers can load."""

    kind: Literal["encoder"]
    model: str
    """A folder, a name on the Hugging Face hub, package:NAME/FOLDER or s3://..."""
    query_prompt: str | None
    """Text before every query; null uses the model's own prompt."""
    passage_prompt: str | None
    """Text before every passage; null uses the model's own prompt."""


class Bm25Model(Bm25):
    """The lexical baseline."""

    kind: Literal["bm25"]


class RunFiles(Settings):
    """Rankings from elsewhere: a file BENCHMARK.trec for every benchmark of the evaluation."""

    kind: Literal["runs"]
    path: str
    """A folder or s3://..."""


BenchmarkConfig = Annotated[Flips | Beir | Trec | FollowIR | HubBenchmark | Mair, Field(discriminator="kind")]


def named_encoder(model: Any) -> Any:
    """An encoder with its own prompts, if only its name is given."""
    if isinstance(model, str):
        return EncoderModel(kind="encoder", model=model, query_prompt=None, passage_prompt=None)
    return model


RankingModel = Annotated[
    EncoderModel | Bm25Model | RunFiles, Field(discriminator="kind"), BeforeValidator(named_encoder)
]


def _of_different_names(benchmarks: tuple[BenchmarkConfig, ...]) -> tuple[BenchmarkConfig, ...]:
    names = [benchmark.name for benchmark in benchmarks]
    if len(set(names)) < len(names):
        raise ValueError(f"two benchmarks have the same name among {', '.join(names)}")
    return benchmarks


def _of_query_and_instruction(template: str) -> str:
    fields = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    if "query" not in fields or fields - {"query", "instruction"}:
        raise ValueError(
            'expected {query}, optionally {instruction}, and no other fields, for example "{query}. {instruction}"'
        )
    return template


Template = Annotated[str, AfterValidator(_of_query_and_instruction)]


class EvaluateConfig(Settings):
    """Ranks benchmarks with models, and reports scores, intervals and differences."""

    output: str
    """Location of the output: s3://bucket/prefix, file:///folder or a plain path."""
    embeddings: str | None = None
    """Embedding cache that evaluations share: a folder or s3://...; null keeps it under the output."""
    encoders: dict[Name, RankingModel]
    """Models to rank with, by name; a string is the `model` of an encoder with its own prompts."""
    benchmarks: Annotated[Several[BenchmarkConfig], AfterValidator(_of_different_names)]
    """Benchmarks to rank."""
    compare: Several[Annotated[tuple[str, str], Strict(False)]]
    """Pairs of model names whose difference is reported: first minus second."""
    query_template: Template | None
    """How query and instruction become one text, for example "{query}. {instruction}"; null follows the authors of each
    benchmark."""
    max_query_tokens: Positive
    """Maximum number of tokens of a query with its instruction; the rest is cut off."""
    max_passage_tokens: Positive
    """Maximum number of tokens of a passage; the rest is cut off."""
    precision: Literal["bf16", "fp32"]
    """Precision of the matrix products."""
    bootstrap_samples: Positive
    """Number of bootstrap samples of each interval."""
    seed: int
    """Random seed of the bootstrap."""
    trust_remote_code: bool
    """Allow Python code from a model's repository to run."""
    rows_per_shard: WholeGroups
    """Number of texts whose embeddings are stored in one object."""
    actors: Pool
    """Actors that encode texts."""

    def deciding(self) -> dict[str, Any]:
        """The settings, as JSON values, that decide the scores and where they are stored."""
        return self.model_dump(mode="json", exclude={"actors", "rows_per_shard", "embeddings"})
