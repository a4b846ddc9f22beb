"""What of an encoder learns, and the encoder that comes out of it."""

from typing import Any

from sentence_transformers import SentenceTransformer
import torch

from dualview.config.base import fingerprint
from dualview.config.train import TrainConfig
from dualview.retrieval.encoder import asymmetric, new_encoder
from dualview.training.step import Learner, move_back


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


def finished_encoder(config: TrainConfig, weights: dict[str, torch.Tensor]) -> SentenceTransformer:
    """What is exported of these weights: adapters merged, moved back, beside the untouched encoder if that stays."""
    # Whoever loads it may have no GPU, and gets the rates of dropout that its makers chose.
    portable = config.encoder.model_copy(
        update={"attention": "sdpa", "dropout": True, "activation_checkpointing": False}
    )
    encoder = encoder_to_train(config.model_copy(update={"encoder": portable}))
    encoder.load_state_dict(weights)
    if config.encoder.lora is not None:
        encoder[0].model = encoder[0].model.merge_and_unload()
    untouched = new_encoder(
        config.encoder.model,
        pooling=config.encoder.pooling,
        trust_remote_code=config.encoder.trust_remote_code,
    )
    move_back(encoder, untouched.state_dict(), config.move_back)
    if config.documents == "trained":
        return encoder
    both = asymmetric(encoder, untouched)
    both.prompts = config.encoder.prompts.model_dump()
    return both


def model_card(config: TrainConfig, result: dict[str, Any]) -> str:
    """A README for the encoder's folder: how to use it, and all that decided it."""
    parts = "\n".join(
        f"- `{part.data}`, views: {part.views}"
        + (f", {part.num_instances:,} instances" if part.num_instances else f", weight {part.weight:g}")
        for part in config.mixture.parts
    )
    scores = "\n".join(
        f"- step {evaluation['step']}: "
        + ", ".join(f"{name} {value:.4f}" for name, value in evaluation["scores"].items())
        for evaluation in result["evaluations"]
    )
    example = config.encoder.query_template.format(query="main exports", instruction="Only islands.")
    return f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
base_model: {config.encoder.model}
---

# An encoder that reads instructions

Trained with dualview from `{config.encoder.model}`; documents: {config.documents}.

```python
from sentence_transformers import SentenceTransformer

encoder = SentenceTransformer("this folder")
query = encoder.encode_query({example!r})
passage = encoder.encode_document("Chad: Central Africa; landlocked.")
```

Queries were cut at {config.encoder.max_query_tokens} tokens, passages at {config.encoder.max_passage_tokens}.

Data:

{parts}

Budget: {result["instances"]:,} instances in {result["steps"]:,} steps of {config.batch.instances}; seed {
        config.seed
    }.
Config fingerprint: `{fingerprint(config.deciding())}`. Last loss: {result["losses"][-1]:.4f}.
{
        f'''
While it trained, on `{config.watching.benchmark.kind}`:

{scores}
'''
        if scores and config.watching.benchmark is not None
        else ""
    }"""
