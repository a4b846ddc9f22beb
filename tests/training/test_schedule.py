"""How a run spends its budget."""

import pytest

from dualview.training.schedule import learning_rate_scale


def test_the_learning_rate_rises_over_the_warm_up_and_falls_to_zero():
    scales = [learning_rate_scale(step, 100, 0.1) for step in range(101)]
    assert scales[0] == pytest.approx(0.1)
    assert scales[9] == scales[10] == 1.0
    assert scales[55] == pytest.approx(0.5)
    assert scales[100] == 0.0
