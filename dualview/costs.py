"""Costs of a run in tokens, GPU time and dollars, compared with a budget or with other runs."""

from dataclasses import dataclass
from typing import Self

from dualview.config.engines import Price
from dualview.config.generate import Budget


@dataclass(frozen=True, slots=True)
class Spent:
    prompt_tokens: int = 0
    completion_tokens: int = 0
    gpu_seconds: float = 0.0  # of actors that hold GPUs, including idle time

    def __add__(self, other: Self) -> "Spent":
        return Spent(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.gpu_seconds + other.gpu_seconds,
        )

    def share(self, part: int, whole: int) -> "Spent":
        """The share `part / whole`, with tokens rounded down."""
        return Spent(
            self.prompt_tokens * part // whole,
            self.completion_tokens * part // whole,
            self.gpu_seconds * part / whole,
        )

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def gpu_hours(self) -> float:
        return self.gpu_seconds / 3600

    def dollars(self, price: Price) -> float:
        return (
            self.prompt_tokens * price.per_million_prompt_tokens / 1e6
            + self.completion_tokens * price.per_million_completion_tokens / 1e6
            + self.gpu_hours * price.per_gpu_hour
        )


def used_up(spent: Spent, budget: Budget, price: Price | None) -> str | None:
    """The limit that is reached, in words, or None."""
    limits = [("tokens", spent.tokens, budget.tokens), ("GPU hours", spent.gpu_hours, budget.gpu_hours)]
    if price is not None:
        limits.append(("dollars", spent.dollars(price), budget.dollars))
    for unit, amount, limit in limits:
        if limit is not None and amount >= limit:
            return f"{amount:,.6g} of {limit:,.6g} {unit}"
    return None


@dataclass(frozen=True, slots=True)
class TrainingCost:
    """Cost of a training, with its share of the cost of generating its data."""

    instances: int
    tokens: int
    operations: float  # floating-point
    device_seconds: float
    generation: Spent

    def in_units(self, price: Price | None) -> dict[str, float]:
        """Cost by unit: dollars only with a price, LLM tokens only if an LLM was used."""
        units = {
            "instances": float(self.instances),
            "tokens": float(self.tokens),
            "PFLOP": self.operations / 1e15,
            "device seconds": self.device_seconds,
        }
        if self.generation.tokens:
            units["LLM tokens"] = float(self.generation.tokens)
        if price is not None:
            training = Spent(gpu_seconds=self.device_seconds)
            units["dollars"] = training.dollars(price) + self.generation.dollars(price)
        return units
