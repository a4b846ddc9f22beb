"""All-gather of vectors, with exact gradients."""

# H = embedding size

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist


def gather_vectors(vectors_NH: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """The vectors of every rank, in rank order: (sum of counts, H), on every rank.

    counts: number of vectors by rank. The backward pass sums the gradients of each rank's vectors over all
    ranks. That is exact if every rank scores its own views and weight gradients are averaged over ranks.
    """
    if len(counts) == 1:
        return vectors_NH
    gathered: torch.Tensor = _AllGather.apply(vectors_NH, tuple(counts))  # type: ignore[no-untyped-call]
    return gathered


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors_NH: torch.Tensor, counts: tuple[int, ...]) -> torch.Tensor:
        ctx.counts = counts
        longest = max(counts)  # all_gather requires equal shapes
        padded = vectors_NH.new_zeros((longest, vectors_NH.shape[1]))
        padded[: len(vectors_NH)] = vectors_NH
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        parts: tuple[torch.Tensor, ...] = torch.split(total, list(ctx.counts))
        return parts[dist.get_rank()], None
