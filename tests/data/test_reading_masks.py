"""Masks: the ways to write classes down."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medduet.data.reading.core import Facts, ReadOptions
from medduet.data.reading.images import read_mask
from medduet.errors import DataError

SMALL, LIKE = ReadOptions(2), Facts(1, 3, 2, 2)


def image_of(values: list, dtype: type = np.uint8) -> Image.Image:
    return Image.fromarray(np.array(values, dtype))


PALETTE = Image.fromarray(np.array([[0, 1], [2, 2]], np.uint8), "P")
PALETTE.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
BLACK_AND_WHITE = "classes of 0 to 63, or black and white (0 and 255)"


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (image_of([[0, 1], [2, 63]]), [[0, 1], [2, 63]]),
        (image_of([[0, 255], [255, 0]]), [[0, 1], [1, 0]]),
        (image_of([[255, 255], [255, 255]]), [[1, 1], [1, 1]]),
        (image_of([[0, 0], [0, 0]]), [[0, 0], [0, 0]]),
        (image_of([[127, 128], [128, 128]]), [[0, 1], [1, 1]]),
        (image_of([[0, 65535], [0, 0]], np.uint16), [[0, 1], [0, 0]]),
        (image_of([[False, True], [True, True]], np.bool_), [[0, 1], [1, 1]]),
        (image_of([[0, 255], [0, 0]]).convert("RGB"), [[0, 1], [0, 0]]),
        (PALETTE, [[0, 1], [2, 2]]),
    ],
)
def test_classes_and_black_and_white(
    tmp_path: Path, image: Image.Image, expected: list[object]
) -> None:
    image.save(path := tmp_path / "a.png")
    assert read_mask([path], LIKE, SMALL)[0].tolist() == expected


@pytest.mark.parametrize(
    ("image", "expected", "given"),
    [
        (image_of([[0, 128], [255, 0]]), BLACK_AND_WHITE, "values 0, 128, 255 up to 255"),
        (image_of([[0, 100], [100, 0]]), BLACK_AND_WHITE, "values 0, 100 up to 100"),
        (image_of([[200, 255], [255, 255]]), BLACK_AND_WHITE, "values 200, 255 up to 255"),
        (image_of([[0, 0.5], [1, 1]], np.float32), "whole numbers", "0.5"),
        (PALETTE.convert("RGB"), "a mask in grey or with a palette", "one with colours"),
        (
            image_of([[0, 1, 0], [0, 0, 0]]),
            "a mask of 1 x 2 x 2 (frames x height x width)",
            "1 x 2 x 3",
        ),
    ],
)
def test_other_values_are_named(
    tmp_path: Path, image: Image.Image, expected: str, given: str
) -> None:
    image.save(path := tmp_path / "a.tif")
    with pytest.raises(DataError, match=re.escape(f"{path}: expected {expected}, given {given}")):
        read_mask([path], LIKE, SMALL)


def test_a_lossy_mask_is_black_and_white(tmp_path: Path) -> None:
    truth = np.zeros((40, 40), np.uint8)
    truth[9:30, 11:33] = 1
    Image.fromarray(truth * 255).save(path := tmp_path / "a.jpg", quality=60)
    assert len(np.unique(np.asarray(Image.open(path)))) > 2
    assert (read_mask([path], Facts(1, 1, 40, 40), ReadOptions(40))[0] == truth).all()


def test_several_masks_are_united(tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    image_of([[0, 255], [0, 0]]).save(paths[0])
    image_of([[2, 0], [0, 0]]).save(paths[1])
    assert read_mask(paths, LIKE, SMALL)[0].tolist() == [[2, 1], [0, 0]]
