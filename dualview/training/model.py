"""What is trained: an encoder, and the temperature of its loss."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sentence_transformers import SentenceTransformer
import torch

from dualview.config.train import TrainConfig
from dualview.models import Side
from dualview.retrieval.encoder import Precision, autocast, new_encoder


class Learner(torch.nn.Module):
    """What is trained: an encoder, and the temperature where it is learned."""

    def __init__(
        self, encoder: SentenceTransformer, temperature: float, *, learned: bool, precision: Precision
    ) -> None:
        super().__init__()
        self.encoder, self.precision = encoder, precision
        self.temperature = Temperature(temperature, learned=learned)

    def forward(self, features: dict[str, Any], side: Side) -> torch.Tensor:
        # In here, because DeepSpeed's engine switches off on a GPU what is switched on around it.
        with autocast(self.precision, self.encoder.device):
            vectors: torch.Tensor = self.encoder(features, task=side)["sentence_embedding"]
        return vectors.to(torch.promote_types(vectors.dtype, torch.float32))


class Temperature(torch.nn.Module):
    """A module of its own, because ZeRO 3 gathers a parameter when its module is called."""

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
    """The encoder with the prompts of the config and, where asked for, adapters and checkpointed activations."""
    settings = config.encoder
    encoder = new_encoder(
        settings.model,
        pooling=settings.pooling,
        trust_remote_code=settings.trust_remote_code,
        attention=settings.attention,
    )
    encoder.prompts = settings.prompts.model_dump()
    transformer = encoder[0]
    if not settings.train_word_embeddings:
        transformer.model.get_input_embeddings().requires_grad_(False)
    if settings.lora is not None:
        from peft import LoraConfig, get_peft_model  # seconds to import, and few use it

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
        _switch_off_dropout(transformer.model)
    if settings.activation_checkpointing:
        transformer.model.gradient_checkpointing_enable({"use_reentrant": False})
    return encoder


def learner_of(config: TrainConfig) -> Learner:
    """What a rank trains, in training mode."""
    temperature = config.loss.temperature
    learner = Learner(
        encoder_to_train(config), temperature.value, learned=temperature.learned, precision=config.precision
    )
    return learner.train()


def _switch_off_dropout(model: torch.nn.Module) -> None:
    """Drops nothing in training mode, which activation checkpointing and others take for a sign of training.

    Rates are in modules of their own, in attributes of others, and in the config that some look up as they run.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for holder in (module, getattr(module, "config", None)):
            for name, value in list(vars(holder).items()) if holder is not None else ():
                if "drop" in name and type(value) is float:
                    setattr(holder, name, 0.0)


def untouched_encoder(config: TrainConfig) -> SentenceTransformer:
    """The encoder as it was before training."""
    settings = config.encoder
    return new_encoder(settings.model, pooling=settings.pooling, trust_remote_code=settings.trust_remote_code)


@contextmanager
def check_precision(encoder: torch.nn.Module, precision: Precision) -> Iterator[None]:
    """Raises RuntimeError where linear layers that run within are not computed in `precision`.

    The config's word is not enough: whatever lies between it and the layers may decide otherwise.
    """
    seen: set[torch.dtype] = set()
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: seen.add(output.dtype))
        for module in encoder.modules()
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
            f"precision: {precision}, but linear layers gave {', '.join(sorted(map(str, seen)))}; this is a defect"
        )
