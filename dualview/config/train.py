"""Settings of `dualview train`."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dualview.config.base import Actors, NotNegative, PoolingMode, Positive, Settings, Several, Share
from dualview.config.evaluate import Flips
from dualview.config.renames import with_new_names


class Prompts(Settings):
    """Prefixes that the encoder expects, for example "query: " and "passage: "; saved with the model."""

    query: str
    """Text before every query."""
    document: str
    """Text before every passage."""


class Lora(Settings):
    """Low-rank adapters instead of full fine-tuning; merged into the weights on export."""

    rank: Positive
    """Rank of the adapters."""
    alpha: Annotated[float, Field(gt=0)]
    """Scale of the adapters: their product is multiplied by alpha / rank."""
    target_modules: Literal["all-linear"] | Several[str]
    """Names of the layers with an adapter, or `all-linear`."""


class EncoderConfig(Settings):
    """The encoder to start from, and how it reads texts."""

    model: str
    """A folder, a name on the Hugging Face hub, package:NAME/FOLDER or s3://..."""
    pooling: PoolingMode | None
    """How token vectors become one vector, for a bare transformer. A sentence-transformers model says so itself; null, or
    the same, for these."""
    query_template: str
    """How query and instruction become one text; a query without an instruction is unchanged."""
    prompts: Prompts
    """Prefixes that the encoder expects."""
    max_query_tokens: Positive
    """Maximum number of tokens of a query with its instruction; the rest is cut off."""
    max_passage_tokens: Positive
    """Maximum number of tokens of a passage; the rest is cut off."""
    train_word_embeddings: bool
    """Also train the word embeddings."""
    dropout: bool
    """Keep the model's dropout active in training."""
    lora: Lora | None
    """Low-rank adapters; null trains all weights."""
    activation_checkpointing: bool
    """Recompute activations in the backward pass, to save memory; with `compile` only the cheaper ones."""
    compile: bool = False
    """Compile the model's layers with torch.compile: on a GPU, faster steps with less memory after half a minute."""
    trust_remote_code: bool
    """Allow Python code from the model's repository to run."""


class IndexConfig(Settings):
    """An index that exists, whose vectors are taken over for the passages of the training data."""

    vectors: str
    """Parquet with a column `vector` and a column `text` (also `title`) or, with `corpus`, `id`; or a local .npy file."""
    ids: str | None = None
    """For a .npy file: a text file with the id of each row on a line."""
    corpus: str | None = None
    """A corpus.jsonl with the texts by id, if `vectors` has none."""


Views = Literal["both", "apart", "one", "original", "plain"]


class Part(Settings):
    """One part of a mixture: an exact number of instances, or a share by weight."""

    one_of = ("num_instances", "weight")

    data: str
    """Output of a generate run."""
    views: Views
    """Views of an example to train on: `both` the original and the complementary views in the same batch; `apart` the
    same views, never in the same batch; `one` a random one of them, so that the same budget covers twice as many
    examples (the unpaired control); `original` the original instruction only; `plain` the query without an
    instruction."""
    num_instances: Positive | None = None
    """Exact number of instances (query, instruction, positive); a group of two views counts as two."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """Weight of this part's share of all instances; examples repeat if there are too few."""
    num_hard_negatives: Annotated[int, Field(ge=0)]
    """Number of hard negatives per example and epoch, in addition to its instruction negatives."""
    rewordings: bool
    """Also use the rewordings of an instruction: each epoch draws one of its wordings."""
    min_judged_margin: NotNegative | None
    """Minimum margin of a judge's verdict that labels a hard negative; null labels none."""


class Mixture(Settings):
    parts: Annotated[Several[Part], Field(min_length=1)]
    """Parts of the mixture: all with `num_instances`, or all with `weight`."""
    homogeneous: bool
    """Draw each batch from a single part."""

    @model_validator(mode="after")
    def _counts_or_weights(self) -> Self:
        counted = [part.num_instances is not None for part in self.parts]
        if any(counted) and not all(counted):
            raise ValueError("expected num_instances in every part, or weight in every part")
        return self


class TrainBudget(Settings):
    """Length of a run; exactly one key is set."""

    one_of = ("instances", "tokens", "steps", "petaflop")

    instances: Positive | None = None
    """Number of instances to train on; a multiple of batch.instances."""
    tokens: Positive | None = None
    """Number of tokens of views and passages, counted once for each group."""
    steps: Positive | None = None
    """Number of optimizer steps."""
    petaflop: Annotated[float, Field(gt=0)] | None = None
    """Floating-point operations for these tokens, in units of 10^15, as result.json counts them."""


class BatchConfig(Settings):
    instances: Positive
    """Number of instances per step, over all workers."""
    queries: Positive | None
    """Number of queries per batch, each with a block of the same number of groups; null does not group by query."""
    candidates: Literal["groups", "queries"]
    """Passages of a batch: `groups` those of its groups, `queries` all passages of its queries."""
    negatives: Literal["own", "worker", "batch"]
    """In-batch negatives among the passages that a view does not label: `own` none; `worker` those of its worker;
    `batch` those of the whole batch."""
    chunk_tokens: Positive
    """Number of tokens that are encoded at once, including padding."""
    gradient_cache: bool
    """Keep activations of one chunk instead of the whole batch, at the cost of a second forward pass."""


class TemperatureConfig(Settings):
    value: Annotated[float, Field(gt=0)]
    """The temperature, or its initial value if it is learned."""
    learned: bool
    """Learn the temperature."""


class Loss(Settings):
    temperature: TemperatureConfig
    """Divisor of the similarities."""
    base_distillation: NotNegative
    """Weight of the loss that keeps embeddings of plain texts near those of the base encoder; 0.0 for none."""
    false_negative_margin: float | None
    """Leave out unlabelled passages that score above the view's best positive by more than this margin; null leaves out
    none."""
    dimensions: Several[Positive]
    """Matryoshka dimensions: the loss is the mean over these leading dimensions; [] for the full embedding only."""
    distillation: NotNegative
    """Weight of the distillation loss on the judge's margins as soft labels; 0.0 for none."""


class Optimizer(Settings):
    learning_rate: Annotated[float, Field(gt=0)]
    """Peak learning rate of AdamW."""
    warmup_share: Share
    """Share of the steps that warm up the learning rate; it decays afterwards."""
    weight_decay: NotNegative
    """Weight decay of AdamW."""
    max_grad_norm: Annotated[float, Field(gt=0)]
    """Norm that gradients are clipped to."""


class DeepSpeedConfig(Settings):
    stage: Literal[0, 1, 2, 3]
    """ZeRO stage: the workers shard 0 nothing, 1 the optimizer state, 2 also gradients, 3 also weights."""
    offload_optimizer: bool
    """Keep the optimizer state in CPU memory."""


class MonitorConfig(Settings):
    """Monitoring of a run."""

    logs: str | None
    """Folder on the machine of rank 0 for trail.jsonl and TensorBoard files; null writes none."""
    hook: str | None
    """Callback package.module:function; rank 0 calls it with a dict of metrics after each step; null for none."""
    peak_tflops: Annotated[float, Field(gt=0)] | None
    """Peak TFLOPS of one device at this precision, to report MFU; null does not report it."""
    evaluate_every_steps: Positive | None
    """Steps between evaluations on `benchmark`; null, like `benchmark`, for none."""
    benchmark: Flips | None
    """Development benchmark; not one whose scores will be reported."""

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.evaluate_every_steps is None) != (self.benchmark is None):
            raise ValueError("evaluate_every_steps and benchmark: expected both, or null for both")
        return self


class TrainConfig(Settings):
    """Trains an encoder on the rows of generate runs."""

    renamed: ClassVar[Mapping[str, str]] = {
        "documents": "train",
        "train=trained": "train=both_encoders",
        "train=frozen": "train=query_encoder",
        "loss.retention": "loss.base_distillation",
        "move_back": "weight_interpolation",
        "watching": "monitor",
        "encoder.attention": "",  # padding is skipped where that is possible
    }

    output: str
    """Location of the output: s3://bucket/prefix, file:///folder or a plain path."""
    seed: int
    """Random seed of everything that training draws."""
    encoder: EncoderConfig
    """Base encoder, and how it reads texts."""
    train: Literal["both_encoders", "query_encoder"]
    """`both_encoders` trains the query and the document encoder; `query_encoder` does query-side fine-tuning, so that
    an existing index of the base encoder stays valid."""
    embeddings: str | None = None
    """Embedding cache of frozen passages that runs share; null keeps it under the output."""
    index: IndexConfig | None = None
    """An index that exists: its vectors are compared with the model's on a sample, and taken over; what it lacks is
    encoded. For `train: query_encoder`."""
    mixture: Mixture
    """Mixture of training data."""
    budget: TrainBudget
    """Length of the run."""
    batch: BatchConfig
    """Composition of a batch."""
    loss: Loss
    """The contrastive loss and its additional terms."""
    optimizer: Optimizer
    """AdamW and its learning-rate schedule."""
    weight_interpolation: Share
    """Weight of the base encoder when it is interpolated with the trained one at the end; 0.0 for no interpolation."""
    precision: Literal["bf16", "fp32"]
    """Precision of the matrix products; weights, gradients and their reduction are fp32."""
    deepspeed: DeepSpeedConfig
    """How workers shard the training state."""
    checkpoint_every_steps: Positive
    """Steps between checkpoints."""
    max_failures: Annotated[int, Field(ge=0)]
    """Number of worker failures after which the run stops."""
    workers: Actors
    """Training workers, one rank each."""
    monitor: MonitorConfig
    """Monitoring of the run."""

    def deciding(self) -> dict[str, Any]:
        return deciding(self.model_dump(mode="json"))

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.embeddings is not None and self.train == "both_encoders":
            raise ValueError(
                f"embeddings: {self.embeddings} is for frozen passages; train: both_encoders has none; expected null"
            )
        if self.index is not None and self.train == "both_encoders":
            raise ValueError(
                f"index: {self.index.vectors} has vectors of frozen passages; train: both_encoders has none; expected null"
            )
        if self.budget.petaflop is not None and self.train == "query_encoder":
            raise ValueError(
                "budget.petaflop counts passages, but train: query_encoder does not encode any; expected steps,"
                " for example budget: {steps: 4000}"
            )
        counted = self.budget.instances is not None or self.budget.steps is not None
        if not counted and self.mixture.parts[0].weight is not None:
            raise ValueError(
                "budget.tokens and budget.petaflop need num_instances in every part, but found weight,"
                " which is a share of instances; expected budget.instances or budget.steps"
            )
        batch = self.batch.instances
        if (self.budget.instances or 0) % batch:
            raise ValueError(
                f"budget.instances {self.budget.instances} is not a multiple of batch.instances, {batch};"
                f" for example {-(-(self.budget.instances or 0) // batch) * batch}"
            )
        if batch % (self.batch.queries or 1):
            raise ValueError(
                f"batch.instances {batch} is not a multiple of batch.queries, {self.batch.queries}; for example"
                f" {-(-batch // (self.batch.queries or 1)) * (self.batch.queries or 1)}"
            )
        if self.encoder.compile and self.deepspeed.stage == 3:
            raise ValueError(
                "encoder.compile needs deepspeed.stage 0, 1 or 2: at stage 3 a layer's weights come and go"
            )
        if self.batch.negatives == "worker" and self.deepspeed.stage == 3:
            raise ValueError(
                "batch.negatives: worker needs deepspeed.stage 0, 1 or 2: at stage 3 all ranks run in lockstep"
            )
        return self


# Keys that may change when a run resumes: the encoder stays the same except for rounding.
_NOT_DECIDING = {
    "": (
        "output",
        "embeddings",
        "deepspeed",
        "checkpoint_every_steps",
        "max_failures",
        "workers",
        "monitor",
    ),
    "batch": ("chunk_tokens", "gradient_cache"),
    "encoder": ("activation_checkpointing", "compile"),
}


def deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, as JSON values, that decide the trained encoder.

    `settings` may have the key names of an earlier version.
    """
    settings = with_new_names(TrainConfig, settings)
    kept = {
        key: {name: inner for name, inner in value.items() if name not in _NOT_DECIDING[key]}
        if key in _NOT_DECIDING
        else value
        for key, value in settings.items()
        if key not in _NOT_DECIDING[""]
    }
    if kept.get("index") is None:  # a key that earlier versions lack
        kept.pop("index", None)
    if settings["batch"]["negatives"] == "worker" and "workers" in settings:
        kept["workers"] = {"num": settings["workers"]["num"]}  # decides the in-batch negatives of a view
    return kept
