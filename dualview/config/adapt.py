"""Settings of `dualview adapt`."""

from typing import Annotated, Any, Literal

from pydantic import Field

from dualview.config.base import (
    Actors,
    NotNegative,
    Pool,
    PoolingMode,
    Positive,
    Settings,
    Several,
    Share,
    WholeGroups,
)
from dualview.config.train import IndexConfig

Stage = Literal["probe", "cases", "train", "test"]


class BaseEncoder(Settings):
    """The encoder whose vectors the index has."""

    model: str
    """A folder, a name on the Hugging Face hub, package:NAME/FOLDER or s3://..."""
    pooling: PoolingMode | None
    """How token vectors become one vector, for a bare transformer; null for a sentence-transformers model."""
    max_passage_tokens: Positive
    """Maximum number of tokens of a document; the rest is cut off."""
    max_query_tokens: Positive
    """Maximum number of tokens of a query; the rest is cut off."""
    precision: Literal["bf16", "fp32"]
    """Precision of the matrix products."""
    trust_remote_code: bool
    """Allow Python code from the model's repository to run."""


class DraftConfig(Settings):
    """What instructions may ask for."""

    min_documents: Positive
    """Fewest documents that must have a value, and lack it, for instructions to ask for it."""
    max_values: Positive
    """Most values of an attribute; the most frequent ones."""
    min_auc: Share
    """Smallest AUC of the probe: values that the vectors know less well are left out."""
    num_queries: Positive
    """Number of queries to draft from the corpus; `queries` replaces them."""
    documents_on_topic: Positive
    """Documents that the untouched encoder ranks first for a query: those that an instruction must choose among. At most a
    fiftieth of the catalog."""
    cases_per_query: Positive
    """Most pairs of instructions on a query, for development and test."""
    unseen_share: Share
    """Share of the values of categories that training never names, so that the test can."""


class InstructionTraining(Settings):
    """Training of the instruction encoder."""

    steps: Positive
    """Number of optimizer steps; the encoder of the best evaluated step is kept."""
    evaluate_every_steps: Positive
    """Steps between evaluations on the development cases."""
    batch: Positive
    """Instructions per step."""
    learning_rate: Annotated[float, Field(gt=0)]
    """Peak learning rate of AdamW."""
    compound_share: Share
    """Share of instructions with two requirements."""
    num_terms: Annotated[int, Field(ge=0)]
    """Frequent terms of the texts that instructions also ask for, so that unseen words keep their meaning."""
    term_share: Share
    """Share of requirements that ask for a term."""


class AdaptConfig(Settings):
    """Trains an encoder of instructions for an index, from the metadata of its documents."""

    output: str
    """Location of the output: s3://bucket/prefix, file:///folder or a plain path."""
    corpus: str
    """The documents: corpus.jsonl with `_id`, `title`, `text` and `metadata`, or Parquet with these columns. Columns beside
    them count as metadata."""
    noun: str
    """What the documents are, in the plural, for example "movies"."""
    encoder: BaseEncoder
    """The encoder of the index."""
    index: IndexConfig | None
    """The vectors of your index: compared with the model's on a sample and taken over; what is missing is encoded."""
    embeddings: str | None
    """Embedding cache that runs share: a folder or s3://...; null keeps it under the output."""
    sample: Positive
    """Most documents to learn from and to search; of a larger corpus, a random sample."""
    vocabulary: str | None
    """A vocabulary.yaml; null drafts one from the metadata."""
    queries: str | None
    """Your own queries: JSON Lines with `text`; null drafts them from the corpus."""
    draft: DraftConfig
    """What instructions may ask for."""
    training: InstructionTraining
    """Training of the instruction encoder."""
    strengths: Several[NotNegative]
    """Strengths to compare; the default of the encoder is chosen among them, on the development cases."""
    seed: int
    """Random seed of everything that is drawn."""
    bootstrap_samples: Positive
    """Number of bootstrap samples of each interval."""
    until: Stage | None
    """Stop after this stage: `probe`, `cases`, `train` or `test`; null runs all. The next run continues."""
    rows_per_shard: WholeGroups
    """Number of texts whose embeddings are stored in one object."""
    actors: Pool
    """Actors that encode the documents."""
    learner: Actors
    """Where probe, training and test run."""

    def deciding(self) -> dict[str, Any]:
        return self.model_dump(
            mode="json",
            exclude={"actors", "learner", "rows_per_shard", "embeddings", "until", "bootstrap_samples"},
        )
