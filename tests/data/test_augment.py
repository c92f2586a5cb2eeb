"""Masks move with their images, and no image becomes what its kind can't be."""

from dataclasses import replace
from typing import Any

import kornia.augmentation as K
import pytest
import torch
from torch import Tensor

from medduet import Batch, ConfigError, ImageSet, open_images
from medduet.data.augment import build_augmentation
from medduet.data.augmentations import moves, sequence
from medduet.data.modality import Allowed


def some_set(channels: int = 1, size: int = 24, **changes: Any) -> ImageSet:
    return replace(open_images("phantom", size=size, count=20, channels=channels), **changes)


def marked(count: int = 64, channels: int = 1) -> Batch:
    """A bright block at another place of each image, and its mask; the corner tells left."""
    image = torch.zeros(count, channels, 24, 24, dtype=torch.uint8)
    mask = torch.zeros(count, 24, 24, dtype=torch.int64)
    for i in range(count):
        row, column = 4 + i % 8, 3 + (i // 8) % 8
        image[i, :, row : row + 6, column : column + 5] = 255
        mask[i, row : row + 6, column : column + 5] = 2
    index = torch.arange(count)
    return Batch(image, index % 3, mask, index % 2 == 0, index)


def even(value: float | Tensor, count: int, channels: int = 1, side: int = 32) -> Batch:
    """Images of one value, or one value per row, in masks of all ones."""
    image = torch.as_tensor(value).expand(count, channels, side, side)
    ones = torch.ones(count, side, side, dtype=torch.int64)
    index = torch.arange(count)
    return Batch((255 * image).to(torch.uint8), index, ones, index >= 0, index)


def test_flip_moves_both_and_draws_what_it_has_always_drawn() -> None:
    # Published results were made with exactly this.
    batch = marked()
    plain = K.AugmentationSequential(K.RandomHorizontalFlip(p=0.5), data_keys=["input", "mask"])
    torch.manual_seed(5)
    image, mask = plain(batch.image.float() / 255, batch.mask.unsqueeze(1).float())
    state = torch.get_rng_state()
    torch.manual_seed(5)
    found = build_augmentation("flip", some_set())(batch)
    assert torch.equal(found.image, image)
    assert torch.equal(found.mask, mask[:, 0].long())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found.image[:, 0] > 0.5, found.mask == 2), "a mask stayed"
    assert 16 < (found.mask != batch.mask).flatten(1).any(dim=1).sum() < 48
    for name in ("label", "indices", "has_mask"):
        assert torch.equal(getattr(found, name), getattr(batch, name))


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
@pytest.mark.parametrize("name", ["light", "strong"])
def test_an_image_that_equals_its_mask_stays_equal(name: Any, size: tuple[int, int]) -> None:
    height, width = size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    count = 200
    across, down = (torch.rand(count, 1, 1) * 0.3 + 0.35 for _ in range(2))
    inside = torch.hypot(y - down * height, 0.7 * (x - across * width)) < 10
    mask = inside.float().unsqueeze(1)
    torch.manual_seed(0)
    moved = moves(name, size, Allowed(mirror=True, turn=True))
    image, found = sequence(moved)(mask, 255 * mask)  # as ignored pixels
    assert image.shape == found.shape == mask.shape
    assert set(found.unique().tolist()) == {0, 255}, "a mask class was mixed"
    found = found / 255
    # Pixels of the rim may fall on either side, as strong samples three times.
    wrong = ((image > 0.5) != (found > 0.5)).flatten(1).sum(dim=1)
    assert (wrong / found.flatten(1).sum(dim=1)).max() < 0.15
    assert (wrong / found.flatten(1).sum(dim=1)).mean() < 0.06

    def centre(value: Tensor) -> Tensor:
        total = value.sum(dim=(1, 2, 3))
        return torch.stack([(value * place).sum(dim=(1, 2, 3)) / total for place in (y, x)])

    apart = centre(image) - centre(found)
    assert apart.abs().max() < 0.7
    assert apart.mean(dim=1).abs().max() < 0.03, "image and mask are resampled by two rules"
    assert (centre(found) - centre(mask)).abs().mean() > 2, "nothing moved"


UPRIGHT = ["auto", "ultrasound", "fundus"]


def sides(name: Any, modality: Any, image: Tensor, **names: Any) -> tuple[set[int], set[int]]:
    """Return where the bright half lies afterwards: -1 above or left, 1 below or right."""
    torch.manual_seed(0)
    found = build_augmentation(name, some_set(size=32, **names), modality)(even(image, 150)).image
    down = found[..., 16:, :].mean(dim=(1, 2, 3)) - found[..., :16, :].mean(dim=(1, 2, 3))
    across = found[..., 16:].mean(dim=(1, 2, 3)) - found[..., :16].mean(dim=(1, 2, 3))
    return tuple(set(d[d.abs() > 0.15].sign().int().tolist()) for d in (down, across))  # type: ignore[return-value]


TOP = 0.9 * (torch.arange(32) < 16).float()[:, None]


@pytest.mark.parametrize("modality", [*UPRIGHT, "microscopy", "dermoscopy"])
@pytest.mark.parametrize("name", ["light", "strong"])
def test_only_what_has_no_upper_side_is_turned(name: Any, modality: Any) -> None:
    assert sides(name, modality, TOP)[0] == ({-1} if modality in UPRIGHT else {-1, 1})
    assert sides(name, modality, TOP.T)[1] == {-1, 1}


@pytest.mark.parametrize("side", ["kidney-left", "Right lung", "lung_LEFT", "leftLung", "lungLeft"])
@pytest.mark.parametrize("where", ["class_names", "mask_names"])
def test_where_left_and_right_differ_nothing_is_mirrored(side: str, where: str) -> None:
    names = {where: ("other", side)}
    for name in ("light", "strong"):
        assert sides(name, "microscopy", TOP.T, **names)[1] == {-1}
    with pytest.raises(ConfigError, match=f"flip mirrors.*'{side}'.*use --train.augment light"):
        build_augmentation("flip", some_set(**names))


@pytest.mark.parametrize("modality", [*UPRIGHT, "microscopy", "dermoscopy"])
def test_only_colours_that_mean_little_change(modality: Any) -> None:
    rose = torch.tensor([0.8, 0.4, 0.4])[:, None, None]
    torch.manual_seed(0)
    found = build_augmentation("strong", some_set(3, 32), modality)(even(rose, 100, 3)).image
    # Noise aside, green and blue stay equal unless the hue changes.
    apart = (found[:, 1] - found[:, 2]).mean(dim=(1, 2)).abs().max()
    changes = modality in ("fundus", "microscopy", "dermoscopy")
    assert (apart > 0.015) == changes
    assert apart < 0.12, "a lesion of another colour is another lesion"
