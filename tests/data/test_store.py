import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medduet.data.npz import open_npz
from medduet.errors import StorageError

Arrays = dict[str, np.ndarray]
Save = Callable[..., Path]
LeftIn = Callable[[Path], list[str]]


def test_a_set_is_unpacked_by_two_at_once(
    arrays: Arrays, save: Save, cache: Path, left_in: LeftIn, waiting: Any
) -> None:
    path, seen = save(arrays), []

    def other() -> None:
        seen.append(open_npz(path, cache=cache))
        assert len(left_in(cache)) == 2  # the first is not done, in a folder of its own

    seen.append(open_npz(path, cache=cache, progress=waiting(other)))
    for images in seen:
        assert np.array_equal(images.test.images, arrays["test_images"])
    assert len(left_in(cache)) == 1


def test_a_full_disk_is_one_line_and_leaves_nothing(
    arrays: Arrays, save: Save, cache: Path, left_in: LeftIn, waiting: Any
) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StorageError, match=r"disk is full.*MEDDUET_CACHE"):
        open_npz(save(arrays), cache=cache, progress=waiting(fail))
    assert left_in(cache) == []


@pytest.mark.parametrize("size", [7, 40])
def test_a_set_is_resized_as_pillow_does(
    arrays: Arrays, save: Save, cache: Path, size: int
) -> None:
    for split in ("train", "val", "test"):
        arrays[f"{split}_masks"] = 5 * arrays[f"{split}_masks"]
    images = open_npz(save(arrays), cache=cache, size=(size,))
    assert images.size == (size, size)
    assert images.info["original_size"] == [20, 24]
    for field, how in (("images", Image.Resampling.BILINEAR), ("masks", Image.Resampling.NEAREST)):
        for index, given in enumerate(getattr(images.val, field)):
            picture = Image.fromarray(arrays[f"val_{field}"][index])
            assert np.array_equal(given, np.asarray(picture.resize((size, size), how)))
    assert np.array_equal(images.val.labels, arrays["val_labels"][:, 0])
