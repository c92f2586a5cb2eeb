import json
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, softmax
from statsmodels.stats.proportion import proportion_confint

from medduet.errors import ConfigError
from medduet.metrics.classification import reliability
from medduet.uncertainty.calibration import (
    COLDEST,
    HOTTEST,
    PERCENT,
    Calibration,
    calibration_summary,
)


def drawn(
    rng: np.random.Generator,
    n: int,
    classes: int = 3,
    temperature: float = 1.0,
    several: bool = False,
    bias: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels drawn from known probabilities, and what a network says whose logits are
    these times `temperature`. `bias` makes the last classes rare."""
    logits = 2.5 * rng.normal(size=(n, classes)) - bias * np.arange(classes)
    if several:
        return (rng.random((n, classes)) < expit(logits)).astype(int), expit(logits * temperature)
    share = softmax(logits, axis=1)
    label = (share.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return np.minimum(label, classes - 1), softmax(logits * temperature, axis=1)


both = pytest.mark.parametrize("several", [False, True], ids=["one label", "several labels"])


@both
@pytest.mark.parametrize("temperature", [0.4, 2.5])
def test_the_temperature_of_a_network_is_found(several: bool, temperature: float) -> None:
    label, said = drawn(np.random.default_rng(0), 8000, 4, temperature, several)
    calibration = Calibration.fit(label, said, several)
    assert calibration.temperature == pytest.approx(temperature, rel=0.05)


def test_probabilities_are_scaled_as_logits_would_be() -> None:
    fields: dict[str, Any] = {"set_thresholds": [[0.0] * 3] * 50, "n": 30, "counts": [10, 10, 10]}
    logits = np.random.default_rng(0).uniform(-30, 30, (200, 3))
    for temperature in (COLDEST, 0.7, 2.5, HOTTEST):
        single = Calibration(**fields, temperature=temperature)
        calibrated = single.calibrate(softmax(logits, axis=1))
        np.testing.assert_allclose(calibrated, softmax(logits / temperature, axis=1), atol=1e-9)
        several = Calibration(**fields, temperature=temperature, multi_label=True)
        calibrated = several.calibrate(expit(logits))
        np.testing.assert_allclose(calibrated, expit(logits / temperature), atol=1e-4)


def test_a_network_without_a_wrong_answer_does_not_become_sure() -> None:
    label = np.arange(24) % 2
    said = np.where(label[:, None] == [0, 1], 0.9, 0.1)
    calibrated = Calibration.fit(label, said).calibrate(said)
    # One image in 25 is of unknown class, which is 2% for the wrong one.
    assert calibrated.max() == pytest.approx(0.98, abs=1e-4)


@both
@pytest.mark.parametrize("coverage", [0.5, 0.9])
def test_sets_hold_what_they_promise_in_every_class(several: bool, coverage: float) -> None:
    """With 60 validation images, a few of them in the rarest class, and the same temperature."""
    rng, trials, held = np.random.default_rng(1), 400, []
    for _ in range(trials):
        label, said = drawn(rng, 260, 3, 1.8, several, bias=1.0)
        calibration = Calibration.fit(label[:60], said[:60], several)
        chosen = calibration.sets(calibration.calibrate(said[60:]), coverage)
        truth = label[60:] if several else np.eye(3, dtype=int)[label[60:]]
        held.append([(chosen & (truth == 1)).sum(axis=0), truth.sum(axis=0)])
    covered, possible = np.moveaxis(np.array(held), 1, 0)
    shares = covered.sum(axis=0) / possible.sum(axis=0)
    errors = (covered - coverage * possible).std(axis=0) * trials**0.5 / possible.sum(axis=0)
    assert (shares >= coverage - 3 * errors).all(), (shares, errors)
    assert covered.sum() / possible.sum() >= coverage - 3 * errors.min()


def test_thresholds_are_the_order_statistics_of_split_conformal() -> None:
    label = np.repeat([0, 1], [19, 10])
    own = np.concatenate([np.linspace(0.6, 0.96, 19), np.linspace(0.55, 0.64, 10)])
    said = np.where(label[:, None] == [0, 1], own[:, None], 1 - own[:, None])
    calibration = Calibration.fit(label, said)
    scores = [np.sort(calibration.calibrate(said)[label == k, k])[::-1] for k in (0, 1)]
    row = dict(zip(PERCENT, calibration.set_thresholds, strict=True))
    assert row[90] == [scores[0][17], scores[1][9]]  # ceil(20 * 0.9), ceil(11 * 0.9)
    assert row[90][0] > row[95][0]
    # At 95% ten images are too few; together 29 have ceil(30 * 0.95) = 29. At 97% none do.
    assert row[95] == [np.sort(np.concatenate(scores))[::-1][28]] * 2
    assert row[97] == [0.0, 0.0]


def test_a_coverage_between_two_is_rounded_up() -> None:
    label, said = drawn(np.random.default_rng(4), 500)
    calibration = Calibration.fit(label, said)
    sets = {x: calibration.sets(calibration.calibrate(said), x) for x in (0.9, 0.901, 0.91)}
    assert (sets[0.901] == sets[0.91]).all()
    assert (sets[0.9] != sets[0.91]).any()
    assert (calibration.sets(calibration.calibrate(said), 0.29 + 0.62) == sets[0.91]).all()
    for share in (0.49, 0.995, float("nan")):
        with pytest.raises(ConfigError, match=r"expected a coverage from 0.50 to 0.99"):
            calibration.sets(said, share)


@both
def test_unknown_labels_are_left_out(several: bool) -> None:
    label, said = drawn(np.random.default_rng(7), 200, 3, 1.5, several)
    unknown = np.random.default_rng(8).random(label.shape) < 0.3
    without = np.where(unknown, -1, label)
    once = Calibration.fit(without, said, several)
    more = np.concatenate([without, np.full_like(label, -1)])
    assert Calibration.fit(more, np.concatenate([said, said[::-1]]), several) == once
    if not several:
        assert Calibration.fit(label[~unknown], said[~unknown]) == once
        assert once.n == (~unknown).sum() == sum(once.counts)


@both
def test_the_summary_counts_what_sets_hold(several: bool) -> None:
    rng = np.random.default_rng(0)
    calibration = Calibration.fit(*drawn(rng, 400, 3, 2.0, several, 0.5), several)
    label, probability = drawn(rng, 300, 3, 2.0, several, 0.5)
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
