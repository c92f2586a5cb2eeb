"""Corruptions do what they are called, the same each time, and move nothing."""

from __future__ import annotations

import random
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from medduet import Batch, ConfigError, open_images
from medduet.data.augment import build_augmentation
from medduet.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt, corrupted, corruptions_of
from medduet.data.medmnistc import medmnistc_corruptions, spoilt


def scene(count: int = 2, channels: int = 3, side: int = 40) -> Tensor:
    """Smooth blobs with some texture, in colours."""
    rng = np.random.default_rng(0)
    rough = ndimage.gaussian_filter(rng.random((count, channels, side, side)), (0, 0, 2, 2))
    rough = (rough - rough.min()) / np.ptp(rough)
    return torch.from_numpy((40 + 170 * rough).astype(np.uint8))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_severity_is_worse_and_the_same_in_any_batch(name: str) -> None:
    image = scene()
    found = [corrupt(image, name, [severity] * 2, [3, 4]) for severity in SEVERITIES]
    assert all(each.dtype == torch.uint8 and each.shape == image.shape for each in found)
    far = [(each.float() - image.float()).square().mean().item() for each in found]
    assert far[0] > 0.1
    assert far == sorted(far)
    alone = [corrupt(image[i : i + 1], name, [4], [3 + i]) for i in range(2)]
    assert torch.equal(torch.cat(alone), found[3])
    mixed = corrupt(image, name, [2, 5], [3, 4])
    assert torch.equal(mixed[0], found[1][0])
    assert torch.equal(mixed[1], found[4][1])


def test_noise_has_the_spread_that_it_says() -> None:
    grey = torch.full((1, 1, 200, 200), 128, dtype=torch.uint8)

    def spread(name: str, severity: int) -> float:
        return float(corrupt(grey, name, [severity], [0]).float().std()) / 255

    half = 128 / 255
    assert spread("gaussian_noise", 2) == pytest.approx(0.08, rel=0.05)
    assert spread("speckle_noise", 3) == pytest.approx(0.3 * half, rel=0.05)
    assert spread("shot_noise", 2) == pytest.approx((half / 60) ** 0.5, rel=0.05)
    changed = corrupt(grey, "impulse_noise", [4], [0]) != 128
    assert float(changed.float().mean()) == pytest.approx(0.1, rel=0.1)


def test_blurs_are_those_of_scipy() -> None:
    image = scene(1, 1, 60)
    pixels = image[0, 0].numpy().astype(float)
    expected = ndimage.gaussian_filter(pixels, 0.05 * 60, mode="nearest", radius=9)
    found = corrupt(image, "gaussian_blur", [5], [0])[0, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=0.6)
    dot = torch.zeros(1, 1, 61, 61, dtype=torch.uint8)
    dot[0, 0, 30, 30] = 255
    for name in ("defocus_blur", "motion_blur"):
        spread = corrupt(dot, name, [3], [1])[0, 0].numpy().astype(float)
        assert spread.sum() == pytest.approx(255, abs=20)
        centre = ndimage.center_of_mass(spread)
        assert centre == pytest.approx((30, 30), abs=0.1), "a blur moves what it blurs"
    rows, columns = np.nonzero(spread)
    length = np.hypot(np.ptp(rows), np.ptp(columns)) + 1
    assert length == pytest.approx(0.12 * 61, abs=3)


def test_each_modality_has_its_own() -> None:
    for modality in ("auto", "xray", "ultrasound", "ct", "mri", "fundus", "oct", "microscopy"):
        assert {"jpeg", "pixelate"} <= {*corruptions_of(modality, 1)}
        assert "dark_corners" not in corruptions_of(modality, 3)
    assert "dark_corners" in corruptions_of("dermoscopy", 3)
    assert "saturation_up" in corruptions_of("microscopy", 3)
    assert "saturation_up" not in corruptions_of("microscopy", 1)
    assert len(corruptions_of("auto", 1)) == len(CORRUPTIONS) - 3


@pytest.mark.parametrize("channels", [1, 3])
def test_a_split_is_corrupted_as_it_is_read(channels: int) -> None:
    split = open_images("phantom", size=24, count=40, channels=channels).train
    view = corrupted(split, "gaussian_noise", 3)
    whole = view.images[:]
    assert whole.dtype == np.uint8
    assert whole.shape == split.images.shape
    assert not np.array_equal(whole[0] - split.images[:1][0], whole[1] - split.images[1:2][0])
    index = np.array([7, 2, 7])
    assert np.array_equal(view.images[index], whole[index])
    assert torch.equal(view.batch(index).mask, split.batch(index).mask)
    assert np.array_equal(view.take(np.array([5, 6])).images[:], whole[5:7])
    assert not np.array_equal(corrupted(split, "gaussian_noise", 4).images[:1], whole[:1])


def test_the_augmentation_spoils_half_and_can_be_repeated() -> None:
    data = open_images("phantom", size=16, count=20)
    augment = build_augmentation("corrupt", data, "ultrasound")
    image = scene(1, 1, 24).expand(400, -1, -1, -1)
    index = torch.arange(400)
    batch = Batch(image, index, torch.ones(400, 24, 24, dtype=torch.int64), index >= 0, index)
    torch.manual_seed(1)
    found, state = augment(batch), torch.get_rng_state()
    changed = (found.image != image / 255).flatten(1).any(dim=1)
    assert 160 < changed.sum() < 240
    assert len({each.numpy().tobytes() for each in found.image}) > 60
    assert found.image.dtype == torch.float32
    assert found.mask is batch.mask
    assert torch.equal(image, scene(1, 1, 24).expand(400, -1, -1, -1)), "what came in was changed"
    torch.manual_seed(1)
    assert torch.equal(augment(batch).image, found.image)
    assert torch.equal(torch.get_rng_state(), state)


def test_medmnistc_is_used_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "medmnistc.corruptions.registry", None)
    with pytest.raises(ConfigError, match="pip install --no-deps medmnistc"):
        medmnistc_corruptions("breastmnist", (224, 224))

    class Noise:
        def apply(self, image: Image.Image, severity: int) -> Any:
            assert image.mode == "RGB"
            pixels = np.fromstring(np.asarray(image).tobytes(), np.uint8)  # as the package does
            noise = np.random.normal(0, 10, image.size) + random.random()  # noqa: NPY002
            pixels = pixels.reshape(*image.size, 3) + noise[..., None] + severity
            return pixels.clip(0, 255).astype(np.uint8)

    registry = types.ModuleType("medmnistc.corruptions.registry")
    registry.CORRUPTIONS_DS = {"breastmnist": {"noise": Noise()}}
    monkeypatch.setitem(sys.modules, "medmnistc.corruptions.registry", registry)
    for flag, size in (("busi", (224, 224)), (None, (224, 224)), ("breastmnist", (28, 28))):
        with pytest.raises(ConfigError, match="breastmnist --size 224"):
            medmnistc_corruptions(flag, size)
    one = medmnistc_corruptions("breastmnist", (224, 224))["noise"]
    image = np.full((224, 224), 100, np.uint8)
    np.random.seed(5)  # noqa: NPY002
    state = np.random.get_state()[1].tolist()  # noqa: NPY002
    found = spoilt(one, image, 5, seed=1)
    assert found.shape == image.shape
    assert found.mean() == pytest.approx(104, abs=1)
    assert np.array_equal(found, spoilt(one, image, 5, seed=1))
    assert not np.array_equal(found, spoilt(one, image, 5, seed=2))
    assert np.random.get_state()[1].tolist() == state, "a global generator was moved"  # noqa: NPY002
