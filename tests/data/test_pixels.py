"""Resizing, and the way of an image into a square and of its mask back."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from medduet.data.pixels import resize_image, resize_mask, to_grey
from medduet.data.reading.core import ReadOptions
from medduet.data.reading.shape import fitted, restore_map, restore_mask


@pytest.mark.parametrize("size", [(7, 9), (15, 22), (40, 33)])
def test_images_and_masks_are_resized_as_torch_does(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = interpolate(tensor.float(), size, mode="bilinear", antialias=True)[0]
    found = resize_image(image, *size)
    assert found.dtype == np.uint8
    assert np.abs(found - expected.permute(1, 2, 0).numpy()).max() < 1.1
    nearest = interpolate(tensor, size, mode="nearest-exact")[0].numpy()
    np.testing.assert_array_equal(resize_mask(image.transpose(2, 0, 1), *size), nearest)
    luma = image @ np.array([0.299, 0.587, 0.114])
    assert np.abs(to_grey(image) - luma).max() <= 0.51


@pytest.mark.parametrize(
    ("shape", "fit", "rows", "columns"),
    [
        ((4, 8), "pad", slice(1, 3), slice(1, 4)),  # 2 black rows above and below
        ((8, 16), "pad", slice(2, 6), slice(2, 8)),
        ((16, 8), "pad", slice(6, 10), slice(0, 4)),  # 2 black columns on either side
        ((16, 8), "stretch", slice(6, 10), slice(1, 4)),
        ((8, 8), "pad", slice(3, 5), slice(1, 4)),
        ((16, 8), "crop", slice(7, 9), slice(1, 4)),  # the 4 rows above and below are not seen
        ((8, 24), "crop", slice(3, 5), slice(9, 12)),
    ],
)
def test_a_mask_returns_to_the_pixels_of_the_image(
    shape: tuple[int, int], fit: str, rows: slice, columns: slice
) -> None:
    options = ReadOptions((8, 8), fit)  # type: ignore[arg-type]
    square, expected = np.zeros((8, 8), np.uint8), np.zeros(shape, np.uint8)
    square[3:5, 1:4] = expected[rows, columns] = 2
    np.testing.assert_array_equal(restore_mask(square, shape, options), expected)
    heat = restore_map(square.astype(np.float32), shape, options)
    np.testing.assert_array_equal(heat > 1, expected > 0)


@pytest.mark.parametrize("shape", [(31, 77), (200, 20), (1, 1), (7, 1001)])
@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_an_image_and_its_mask_lie_upon_each_other(shape: tuple[int, int], fit: str) -> None:
    height, width = shape
    mask = np.zeros(shape, np.uint8)
    mask[height // 4 : height // 2 + 1, width // 3 : width // 2 + 1] = 1
    options = ReadOptions((64, 64), fit)  # type: ignore[arg-type]
    small = fitted(mask, options, is_mask=True)
    assert ((fitted(255 * mask, options) > 127) == small).mean() > 0.98
    back = restore_mask(small, (height, width), options)
    assert back.shape == shape
    assert min(shape) < 20 or (back == mask).mean() > 0.97
