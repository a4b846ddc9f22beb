"""Checkpoints of a training run: every rank's part, put by Ray Train whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
import json
from pathlib import Path
import tempfile
from typing import Any

import deepspeed
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
import ray.train
from ray.train import Checkpoint, CheckpointUploadMode
import torch

from dualview.errors import InputError
from dualview.training.step import Learner

CHECKPOINT_TAG = "state"
POSITION = "position.json"


@dataclass(frozen=True)
class Saved:
    """A checkpoint, in a local folder."""

    folder: Path
    world_size: int
    losses: list[float]
    tokens: int
    seconds: float

    def load_weights(self, learner: Learner, stage: int) -> None:
        """Only the weights, from the parts of all ranks that were then; those that do not learn are not among them.

        Raises InputError where they are another model's.
        """
        if stage:
            weights = get_fp32_state_dict_from_zero_checkpoint(str(self.folder), tag=CHECKPOINT_TAG)
        else:
            file = self.folder / CHECKPOINT_TAG / "mp_rank_00_model_states.pt"
            weights = torch.load(file, map_location="cpu", weights_only=False)["module"]  # our own file
        missing, unexpected = learner.load_state_dict(weights, strict=False)
        learned = {name for name, weight in learner.named_parameters() if weight.requires_grad}
        if wrong := sorted({*unexpected, *(learned & set(missing))}):
            raise InputError(
                f"{self.folder}: is a checkpoint of another model ({wrong[0]} does not fit); choose another output"
            )

    def load_rest(self, engine: deepspeed.DeepSpeedEngine, world_size: int) -> None:
        """Everything on the same number of ranks; else the place in the schedule only."""
        if world_size == self.world_size:
            engine.load_checkpoint(str(self.folder), tag=CHECKPOINT_TAG)
            return
        for _ in self.losses:
            engine.lr_scheduler.step()
        if ray.train.get_context().get_world_rank() == 0:
            print(
                f"going on with {world_size} ranks where there were {self.world_size}: weights, learning rate and the"
                " order of the data are what they would have been, AdamW's moments start anew",
                flush=True,
            )


@contextmanager
def latest_checkpoint() -> Iterator[Saved | None]:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as folder:
        yield Saved(Path(folder), **json.loads((Path(folder) / POSITION).read_text()))


def save_checkpoint(engine: deepspeed.DeepSpeedEngine, position: dict[str, Any], rank: int) -> None:
    """Every rank reports its own files, which are put off the training path.

    Ray Train merges them, registers the whole or nothing, and removes the local folder.
    """
    folder = tempfile.mkdtemp(prefix="dualview-checkpoint-")
    engine.save_checkpoint(folder, tag=CHECKPOINT_TAG, save_latest=False)
    if rank == 0:
        (Path(folder) / POSITION).write_text(json.dumps(position))
    ray.train.report(
        {"loss": position["losses"][-1]},
        checkpoint=Checkpoint.from_directory(folder),
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
    )
