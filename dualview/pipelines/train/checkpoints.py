"""Checkpoints of a training run in its store.

    checkpoints/STEP-ATTEMPT/state/...           DeepSpeed's files of every rank
    checkpoints/STEP-ATTEMPT/weights.safetensors the trained weights, unsharded: for another world size or stage
    checkpoints/STEP-ATTEMPT/rank-3-of-8.json    rank 3 has put all of its files

An attempt is one lifetime of the training workers. Its name is part of every key that it puts, so attempts that
overlap (for example with an abandoned driver that still runs) never write to the same place. A checkpoint is complete
once all ranks have put their JSON file; any attempt can resume from it.
"""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
import json
import logging
from pathlib import Path
import re
import shutil
import tempfile
from typing import Any

import deepspeed
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from safetensors.torch import load_file, save_file
import torch

from dualview.errors import InputError, Interruption
from dualview.storage import Store, download_tree, upload_tree
from dualview.training.model import Learner

logger = logging.getLogger(__name__)

FOLDER = "checkpoints/"
KEPT = 2
STATE_TAG = "state"
WEIGHTS = "weights.safetensors"
_MARK = re.compile(r"(.*)/rank-\d+-of-(\d+)\.json")


@dataclass(frozen=True)
class Position:
    """How far a run has come, and the layout of its optimizer state."""

    world_size: int
    deepspeed: dict[str, Any]
    losses: list[float]
    tokens: int
    seconds: float


def whole_checkpoints(store: Store) -> list[str]:
    """Folders of the complete checkpoints, oldest step first."""
    marks = [mark.groups() for entry in store.list(FOLDER) if (mark := _MARK.fullmatch(entry.key))]
    return sorted(folder for (folder, size), count in Counter(marks).items() if count == int(size))


class Checkpoints:
    """Saves one rank's part of its attempt's checkpoints. Uploads in the background, one checkpoint at a time."""

    def __init__(self, store: Store, attempt: str, rank: int, world_size: int) -> None:
        self._store, self._attempt = store, attempt
        self._rank, self._world_size = rank, world_size
        self._uploads = ThreadPoolExecutor(max_workers=1)
        self._upload: Future[None] | None = None

    def save(
        self, engine: deepspeed.DeepSpeedEngine, position: Position, weights: dict[str, torch.Tensor]
    ) -> None:
        """Call on all ranks after the same step. weights: the trained ones, on rank 0.

        Raises Interruption if the upload of the previous checkpoint failed.
        """
        self.wait()
        folder = Path(tempfile.mkdtemp(prefix="dualview-checkpoint-"))
        engine.save_checkpoint(str(folder), tag=STATE_TAG, save_latest=False)
        if self._rank == 0:
            save_file(weights, folder / WEIGHTS)
        self._upload = self._uploads.submit(self._put, folder, position)

    def wait(self) -> None:
        """Waits until the last checkpoint is uploaded."""
        if self._upload is not None:
            self._upload.result()
            self._upload = None

    def _put(self, folder: Path, position: Position) -> None:
        name = f"{FOLDER}{len(position.losses):08d}-{self._attempt}"
        try:
            upload_tree(folder, self._store, name)
        finally:
            shutil.rmtree(folder)
        mark = f"{name}/rank-{self._rank}-of-{self._world_size}.json"
        self._store.put_new(mark, json.dumps(vars(position), allow_nan=False).encode(), self._attempt)
        if self._rank == 0:
            self._remove_old()

    def _remove_old(self) -> None:
        """Removes everything older than the last KEPT complete checkpoints, including unfinished ones."""
        if len(kept := whole_checkpoints(self._store)[-KEPT:]) < KEPT:
            return
        old = {entry.key.split("/")[1] for entry in self._store.list(FOLDER)}
        try:
            for name in sorted(old):
                if f"{FOLDER}{name}" < kept[0]:
                    self._store.remove(f"{FOLDER}{name}/")
        except Interruption as error:  # harmless for the run
            logger.warning(f"old checkpoints were not removed: {error}")


@dataclass(frozen=True)
class Saved:
    """A checkpoint in a local folder."""

    folder: Path
    position: Position

    def fits(self, world_size: int, deepspeed: dict[str, Any]) -> bool:
        """Whether this many ranks with this DeepSpeed layout can load the optimizer state."""
        return (self.position.world_size, self.position.deepspeed) == (world_size, deepspeed)

    def load_weights(self, learner: Learner) -> None:
        """Loads only the weights. Raises InputError if they belong to another model."""
        missing, unexpected = learner.load_state_dict(load_file(self.folder / WEIGHTS), strict=False)
        learned = {name for name, weight in learner.named_parameters() if weight.requires_grad}
        if wrong := sorted({*unexpected, *(learned & set(missing))}):
            raise InputError(
                f"{self.folder}: is a checkpoint of another model ({wrong[0]} does not fit); choose another output"
            )

    def load_state(self, engine: deepspeed.DeepSpeedEngine) -> None:
        """Loads the weights, the optimizer state and the position in the schedule."""
        engine.checkpoint_engine = _TensorsOnly()
        engine.load_checkpoint(str(self.folder), tag=STATE_TAG)


class _TensorsOnly(TorchCheckpointEngine):  # type: ignore[misc]
    """Reads tensors, containers and three DeepSpeed classes, and runs no code that a file names.

    DeepSpeed's own engine would unpickle any file in the bucket.
    """

    def load(self, path: str, map_location: Any = None) -> Any:
        with torch.serialization.safe_globals([LossScaler, fragment_address, ZeroStageEnum]):
            return torch.load(path, map_location=map_location, weights_only=True)


@contextmanager
def latest_checkpoint(store: Store, rank: int, local_rank: int) -> Iterator[Saved | None]:
    """A copy of the last complete checkpoint, the same on all ranks; None if there is none.

    Call on all ranks; one rank per node copies it for its node.
    """
    while (
        name := from_rank_0(next(reversed(whole_checkpoints(store)), None) if rank == 0 else None)
    ) is not None:
        copy = Path(tempfile.gettempdir()) / f"dualview-{name.replace('/', '-')}"
        exists = True
        if local_rank == 0:
            try:
                download_tree(store, copy, [entry.key for entry in store.list(f"{name}/")])
            except FileNotFoundError:
                exists = False
        if on_all_ranks(exists):
            try:
                mark = next((copy / name).glob("rank-*.json"))
                yield Saved(copy / name, Position(**json.loads(mark.read_text())))
                on_all_ranks(True)  # wait until all have read it
            finally:
                if local_rank == 0:
                    shutil.rmtree(copy, ignore_errors=True)
            return
        # An overlapping attempt has continued and removed it: there is a newer one.
    yield None


def from_rank_0(value: Any) -> Any:
    """Broadcasts the value of rank 0 to all ranks."""
    values = [value]
    if torch.distributed.get_world_size() > 1:
        torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def on_all_ranks(value: bool) -> bool:
    """Whether the value is true on all ranks."""
    values = [value] * torch.distributed.get_world_size()
    if len(values) > 1:
        torch.distributed.all_gather_object(values, value)
    return all(values)
