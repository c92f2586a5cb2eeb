import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit, softmax

from medduet.errors import ConfigError, DataError, ModelError
from medduet.metrics.classification import accuracy
from medduet.runs.config import BundleConfig
from medduet.uncertainty.calibration import COLDEST, FEWEST, HOTTEST, PERCENT, Calibration


def drawn(rng, n, classes=3, temperature=1.0, multi_label=False, bias=0.0):
    """Return labels drawn from known probabilities, and what a network says whose logits are
    these times `temperature`. `bias` makes the last classes rare."""
    logits = 2.5 * rng.normal(size=(n, classes)) - bias * np.arange(classes)
    if multi_label:
        return (rng.random((n, classes)) < expit(logits)).astype(int), expit(logits * temperature)
    share = softmax(logits, axis=1)
    label = (share.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return np.minimum(label, classes - 1), softmax(logits * temperature, axis=1)


@pytest.fixture(params=[False, True], ids=["one label", "several labels"])
def multi_label(request):
    return request.param


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_of_a_network_is_found(multi_label, temperature):
    label, said = drawn(np.random.default_rng(0), 8000, 4, temperature, multi_label)
    calibration = Calibration.fit(label, said, multi_label)
    assert calibration.temperature == pytest.approx(temperature, rel=0.05)


@settings(max_examples=60, deadline=None)
@given(
    logits=arrays(np.float64, (7, 3), elements=st.floats(-30, 30)),
    temperature=st.floats(COLDEST, HOTTEST),
)
def test_probabilities_are_scaled_as_logits_would_be(logits, temperature):
    fields = {"set_thresholds": [[0.0] * 3] * 50, "n": 30}
    fields |= {"temperature": temperature, "counts": [10, 10, 10]}
    single = Calibration(**fields)
    probability = softmax(logits, axis=1)
    calibrated = single.calibrate(probability)
    np.testing.assert_allclose(calibrated, softmax(logits / temperature, axis=1), atol=1e-9)
    label = np.arange(7) % 3
    if (np.abs(np.diff(np.sort(logits, axis=1))) > 1e-6).all():  # no ties
        assert accuracy(label, calibrated) == accuracy(label, probability)
    several = Calibration(**fields, multi_label=True)
    np.testing.assert_allclose(
        several.calibrate(expit(logits)), expit(logits / temperature), atol=1e-4
    )


def test_a_network_without_a_wrong_answer_does_not_become_sure():
    label = np.arange(24) % 2
    said = np.where(label[:, None] == [0, 1], 0.9, 0.1)
    calibrated = Calibration.fit(label, said).calibrate(said)
    # One image in 25 is of unknown class, which is 2% for the wrong one.
    assert calibrated.max() == pytest.approx(0.98, abs=1e-4)


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95])
def test_sets_hold_what_they_promise_in_every_class(multi_label, coverage):
    """With 60 validation images, a few of them in the rarest class, and the same temperature."""
    rng = np.random.default_rng(1)
    trials, held = 400, []
    for _ in range(trials):
        label, said = drawn(rng, 260, 3, 1.8, multi_label, bias=1.0)
        calibration = Calibration.fit(label[:60], said[:60], multi_label)
        chosen = calibration.sets(calibration.calibrate(said[60:]), coverage)
        truth = label[60:] if multi_label else np.eye(3, dtype=int)[label[60:]]
        held.append([(chosen & (truth == 1)).sum(axis=0), truth.sum(axis=0)])
    covered, possible = np.moveaxis(np.array(held), 1, 0)
    shares = covered.sum(axis=0) / possible.sum(axis=0)
    errors = (covered - coverage * possible).std(axis=0) * trials**0.5 / possible.sum(axis=0)
    assert (shares >= coverage - 3 * errors).all(), (shares, errors)
    overall = covered.sum() / possible.sum()
    assert overall >= coverage - 3 * errors.min()


@pytest.mark.parametrize("coverage", [0.7, 0.9])
def test_sets_are_no_larger_than_the_promise_needs(coverage):
    """With continuous scores the coverage is at most the promise + 1 / (n + 1)."""
    rng, shares = np.random.default_rng(2), []
    for _ in range(200):
        label, said = drawn(rng, 400, 8, 1.0)
        calibration = Calibration.fit(label[:200], said[:200])
        raw = (
            calibration.calibrate(said[200:])
            >= calibration.set_thresholds[round(100 * coverage) - 50]
        )
        shares.append(raw[np.arange(200), label[200:]].mean())
    counts = 200 / 8
    error = np.std(shares) / 200**0.5
    assert np.mean(shares) <= coverage + 1.5 / counts + 3 * error


def test_thresholds_are_the_order_statistics_of_split_conformal():
    label = np.repeat([0, 1], [19, 10])
    own = np.concatenate([np.linspace(0.6, 0.96, 19), np.linspace(0.55, 0.64, 10)])
    said = np.where(label[:, None] == [0, 1], own[:, None], 1 - own[:, None])
    calibration = Calibration.fit(label, said)
    scores = [np.sort(calibration.calibrate(said)[label == k, k])[::-1] for k in (0, 1)]
    row = dict(zip(PERCENT, calibration.set_thresholds, strict=True))
    assert row[90] == [scores[0][17], scores[1][9]]  # ceil(20 * 0.9), ceil(11 * 0.9)
    assert row[90][0] > row[95][0]
    # At 95% ten images are too few; together 29 have ceil(30 * 0.95) = 29. At 97% none do.
    together = np.sort(np.concatenate(scores))[::-1]
    assert row[95] == [together[28]] * 2
    assert row[97] == [0.0, 0.0]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    classes=st.integers(2, 6),
    n=st.integers(FEWEST, 120),
    several=st.booleans(),
)
def test_sets_grow_with_coverage_and_json_keeps_everything(seed, classes, n, several):
    label, said = drawn(np.random.default_rng(seed), n, classes, 1.5, several)
    try:
        calibration = Calibration.fit(label, said, several)
    except DataError:
        assert len(np.unique(label)) == 1
        return
    again = Calibration.model_validate_json(calibration.model_dump_json())
    assert again == calibration
    calibrated = again.calibrate(said)
    assert (calibrated == calibration.calibrate(said)).all()
    before = again.sets(calibrated, 0.5)
    for percent in PERCENT[1:]:
        chosen = again.sets(calibrated, percent / 100)
        assert (chosen >= before).all()
        assert (chosen == calibration.sets(calibrated, percent / 100)).all()
        before = chosen
    assert several or before.any(axis=1).all()


def test_a_set_holds_the_most_probable_class_and_labels_may_have_none():
    label, said = drawn(np.random.default_rng(3), 300, 3)
    undecided = np.array([[0.34, 0.33, 0.33]])
    chosen = Calibration.fit(label, said).sets(undecided, 0.5)
    assert chosen.tolist() == [[True, False, False]]
    label, said = drawn(np.random.default_rng(3), 300, 3, multi_label=True)
    assert not Calibration.fit(label, said, True).sets(np.full((1, 3), 0.01), 0.5).any()


def test_a_coverage_between_two_is_rounded_up():
    label, said = drawn(np.random.default_rng(4), 500)
    calibration = Calibration.fit(label, said)
    calibrated = calibration.calibrate(said)
    for given_, taken in ((0.901, 0.91), (0.9, 0.9), (0.29 + 0.62, 0.91)):
        chosen = calibration.sets(calibrated, given_)
        assert (chosen == calibration.sets(calibrated, taken)).all()
    assert (chosen != calibration.sets(calibrated, 0.9)).any()


def test_unknown_labels_are_left_out(multi_label):
    label, said = drawn(np.random.default_rng(7), 200, 3, 1.5, multi_label)
    rng = np.random.default_rng(8)
    unknown, other = rng.random(label.shape) < 0.3, rng.random((50, 3))
    without = np.where(unknown, -1, label)
    once = Calibration.fit(without, said, multi_label)
    nothing = np.full((50, *label.shape[1:]), -1)
    again = Calibration.fit(
        np.concatenate([without, nothing]),
        np.concatenate([said, other / other.sum(axis=1, keepdims=True)]),
        multi_label,
    )
    assert again == once
    if not multi_label:
        fewer = Calibration.fit(label[~unknown], said[~unknown])
        assert fewer == once
        assert once.n == (~unknown).sum() == sum(once.counts)


def test_too_little_to_fit_is_refused():
    label, said = drawn(np.random.default_rng(9), 60, 2)
    with pytest.raises(DataError, match=r"expected 20 labelled images .* given 19"):
        Calibration.fit(label[:19], said[:19])
    with pytest.raises(DataError, match="two classes"):
        Calibration.fit(np.zeros(60, dtype=int), said)
    with pytest.raises(DataError, match="finite"):
        Calibration.fit(label, said + np.nan)
    with pytest.raises(DataError, match="from 0 to 1"):
        Calibration.fit(label, said * 3)


@pytest.mark.parametrize("share", [0.49, 0.995, -1.0, float("nan"), float("inf")])
def test_a_share_outside_is_refused(share):
    label, said = drawn(np.random.default_rng(9), 60)
    calibration = Calibration.fit(label, said)
    with pytest.raises(ConfigError, match=r"expected a coverage from 0.50 to 0.99"):
        calibration.sets(said, share)


def test_other_probabilities_than_those_of_the_network_are_refused():
    label, said = drawn(np.random.default_rng(9), 60)
    calibration = Calibration.fit(label, said)
    for call in (calibration.calibrate, lambda p: calibration.sets(p, 0.9)):
        with pytest.raises(ModelError, match=r"expected probabilities \(N, 3\)"):
            call(said[:, :2])
        with pytest.raises(ModelError, match="from 0 to 1"):
            call(said * np.nan)
        assert call(said[:0]).shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature: Input should be greater"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "1.5"}, "temperature: Input should be a valid number"),
        ({"temperature": 1e300}, "temperature"),
        ({"multi_label": 1}, "multi_label"),
        ({"n": 3}, "n: Input should be greater"),
        ({"n": 20, "counts": [21, 20, 1]}, "21 of 20 images"),
        ({"counts": []}, "counts"),
        ({"counts": [10, 10]}, "expected 2 thresholds"),
        ({"counts": [-1, 10, 10]}, "counts.0"),
        ({"counts": [10**30, 10, 10]}, "counts.0"),
        ({"set_thresholds": [[0.1] * 3] * 49}, "set_thresholds"),
        ({"set_thresholds": [[0.1] * 3] * 49 + [[0.1, 0.1]]}, "expected 3 thresholds"),
        ({"set_thresholds": [[1.5] * 3] * 50}, "set_thresholds.0"),
        ({"set_thresholds": [[float("nan")] * 3] * 50}, "set_thresholds.0"),
        ({"set_thresholds": [[0.1] * 3] * 49 + [[1.0] * 3]}, "a higher coverage needs a higher"),
        ({"more": 1}, "more: Extra inputs"),
        (None, "calibration: Input should be"),
        (["a"], "calibration: Input should be"),
    ],
)
def test_a_damaged_calibration_is_refused_in_one_line(change, message):
    label, probability = drawn(np.random.default_rng(9), 60)
    saved = Calibration.fit(label, probability).model_dump(mode="json")
    damaged = saved | change if isinstance(change, dict) else change or ""
    config = {"network": {"in_channels": 1, "num_classes": 3}, "calibration": damaged}
    with pytest.raises(ModelError, match="calibration: ") as caught:
        BundleConfig.check(config, Path("config.json"))
    assert message.replace(".", ": ") in str(caught.value).replace(".", ": ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    two = {"network": {"in_channels": 1, "num_classes": 2}, "class_names": ["a", "b"]}
    layout = {"layout": {"mask_classes": 0, "image_channels": 0}}
    with pytest.raises(ModelError, match="not that of a network with 2 classes"):
        BundleConfig.check(two | layout | {"calibration": saved}, Path("config.json"))


def test_calibrations_need_no_torch():
    code = "import sys, medduet.uncertainty.calibration; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
