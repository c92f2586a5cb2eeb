"""An image of another kind is flagged, and of one's own kind few are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from medduet import ModelError
from medduet.data.reading.images import Picture
from medduet.runs.config import BundleConfig
from medduet.uncertainty.calibration import Calibration
from medduet.uncertainty.ood import OOD_P, Mahalanobis, OODDetector, statistics


def vectors(n: int, seed: int = 0, size: int = 12) -> np.ndarray:
    mixed = np.random.default_rng(99).normal(size=(size, size))
    return np.random.default_rng(seed).normal(size=(n, size)) @ mixed + 3


def images(n: int, seed: int = 0, channels: int = 1) -> np.ndarray:
    """Dark images with a bright lower half and a little noise."""
    rng = np.random.default_rng(seed)
    level = np.where(np.arange(24) < 12, 40, 150)[:, None]
    return (level + rng.normal(0, 12, (n, channels, 24, 24))).clip(0, 255).astype(np.uint8)


def test_the_distance_is_that_of_ledoit_and_wolf() -> None:
    train, other = vectors(60), vectors(30, 1)
    distance = Mahalanobis.fit(train, other, 12, rescale=False)
    expected = LedoitWolf().fit(train).mahalanobis(other)
    np.testing.assert_allclose(distance(other) ** 2, expected, rtol=0.02)
    # With few directions, all others share one variance: those that matter stay.
    few = Mahalanobis.fit(train, other, 5, rescale=False)
    assert np.corrcoef(few(other), distance(other))[0, 1] > 0.3
    assert np.shape(few.directions) == (5, 12)
    # Numbers of another unit are as near if they are scaled.
    units = 10.0 ** np.arange(-1, 11)
    one, two = (
        Mahalanobis.fit(train * by, other * by, 12, rescale=True)(other * by) for by in (1, units)
    )
    np.testing.assert_allclose(one, two, rtol=0.02)


def test_of_its_own_kind_five_in_a_hundred_are_flagged() -> None:
    flagged = []
    for seed in range(60):
        parts = [vectors(100, 3 * seed + part) for part in (1, 2, 3)]
        (train, seen_train), (val, seen_val), (test, seen) = (np.hsplit(x, 2) for x in parts)
        detector = OODDetector.fit(train, val, seen_train, seen_val, channels=3)
        flagged.append(np.mean(detector.p_values(seen, test) <= OOD_P))
    assert 0.035 < np.mean(flagged) <= 0.055


@pytest.mark.parametrize("channels", [1, 3])
def test_other_images_are_flagged(channels: int) -> None:
    train, val, test = (images(80, seed, channels) for seed in range(3))
    detector = OODDetector.fit(statistics(train), statistics(val), channels=channels)
    assert (detector.p_values(None, statistics(test)) <= OOD_P).mean() < 0.15
    others = {
        "noise": np.random.default_rng(0).integers(0, 256, test.shape, np.uint8),
        "upside down": test[:, :, ::-1],
        "negative": 255 - test,
        "black": np.zeros_like(test),
        "smooth": np.repeat(test.mean(axis=3, keepdims=True), 24, axis=3).astype(np.uint8),
    }
    if channels == 3:
        others["green"] = test * np.array([0, 1, 0], np.uint8)[:, None, None]
    for name, other in others.items():
        assert (detector.p_values(None, statistics(other)) == detector.smallest).all(), name


@pytest.mark.parametrize(
    ("shape", "coloured", "about", "odd"),
    [
        ((310, 100), 0.0, {}, True),
        ((100, 310), 0.0, {"stretched": False}, False),  # its black borders are seen
        ((100, 100), 0.3, {}, True),
        ((100, 100), 0.05, {}, False),  # a coloured marker is no colour image
        ((100, 100), 0.3, {"channels": 3}, False),
    ],
)
def test_colour_and_shape_before_the_fit_are_seen(
    shape: tuple[int, int], coloured: float, about: dict[str, Any], odd: bool
) -> None:
    train, val = (statistics(images(40, seed)) for seed in range(2))
    detector = OODDetector.fit(train, val, **{"channels": 1, "stretched": True} | about)
    picture = Picture(np.zeros((24, 24), np.uint8), np.zeros(shape, np.uint8), coloured)
    assert detector.odd(picture) == odd


def fitted() -> OODDetector:
    parts = (vectors(50), vectors(40, 1), vectors(50, 2, 70), vectors(40, 3, 70))
    return OODDetector.fit(*parts, channels=1)


def test_it_comes_back_from_json_as_it_was() -> None:
    detector, new, seen = fitted(), vectors(20, 5), vectors(20, 6, 70)
    assert np.shape(detector.features.directions) == (5, 70)
    back = OODDetector.model_validate_json(detector.model_dump_json())
    assert np.array_equal(detector.p_values(seen, new), back.p_values(seen, new))
    with pytest.raises(ModelError, match="features for the OOD detector"):
        back.p_values(vectors(3, 1, 71), vectors(3))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("ood plain mean", "????", "ood: "),
        ("ood plain scale", "AADAfw==", "ood: "),
        ("ood plain variance", [0.0] * 12, "ood: "),
        ("ood plain val_distances", [1.0], "ood: "),
        ("calibration temperature", 0.0, "temperature: Input should be greater"),
        ("calibration counts", [21, 90, 1], "90 of 60 images"),
        ("calibration set_thresholds", [[float("nan")] * 2] * 50, "set_thresholds"),
        ("calibration set_thresholds", [[0.1] * 2] * 49 + [[1.0] * 2], "fall with the coverage"),
        ("calibration multi_label", True, "not that of a network with 2 classes"),
    ],
)
def test_what_is_damaged_is_refused_in_one_line(place: str, value: Any, message: str) -> None:
    share = np.random.default_rng(0).dirichlet(np.ones(2), 60)
    calibration = Calibration.fit(np.arange(60) % 2, share).model_dump(mode="json")
    config: Any = {
        "network": {"in_channels": 1, "num_classes": 2},
        "class_names": ["a", "b"],
        "layout": {"mask_classes": 0, "image_channels": 0},
        "ood": fitted().model_dump(mode="json"),
        "calibration": calibration,
    }
    part, (*path, last) = config, place.split()
    for key in path:
        part = part[key]
    part[last] = value
    with pytest.raises(ModelError, match=message) as found:
        BundleConfig.check(config, Path("config.json"))
    assert "\n" not in str(found.value)
