"""Masks move with their images."""

from __future__ import annotations

import pytest
import torch

from medduet import Batch, open_images
from medduet.data.augment import build_augmentation


def marked(count: int = 64, channels: int = 1) -> Batch:
    """A bright block at another place of each image, and its mask; the corner tells left."""
    image = torch.zeros(count, channels, 24, 24, dtype=torch.uint8)
    mask = torch.zeros(count, 24, 24, dtype=torch.int64)
    for i in range(count):
        row, column = 4 + i % 8, 3 + (i // 8) % 8
        image[i, :, row : row + 6, column : column + 5] = 255
        mask[i, row : row + 6, column : column + 5] = 2
    index = torch.arange(count)
    return Batch(image, index % 3, mask, torch.ones(count, dtype=torch.bool), index)


def test_flip_moves_image_and_mask_together() -> None:
    batch = marked()
    torch.manual_seed(0)
    found = build_augmentation("flip")(batch)
    image, mask = batch.image.float() / 255, batch.mask
    flipped = torch.tensor([not torch.equal(a, b) for a, b in zip(found.image, image, strict=True)])
    assert 16 < flipped.sum() < 48
    where = flipped[:, None, None]
    torch.testing.assert_close(
        found.image, torch.where(where[:, None], image.flip(-1), image), rtol=0, atol=1e-6
    )
    assert torch.equal(found.mask, torch.where(where, mask.flip(-1), mask))
    assert torch.equal(found.label, batch.label)
    assert torch.equal(found.indices, batch.indices)
    assert torch.equal(found.has_mask, batch.has_mask)


def test_standard_keeps_the_mask_on_the_object() -> None:
    batch = marked()
    torch.manual_seed(0)
    found = build_augmentation("standard")(batch)
    assert found.mask.dtype == torch.int64
    assert set(found.mask.unique().tolist()) == {0, 2}, "a mask class was mixed"
    bright = found.image[:, 0] > 0.5 * found.image.amax(dim=(1, 2, 3), keepdim=True)[:, 0]
    drawn = found.mask > 0
    overlap = (
        2 * (bright & drawn).sum(dim=(1, 2)) / (bright.sum(dim=(1, 2)) + drawn.sum(dim=(1, 2)))
    )
    assert overlap.min() > 0.75
    moved = (found.mask != batch.mask).flatten(1).any(dim=1)
    assert moved.sum() > 40
    stale = 2 * (bright & (batch.mask > 0)).sum(dim=(1, 2)) / (30 + bright.sum(dim=(1, 2)))
    assert stale.min() < 0.5, "nothing moved far enough for this test to mean anything"


@pytest.mark.parametrize("name", ["flip", "standard"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("with_mask", [True, False])
def test_bytes_become_floats_between_0_and_1(name: str, channels: int, with_mask: bool) -> None:
    split = open_images("phantom", size=16, count=20, channels=channels).train
    batch = split.batch(torch.arange(14).numpy())
    if not with_mask:
        batch = batch._replace(mask=None)
    before = batch.image.clone()
    found = build_augmentation(name)(batch)
    assert found.image.dtype == torch.float32
    assert found.image.shape == (14, channels, 16, 16)
    assert 0 <= found.image.min() < found.image.max() <= 1
    assert (found.mask is not None) == with_mask
    assert torch.equal(batch.image, before)


@pytest.mark.parametrize("name", ["flip", "standard"])
def test_randomness_is_torchs(name: str) -> None:
    batch, augment = marked(16), build_augmentation(name)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append((augment if seed != 2 else build_augmentation(name))(batch).image)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_none_is_nothing() -> None:
    assert build_augmentation("none") is None
