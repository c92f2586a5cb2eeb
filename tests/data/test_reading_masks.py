"""Masks: the ways to write classes down, and the geometry of the image."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medduet.data.reading.core import Facts, ReadOptions
from medduet.data.reading.masks import read_mask
from medduet.errors import DataError

SMALL, LIKE = ReadOptions(2), Facts(1, 3, 2, 2)


def saved(values: list[object] | np.ndarray, path: Path, dtype: type = np.uint8) -> Path:
    Image.fromarray(np.array(values, dtype)).save(path)
    return path


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0, 1], [2, 63]], [[0, 1], [2, 63]]),
        ([[0, 255], [255, 0]], [[0, 1], [1, 0]]),
        ([[255, 255], [255, 255]], [[1, 1], [1, 1]]),
        ([[0, 0], [0, 0]], [[0, 0], [0, 0]]),
        ([[127, 128], [128, 128]], [[0, 1], [1, 1]]),
    ],
)
def test_classes_and_black_and_white(
    tmp_path: Path, values: list[object], expected: list[object]
) -> None:
    path = saved(values, tmp_path / "a.png")
    assert read_mask([path], LIKE, SMALL)[0].tolist() == expected
    Image.fromarray(np.dstack([np.array(values, np.uint8)] * 3)).save(path)
    assert read_mask([path], LIKE, SMALL)[0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([[0, 128], [255, 0]], "values 0, 128, 255 up to 255"),
        ([[0, 100], [100, 0]], "values 0, 100 up to 100"),
        ([[200, 255], [255, 255]], "values 200, 255 up to 255"),
    ],
)
def test_other_values_are_named(tmp_path: Path, values: list[object], reason: str) -> None:
    path = saved(values, tmp_path / "a.png")
    told = f"{path}: expected classes of 0 to 63, or black and white (0 and 255), given {reason}"
    with pytest.raises(DataError, match=re.escape(told)):
        read_mask([path], LIKE, SMALL)


def test_a_lossy_mask_is_black_and_white(tmp_path: Path) -> None:
    truth = np.zeros((40, 40), np.uint8)
    truth[9:30, 11:33] = 1
    Image.fromarray(truth * 255).save(path := tmp_path / "a.jpg", quality=60)
    assert len(np.unique(np.asarray(Image.open(path)))) > 2
    assert (read_mask([path], Facts(1, 1, 40, 40), ReadOptions(40))[0] == truth).all()


def test_deep_palette_one_bit_and_coloured_masks(tmp_path: Path) -> None:
    path = saved([[0, 65535], [0, 0]], tmp_path / "a.png", np.uint16)
    assert read_mask([path], LIKE, SMALL)[0].tolist() == [[0, 1], [0, 0]]
    saved([[False, True], [True, True]], path, np.bool_)
    assert read_mask([path], LIKE, SMALL)[0].tolist() == [[0, 1], [1, 1]]
    image = Image.fromarray(np.array([[0, 1], [2, 2]], np.uint8), "P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    image.save(path)
    assert read_mask([path], LIKE, SMALL)[0].tolist() == [[0, 1], [2, 2]]
    image.convert("RGB").save(path)
    with pytest.raises(DataError, match="expected a mask in grey or with a palette"):
        read_mask([path], LIKE, SMALL)
    path = saved([[0, 0.5], [1, 1]], tmp_path / "a.tif", np.float32)
    with pytest.raises(DataError, match=r"expected whole numbers, given 0\.5"):
        read_mask([path], LIKE, SMALL)


def test_several_masks_are_united(tmp_path: Path) -> None:
    paths = [saved([[0, 255], [0, 0]], tmp_path / "a.png")]
    paths.append(saved([[2, 0], [0, 0]], tmp_path / "b.png"))
    assert read_mask(paths, LIKE, SMALL)[0].tolist() == [[2, 1], [0, 0]]


def test_a_mask_of_another_size(tmp_path: Path) -> None:
    path = saved([[0, 1, 0], [0, 0, 0]], tmp_path / "a.png")
    told = f"{path}: expected a mask of 1 x 2 x 2 (frames x height x width), given 1 x 2 x 3"
    with pytest.raises(DataError, match=re.escape(told)):
        read_mask([path], LIKE, SMALL)
