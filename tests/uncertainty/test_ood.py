"""An image of another kind is flagged, and of one's own kind few are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from medduet import ModelError
from medduet.runs.config import BundleConfig
from medduet.uncertainty.calibration import Calibration
from medduet.uncertainty.ood import OOD_P, OODDetector, statistics


def vectors(n: int, seed: int = 0, size: int = 12) -> np.ndarray:
    mixed = np.random.default_rng(99).normal(size=(size, size))
    return np.random.default_rng(seed).normal(size=(n, size)) @ mixed + 3


def images(n: int, seed: int = 0, channels: int = 1) -> np.ndarray:
    """Dark images with a bright lower half and a little noise."""
    rng = np.random.default_rng(seed)
    level = np.where(np.arange(24) < 12, 40, 150)[:, None]
    return (level + rng.normal(0, 12, (n, channels, 24, 24))).clip(0, 255).astype(np.uint8)


def test_the_distance_is_that_of_ledoit_and_wolf_whatever_the_units() -> None:
    train, other = vectors(60), vectors(30, 1)
    detector = OODDetector.fit(train, other, channels=1)
    scale = train.std(axis=0)
    expected = LedoitWolf().fit(train / scale).mahalanobis(other / scale)
    np.testing.assert_allclose(detector.distances(other) ** 2, expected, rtol=0.02)
    units = 10.0 ** np.arange(-1, 11)
    scaled = OODDetector.fit(train * units, other * units, channels=1)
    np.testing.assert_allclose(scaled.val_distances, detector.val_distances, rtol=0.02)


def test_of_its_own_kind_five_in_a_hundred_are_flagged() -> None:
    flagged = []
    for seed in range(60):
        train, val, test = (vectors(100, 3 * seed + part) for part in (1, 2, 3))
        detector = OODDetector.fit(train, val, channels=3)
        flagged.append(np.mean(detector.p_values(test) <= OOD_P))
    assert 0.035 < np.mean(flagged) <= 0.055


@pytest.mark.parametrize("channels", [1, 3])
def test_other_images_are_flagged(channels: int) -> None:
    train, val, test = (images(80, seed, channels) for seed in range(3))
    detector = OODDetector.fit(statistics(train), statistics(val), channels=channels)
    assert (detector.p_values(statistics(test)) <= OOD_P).mean() < 0.15
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
        assert (
            detector.p_values(statistics(other)) == 1 / (1 + len(detector.val_distances))
        ).all(), name


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
    assert detector.odd(shape, coloured) == odd


def fitted() -> OODDetector:
    return OODDetector.fit(vectors(50), vectors(40, 1), channels=1)


def test_it_comes_back_from_json_as_it_was() -> None:
    detector, new = fitted(), vectors(20, 5)
    back = OODDetector.model_validate_json(detector.model_dump_json())
    assert np.array_equal(detector.p_values(new), back.p_values(new))
    with pytest.raises(ModelError, match="expected 12 statistics for the OOD detector, given 13"):
        back.p_values(vectors(3, 1, 13))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("ood mean", "????", r"ood\.mean: "),
        ("ood mean", "AADAfw==", r"ood\.mean: "),
        ("ood whitening", "AACAPw==", "ood: "),
        ("ood val_distances", [-1.0], "ood"),
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
