"""Calibration error, and what sets and abstention give on a split that they were not fitted on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from statsmodels.stats.proportion import proportion_confint
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_calibration_error,
)

from medduet.errors import DataError
from medduet.metrics.calibrated import calibration_summary, expected_calibration_error, reliability
from medduet.uncertainty.calibration import Calibration


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
    found = expected_calibration_error(label, probability, bins=bins)
    assert found == pytest.approx(float(expected), abs=1e-6)
    several = rng.integers(0, 2, (n, classes))
    expected = binary_calibration_error(
        torch.from_numpy(probability).flatten(), torch.from_numpy(several).flatten(), n_bins=bins
    )
    found = expected_calibration_error(several, probability, True, bins=bins)
    assert found == pytest.approx(float(expected), abs=1e-6)


def test_probabilities_that_are_true_have_hardly_an_error() -> None:
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(40_000, 3))
    probability = softmax(logits, axis=1)
    label = (probability.cumsum(axis=1) < rng.random((40_000, 1))).sum(axis=1)
    # Fifteen bins, each off by its sampling error: about (15 / 40,000) ** 0.5 * 0.4 in all.
    assert expected_calibration_error(label, probability) < 0.015
    assert expected_calibration_error(label, softmax(3 * logits, axis=1)) > 0.08
    several = (rng.random(logits.shape) < expit(logits)).astype(int)
    assert expected_calibration_error(several, expit(logits), True) < 0.015
    assert expected_calibration_error(several, expit(3 * logits), True) > 0.08


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
    with pytest.raises(DataError, match="expected probability"):
        reliability([0, 1], [[0.5, 0.5]])


def drawn(seed: int, n: int, several: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(n, 3)) - [0, 0.5, 1]
    if several:
        return (rng.random((n, 3)) < expit(logits)).astype(int), expit(2 * logits)
    share = softmax(logits, axis=1)
    label = (share.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return label, softmax(2 * logits, axis=1)


@pytest.mark.parametrize("several", [False, True])
def test_the_summary_counts_what_sets_hold(several: bool) -> None:
    calibration = Calibration.fit(*drawn(0, 400, several), several)
    label, probability = drawn(1, 300, several)
    label[:20] = -1
    found = calibration_summary(calibration, label, probability, ["a", "b", "c"])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    label, calibrated = label[20:], calibration.calibrate(probability[20:])
    assert found["n"] == 280
    assert found["ece_after"] == expected_calibration_error(label, calibrated, several)
    assert found["ece_before"] == expected_calibration_error(label, probability[20:], several)
    assert found["ece_after"] < found["ece_before"]
    for coverage, row in ((0.8, found["sets"]["0.80"]), (0.95, found["sets"]["0.95"])):
        chosen = calibration.sets(calibrated, coverage)
        has = label == 1 if several else label[:, None] == np.arange(3)
        assert row["n"] == has.sum()
        assert row["coverage"] == (chosen & has).sum() / has.sum()
        assert row["size"] == pytest.approx(chosen.sum(axis=1).mean())
        for k, name in enumerate("abc"):
            part, own = row["per_class"][name], has[:, k]
            assert (part["n"], part["coverage"]) == (own.sum(), chosen[own, k].mean())
            assert part["size"] == pytest.approx(chosen[own].sum(axis=1).mean())
            low, high = proportion_confint(chosen[own, k].sum(), own.sum(), method="wilson")
            assert part["coverage_interval"] == pytest.approx([low, high])
        assert (row["coverage_interval"] is None) == several
    told = found["abstention"]["0.90"]
    assert told["below"] == calibration.threshold(0.9)
    confidence = np.maximum(calibrated, 1 - calibrated) if several else calibrated.max(axis=1)
    right = (calibrated > 0.5) == label if several else calibrated.argmax(axis=1) == label
    answered = confidence >= told["below"]
    assert told["n"] == answered.sum()
    assert told["answered"] == answered.mean()
    assert told["accuracy"] == right[answered].mean()


def test_a_split_without_labels_and_a_network_that_is_never_right() -> None:
    rng = np.random.default_rng(3)
    label = rng.integers(0, 2, 200)
    guesses = rng.dirichlet([1, 1], 200)
    calibration = Calibration.fit(label, guesses)
    found = calibration_summary(calibration, np.full(4, -1), guesses[:4], ["a", "b"])
    assert (found["n"], found["ece_before"], found["sets"]["0.90"]["size"]) == (0, None, None)
    assert found["sets"]["0.90"]["per_class"]["a"]["coverage"] is None
    assert found["abstention"] == {"0.90": None, "0.95": None}
    json.dumps(found, allow_nan=False)
