"""Settings of jobs/train.py."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from dualview.config.base import Actors, NotNegative, Positive, Settings, Several, Share
from dualview.config.evaluate import Flips


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
    queries: (
        Positive | None
    )  # a batch is this many blocks of one size, each of one query; null: groups as they come
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
    benchmark: Flips | None  # not what is reported later

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
        return deciding(self.model_dump(mode="json"))

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


# How the work is done, and where. A run may go on after a change of these: to the same encoder but for rounding.
_NOT_DECIDING = {
    "": (
        "output",
        "embeddings",
        "deepspeed",
        "checkpoint_every_steps",
        "max_failures",
        "workers",
        "watching",
    ),
    "batch": ("chunk_tokens", "gradient_cache"),
    "encoder": ("activation_checkpointing", "attention"),
}


def deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of a train config, as JSON values, decides the encoder that comes out of it."""
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
