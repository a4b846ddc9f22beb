"""The trainable model: an encoder and the temperature of its loss."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from sentence_transformers import SentenceTransformer
import torch
import torch._functorch.config
from transformers.modeling_layers import GradientCheckpointingLayer

from dualview.config.train import TrainConfig
from dualview.models import Side
from dualview.retrieval.encoder import (
    Precision,
    Weight,
    autocast,
    bf16_weights,
    new_encoder,
    scaled,
    transformers_of,
    with_weights,
)

COMPILED_ACTIVATIONS = 0.4  # share of activations kept with `compile` and `activation_checkpointing`


class Learner(torch.nn.Module):
    """An encoder and its temperature, which may be learned."""

    def __init__(
        self, encoder: SentenceTransformer, temperature: float, *, learned: bool, precision: Precision
    ) -> None:
        super().__init__()
        self.encoder, self.precision = encoder, precision
        self.temperature = Temperature(temperature, learned=learned)
        self._weights: list[Weight] | None = None

    def forward(self, features: dict[str, Any], side: Side) -> torch.Tensor:
        with self.computing():
            vectors: torch.Tensor = self.encoder(features, task=side)["sentence_embedding"]
        return scaled(self.encoder, vectors.to(torch.promote_types(vectors.dtype, torch.float32)))

    def computing(self) -> AbstractContextManager[None]:
        """Forward passes in the learner's precision, also those that recompute activations in a backward pass."""
        if self._weights is not None:
            return with_weights(self.encoder, self._weights)
        # Must be inside forward: on a GPU, DeepSpeed's engine disables an autocast around it.
        return autocast(self.precision, self.encoder.device)

    @contextmanager
    def cast_once(self) -> Iterator[None]:
        """Casts the weights to bf16 once for all forward passes of a step, if the precision is bf16.

        At ZeRO stage 3 a rank holds a weight only while its layer computes, so each layer casts its own.
        """
        is_sharded = any(hasattr(weight, "ds_tensor") for weight in self.encoder.parameters())
        if self.precision == "bf16" and not is_sharded and transformers_of(self.encoder):
            self._weights = bf16_weights(self.encoder)
        try:
            yield
        finally:
            self._weights = None


class Temperature(torch.nn.Module):
    """A separate module, because ZeRO stage 3 gathers a parameter when its module is called."""

    def __init__(self, value: float, *, learned: bool) -> None:
        super().__init__()
        self.register_buffer("fixed", None if learned else torch.tensor([value]), persistent=False)
        self.log = torch.nn.Parameter(torch.tensor([value]).log()) if learned else None

    def forward(self) -> torch.Tensor:
        if self.log is not None:
            return self.log.exp()
        fixed: torch.Tensor = self.get_buffer("fixed")
        return fixed


def encoder_to_train(config: TrainConfig) -> SentenceTransformer:
    """The encoder with the config's prompts, adapters, dropout and activation checkpointing."""
    settings = config.encoder
    encoder = new_encoder(
        settings.model,
        pooling=settings.pooling,
        trust_remote_code=settings.trust_remote_code,
    )
    encoder.prompts = settings.prompts.model_dump()
    transformer = encoder[0]
    if not settings.train_word_embeddings:
        transformer.model.get_input_embeddings().requires_grad_(False)
    if settings.lora is not None:
        from peft import LoraConfig, get_peft_model  # takes seconds to import, and few runs need it

        modules = settings.lora.target_modules
        transformer.model = get_peft_model(
            transformer.model,
            LoraConfig(
                r=settings.lora.rank,
                lora_alpha=settings.lora.alpha,
                target_modules=modules if isinstance(modules, str) else list(modules),
            ),
        )
    if not settings.dropout:
        _switch_off_dropout(encoder)
    return encoder


def learner_of(config: TrainConfig) -> Learner:
    """The learner of one rank, in training mode."""
    temperature = config.loss.temperature
    learner = Learner(
        encoder_to_train(config), temperature.value, learned=temperature.learned, precision=config.precision
    )
    if config.encoder.activation_checkpointing and not config.encoder.compile:
        learner.encoder[0].model.gradient_checkpointing_enable(
            {"use_reentrant": False, "context_fn": lambda: (nullcontext(), learner.computing())}
        )
    if config.encoder.compile:
        # torch.compile chooses what to recompute, which costs less than recomputing whole layers.
        torch._functorch.config.activation_memory_budget = (
            COMPILED_ACTIVATIONS if config.encoder.activation_checkpointing else 1.0
        )
        for layer in learner.modules():
            if isinstance(
                layer, GradientCheckpointingLayer
            ):  # as transformers calls the layers of every model
                layer.compile(dynamic=True)
    return learner.train()


def _switch_off_dropout(model: torch.nn.Module) -> None:
    """Set all dropout rates to 0. Training mode stays on, because activation checkpointing requires it.

    Rates are found in Dropout modules, in attributes of other modules, and in configs read during forward.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for holder in (module, getattr(module, "config", None)):
            for name, value in list(vars(holder).items()) if holder is not None else ():
                if "drop" in name and type(value) is float:
                    setattr(holder, name, 0.0)


def untouched_encoder(config: TrainConfig) -> SentenceTransformer:
    """The base encoder, before any training."""
    settings = config.encoder
    return new_encoder(settings.model, pooling=settings.pooling, trust_remote_code=settings.trust_remote_code)


@contextmanager
def check_precision(encoder: torch.nn.Module, precision: Precision) -> Iterator[None]:
    """Raises RuntimeError if a linear layer that runs in this context is not computed in `precision`.

    Checks the layers' outputs, because code between the config and the layers may override the setting.
    """
    seen: set[torch.dtype] = set()
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: seen.add(output.dtype))
        for transformer in transformers_of(encoder)
        for module in transformer.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    expected = torch.bfloat16 if precision == "bf16" else torch.float32
    if seen - {expected}:
        raise RuntimeError(
            f"precision: {precision}, but linear layers computed in {', '.join(sorted(map(str, seen)))}; this is a bug"
        )
