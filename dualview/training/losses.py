"""Contrastive losses over a relation matrix."""

# V = views, D = passages of the batch, H = embedding size, N = texts

import torch
from torch.nn.functional import log_softmax, normalize, softplus


def info_nce(
    scores_VD: torch.Tensor, relation_VD: torch.Tensor, temperature: torch.Tensor | float
) -> torch.Tensor:
    """Per view (V,): mean over its positives of -log softmax of the positive among the view's negatives.

    relation_VD holds 1 (positive), -1 (negative) and 0 (left out). Each positive is contrasted only with
    the view's negatives, so positives do not repel each other; with one positive per view this is InfoNCE.
    [2604.18845, section 3] A view without negatives has loss 0, and one without a positive NaN.
    """
    positive_VD = relation_VD == 1
    logits_VD = scores_VD / temperature
    negatives_V1 = logits_VD.masked_fill(relation_VD != -1, float("-inf")).logsumexp(dim=1, keepdim=True)
    loss_VD = softplus(negatives_V1 - logits_VD).masked_fill(~positive_VD, 0.0)
    return loss_VD.sum(dim=1) / positive_VD.sum(dim=1)


def leave_out_false_negatives(
    scores_VD: torch.Tensor, relation_VD: torch.Tensor, known_VD: torch.Tensor, margin: float
) -> torch.Tensor:
    """The relation matrix with likely false negatives set to 0.

    These are passages outside known_VD that score above the view's best positive plus `margin`.
    """
    best_V1 = scores_VD.masked_fill(relation_VD != 1, float("-inf")).amax(dim=1, keepdim=True)
    return relation_VD.masked_fill(~known_VD & (scores_VD > best_V1 + margin), 0)


def distillation(
    scores_VD: torch.Tensor, margins_VD: torch.Tensor, temperature: torch.Tensor | float
) -> torch.Tensor:
    """Per view (V,): KL divergence of the softmax of the scores from the softmax of the judge's margins.

    Covers only passages with a margin (margins_VD is NaN for the others); 0 for a view with fewer than two.
    """
    absent_VD = margins_VD.isnan()
    teacher_VD = margins_VD.masked_fill(absent_VD, float("-inf"))
    student_VD = (scores_VD / temperature).masked_fill(absent_VD, float("-inf"))
    enough_V1 = (~absent_VD).sum(dim=1, keepdim=True) >= 2
    # Rows of only -inf would give NaN, also in the gradient.
    teacher_VD, student_VD = (
        log_softmax(row.masked_fill(~enough_V1, 0.0), dim=1) for row in (teacher_VD, student_VD)
    )
    terms_VD = teacher_VD.exp() * (
        teacher_VD.masked_fill(absent_VD, 0.0) - student_VD.masked_fill(absent_VD, 0.0)
    )
    return terms_VD.masked_fill(absent_VD | ~enough_V1, 0.0).sum(dim=1)


def truncated(vectors_NH: torch.Tensor, size: int) -> torch.Tensor:
    """The first `size` dimensions of each vector, normalised to unit length. [Matryoshka, 2205.13147]"""
    return vectors_NH if size == vectors_NH.shape[1] else normalize(vectors_NH[:, :size], dim=1)


def base_distillation(vectors_NH: torch.Tensor, untouched_NH: torch.Tensor) -> torch.Tensor:
    """Sum over texts of 1 - cosine to the untouched encoder's vector. All vectors have unit length."""
    return (1.0 - (vectors_NH * untouched_NH).sum(dim=1)).sum()
