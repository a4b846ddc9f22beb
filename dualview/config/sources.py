"""Where the examples of a generate run come from."""

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
    """Largest share of bad rows, which are left out and listed in bad_rows.jsonl; with 0.0 the first one ends the
    run."""
    vocabulary: str | None
    """YAML file that says how requirements on the passages' attributes are put in words (dualview/vocabulary.py); null
    where nothing is known about attributes."""


class PromptrieverSource(Settings):
    """JSONL or Parquet files in the layout of the hub's samaya-ai/msmarco-w-instructions."""

    kind: Literal["promptriever"]
    paths: Annotated[Several[str], Field(min_length=1)]
    """Files, folders, s3://... or hub:OWNER/NAME."""
    max_bad_share: Share
    """Largest share of bad rows, which are left out and listed in bad_rows.jsonl; with 0.0 the first one ends the
    run."""


class DraftsSource(Settings):
    """The rows of a finished generate run that only wrote: their drafts are judged by this run."""

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
    """Tokens of a query that are read; the rest is cut off."""
    max_passage_tokens: Positive
    """Tokens of a passage that are read; the rest is cut off."""
    precision: Literal["bf16", "fp32"]
    """Precision of the matrix products."""
    trust_remote_code: bool
    """Run Python code that the model's repository brings."""
    embeddings: str | None = None
    """Where vectors are kept for other runs: a folder or s3://...; null keeps them under the output."""


class Mining(Settings):
    """Hard negatives: passages that a retriever ranks high for a query and that no judgement calls relevant."""

    bm25: Bm25 | None
    """Take negatives from a BM25 ranking; null does not."""
    dense: DenseRetriever | None
    """Take negatives from an encoder's ranking; null does not."""
    first_rank: Positive
    """First rank to take negatives from; 1 is the best, and relevant passages count."""
    last_rank: Positive
    """Last rank to take negatives from."""
    relative_margin: Share
    """Share of the positive's score by which a negative must stay below it; others are not taken."""
    num_negatives: Positive
    """Negatives per example, or as many as there are."""
    passages_per_shard: WholeGroups
    """Passages whose index and vectors one process holds at a time."""
    queries_per_shard: WholeGroups
    """Queries that one task ranks."""
    actors: Actors
    """Actors that mine; their GPUs are used for encoding only."""


class BeirSource(Settings):
    """A folder with corpus.jsonl, queries.jsonl and qrels: examples without instructions, negatives mined."""

    renamed: ClassVar[Mapping[str, str]] = {"mining.min_margin": "mining.relative_margin"}

    kind: Literal["beir"]
    path: str
    """A folder or s3://bucket/prefix."""
    qrels: str
    """File of the folder with the judgements, for example qrels/train.tsv."""
    min_grade: Positive
    """Lowest grade of a positive."""
    max_positives: Positive
    """Positives per query, best grades first; each makes an example."""
    mining: Mining
    """How hard negatives are found."""
