"""Export the encoder of a training run, with its model card."""

from collections.abc import Mapping
from typing import Any

from sentence_transformers import SentenceTransformer
import torch

from dualview.config.base import fingerprint
from dualview.config.train import TrainConfig
from dualview.retrieval.encoder import asymmetric
from dualview.training.model import encoder_to_train, untouched_encoder


def finished_encoders(
    config: TrainConfig, weights: dict[str, torch.Tensor]
) -> dict[str, SentenceTransformer]:
    """The encoders to export, by the name of their folder.

    `encoder` has all sides. After query-side training its document side is the untouched encoder, and so is its side of
    plain queries, which therefore do not move; queries with an instruction have the trained one. `query` is the trained
    one alone, an ordinary model.
    """
    trained = trained_encoder(config, weights)
    if config.train == "both_encoders":
        return {"encoder": trained}
    both = asymmetric(trained, untouched_encoder(config))
    both.prompts = config.encoder.prompts.model_dump()
    return {"encoder": both, "query": trained}


def trained_encoder(config: TrainConfig, weights: dict[str, torch.Tensor]) -> SentenceTransformer:
    """The trained encoder: adapters merged and weights interpolated."""
    # It must load without a GPU, with the base model's dropout rates.
    portable = config.encoder.model_copy(update={"dropout": True, "activation_checkpointing": False})
    encoder = encoder_to_train(config.model_copy(update={"encoder": portable}))
    encoder.load_state_dict(weights)
    if config.encoder.lora is not None:
        encoder[0].model = encoder[0].model.merge_and_unload()
    interpolate_weights(encoder, untouched_encoder(config).state_dict(), config.weight_interpolation)
    return encoder


def interpolate_weights(
    encoder: torch.nn.Module, untouched: Mapping[str, torch.Tensor], share: float
) -> None:
    """Interpolate every weight in place: (1 - share) * trained + share * untouched.

    untouched: a state dict of the same encoder. Recovers more of the base model's quality than it costs in
    what was learned.
    """
    with torch.no_grad():
        for name, weight in encoder.state_dict().items():
            if weight.is_floating_point():
                weight.lerp_(untouched[name].to(weight), share)


def model_card(config: TrainConfig, result: dict[str, Any]) -> str:
    """README for the encoder's folder: how to use it, and the settings it was trained with."""
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
    if config.train == "both_encoders":
        query = f"encoder.encode_query({example!r})"
    else:
        prompt = ', prompt_name="query"' if config.encoder.prompts.query else ""
        query = f"""encoder.encode({example!r}, task="instructed_query"{prompt})
plain = encoder.encode_query("main exports")  # bit for bit as before training"""
    return f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
base_model: {config.encoder.model}
---

# An instruction-following encoder

Trained with dualview from `{config.encoder.model}`; train: {config.train}.

```python
from sentence_transformers import SentenceTransformer

encoder = SentenceTransformer("this folder")
query = {query}
passage = encoder.encode_document("Chad: Central Africa; landlocked.")
```

Queries were truncated at {config.encoder.max_query_tokens} tokens, passages at {
        config.encoder.max_passage_tokens
    }.

Data:

{parts}

Budget: {result["instances"]:,} instances in {result["steps"]:,} steps of {config.batch.instances}; seed {
        config.seed
    }.
Config fingerprint: `{fingerprint(config.deciding())}`. Last loss: {result["losses"][-1]:.4f}.
{
        f'''
Scores during training, on `{config.monitor.benchmark.kind}`:

{scores}
'''
        if scores and config.monitor.benchmark is not None
        else ""
    }"""
