"""Encoding on Ray: units of texts spread over actors that hold an encoder each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
import ray
from ray.data import ActorPoolStrategy

from dualview.config import Actors
from dualview.encoder import Precision, Side, encode_texts, load_encoder
from dualview.on_ray.cluster import errors_of_workers
from dualview.progress import Progress

Vectors = dict[str, NDArray[np.float32]]  # text -> unit vector (E,)


@dataclass(frozen=True)
class Job:
    """Distinct texts for one side of an encoder."""

    model: str
    side: Side
    max_tokens: int
    texts: Sequence[str]


def encode(
    jobs: Mapping[str, Job],
    actors: Actors,
    *,
    texts_per_unit: int,
    precision: Precision,
    trust_remote_code: bool,
) -> dict[str, Vectors]:
    """The vectors of every job, whatever the number of actors and the order in which they finish."""
    units = [
        {
            "name": name,
            "model": job.model,
            "side": job.side,
            "max_tokens": job.max_tokens,
            "texts": list(job.texts[start : start + texts_per_unit]),
        }
        for name, job in jobs.items()
        for start in range(0, len(job.texts), texts_per_unit)
    ]
    rows = ray.data.from_items(
        [{"unit": index, **unit} for index, unit in enumerate(units)], override_num_blocks=len(units)
    ).map(
        EncodeUnit,
        fn_constructor_args=(precision, trust_remote_code),
        compute=ActorPoolStrategy(size=min(actors.num, len(units))),
        num_cpus=actors.cpus,
        num_gpus=actors.gpus,
    )
    vectors: dict[str, Vectors] = {name: {} for name in jobs}
    total = sum(len(job.texts) for job in jobs.values())
    with errors_of_workers(), Progress("encoding", total, unit="texts", trail=None) as progress:
        for row in rows.iter_rows():
            unit = units[row["unit"]]
            matrix = np.frombuffer(row["vectors"], dtype=np.float32).reshape(len(unit["texts"]), -1)
            vectors[unit["name"]] |= dict(zip(unit["texts"], matrix, strict=True))
            progress.advance(len(matrix))
    return vectors


class EncodeUnit:
    """An actor that keeps the encoder it was last asked for."""

    def __init__(self, precision: Precision, trust_remote_code: bool) -> None:
        self.precision, self.trust_remote_code = precision, trust_remote_code
        self.model = ""

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        if unit["model"] != self.model:
            self.model = unit["model"]
            self.encoder = load_encoder(self.model, trust_remote_code=self.trust_remote_code)
            if ray.get_gpu_ids():
                self.encoder.to("cuda")
        vectors = encode_texts(
            self.encoder,
            list(unit["texts"]),
            side=unit["side"],
            max_tokens=int(unit["max_tokens"]),
            precision=self.precision,
        )
        return {"unit": unit["unit"], "vectors": vectors.numpy().tobytes()}
