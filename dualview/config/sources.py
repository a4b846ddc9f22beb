"""Where the seeds of a generate run come from."""

from typing import Annotated, Literal

from pydantic import Field

from dualview.config.base import Actors, Positive, Settings, Several, Share, WholeGroups


class TuplesSource(Settings):
    """JSONL or Parquet files in the layout of records.SEED_SCHEMA."""

    kind: Literal["tuples"]
    paths: Annotated[Several[str], Field(min_length=1)]
    max_bad_share: Share  # bad rows are left out and listed up to this share; 0.0: the first one ends the run
    # How requirements on the passages' attributes are said in words: a YAML file, see dualview/vocabulary.py;
    # null: nothing is known about attributes.
    vocabulary: str | None


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
