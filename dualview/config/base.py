"""Base class and common types of all settings, and the JSON and fingerprints of their values."""

from collections.abc import Mapping
import hashlib
import json
import math
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator


class Settings(BaseModel):
    """A strict, frozen set of keys: a value that matters has no default, and an unknown key is an error.

    The docstring below a key documents it: `--describe` and configs/reference.md show it.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    # Exactly one of these keys is set. The others are absent, or null as in files of version 0.1.
    one_of: ClassVar[tuple[str, ...]] = ()
    # Renamed keys and values of a whole config, in the syntax of dualview/config/renames.py.
    renamed: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        found = [key for key in self.one_of if getattr(self, key) is not None]
        if self.one_of and len(found) != 1:
            raise ValueError(
                f"expected exactly one of {', '.join(self.one_of)}, but found {' and '.join(found) or 'none'}"
            )
        return self


T = TypeVar("T")
Several = Annotated[tuple[T, ...], Strict(False)]  # a YAML list
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
PoolingMode = Literal["mean", "cls", "lasttoken", "weightedmean"]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern="^[^/]+$")]  # also used as a file name


class Actors(Settings):
    """Number of Ray actors, and the resources of each."""

    num: Positive
    """Number of actors."""
    cpus: Annotated[float, Field(gt=0)]
    """CPUs that Ray reserves for each actor."""
    gpus: Annotated[float, Field(ge=0)]
    """GPUs that Ray reserves for each actor; 0 runs on the CPU."""


class Pool(Actors):
    """A pool of `num` actors that may grow while the cluster has room."""

    max_num: Positive | None
    """Maximum number of actors; null keeps the pool at `num`."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.max_num is not None and self.max_num < self.num:
            raise ValueError(f"max_num {self.max_num} is below num {self.num}")
        return self

    def size(self, num_pieces: int) -> dict[str, int]:
        """Ray Data's `min_size` and `max_size` for a pool with this many pieces of work."""
        return {
            "min_size": min(self.num, num_pieces),
            "max_size": min(self.max_num or self.num, num_pieces),
        }


# Texts are encoded in groups of this fixed size: otherwise the last bits of a vector would depend on the shard size.
ENCODING_GROUP = 128
WholeGroups = Annotated[int, Field(gt=0, multiple_of=ENCODING_GROUP)]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal strings."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def plain_json(value: Any, indent: int | None = None) -> str:
    """JSON in which NaN and infinities, such as the interval over a single topic, are null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_finite(inner) for inner in value]
    return value


def fingerprint(value: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]
