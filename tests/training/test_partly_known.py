"""Images with only a label or only a mask train the heads that they can, and are judged so."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import medduet
from medduet import RunConfig, open_images
from medduet.data.batches import train_batches
from medduet.training.reporter import Reporter

MakeConfig = Callable[..., RunConfig]
BATCH = 6


def write_partly_known(path: Path, *, several: bool, val: bool, test: bool) -> str:
    """Phantoms of which every other label and every other mask is known.

    The first batch of the first epoch knows nothing, the second labels only, the third masks only.
    """
    images, arrays = open_images("phantom", size=16, count=52), {}
    for name in ("train", "val", "test"):
        split = images.split(name)
        count = len(split)
        labels = split.labels[:, None].astype(np.int64)
        if several:
            labels = (labels >= np.arange(1, 4)).astype(np.int64)
        known, has_mask = np.arange(count) % 2 == 0, np.arange(count) // 2 % 2 == 0
        if name == "train":
            for step, (label, mask) in enumerate([(0, 0), (1, 0), (0, 1)]):
                batch = train_batches(count, BATCH, seed=0, epoch=1)[step]
                known[batch], has_mask[batch] = label, mask
        elif not {"val": val, "test": test}[name]:
            known, has_mask = np.zeros((2, count), dtype=bool)
        labels[~known] = -1
        if several and name == "train":
            labels[np.flatnonzero(known)[0], 1] = -1  # a part of a label
        arrays[f"{name}_images"], arrays[f"{name}_masks"] = split.images, split.masks
        arrays[f"{name}_labels"], arrays[f"{name}_has_mask"] = labels, has_mask
    np.savez_compressed(path, **arrays)
    return str(path)


class Notes(Reporter):
    """Notes which losses of an epoch are known after each step."""

    def __init__(self) -> None:
        self.known: list[list[bool]] = []

    def step(self, images: int, losses: Callable[[], dict[str, float]]) -> None:
        self.known.append([math.isfinite(value) for value in losses().values()])


@pytest.mark.parametrize(
    ("several", "val", "test", "sampling"),
    [
        (False, True, True, "shuffle"),
        (False, False, True, "balanced"),
        (True, True, False, "balanced"),
        (True, False, False, "shuffle"),
    ],
)
def test_known_halves_train_and_are_judged(
    make_config: MakeConfig,
    epochs: Any,
    tmp_path: Path,
    several: bool,
    val: bool,
    test: bool,
    sampling: str,
) -> None:
    data = write_partly_known(tmp_path / "half.npz", several=several, val=val, test=test)
    train = {"batch_size": BATCH, "augment": "light", "sampling": sampling}
    config = make_config(tmp_path / "run", data={"name": data, "count": None}, train=train)
    notes = Notes()
    record = medduet.train(config, reporter=notes)
    if sampling == "shuffle":
        # Classes, masks and reconstruction: each head learns from what it has.
        assert notes.known[:3] == [[False, False, True], [True, False, True], [True] * 3]
    for row in epochs(record.path):
        assert all(math.isfinite(value) for value in row["train"].values())
        assert math.isfinite(row["val"]["loss"])
        assert ({"accuracy", "dice"} <= set(row["val"])) == val
    images = open_images(data)
    for name, known in (("val", val), ("test", test)):
        split, found = images.split(name), record.metrics[name]
        labelled = (split.labels.reshape(len(split), -1) >= 0).any(axis=1)
        assert (found["n"], found.get("dice_n", 0)) == (labelled.sum(), split.known_masks.sum())
        assert (found["accuracy"] is not None) == (found.get("dice") is not None) == known
        assert found["mse"] > 0
    with np.load(record.path / "samples.npz") as samples:
        assert len(samples["index"]) == 8
