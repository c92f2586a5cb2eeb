"""Coverage of sets on a split that the calibration was not fitted on."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import expit, softmax
from statsmodels.stats.proportion import proportion_confint

from medduet.metrics.classification import reliability
from medduet.uncertainty.calibration import Calibration
from medduet.uncertainty.summary import calibration_summary


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
    summary = calibration_summary(calibration, label, probability, ["a", "b", "c"])
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    label, probability = label[20:], probability[20:]
    calibrated = calibration.calibrate(probability)
    assert summary["n"] == 280
    assert summary["ece_before"] == reliability(label, probability, several).error
    assert summary["ece_after"] == reliability(label, calibrated, several).error
    assert summary["ece_after"] < summary["ece_before"]
    has = label == 1 if several else label[:, None] == np.arange(3)
    for coverage, row in ((0.8, summary["sets"]["0.80"]), (0.95, summary["sets"]["0.95"])):
        chosen = calibration.sets(calibrated, coverage)
        assert (row["n"], row["coverage"]) == (has.sum(), (chosen & has).sum() / has.sum())
        assert row["size"] == pytest.approx(chosen.sum(axis=1).mean())
        assert (row["coverage_interval"] is None) == several
        for k, name in enumerate("abc"):
            part, own = row["per_class"][name], has[:, k]
            assert (part["n"], part["coverage"]) == (own.sum(), chosen[own, k].mean())
            assert part["size"] == pytest.approx(chosen[own].sum(axis=1).mean())
            interval = proportion_confint(chosen[own, k].sum(), own.sum(), method="wilson")
            assert part["coverage_interval"] == pytest.approx(interval)
    nothing = calibration_summary(
        calibration, np.full_like(label, -1), probability, ["a", "b", "c"]
    )
    assert (nothing["n"], nothing["ece_before"], nothing["sets"]["0.90"]["size"]) == (0, None, None)
    assert nothing["sets"]["0.90"]["per_class"]["a"]["coverage"] is None
    json.dumps(nothing, allow_nan=False)
