"""Weights from a checkpoint, without Ray."""

import numpy as np
import pytest
from tiny import save_tiny_encoder, train_config
import torch

from dualview.errors import InputError
from dualview.on_ray.checkpoints import CHECKPOINT_TAG, Saved
from dualview.training.export import encoder_to_train
from dualview.training.step import Learner

TEXTS = ["exports of chad", "only in asia", "gold and tin of fiji"]


def test_weights_of_another_model_are_refused_and_those_that_do_not_learn_may_be_absent(tmp_path):
    model = str(save_tiny_encoder(tmp_path / "model"))
    config = train_config(encoder__model=model, encoder__train_word_embeddings=False)
    learner, other = (Learner(encoder_to_train(config), 0.05, learned=False) for _ in range(2))
    with torch.no_grad():
        for weight in other.encoder.parameters():
            weight += 0.1 * torch.randn(weight.shape) * weight.requires_grad
    words = "encoder.0.model.embeddings.word_embeddings.weight"
    weights = {name: weight for name, weight in other.state_dict().items() if name != words}
    saved = Saved(tmp_path / "checkpoint", world_size=2, losses=[], tokens=0, seconds=0.0)
    (saved.folder / CHECKPOINT_TAG).mkdir(parents=True)
    file = saved.folder / CHECKPOINT_TAG / "mp_rank_00_model_states.pt"
    torch.save({"module": weights}, file)
    saved.load_weights(learner, stage=0)
    np.testing.assert_array_equal(learner.encoder.encode(TEXTS), other.encoder.encode(TEXTS))
    torch.save({"module": {**weights, "head.weight": torch.zeros(1)}}, file)
    with pytest.raises(InputError, match="a checkpoint of another model"):
        saved.load_weights(learner, stage=0)
    weights.popitem()
    torch.save({"module": weights}, file)
    with pytest.raises(InputError, match="a checkpoint of another model"):
        saved.load_weights(learner, stage=0)
