"""Settings of `dualview train`."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dualview.config.base import Actors, NotNegative, Positive, Settings, Several, Share
from dualview.config.evaluate import Flips
from dualview.config.renames import with_new_names


class Prompts(Settings):
    """What an encoder wants before a text, for example "query: " and "passage: "; saved with the model."""

    query: str
    """Text before every query."""
    document: str
    """Text before every passage."""


class Lora(Settings):
    """Low-rank adapters in place of all weights; merged into them on export."""

    rank: Positive
    """Rank of the adapters."""
    alpha: Annotated[float, Field(gt=0)]
    """Scale of the adapters: their product is multiplied by alpha / rank."""
    target_modules: Literal["all-linear"] | Several[str]
    """Names of the layers that get an adapter, or `all-linear`."""


class EncoderConfig(Settings):
    """The encoder to start from, and how it reads texts."""

    model: str
    """A folder, a name on the Hugging Face hub, package:NAME/FOLDER or s3://..."""
    pooling: Literal["mean", "cls"]
    """How token vectors become one vector."""
    query_template: str
    """How query and instruction become one text; a query without an instruction stays as it is."""
    prompts: Prompts
    """What the encoder expects before a text."""
    max_query_tokens: Positive
    """Tokens of a query and its instruction that are read; the rest is cut off."""
    max_passage_tokens: Positive
    """Tokens of a passage that are read; the rest is cut off."""
    train_word_embeddings: bool
    """Train the word embeddings too."""
    dropout: bool
    """Keep the model's dropout on during training."""
    lora: Lora | None
    """Train low-rank adapters in place of all weights; null trains all weights."""
    activation_checkpointing: bool
    """Save memory by computing activations a second time in the backward pass."""
    attention: Literal["sdpa", "flash_attention_2"]
    """`flash_attention_2` computes no padding; it needs a GPU, bf16 and the package flash-attn."""
    trust_remote_code: bool
    """Run Python code that the model's repository brings."""


Views = Literal["both", "apart", "one", "original", "plain"]


class Part(Settings):
    """What one source gives to a mixture: an exact number of instances, or a share by weight."""

    one_of = ("num_instances", "weight")

    data: str
    """Output of a generate run."""
    views: Views
    """Which views of an example are trained on: `both` the original and the complementary ones in one batch;
    `apart` the same views, never in one batch; `one` a random one of them, so that the same budget takes
    twice the examples (the unpaired control); `original` the original instruction only; `plain` the query
    without an instruction."""
    num_instances: Positive | None = None
    """Exact number of instances (query, instruction, positive); a group of both views counts two."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """Share by weight of all instances; examples repeat where there are too few."""
    num_hard_negatives: Annotated[int, Field(ge=0)]
    """Hard negatives per example and epoch, besides its instruction negatives."""
    rewordings: bool
    """Show a view in one of its wordings, drawn again each epoch."""
    min_judged_margin: NotNegative | None
    """Smallest margin of a judge's verdict that labels a hard negative; null labels none."""


class Mixture(Settings):
    parts: Annotated[Several[Part], Field(min_length=1)]
    """Sources of groups: all with `num_instances`, or all with `weight`."""
    homogeneous: bool
    """Take each batch from one part only."""

    @model_validator(mode="after")
    def _counts_or_weights(self) -> Self:
        counted = [part.num_instances is not None for part in self.parts]
        if any(counted) and not all(counted):
            raise ValueError("expected num_instances in every part, or weight in every part")
        return self


class TrainBudget(Settings):
    """When a run ends: exactly one key says it."""

    one_of = ("instances", "tokens", "steps", "petaflop")

    instances: Positive | None = None
    """Instances to train on; a multiple of batch.instances."""
    tokens: Positive | None = None
    """Tokens of views and passages, counted once for each group."""
    steps: Positive | None = None
    """Optimizer steps."""
    petaflop: Annotated[float, Field(gt=0)] | None = None
    """Floating-point operations in units of 10^15, for those tokens, as result.json counts them."""


class BatchConfig(Settings):
    instances: Positive
    """Instances of a step, over all workers."""
    queries: Positive | None
    """Number of queries of a batch, each with a block of the same number of groups; null takes groups as they
    come."""
    candidates: Literal["groups", "queries"]
    """Passages of a batch: those of its groups, or all passages of its queries."""
    negatives: Literal["own", "worker", "batch"]
    """What a view does not label: `own` leaves it out; `worker` takes the passages of its worker as
    negatives; `batch` takes those of the whole batch."""
    chunk_tokens: Positive
    """Tokens that are encoded at once, padding included."""
    gradient_cache: bool
    """Hold activations of one chunk instead of the whole batch, at the cost of a second forward pass."""


class TemperatureConfig(Settings):
    value: Annotated[float, Field(gt=0)]
    """The temperature, or its initial value where it is learned."""
    learned: bool
    """Learn the temperature."""


class Loss(Settings):
    temperature: TemperatureConfig
    """Divisor of the similarities."""
    base_distillation: NotNegative
    """Weight of the loss that keeps plain texts near their untouched embedding; 0.0 for none."""
    false_negative_margin: float | None
    """Leave out an unlabelled passage that scores higher than the view's best positive plus this margin; null
    leaves out none."""
    dimensions: Several[Positive]
    """Matryoshka: the loss is the mean over these leading dimensions; [] uses all dimensions once."""
    distillation: NotNegative
    """Weight of the judge's margins as soft labels; 0.0 for none."""


class Optimizer(Settings):
    learning_rate: Annotated[float, Field(gt=0)]
    """Peak learning rate of AdamW."""
    warmup_share: Share
    """Share of the steps with a rising learning rate; it falls afterwards."""
    weight_decay: NotNegative
    """Weight decay of AdamW."""
    max_grad_norm: Annotated[float, Field(gt=0)]
    """Norm to which gradients are clipped."""


class DeepSpeedConfig(Settings):
    stage: Literal[0, 1, 2, 3]
    """ZeRO stage: what the workers shard. 0 nothing, 1 the optimizer state, 2 also gradients, 3 also
    weights."""
    offload_optimizer: bool
    """Keep the optimizer state in CPU memory."""


class MonitorConfig(Settings):
    """What is seen of a run while it trains."""

    logs: str | None
    """Folder on the machine of rank 0 for trail.jsonl and TensorBoard files; null writes none."""
    hook: str | None
    """package.module:function that rank 0 calls with a dict of figures after each step; null calls none."""
    peak_tflops: Annotated[float, Field(gt=0)] | None
    """Peak TFLOPS of one device in this precision, for MFU; null does not show it."""
    evaluate_every_steps: Positive | None
    """Steps between evaluations on `benchmark`; null, with it, for none."""
    benchmark: Flips | None
    """Development benchmark; it should not be one that is reported later."""

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.evaluate_every_steps is None) != (self.benchmark is None):
            raise ValueError("evaluate_every_steps and benchmark go together: both, or both null")
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
    }

    output: str
    """Where the run goes: s3://bucket/prefix, file:///folder or a plain path."""
    seed: int
    """Random seed of everything drawn in training."""
    encoder: EncoderConfig
    """The encoder to start from."""
    train: Literal["both_encoders", "query_encoder"]
    """`both_encoders` trains the query side and the document side; `query_encoder` trains the query side only, so
    that an existing index of the base encoder stays valid."""
    embeddings: str | None = None
    """Where vectors of frozen passages are kept for other runs; null keeps them under the output."""
    mixture: Mixture
    """What is trained on."""
    budget: TrainBudget
    """When training ends."""
    batch: BatchConfig
    """What a step sees."""
    loss: Loss
    """The loss."""
    optimizer: Optimizer
    """AdamW and its schedule."""
    weight_interpolation: Share
    """Share of the way back to the untouched weights that the trained ones are moved at the end; 0.0 does not
    move them."""
    precision: Literal["bf16", "fp32"]
    """Precision of the matrix products; weights, gradients and their reduction are fp32."""
    deepspeed: DeepSpeedConfig
    """How workers share the state."""
    checkpoint_every_steps: Positive
    """Steps between checkpoints."""
    max_failures: Annotated[int, Field(ge=0)]
    """Failures of workers after which the run stops."""
    workers: Actors
    """Training workers, one rank each."""
    monitor: MonitorConfig
    """What is recorded while the run trains."""

    def deciding(self) -> dict[str, Any]:
        return deciding(self.model_dump(mode="json"))

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.encoder.attention != "sdpa" and (not self.workers.gpus or self.precision != "bf16"):
            raise ValueError(
                f"encoder.attention: {self.encoder.attention} needs workers.gpus above 0 and precision: bf16"
            )
        if self.embeddings is not None and self.train == "both_encoders":
            raise ValueError(
                f"embeddings: {self.embeddings} keeps vectors that train: both_encoders does not have; expected null"
            )
        if self.budget.petaflop is not None and self.train == "query_encoder":
            raise ValueError(
                "budget.petaflop counts passages, which train: query_encoder does not read; set steps"
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


# How the work is done, and where. A run may go on after a change of these: to the same encoder but for rounding.
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
    "encoder": ("activation_checkpointing", "attention"),
}


def deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of a train config, as JSON values, decides the encoder that comes out of it.

    Settings that an earlier version stored may have old names.
    """
    settings = with_new_names(TrainConfig, settings)
    kept = {
        key: {inner: each for inner, each in value.items() if inner not in _NOT_DECIDING[key]}
        if key in _NOT_DECIDING
        else value
        for key, value in settings.items()
        if key not in _NOT_DECIDING[""]
    }
    if settings["batch"]["negatives"] == "worker" and "workers" in settings:
        kept["workers"] = {"num": settings["workers"]["num"]}  # whose passages a view meets
    return kept
