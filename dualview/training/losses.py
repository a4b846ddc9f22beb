"""Contrastive losses over a relation matrix."""

# V = views, D = passages of the batch, H = embedding size, N = texts

import torch
from torch.nn.functional import log_softmax, normalize, softplus


def info_nce(
    scores_VD: torch.Tensor, relation_VD: torch.Tensor, temperature: torch.Tensor | float
) -> torch.Tensor:
    """Per view (V,): the mean over its positives of -log softmax of the positive among its negatives.

    relation_VD holds 1 (positive), -1 (negative) and 0 (left out). Each positive stands against the
    log-sum-exp of the view's negatives alone, so that positives do not push each other away; with
    one positive a view this is InfoNCE. [2604.18845, section 3]
    A view without a negative has loss 0. Raises ValueError where a view has no positive.
    """
    positive_VD = relation_VD == 1
    if not bool(positive_VD.any(dim=1).all()):
        raise ValueError("every view needs a positive among the passages of its batch")
    logits_VD = scores_VD / temperature
    negatives_V1 = logits_VD.masked_fill(relation_VD != -1, float("-inf")).logsumexp(dim=1, keepdim=True)
    loss_VD = softplus(negatives_V1 - logits_VD).masked_fill(~positive_VD, 0.0)
    return loss_VD.sum(dim=1) / positive_VD.sum(dim=1)


def leave_out_false_negatives(
    scores_VD: torch.Tensor, relation_VD: torch.Tensor, known_VD: torch.Tensor, margin: float
) -> torch.Tensor:
    """The relation matrix without negatives that nobody labelled and that look like positives.

    A passage that is not known_VD is left out where it scores above the view's best positive plus `margin`.
    """
    best_V1 = scores_VD.masked_fill(relation_VD != 1, float("-inf")).amax(dim=1, keepdim=True)
    return relation_VD.masked_fill(~known_VD & (scores_VD > best_V1 + margin), 0)


def distillation(
    scores_VD: torch.Tensor, margins_VD: torch.Tensor, temperature: torch.Tensor | float
) -> torch.Tensor:
    """Per view (V,): Kullback-Leibler divergence of the softmax of its scores from that of the judge's margins.

    Only over the passages that the judge answered for (margins_VD is NaN for the others); 0 for a view with
    fewer than two of them.
    """
    absent_VD = margins_VD.isnan()
    teacher_VD = margins_VD.masked_fill(absent_VD, float("-inf"))
    student_VD = (scores_VD / temperature).masked_fill(absent_VD, float("-inf"))
    enough_V1 = (~absent_VD).sum(dim=1, keepdim=True) >= 2
    # Rows of -inf alone would give NaN, in the gradient too.
    teacher_VD, student_VD = (
        log_softmax(row.masked_fill(~enough_V1, 0.0), dim=1) for row in (teacher_VD, student_VD)
    )
    terms_VD = teacher_VD.exp() * (
        teacher_VD.masked_fill(absent_VD, 0.0) - student_VD.masked_fill(absent_VD, 0.0)
    )
    return terms_VD.masked_fill(absent_VD | ~enough_V1, 0.0).sum(dim=1)


def truncated(vectors_NH: torch.Tensor, size: int) -> torch.Tensor:
    """The first `size` numbers of each vector, again of unit length. [Matryoshka, 2205.13147]"""
    return vectors_NH if size == vectors_NH.shape[1] else normalize(vectors_NH[:, :size], dim=1)


def base_distillation(vectors_NH: torch.Tensor, untouched_NH: torch.Tensor) -> torch.Tensor:
    """Sum of 1 - cosine to the untouched encoder's unit vectors of the same plain texts."""
    return (1.0 - (vectors_NH * untouched_NH).sum(dim=1)).sum()
