"""Corruptions do what they are called, the same each time, and move nothing."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from medduet import Batch, open_images
from medduet.data.augment import build_augmentation
from medduet.data.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    corrupt,
    corrupt_split,
)
from medduet.data.imageset import Split


def scene(channels: int = 3, side: int = 40) -> Tensor:
    """Smooth blobs with some texture, in colours."""
    rng = np.random.default_rng(0)
    rough = ndimage.gaussian_filter(rng.random((channels, side, side)), (0, 2, 2))
    rough = (rough - rough.min()) / np.ptp(rough)
    return torch.from_numpy((40 + 170 * rough).astype(np.uint8))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_severity_is_worse(name: str) -> None:
    image = scene()
    found = [corrupt(image, name, severity, 3) for severity in SEVERITIES]
    assert all(each.dtype == torch.uint8 and each.shape == image.shape for each in found)
    far = [(each.float() - image.float()).square().mean().item() for each in found]
    assert far[0] > 0.1
    assert far == sorted(far)


@pytest.mark.parametrize(
    ("name", "severity", "expected"),
    [
        ("gaussian_noise", 2, 0.08),
        ("speckle_noise", 3, 0.3 * 128 / 255),
        ("shot_noise", 2, (128 / 255 / 60) ** 0.5),
    ],
)
def test_noise_has_the_spread_that_it_says(name: str, severity: int, expected: float) -> None:
    grey = torch.full((1, 200, 200), 128, dtype=torch.uint8)
    spread = float(corrupt(grey, name, severity, 0).float().std()) / 255
    assert spread == pytest.approx(expected, rel=0.05)


def test_blurs_are_those_of_scipy() -> None:
    image = scene(1, 60)
    pixels = image[0].numpy().astype(float)
    expected = ndimage.gaussian_filter(pixels, 0.05 * 60, mode="nearest", radius=9)
    found = corrupt(image, "gaussian_blur", 5, 0)[0].numpy()
    np.testing.assert_allclose(found, expected, atol=0.7)
    dot = torch.zeros(1, 61, 61, dtype=torch.uint8)
    dot[0, 30, 30] = 255
    for name in ("defocus_blur", "motion_blur"):
        spread = corrupt(dot, name, 3, 1)[0].numpy().astype(float)
        assert spread.sum() == pytest.approx(255, abs=20)
        centre = ndimage.center_of_mass(spread)
        assert centre == pytest.approx((30, 30), abs=0.1), "a blur moves what it blurs"
    rows, columns = np.nonzero(spread)
    length = np.hypot(np.ptp(rows), np.ptp(columns)) + 1
    assert length == pytest.approx(0.12 * 61, abs=3)


@pytest.mark.parametrize(
    ("name", "brightness", "contrast"),
    [
        ("brightness_up", 1, 1),
        ("brightness_down", -1, -1),
        ("contrast_up", 0, 1),
        ("contrast_down", 0, -1),
        ("gamma_up", -1, 0),  # the exponent goes up, so that mid tones go down
        ("gamma_down", 1, 0),
    ],
)
def test_up_is_up(name: str, brightness: int, contrast: int) -> None:
    image = (0.5 * scene(1).float() + 40).to(torch.uint8)
    result = corrupt(image, name, 2, 0).float()
    for sign, ratio in (
        (brightness, result.mean() / image.float().mean()),
        (contrast, result.std() / image.float().std()),
    ):
        assert sign == 0 or sign * (ratio - 1) > 0.05


def test_each_image_has_its_own_noise() -> None:
    images = np.full((3, 24, 24), 128, np.uint8)
    split = Split(images, np.zeros(3, np.int64))
    for name in ("gaussian_noise", "speckle_noise", "shot_noise", "impulse_noise"):
        noisy = corrupt_split(split, name, 3).images[:]
        assert len({image.tobytes() for image in noisy}) == 3, name
        assert abs(np.corrcoef(noisy[0].ravel(), noisy[1].ravel())[0, 1]) < 0.2, name


@pytest.mark.parametrize("channels", [1, 3])
def test_a_split_is_corrupted_as_it_is_read(channels: int) -> None:
    split = open_images("phantom", size=24, count=40, channels=channels).train
    view = corrupt_split(split, "gaussian_noise", 3)
    whole = view.images[:]
    assert whole.dtype == np.uint8
    assert whole.shape == split.images.shape
    index = np.array([7, 2, 7])
    assert np.array_equal(view.images[index], whole[index])
    assert torch.equal(view.batch(index).mask, split.batch(index).mask)
    assert np.array_equal(view.take(np.array([5, 6])).images[:], whole[5:7])
    assert not np.array_equal(corrupt_split(split, "gaussian_noise", 4).images[:1], whole[:1])


def test_the_augmentation_spoils_half_and_can_be_repeated() -> None:
    data = open_images("phantom", size=16, count=20)
    augment = build_augmentation("corrupt", data, "ultrasound")
    image = scene(1, 24).expand(400, -1, -1, -1)
    index = torch.arange(400)
    batch = Batch(image, index, torch.ones(400, 24, 24, dtype=torch.int64), index >= 0, index)
    torch.manual_seed(1)
    found, state = augment(batch), torch.get_rng_state()
    changed = (found.image != image / 255).flatten(1).any(dim=1)
    assert 160 < changed.sum() < 240
    assert len({each.numpy().tobytes() for each in found.image}) > 60
    assert found.image.dtype == torch.float32
    assert found.mask is batch.mask
    assert torch.equal(image, scene(1, 24).expand(400, -1, -1, -1)), "what came in was changed"
    torch.manual_seed(1)
    assert torch.equal(augment(batch).image, found.image)
    assert torch.equal(torch.get_rng_state(), state)
