"""Corruptions are those of MedMNIST-C, the same each time, and move nothing."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medduet import open_images
from medduet.data.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    corrupt,
    corrupt_split,
    corruptions_of,
)
from medduet.types import Modality

GREY = np.array([0.299, 0.587, 0.114])


def scene(channels: int = 3, side: int = 224) -> Tensor:
    """Smooth blobs with some texture, in colours."""
    rng = np.random.default_rng(0)
    rough = ndimage.gaussian_filter(rng.random((channels, side, side)), (0, 2, 2))
    rough = (rough - rough.min()) / np.ptp(rough)
    return torch.from_numpy((40 + 170 * rough).astype(np.uint8))


@pytest.mark.parametrize("side", [28, 224])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_severity_is_worse(name: str, side: int) -> None:
    image, far = scene(side=side), []
    for severity in SEVERITIES:
        results = [corrupt(image, name, severity, seed) for seed in range(8)]
        assert all(each.dtype == torch.uint8 and each.shape == image.shape for each in results)
        far.append(np.mean([(each.float() - image).abs().mean() for each in results]))
    # Of three the number is drawn, zooms have fewer steps, and corners are blackest at severity 4.
    rough = name in ("stain_deposit", "bubble", "characters", "zoom_blur", "black_corner")
    assert 0 < far[0] < far[-1] if rough else far[0] > 0 and far == sorted(far)


RADII = np.hypot(*np.mgrid[-112:112, -112:112])
DISK = (RADII[109:116, 109:116] <= 3)[..., None] / 29
PIXELS: dict[tuple[str, str, int], Callable[[NDArray[Any]], Any]] = {
    ("pathmnist", "brightness_up", 5): lambda x: 1.25 * x,
    ("breastmnist", "brightness_down", 1): lambda x: 0.55 * x,
    ("dermamnist", "contrast_up", 5): lambda x: 1.6 * x - 0.6 * round((x @ GREY).mean()),
    ("organamnist", "gamma_corr_up", 5): lambda x: 255.999 * (x / 255) ** 2,
    ("pathmnist", "saturate", 5): lambda x: (
        255 * hsv_to_rgb((rgb_to_hsv(x / 255) + np.array([0, 0.25, 0])).clip(0, 1))
    ),
    ("chestmnist", "gaussian_blur", 5): lambda x: ndimage.gaussian_filter(
        x, 2, axes=(0, 1), radius=5, mode="mirror"
    ).round(),
    ("pathmnist", "defocus_blur", 1): lambda x: ndimage.correlate(x, DISK, mode="mirror"),
    ("dermamnist", "black_corner", 4): lambda x: x * (RADII <= 100)[..., None],
}


@pytest.mark.parametrize("which", PIXELS)
def test_pixels_are_those_of_other_libraries(which: tuple[str, str, int]) -> None:
    listing, name, severity = which
    image = scene()
    image[:, :20, :20] = 128
    expected = PIXELS[which](image.movedim(0, 2).numpy().astype(float))
    result = corrupt(image, name, severity, 0, listing).movedim(0, 2).numpy().astype(float)
    difference = np.abs(result - np.clip(np.floor(expected + 1e-3), 0, 255))
    assert difference.max() <= 1
    assert difference.mean() < 0.1


@pytest.mark.parametrize(
    ("listing", "name", "expected"),
    [
        ("dermamnist", "gaussian_noise", 0.12),
        ("octmnist", "speckle_noise", 0.4 * 128 / 255),
        ("pneumoniamnist", "shot_noise", (128 / 255 / 150) ** 0.5),
        ("tissuemnist", "impulse_noise", 0.02**0.5 * 127.5 / 255),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_noise_has_the_spread_that_it_says(
    listing: str, name: str, expected: float, channels: int
) -> None:
    grey = torch.full((channels, 200, 200), 128, dtype=torch.uint8)
    result = corrupt(grey, name, 3, 0, listing).float()
    if (listing, channels) == ("dermamnist", 3):
        assert not torch.equal(result[0], result[1])
    else:  # grey images, RGB or not
        assert torch.equal(result[0], result[-1])
        expected *= np.linalg.norm(GREY)
    assert float(result.std()) / 255 == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur"])
def test_small_images_are_blurred_as_large_ones(name: str) -> None:
    small = scene(side=28)
    large = corrupt(small.repeat_interleave(8, 1).repeat_interleave(8, 2), name, 5, 0)
    expected = large.float().unfold(1, 8, 8).unfold(2, 8, 8).mean((-1, -2))
    difference = (corrupt(small, name, 5, 0) - expected)[:, 4:-4, 4:-4].abs()
    assert difference.max() <= 1


@pytest.mark.parametrize(
    ("name", "seed", "mass"),
    [
        ("motion_blur", 0, 1),
        ("motion_blur", 1, 1),
        ("zoom_blur", 0, 1.304),
    ],
)
def test_blurs_leave_the_centre_in_its_place(name: str, seed: int, mass: float) -> None:
    dot = torch.zeros(1, 224, 224, dtype=torch.uint8)
    dot[0, 107:117, 107:117] = 200  # zooms by 1, 1.03 ... 1.3 enlarge its area
    spread = corrupt(dot, name, 5, seed, "dermamnist")[0].numpy().astype(float)
    assert spread.sum() == pytest.approx(200 * 100 * mass, rel=0.03)
    assert ndimage.center_of_mass(spread) == pytest.approx((111.5, 111.5), abs=0.7)
    assert (spread > 0).any(axis=0).sum() > 40 or name == "zoom_blur", "motion is across"


@pytest.mark.parametrize(
    ("name", "severity", "share"),
    [("stain_deposit", 1, 0.0066), ("bubble", 1, 0.039), ("characters", 5, 0.0036)],
)
def test_artefacts_cover_a_share_of_the_image(name: str, severity: int, share: float) -> None:
    image = scene()
    results = torch.stack([corrupt(image, name, severity, seed) for seed in range(100)])
    changed = (results != image).any(dim=1)
    assert float(changed.float().mean()) == pytest.approx(share, rel=0.15)


@pytest.mark.parametrize(
    ("flag", "modality", "channels", "expected"),
    [
        ("tissuemnist", "microscopy", 1, ("tissuemnist", 8)),
        ("pneumoniamnist", "auto", 1, ("pneumoniamnist", 13)),
        ("organsmnist", "auto", 1, ("organamnist", 13)),
        ("chestmnist", "ct", 1, ("organamnist", 13)),
        ("", "microscopy", 3, ("pathmnist", 11)),
        ("", "microscopy", 1, ("tissuemnist", 8)),
        ("", "mri", 1, ("mri", 14)),
        ("", "auto", 3, ("auto", 15)),
        ("", "auto", 1, ("auto", 14)),
    ],
)
def test_whose_they_are(flag: str, modality: Modality, channels: int, expected: Any) -> None:
    data = open_images("phantom", size=16, count=20, channels=channels)
    listing, names = corruptions_of(replace(data, info={"medmnist": flag}), modality)
    assert (listing, len(names)) == expected


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
    even = replace(split, images=np.full_like(split.images, 128))
    for name in ("gaussian_noise", "speckle_noise", "shot_noise", "impulse_noise"):
        one, two = corrupt_split(even, name, 3).images[:2]
        assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.2, "each has its own noise"
