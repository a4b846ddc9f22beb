"""Settings of the sources of a generate run, and of mining."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dualview.config.base import Actors, Positive, Settings, Several, Share, WholeGroups


class TuplesSource(Settings):
    """JSONL or Parquet files in the layout of arrow.EXAMPLE_SCHEMA."""

    kind: Literal["tuples"]
    paths: Annotated[Several[str], Field(min_length=1)]
    """Files or folders, local or at s3://."""
    max_bad_share: Share
    """Maximum share of bad rows, which are left out and listed in bad_rows.jsonl; with 0.0 the first one ends the
    run."""
    vocabulary: str | None
    """YAML file that maps requirements on the passages' attributes to words (dualview/vocabulary.py); null if there are
    no attributes."""


class PromptrieverSource(Settings):
    """JSONL or Parquet files in the layout of the hub's samaya-ai/msmarco-w-instructions."""

    kind: Literal["promptriever"]
    paths: Annotated[Several[str], Field(min_length=1)]
    """Files, folders, s3://... or hub:OWNER/NAME."""
    max_bad_share: Share
    """Maximum share of bad rows, which are left out and listed in bad_rows.jsonl; with 0.0 the first one ends the
    run."""


class DraftsSource(Settings):
    """The rows of a finished generate run that only wrote; this run judges their drafts."""

    kind: Literal["drafts"]
    run: str
    """Output of that run."""


class Bm25(Settings):
    """Lexical ranking."""

    k1: Annotated[float, Field(gt=0)]
    """Saturation of term frequency."""
    b: Share
    """Weight of length normalisation."""
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
    """Language whose stop words are ignored; null ignores none."""


class DenseRetriever(Settings):
    """An encoder that ranks by cosine similarity."""

    model: str
    """A folder, a name on the Hugging Face hub, package:NAME/FOLDER or s3://..."""
    max_query_tokens: Positive
    """Maximum number of tokens of a query; the rest is cut off."""
    max_passage_tokens: Positive
    """Maximum number of tokens of a passage; the rest is cut off."""
    precision: Literal["bf16", "fp32"]
    """Precision of the matrix products."""
    trust_remote_code: bool
    """Allow Python code from the model's repository to run."""
    embeddings: str | None = None
    """Embedding cache that runs share: a folder or s3://...; null keeps it under the output."""


class Mining(Settings):
    """Hard negatives: passages that a retriever ranks high for a query and that are not judged relevant."""

    bm25: Bm25 | None
    """Take negatives from a BM25 ranking; null takes none."""
    dense: DenseRetriever | None
    """Take negatives from an encoder's ranking; null takes none."""
    first_rank: Positive
    """First rank to take negatives from; 1 is the best. Relevant passages also have ranks."""
    last_rank: Positive
    """Last rank to take negatives from."""
    relative_margin: Share
    """A negative must score below the positive by at least this share of the positive's score."""
    num_negatives: Positive
    """Maximum number of negatives per example."""
    passages_per_shard: WholeGroups
    """Number of passages whose index and embeddings one process holds at a time."""
    queries_per_shard: WholeGroups
    """Number of queries that one task ranks."""
    actors: Actors
    """Actors that mine; their GPUs are used only for encoding."""


class BeirSource(Settings):
    """A folder with corpus.jsonl, queries.jsonl and qrels: examples without instructions, with mined negatives."""

    renamed: ClassVar[Mapping[str, str]] = {"mining.min_margin": "mining.relative_margin"}

    kind: Literal["beir"]
    path: str
    """A folder or s3://bucket/prefix."""
    qrels: str
    """File in the folder with the relevance judgements, for example qrels/train.tsv."""
    min_grade: Positive
    """Minimum grade of a positive."""
    max_positives: Positive
    """Maximum number of positives per query, best grades first; each makes an example."""
    mining: Mining
    """Mining of hard negatives."""


SourceConfig = TuplesSource | PromptrieverSource | BeirSource | DraftsSource
