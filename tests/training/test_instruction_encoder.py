"""The encoder of instructions: where it begins, what it learns, and what is exported."""

import itertools

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tiny import save_tiny_encoder, tiny_encoder
import torch

from dualview.errors import Interruption
from dualview.models import model_fingerprint, saved_settings
from dualview.training.instruction_encoder import (
    InstructionBatch,
    encode_instructions,
    export,
    instruction_encoder,
    metric_of,
    train,
)

TEXTS = ["only gold of mali", "not oil", "fish and tin in asia"]
SIZE = 32


@pytest.fixture
def folder(tmp_path):
    return save_tiny_encoder(tmp_path / "model")


def fresh(folder):
    return instruction_encoder(str(folder), pooling="mean", trust_remote_code=False)


def batches():
    targets = np.random.default_rng(0).normal(size=(len(TEXTS), SIZE)) / 6
    return itertools.repeat(InstructionBatch(TEXTS, targets))


def test_it_begins_as_the_model_itself(folder):
    untouched = tiny_encoder(folder)
    np.testing.assert_allclose(encode_instructions(fresh(folder), TEXTS), untouched.encode(TEXTS), atol=1e-6)


def test_it_learns_the_directions_and_leaves_word_embeddings_alone(folder):
    encoder = fresh(folder)
    words = encoder[0].model.get_input_embeddings().weight.clone()
    losses = list(train(encoder, batches(), np.eye(SIZE), steps=60, learning_rate=2e-3))
    assert len(losses) == 60
    assert losses[-1] < 0.05 * losses[0]
    np.testing.assert_allclose(encode_instructions(encoder, TEXTS), next(batches()).targets_BE, atol=0.1)
    assert torch.equal(words, encoder[0].model.get_input_embeddings().weight)


def test_the_same_seed_gives_the_same_weights(folder):
    runs = []
    for _ in range(2):
        encoder = fresh(folder)
        list(train(encoder, batches(), np.eye(SIZE), steps=3, learning_rate=1e-3))
        runs.append(encode_instructions(encoder, TEXTS))
    np.testing.assert_array_equal(*runs)


def test_a_loss_that_is_not_finite_ends_the_run(folder):
    broken = itertools.repeat(InstructionBatch(TEXTS, np.full((len(TEXTS), SIZE), np.nan)))
    with pytest.raises(Interruption, match=r"the loss of step 1 was nan.*learning_rate"):
        list(train(fresh(folder), broken, np.eye(SIZE), steps=3, learning_rate=1e-3))


def test_the_metric_is_the_change_of_scores_and_the_length():
    vectors = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32) * [1, 2, 3, 4] + 5
    metric = metric_of(vectors)
    variances = vectors.var(axis=0)
    expected = 0.5 * variances / variances.sum() * 4 + 0.5
    np.testing.assert_allclose(np.diag(metric), expected, rtol=1e-5)


def test_the_export_has_three_sides_of_which_two_are_untouched_bit_for_bit(folder, tmp_path):
    untouched, encoder = tiny_encoder(folder), fresh(folder)
    list(train(encoder, batches(), np.eye(SIZE), steps=5, learning_rate=1e-2))
    export(encoder, untouched, tmp_path / "out", "# A card\n")
    loaded = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    for task in ("query", "document"):
        np.testing.assert_array_equal(loaded.encode(TEXTS, task=task), untouched.encode(TEXTS))
    np.testing.assert_allclose(
        loaded.encode(TEXTS, task="instruction"), encode_instructions(encoder, TEXTS), atol=1e-6
    )
    np.testing.assert_allclose(
        encode_instructions(loaded, TEXTS), encode_instructions(encoder, TEXTS), atol=1e-6
    )
    assert (tmp_path / "out" / "README.md").read_text() == "# A card\n"


def test_the_document_side_of_the_export_does_not_depend_on_training(folder, tmp_path):
    """So an embedding cache keeps its vectors."""
    for name, steps in (("a", 1), ("b", 2)):
        encoder = fresh(folder)
        list(train(encoder, batches(), np.eye(SIZE), steps=steps, learning_rate=1e-2))
        export(encoder, tiny_encoder(folder), tmp_path / name, "")
    prints = {model_fingerprint(str(tmp_path / name), "document") for name in ("a", "b")}
    assert len(prints) == 1
    assert model_fingerprint(str(tmp_path / "a"), "instruction") != model_fingerprint(
        str(tmp_path / "b"), "instruction"
    )
    assert saved_settings(str(tmp_path / "a")).sides == ("query", "document")
