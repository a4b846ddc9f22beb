import math

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
import torch

from dualview.training.losses import (
    base_distillation,
    distillation,
    info_nce,
    leave_out_false_negatives,
    truncated,
)


def relations(num_positives):
    """(V, D) matrices whose rows have a number of positives from the given range."""
    return st.integers(2, 7).flatmap(
        lambda D: st.lists(
            st.lists(st.sampled_from([1, -1, 0]), min_size=D, max_size=D).filter(
                lambda row: row.count(1) in num_positives
            ),
            min_size=1,
            max_size=5,
        )
    )


@given(relations([1]), st.floats(0.01, 1.0), st.integers(0, 2**31))
def test_with_one_positive_it_is_cross_entropy_over_the_documents_that_are_not_left_out(
    relation, temperature, seed
):
    relation_VD = torch.tensor(relation)
    scores_VD = torch.rand(relation_VD.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    losses_V = info_nce(scores_VD, relation_VD, temperature)
    for row, own, loss in zip(scores_VD.double(), relation_VD, losses_V, strict=True):
        kept = own != 0
        target = (own[kept] == 1).nonzero()[0]
        expected = torch.nn.functional.cross_entropy(row[kept][None] / temperature, target)
        assert float(loss) == pytest.approx(float(expected), rel=1e-5, abs=1e-5)  # float32 logits up to 100


@given(relations([1, 2, 3]), st.integers(0, 2**31))
def test_each_positive_stands_against_the_negatives_alone(relation, seed):
    scores = np.random.default_rng(seed).uniform(-1, 1, np.shape(relation))
    losses = info_nce(torch.tensor(scores), torch.tensor(relation), 0.1)
    for row, own, loss in zip(scores / 0.1, relation, losses, strict=True):
        negatives = sum(math.exp(s) for s, label in zip(row, own, strict=True) if label == -1)
        terms = [
            -math.log(math.exp(s) / (math.exp(s) + negatives))
            for s, label in zip(row, own, strict=True)
            if label == 1
        ]
        assert float(loss) == pytest.approx(sum(terms) / len(terms), rel=1e-4, abs=1e-5)


def test_gradients_equal_those_of_cross_entropy_in_float64():
    scores_VD = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    relation_VD = torch.full((4, 9), -1)
    relation_VD[range(4), range(4)] = 1
    info_nce(scores_VD, relation_VD, 0.05).sum().backward()
    reference = scores_VD.detach().double().requires_grad_()
    torch.nn.functional.cross_entropy(reference / 0.05, torch.arange(4), reduction="sum").backward()
    torch.testing.assert_close(scores_VD.grad, reference.grad.float(), rtol=1e-4, atol=1e-5)


def test_a_view_without_negatives_teaches_nothing():
    scores_VD = torch.tensor([[0.3, 0.9]], requires_grad=True)
    loss = info_nce(scores_VD, torch.tensor([[1, 0]]), 0.02)
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert scores_VD.grad.tolist() == [[0.0, 0.0]]


def test_a_view_without_a_positive_has_no_loss():
    loss = info_nce(torch.zeros(2, 2), torch.tensor([[1, -1], [-1, -1]]), 0.02)
    assert loss.isnan().tolist() == [False, True]


def test_base_distillation_is_zero_for_an_untouched_vector_and_two_for_an_opposite_one():
    vectors = torch.nn.functional.normalize(torch.randn(3, 4), dim=1)
    assert float(base_distillation(vectors, vectors)) == pytest.approx(0, abs=1e-6)
    assert float(base_distillation(-vectors, vectors)) == pytest.approx(2 * len(vectors), abs=1e-5)


def test_unlabelled_passages_above_the_best_positive_are_left_out():
    scores_VD = torch.tensor([[0.5, 0.7, 0.56, 0.9, 0.54]])
    relation_VD = torch.tensor([[1, -1, -1, -1, -1]])
    known_VD = torch.tensor([[True, True, False, False, False]])
    left = leave_out_false_negatives(scores_VD, relation_VD, known_VD, 0.05)
    assert left.tolist() == [[1, -1, 0, 0, -1]]  # the view's own labels stay, regardless of score


def test_distillation_is_the_divergence_from_the_judge_over_what_it_saw():
    scores_VD = torch.tensor(
        [[0.1, 0.9, -0.4, 0.3], [0.2, 0.1, 0.0, 0.5]], dtype=torch.float64, requires_grad=True
    )
    margins_VD = torch.tensor(
        [[2.0, float("nan"), -1.0, 0.5], [float("nan")] * 3 + [1.0]], dtype=torch.float64
    )
    losses = distillation(scores_VD, margins_VD, 0.1)
    seen = [0, 2, 3]
    expected = torch.nn.functional.kl_div(
        torch.log_softmax(scores_VD[0, seen] / 0.1, dim=0),
        margins_VD[0, seen].softmax(dim=0),
        reduction="sum",
    )
    assert losses[0].item() == pytest.approx(expected.item())
    assert losses[1].item() == 0.0  # one answer says nothing about an order
    gradient = torch.autograd.grad(losses.sum(), scores_VD)[0]
    of_expected = torch.autograd.grad(expected, scores_VD)[0]
    torch.testing.assert_close(gradient, of_expected)


def test_truncated_vectors_are_of_unit_length_again():
    vectors = torch.nn.functional.normalize(torch.randn(3, 8), dim=1)
    assert truncated(vectors, 8) is vectors
    torch.testing.assert_close(truncated(vectors, 4).norm(dim=1), torch.ones(3))
