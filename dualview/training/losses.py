"""Contrastive losses over a relation matrix."""

# V = views, D = passages of the batch

import torch
from torch.nn.functional import softplus


def info_nce(scores_VD: torch.Tensor, relation_VD: torch.Tensor, temperature: float) -> torch.Tensor:
    """Per view (V,): the mean over its positives of -log softmax of the positive among its negatives.

    relation_VD holds 1 (positive), -1 (negative) and 0 (left out). Each positive stands against the
    log-sum-exp of the view's negatives alone, so that positives do not push each other away; with
    one positive a view this is InfoNCE. [2604.18845, section 3]
    A view without a negative has loss 0. Raises ValueError where a view has no positive.
    """
    positive_VD = relation_VD == 1
    if not bool(positive_VD.any(dim=1).all()):
        raise ValueError("every view needs a positive among the passages of its batch")
    logits_VD = scores_VD.float() / temperature
    negatives_V1 = logits_VD.masked_fill(relation_VD != -1, float("-inf")).logsumexp(dim=1, keepdim=True)
    loss_VD = softplus(negatives_V1 - logits_VD).masked_fill(~positive_VD, 0.0)
    return loss_VD.sum(dim=1) / positive_VD.sum(dim=1)


def retention(vectors_NH: torch.Tensor, untouched_NH: torch.Tensor) -> torch.Tensor:
    """Mean of 1 - cosine to the untouched encoder's unit vectors of the same plain texts."""
    return (1.0 - (vectors_NH * untouched_NH).sum(dim=1)).mean()
