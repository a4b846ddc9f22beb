"""Settings of `dualview evaluate`."""

from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, Strict

from dualview.config.base import Name, Pool, Positive, Settings, Several, WholeGroups
from dualview.config.sources import Bm25


class Flips(Settings):
    """A folder with corpus.jsonl and queries.jsonl: query, instructions, relevant ids per instruction.

    Queries about one thing may name it as their `topic`: the bootstrap draws them together. `candidates` and
    `labels` of a query are optional too: see dualview/evaluation/benchmarks/flips.py.
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
    """A folder with corpus.jsonl, queries.jsonl and qrels.tsv or qrels/test.tsv: no instruction."""

    kind: Literal["beir"]
    name: Name
    """Name of the benchmark in the results."""
    path: str
    """A folder, s3://... or hub:OWNER/NAME."""


class Trec(Settings):
    """Files of TREC: topics (`<top>` or a topic a line, id and title between a tab) and qrels of four columns."""

    kind: Literal["trec"]
    name: Name
    """Name of the benchmark in the results."""
    corpus: str
    """Passages: corpus.jsonl, as in BEIR."""
    topics: str
    """File of topics."""
    qrels: str
    """File of judgements."""


class FollowIR(Settings):
    """Robust04, News21 or Core17 as mteb has them on the hub, or a language of mFollowIR."""

    kind: Literal["followir"]
    name: Name
    """Name of the benchmark in the results."""
    path: str
    """A mirror: a folder, s3://..., or hub:mteb/Core17InstructionRetrieval."""
    subset: str | None
    """Language of mFollowIR: fas, rus or zho; null for the others."""
    score: Literal["MAP@1000", "nDCG@5", "nDCG@20"]
    """Its ranking metric: MAP@1000 for Robust04 and Core17, nDCG@5 for News21, nDCG@20 for mFollowIR."""


class HubBenchmark(Settings):
    """Any other benchmark that comes as one folder, in its makers' layout (InstructIR and NevIR: in mteb's)."""

    kind: Literal["infosearch", "instructir", "nevir", "excluir"]
    name: Name
    """Name of the benchmark in the results."""
    path: str
    """A mirror: a folder, s3://..., or hub:jianqunZ/Length-v1."""


class Mair(Settings):
    """One task of MAIR, all its parts."""

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
    """Any encoder that sentence-transformers loads."""

    kind: Literal["encoder"]
    model: str
    """A folder, a name on the Hugging Face hub, package:NAME/FOLDER or s3://..."""
    query_prompt: str | None
    """Text before every query; null takes the model's own."""
    passage_prompt: str | None
    """Text before every passage; null takes the model's own."""


class Bm25Model(Bm25):
    """The baseline that reads words."""

    kind: Literal["bm25"]


class RunFiles(Settings):
    """Rankings made elsewhere: BENCHMARK.trec for every benchmark of the evaluation."""

    kind: Literal["runs"]
    path: str
    """A folder or s3://..."""


BenchmarkConfig = Annotated[Flips | Beir | Trec | FollowIR | HubBenchmark | Mair, Field(discriminator="kind")]


def named_encoder(model: Any) -> Any:
    """A name alone is an encoder with its own prompts."""
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
        raise ValueError("must hold {query}, may hold {instruction}, and nothing else in {}")
    return template


Template = Annotated[str, AfterValidator(_of_query_and_instruction)]


class EvaluateConfig(Settings):
    """Ranks benchmarks with models and reports scores, intervals and differences."""

    output: str
    """Where the result goes: s3://bucket/prefix, file:///folder or a plain path."""
    embeddings: str | None = None
    """Where vectors are kept for other evaluations; null keeps them under the output."""
    encoders: dict[Name, RankingModel]
    """Models to rank with, by name; a text alone is an encoder's `model` with its own prompts."""
    benchmarks: Annotated[Several[BenchmarkConfig], AfterValidator(_of_different_names)]
    """Benchmarks to rank."""
    compare: Several[Annotated[tuple[str, str], Strict(False)]]
    """Pairs of names whose difference is reported: first minus second."""
    query_template: Template | None
    """How query and instruction become one text, for example "{query}. {instruction}"; null does what the
    makers of each benchmark do."""
    max_query_tokens: Positive
    """Tokens of a query and its instruction that are read; the rest is cut off."""
    max_passage_tokens: Positive
    """Tokens of a passage that are read; the rest is cut off."""
    precision: Literal["bf16", "fp32"]
    """Precision of the matrix products."""
    bootstrap_samples: Positive
    """Bootstrap samples of each interval."""
    seed: int
    """Random seed of the bootstrap."""
    trust_remote_code: bool
    """Run Python code that a model's repository brings."""
    rows_per_shard: WholeGroups
    """Texts whose vectors are one object."""
    actors: Pool
    """Actors that encode."""

    def deciding(self) -> dict[str, Any]:
        """What decides the scores, and where they lie: all but how the work is done."""
        return self.model_dump(mode="json", exclude={"actors", "rows_per_shard", "embeddings"})
