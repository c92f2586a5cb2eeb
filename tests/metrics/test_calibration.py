"""Reliability and the calibration error, against torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_calibration_error,
)

from medduet.errors import DataError
from medduet.metrics.calibration import reliability


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 200),
    classes=st.integers(2, 9),
    bins=st.integers(1, 30),
)
def test_the_error_is_that_of_torchmetrics(seed: int, n: int, classes: int, bins: int) -> None:
    rng = np.random.default_rng(seed)
    probability = softmax(3 * rng.normal(size=(n, classes)), axis=1)
    label = rng.integers(0, classes, n)
    expected = multiclass_calibration_error(
        torch.from_numpy(probability), torch.from_numpy(label), classes, n_bins=bins
    )
    found = reliability(label, probability, bins=bins).error
    assert found == pytest.approx(float(expected), abs=1e-6)
    several = rng.integers(0, 2, (n, classes))
    expected = binary_calibration_error(
        torch.from_numpy(probability).flatten(), torch.from_numpy(several).flatten(), n_bins=bins
    )
    found = reliability(several, probability, True, bins=bins).error
    assert found == pytest.approx(float(expected), abs=1e-6)


def test_bins_are_counted_by_confidence_and_unknown_labels_left_out() -> None:
    probability = [[1.0, 0.0], [0.95, 0.05], [0.4, 0.6], [0.9, 0.1]]
    diagram = reliability([0, 1, 1, -1], probability)
    assert diagram.n.tolist() == [0] * 9 + [1] + [0] * 4 + [2]
    assert diagram.confidence[14] == pytest.approx(0.975)
    assert (diagram.frequency[14], diagram.frequency[9]) == (0.5, 1.0)
    assert np.isnan(diagram.frequency[0])
    assert diagram.error == pytest.approx((0.4 + 2 * 0.475) / 3)
    nothing = reliability([-1], [[0.5, 0.5]])
    assert nothing.n.sum() == 0
    assert np.isnan(nothing.error)
    with pytest.raises(DataError, match="expected label"):
        reliability([0, 1], [[0.5, 0.5]])
