"""Settings of jobs/evaluate.py."""

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
    path: str  # a folder, s3://... or hub:OWNER/NAME
    original: str  # names of two instructions
    changed: str


class Beir(Settings):
    """A folder with corpus.jsonl, queries.jsonl and qrels.tsv or qrels/test.tsv: no instruction."""

    kind: Literal["beir"]
    name: Name
    path: str  # a folder, s3://... or hub:OWNER/NAME


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


Benchmark = Annotated[Flips | Beir | Trec | FollowIR | HubBenchmark | Mair, Field(discriminator="kind")]


def named_encoder(model: Any) -> Any:
    """A name alone is an encoder with its own prompts."""
    if isinstance(model, str):
        return EncoderModel(kind="encoder", model=model, query_prompt=None, passage_prompt=None)
    return model


RankingModel = Annotated[
    EncoderModel | Bm25Model | RunFiles, Field(discriminator="kind"), BeforeValidator(named_encoder)
]


def _of_different_names(benchmarks: tuple[Benchmark, ...]) -> tuple[Benchmark, ...]:
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
