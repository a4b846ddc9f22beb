"""Checkpoints on a store, without Ray: which are whole, what is taken from them, and what they may hold."""

import json
from pathlib import Path
import pickle

import numpy as np
import pytest
from safetensors.torch import save_file
from tiny import save_tiny_encoder, train_config
import torch

from dualview.errors import InputError
from dualview.pipelines.train.checkpoints import (
    WEIGHTS,
    Checkpoints,
    Position,
    Saved,
    _TensorsOnly,
    whole_checkpoints,
)
from dualview.storage import LocalStore
from dualview.training.model import learner_of

TEXTS = ["exports of chad", "only in asia", "gold and tin of fiji"]


def position(step, world_size=2):
    return Position(world_size, {"stage": 1}, [0.5] * step, 0, 0.0)


class Engine:
    """Writes what DeepSpeed would: a file for each rank."""

    def __init__(self, rank):
        self.rank = rank

    def save_checkpoint(self, folder, tag, **_):
        (Path(folder) / tag).mkdir()
        (Path(folder) / tag / f"rank_{self.rank}_optim_states.pt").write_bytes(b"state")


def save(store, attempt, step, ranks=(0, 1), world_size=2):
    for rank in ranks:
        hand = Checkpoints(store, attempt, rank, world_size)
        hand.save(Engine(rank), position(step, world_size), {"weight": torch.ones(2)} if rank == 0 else {})
        hand.wait()


def test_a_checkpoint_is_whole_when_all_ranks_have_put_their_files(tmp_path):
    store = LocalStore(tmp_path)
    save(store, "a", 2)
    save(store, "a", 4, ranks=[1])
    assert whole_checkpoints(store) == ["checkpoints/00000002-a"]
    save(store, "a", 4, ranks=[0])
    save(store, "b", 4, ranks=[0], world_size=3)
    assert whole_checkpoints(store) == ["checkpoints/00000002-a", "checkpoints/00000004-a"]
    names = {entry.key.rpartition("/")[2] for entry in store.list("checkpoints/00000004-a/")}
    assert names == {
        "rank_0_optim_states.pt",
        "rank_1_optim_states.pt",
        WEIGHTS,
        "rank-0-of-2.json",
        "rank-1-of-2.json",
    }
    [mark] = store.list("checkpoints/00000004-a/rank-0")
    assert Position(**json.loads(store.get(mark.key))) == position(4)


def test_two_are_kept_and_what_a_dead_attempt_left_goes_with_the_old_ones(tmp_path):
    store = LocalStore(tmp_path)
    save(store, "dead", 3, ranks=[1])
    for step in (2, 4, 6):
        save(store, "a", step, ranks=[1])
        save(store, "a", step, ranks=[0])
    save(store, "late", 5, ranks=[1, 0])
    assert whole_checkpoints(store) == [f"checkpoints/0000000{step}" for step in ("4-a", "5-late", "6-a")][1:]
    assert {entry.key.split("/")[1] for entry in store.list("checkpoints/")} == {
        "00000005-late",
        "00000006-a",
    }
    assert store.folder.is_dir()


def test_weights_of_another_model_are_refused_and_those_that_do_not_learn_may_be_absent(tmp_path):
    model = str(save_tiny_encoder(tmp_path / "model"))
    config = train_config(encoder__model=model, encoder__train_word_embeddings=False)
    learner, other = (learner_of(config) for _ in range(2))
    with torch.no_grad():
        for weight in other.encoder.parameters():
            weight += 0.1 * torch.randn(weight.shape) * weight.requires_grad
    weights = {name: weight.detach() for name, weight in other.named_parameters() if weight.requires_grad}
    saved = Saved(tmp_path, position(1))
    save_file(weights, tmp_path / WEIGHTS)
    saved.load_weights(learner)
    np.testing.assert_array_equal(learner.encoder.encode(TEXTS), other.encoder.encode(TEXTS))
    save_file({**weights, "head.weight": torch.zeros(1)}, tmp_path / WEIGHTS)
    with pytest.raises(InputError, match="a checkpoint of another model"):
        saved.load_weights(learner)
    weights.popitem()
    save_file(weights, tmp_path / WEIGHTS)
    with pytest.raises(InputError, match="a checkpoint of another model"):
        saved.load_weights(learner)


class Attack:
    def __reduce__(self):
        return print, ("code from a bucket",)


def test_a_checkpoint_runs_no_code(tmp_path, capsys):
    torch.save({"optimizer_state_dict": Attack()}, tmp_path / "states.pt")
    with pytest.raises(pickle.UnpicklingError):
        _TensorsOnly().load(str(tmp_path / "states.pt"))
    assert "code from a bucket" not in capsys.readouterr().out
