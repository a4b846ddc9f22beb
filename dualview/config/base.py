"""What all settings share: strictness, common types, actors, fingerprints."""

from collections.abc import Mapping
import hashlib
import json
import math
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator


class Settings(BaseModel):
    """Values that matter have no default. Frozen, so that a run is its config.

    The docstring below a key is its meaning: `--describe` and configs/reference.md show it.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    # Keys of which exactly one is set. The others are absent, or null in files of version 0.1.
    one_of: ClassVar[tuple[str, ...]] = ()
    # Of a whole config: keys and values that were renamed, as dualview/config/renames.py reads them.
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
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern="^[^/]+$")]  # of files, too


class Actors(Settings):
    """How many Ray actors, and what each of them asks of the cluster."""

    num: Positive
    """Number of actors."""
    cpus: Annotated[float, Field(gt=0)]
    """CPUs that Ray reserves for each actor."""
    gpus: Annotated[float, Field(ge=0)]
    """GPUs that Ray reserves for each actor; 0 runs on the CPU."""


class Pool(Actors):
    """Of `num` actors, or of more while the cluster has room for them."""

    max_num: Positive | None
    """Largest number of actors while the cluster has room; null keeps the pool at `num`."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.max_num is not None and self.max_num < self.num:
            raise ValueError(f"max_num {self.max_num} is below num {self.num}")
        return self

    def size(self, num_pieces: int) -> dict[str, int]:
        """The smallest and the largest number of actors for so many pieces of work, as Ray Data names them."""
        return {
            "min_size": min(self.num, num_pieces),
            "max_size": min(self.max_num or self.num, num_pieces),
        }


# Texts are encoded in fixed groups of this many, so that a vector does not depend, in its last bits, on how
# large a shard is.
ENCODING_GROUP = 128
WholeGroups = Annotated[int, Field(gt=0, multiple_of=ENCODING_GROUP)]


def canonical_json(value: Any) -> str:
    """One text for equal values: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def plain_json(value: Any, indent: int | None = None) -> str:
    """For figures that may be no numbers or without bounds, such as an interval over one topic: they are null."""
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
