"""Sets of volumes: opened, resized, augmented, summarised, audited, or refused in one line."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import medduet
from medduet import open_images
from medduet.data.augment import build_augmentation
from medduet.data.corruptions import corruptions_of
from medduet.data.medmnist import medmnist_sets
from medduet.data.npz import open_npz
from medduet.data.pixels import resize_image, resize_mask, three_planes
from medduet.data.summary import data_summary
from medduet.data.zarr_store import write_zarr
from medduet.errors import ConfigError, DataError
from medduet.types import Batch

SHAPE = (16, 20, 24)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rng, arrays = np.random.default_rng(0), {}
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, *SHAPE), dtype=np.uint8)
        arrays[f"{split}_masks"] = rng.integers(0, 2, (count, *SHAPE), dtype=np.uint8) * 255
        arrays[f"{split}_labels"] = np.arange(count)[:, None] % 2
    np.savez(tmp_path / "set.npz", **arrays)
    return tmp_path / "set.npz"


def test_an_npz_of_volumes(file: Path, tmp_path: Path) -> None:
    images = open_npz(file, cache=tmp_path)
    assert (images.size, images.dims, images.in_channels) == (SHAPE, 3, 1)
    batch = images.train.batch(np.array([3, 1]))
    with np.load(file) as arrays:
        assert np.array_equal(batch.image[:, 0], arrays["train_images"][[3, 1]])
        assert np.array_equal(batch.mask, arrays["train_masks"][[3, 1]] // 255)
    assert data_summary(images)[0] == "set: 20 volumes of 16 x 20 x 24, grey"
    small = open_npz(file, cache=tmp_path, size=(8,))
    assert small.train.images.shape == small.train.masks.shape == (12, 8, 8, 8)
    assert small.fingerprint != images.fingerprint


def test_three_planes_show_the_same_point() -> None:
    volume = np.zeros((2, *SHAPE), np.uint8)
    volume[0, 3, 5, 7] = volume[1, 8, 10, 12] = 9  # of the second one the middle
    mask = (volume == 9) & (np.arange(2) == 0)[:, None, None, None]
    picture, drawn = three_planes(mask, volume, mask)
    assert picture.shape == (2, 20 + 16, 24 + 16)
    assert np.argwhere(picture[0]).tolist() == [[5, 7], [5, 24 + 3], [20 + 16 - 1 - 3, 7]]
    assert np.argwhere(picture[1]).tolist() == [[10, 12], [10, 24 + 8], [20 + 16 - 1 - 8, 12]]
    assert np.array_equal(drawn[0], picture[0] == 9)
    assert not drawn[1].any()


def test_sides_are_not_mistaken_by_the_resizers() -> None:
    depth, height, width = np.indices((4, 6, 8)).astype(np.uint8)
    for ramp, axis in ((depth, 0), (height, 1), (width, 2)):
        resized = resize_image(ramp * 30, 8, 12, 16)
        assert resized.shape == (8, 12, 16)
        assert (np.diff(resized.astype(int), axis=axis) >= 0).all()
        assert resized.std(axis=axis).max() > 0
        assert np.array_equal(resize_mask(resize_mask(ramp, 8, 12, 16), 4, 6, 8), ramp)


@pytest.mark.parametrize(
    "shape", [(12, 16, 16, 4), (12, 3, 16, 16), (12, 1, 16, 16), (12, 8, 8, 8, 3), (12, 8)]
)
def test_other_axes_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    arrays = {f"{split}_images": np.zeros(shape, np.uint8) for split in ("train", "val", "test")}
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(DataError, match=rf"volumes \(N, D, H, W\), .*{re.escape(str(shape))}"):
        open_npz(tmp_path / "set.npz", cache=tmp_path / "cache")


def test_the_six_sets_of_medmnist() -> None:
    volumes = [info for name, info in medmnist_sets().items() if name.endswith("3d")]
    assert [[*info.files] for info in volumes] == [[28, 64]] * 6


def test_phantoms_are_the_same_bytes_and_balanced() -> None:
    first, again, other = (open_images("phantom3d", size=20, count=40, seed=k) for k in (0, 0, 1))
    assert first.fingerprint == again.fingerprint
    assert not np.array_equal(first.train.images, other.train.images)
    assert first.size == (20, 20, 20)
    labels, masks = first.train.labels, first.train.masks
    assert np.bincount(labels).tolist() == [7, 7, 7, 7]
    assert np.array_equal(masks.any(axis=(1, 2, 3)), labels > 0)
    with pytest.raises(ConfigError, match="channels is for"):
        open_images("phantom3d", size=20, count=40, channels=3)


@pytest.mark.parametrize("name", ["flip", "light", "strong"])
def test_masks_move_with_their_volumes(name: str) -> None:
    data = open_images("phantom3d", size=24, count=10)
    mask = torch.zeros(12, 24, 20, 16, dtype=torch.int64)
    mask[:, 6:15, 4:11, 3:10] = 1
    volume = (mask[:, None] * 255).to(torch.uint8)
    batch = Batch(volume, torch.zeros(12), mask, torch.ones(12) > 0, torch.arange(12))
    torch.manual_seed(0)
    moved = build_augmentation(name, data)(batch)
    assert moved.image.shape == volume.shape
    assert moved.mask.unique().tolist() == [0, 1]
    bright = [moved.image[:, 0][moved.mask == k].mean() for k in (0, 1)]
    assert bright[1] - bright[0] > 0.5
    changed = (moved.mask != mask).flatten(1).any(dim=1)
    assert changed.any()
    if name == "flip":
        assert not changed.all()
        assert torch.equal(moved.mask[changed], mask[changed].flip(3))
    else:  # turned or moved out of each plane
        assert not torch.equal(moved.mask.any(dim=3).any(dim=2), mask.any(dim=3).any(dim=2))


def test_duplicates_and_audit() -> None:
    data = open_images("phantom3d", size=20, count=20)
    data.test.images[1] = data.train.images[2]
    noisy = data.train.images[5].astype(int) + np.random.default_rng(0).integers(-3, 4, (20,) * 3)
    data.val.images[0] = noisy.clip(0, 255)
    kinds = {finding.kind for finding in medduet.audit(data).findings}
    assert {"exact-duplicates-across-splits", "near-duplicates-across-splits"} <= kinds


def test_what_takes_images_alone_says_so(tmp_path: Path) -> None:
    data = open_images("phantom3d", size=16, count=10)
    with pytest.raises(ConfigError, match="corruptions: expected images, given volumes"):
        corruptions_of(data, "auto")
    with pytest.raises(ConfigError, match="medduet zarr: expected images, given volumes"):
        write_zarr(data, tmp_path / "set.zarr")
