"""Batches are the same, whichever way they come to the device."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from numpy.typing import NDArray

import medduet
from medduet.data.imageset import Split
from medduet.errors import DataError
from medduet.training.fabric import AHEAD, load_batches


@pytest.fixture(scope="module")
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


@pytest.fixture(scope="module")
def split() -> Split:
    return medduet.open_images("phantom", size=16, count=60, channels=3).train


def order(count: int) -> list[NDArray[np.int64]]:
    rows = np.random.default_rng(0).permutation(count)
    return [rows[start : start + 8] for start in range(0, count, 8)]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("masks", ["known", "some", "none"])
def test_ways_agree(fabric: Fabric, split: Split, ahead: bool, masks: str) -> None:
    if masks == "some":
        split = replace(split, has_mask=np.arange(len(split)) % 2 > 0)
    if masks == "none":
        split = replace(split, masks=None)
    indices = order(len(split))
    for _ in range(2):  # epochs
        found = list(load_batches(fabric, split, indices, ahead))
        assert len(found) == len(indices)
        for batch, index in zip(found, indices, strict=True):
            for part, expected in zip(batch, split.batch(index), strict=True):
                if expected is None:
                    assert part is None
                else:
                    assert part is not None
                    assert part.dtype == expected.dtype
                    assert torch.equal(part, expected)


class Failing:
    """Images of which row 20 can't be had."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.images, self.shape, self.read = images, images.shape, list[int]()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        self.read.append(int(index[0]))
        if 20 in index:
            raise DataError("row 20 is gone")
        return self.images[index]


@pytest.mark.parametrize("ahead", [False, True])
def test_what_is_missing_is_told_at_its_step(fabric: Fabric, split: Split, ahead: bool) -> None:
    images, threads = Failing(np.asarray(split.images)), threading.active_count()
    broken = replace(split, images=images)  # type: ignore[arg-type]
    batches = load_batches(fabric, broken, [np.array([start]) for start in range(0, 40, 4)], ahead)
    for step in range(5):
        assert int(next(batches).indices[0]) == 4 * step
        time.sleep(0.05)  # the thread is further on by now, but not too far
        assert len(images.read) <= step + 1 + AHEAD
    with pytest.raises(DataError, match="row 20"):
        next(batches)
    assert threading.active_count() == threads, "the thread did not end"
