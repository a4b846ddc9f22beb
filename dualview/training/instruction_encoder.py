"""Trains an encoder of instructions: its vector is added to the query's, so documents and plain queries keep theirs.

With frozen documents every score is an inner product: asking for something adds a direction. The directions to learn are
given; the encoder learns to find them from the instruction's words, in any wording.
"""

# B = instructions of a batch, E = embedding size

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Router
import torch

from dualview.config.base import PoolingMode
from dualview.errors import Interruption
from dualview.retrieval.encoder import embed, encode_tokens, new_encoder, tokenize

MAX_TOKENS = 64
_CHUNK_TOKENS = 1024
_WARMUP_STEPS = 20
_HEAD_RATE = 5  # the head's learning rate, in units of the encoder's
_IDENTITY_SHARE = 0.5  # of the metric; the rest is the documents' covariance


def instruction_encoder(
    model: str, *, pooling: PoolingMode | None, trust_remote_code: bool
) -> SentenceTransformer:
    """The encoder with a linear head that begins as the identity, so that its vectors begin as the model's own."""
    encoder = new_encoder(model, pooling=pooling, trust_remote_code=trust_remote_code)
    size = encoder.get_embedding_dimension()
    assert size is not None
    head = Dense(
        size,
        size,
        activation_function=torch.nn.Identity(),
        init_weight=torch.eye(size),
        init_bias=torch.zeros(size),
    )
    return SentenceTransformer(modules=[*encoder.children(), head], device=str(encoder.device))


class InstructionBatch(NamedTuple):
    instructions: list[str]
    targets_BE: NDArray[np.floating]  # the directions to add


def metric_of(vectors_DE: NDArray[np.float32]) -> NDArray[np.float64]:
    """The metric of the loss, (E, E): an error counts by how much it changes documents' scores, and by its length."""
    centred = vectors_DE - vectors_DE.mean(axis=0)
    covariance = centred.T.astype(np.float64) @ centred / len(centred)
    size = len(covariance)
    of_scores: NDArray[np.float64] = covariance / np.trace(covariance) * size
    return (1 - _IDENTITY_SHARE) * of_scores + _IDENTITY_SHARE * np.eye(size)


def train(
    encoder: SentenceTransformer,
    batches: Iterable[InstructionBatch],
    metric_EE: NDArray[np.float64],
    *,
    steps: int,
    learning_rate: float,
) -> Iterator[float]:
    """Trains in place on the first `steps` batches, without dropout; yields the loss after each step.

    The loss is the squared error of the added direction, in the metric. Raises Interruption if it is not finite.
    """
    encoder.eval()
    encoder[0].model.get_input_embeddings().weight.requires_grad_(False)
    head = list(encoder[-1].parameters())
    body = [p for module in list(encoder)[:-1] for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": body, "lr": learning_rate}, {"params": head, "lr": _HEAD_RATE * learning_rate}],
        weight_decay=0.01,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / _WARMUP_STEPS, (steps - step) / steps)
    )
    metric = torch.as_tensor(metric_EE, dtype=torch.float32, device=encoder.device)
    for step, batch in zip(range(1, steps + 1), batches, strict=False):
        tokens = tokenize(encoder, batch.instructions, MAX_TOKENS)
        found_BE = embed(encoder, tokens, side="instruction", chunk_tokens=_CHUNK_TOKENS)
        errors_BE = found_BE - torch.as_tensor(batch.targets_BE, dtype=torch.float32, device=encoder.device)
        loss = ((errors_BE @ metric) * errors_BE).sum(dim=1).mean()
        if not torch.isfinite(loss):
            raise Interruption(
                f"the loss of step {step} was {loss.item()}; lower training.learning_rate and choose another output"
            )
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        yield loss.item()


def encode_instructions(encoder: SentenceTransformer, instructions: Sequence[str]) -> NDArray[np.float32]:
    """Vectors (N, E) to add to those of queries; of an encoder in training, or of an exported one."""
    tokens = tokenize(encoder, instructions, MAX_TOKENS)
    return encode_tokens(encoder, tokens, side="instruction", precision="fp32").numpy()


def export(encoder: SentenceTransformer, untouched: SentenceTransformer, folder: Path, card: str) -> None:
    """Saves both as one sentence-transformers model: `task="instruction"` uses the trained one, queries and documents the
    untouched one."""
    of_untouched = list(untouched.children())
    routes = {"document": of_untouched, "query": of_untouched, "instruction": list(encoder.children())}
    router = Router(routes, default_route="document")
    exported = SentenceTransformer(
        modules=[router],
        similarity_fn_name=untouched.similarity_fn_name,
        prompts=untouched.prompts,
        device="cpu",
    )
    exported.save(str(folder))
    (folder / "README.md").write_text(card)
