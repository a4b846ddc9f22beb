"""One rank's share of a step's loss and gradients."""

# V = views, D = passages of the batch, H = embedding size, R = texts of base distillation, N = this rank's texts

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import normalize

from dualview.config.train import TrainConfig
from dualview.models import Side
from dualview.retrieval.encoder import inputs_of, to_device
from dualview.training.collectives import gather_vectors
from dualview.training.losses import (
    base_distillation,
    distillation,
    info_nce,
    leave_out_false_negatives,
    truncated,
)
from dualview.training.model import Learner
from dualview.training.plan import RETAINED_TEXTS_PER_STEP, Texts, Work


@dataclass(frozen=True)
class Retained:
    """The texts of base distillation and their vectors under the untouched encoder."""

    tokens: Sequence[list[int]]
    untouched_RH: torch.Tensor


@dataclass(frozen=True)
class Step:
    """Computes one rank's share of any step of a run.

    Every rank encodes its share of the views and passages, gathers the passages of all ranks, and scores its own
    views against every passage. The mean of the shares over ranks is the loss of the whole batch. Averaging
    gradients over ranks, as DeepSpeed does, gives exactly the gradient of one process that holds the whole batch.
    """

    learner: Learner
    config: TrainConfig
    retained: Retained
    world_size: int
    # The learner's own forward and backward pass, or those of a DeepSpeed engine around it.
    forward: Callable[[dict[str, Any], Side], torch.Tensor]
    backward: Callable[[torch.Tensor], object]
    # A context in which `backward` may be called several times for one step.
    accumulation: Callable[[], AbstractContextManager[object]]

    def forward_backward(self, work: Work) -> torch.Tensor:
        """Run `backward` on this rank's share of the loss; returns that share, detached."""
        with self.learner.cast_once():
            return self._cached(work) if self.config.batch.gradient_cache else self._at_once(work)

    def _at_once(self, work: Work) -> torch.Tensor:
        vectors = [self._encode(work, *chunk) for chunk in work.chunks]
        loss = self._loss(work, vectors, self.learner.temperature())
        self.backward(loss)
        return loss.detach()

    def _cached(self, work: Work) -> torch.Tensor:
        """The same with the activations of only one chunk in memory at a time. [GradCache, 2101.06983]

        Every text is encoded twice, the second time with the gradient of its vector known.
        """
        chunks = work.chunks
        with torch.no_grad():
            leaves = [self._encode(work, *chunk) for chunk in chunks]
        for leaf in leaves:
            leaf.requires_grad_()
        temperature = self.learner.temperature().detach().requires_grad_()
        loss = self._loss(work, leaves, temperature)
        *gradients, of_temperature = torch.autograd.grad(loss, [*leaves, temperature])
        with self.accumulation():
            for chunk, gradient in zip(chunks, gradients, strict=True):
                surrogate = (self._encode(work, *chunk) * gradient).sum()
                if chunk == chunks[-1] and self.config.loss.temperature.learned:
                    surrogate = surrogate + (self.learner.temperature() * of_temperature).sum()
                self.backward(surrogate)
        return loss.detach()

    def _encode(self, work: Work, side: int, number: int) -> torch.Tensor:
        """The vectors of one chunk. Each chunk seeds its dropout, so that a second pass drops the same units."""
        texts = work.texts[side]
        torch.manual_seed(work.seed + 100_000 * side + number)
        features = inputs_of(
            self.learner.encoder,
            [texts.tokens[place] for place in texts.chunks[number]],
            self.learner.encoder.prompts[texts.side],
        )
        return self.forward(features, texts.side)

    def _loss(self, work: Work, vectors: Sequence[torch.Tensor], temperature: torch.Tensor) -> torch.Tensor:
        """This rank's share of the loss, from the vectors of its chunks."""
        of_side = [
            torch.cat(
                [vector for (side, _), vector in zip(work.chunks, vectors, strict=True) if side == wanted]
            )
            for wanted in range(len(work.texts))
        ]
        device = of_side[0].device
        views_VH = of_side[0][to_device(work.view_rows, device)]
        texts_RH = of_side[0][to_device(work.retained_rows, device)]
        if work.passages is None:
            assert work.frozen_DH is not None
            passages_DH = to_device(work.frozen_DH, device)
        else:
            passages_DH = _of_all_ranks(work.passages, of_side[1])
        loss = self._loss_of_views(work, views_VH, passages_DH, temperature)
        loss = loss * (self.world_size / work.num_views)
        if len(texts_RH):
            loss = loss + self._loss_of_retained(work, texts_RH)
        return loss

    def _loss_of_views(
        self, work: Work, views_VH: torch.Tensor, passages_DH: torch.Tensor, temperature: torch.Tensor
    ) -> torch.Tensor:
        """Sum over this rank's views of the mean loss over the trained embedding sizes."""
        settings, device = self.config.loss, views_VH.device
        relation_VD = to_device(work.relation_VD, device)
        sizes = settings.dimensions or (views_VH.shape[1],)
        loss = views_VH.new_zeros(())
        for size in sizes:
            scores_VD = truncated(views_VH, size) @ truncated(passages_DH, size).T
            relation_of_size = relation_VD
            if settings.false_negative_margin is not None:
                assert work.known_VD is not None
                relation_of_size = leave_out_false_negatives(
                    scores_VD.detach(),
                    relation_VD,
                    to_device(work.known_VD, device),
                    settings.false_negative_margin,
                )
            of_views = info_nce(scores_VD, relation_of_size, temperature).sum()
            if work.margins_VD is not None:
                of_judge = distillation(scores_VD, to_device(work.margins_VD, device), temperature).sum()
                of_views = of_views + settings.distillation * of_judge
            loss = loss + of_views / len(sizes)
        return loss

    def _loss_of_retained(self, work: Work, texts_RH: torch.Tensor) -> torch.Tensor:
        num_views = len(work.batch.views)
        rows = [work.retained[place - num_views] for place in work.queries.places if place >= num_views]
        untouched_RH = to_device(self.retained.untouched_RH[rows], texts_RH.device)
        num_texts = min(RETAINED_TEXTS_PER_STEP, len(self.retained.tokens))
        if self.learner.encoder.similarity_fn_name == "dot":  # its vectors have any length
            texts_RH, untouched_RH = normalize(texts_RH), normalize(untouched_RH)
        weight = self.config.loss.base_distillation * (self.world_size / num_texts)
        return weight * base_distillation(texts_RH, untouched_RH)


def _of_all_ranks(texts: Texts, vectors_NH: torch.Tensor) -> torch.Tensor:
    """Vectors of all ranks' texts (D, H), in batch order; vectors_NH: this rank's."""
    return gather_vectors(vectors_NH, texts.counts)[to_device(texts.rows, vectors_NH.device)]
