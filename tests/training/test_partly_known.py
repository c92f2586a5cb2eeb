"""Images with only a label or only a mask train the heads that they can, and are judged so."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import medduet
from medduet import ConfigError, RunConfig, open_images
from medduet.data.batches import train_batches
from medduet.training.reporter import Reporter
from medduet.utils.parsing import read_json

MakeConfig = Callable[..., RunConfig]
TRAIN, BATCH = 37, 6


def write_partly_known(path: Path, *, several: bool, val: bool, test: bool = True) -> str:
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


def settings(make_config: MakeConfig, folder: Path, data: str, **train: Any) -> RunConfig:
    size = {"batch_size": BATCH, "augment": "light"}
    return make_config(folder / "run", data={"name": data, "count": None}, train=size | train)


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "epochs.jsonl").read_text().splitlines()]


def check(run: Path, data: str, *, val: bool, test: bool) -> None:
    for row in rows(run):
        assert all(math.isfinite(value) for value in row["train"].values())
        assert math.isfinite(row["val"]["loss"])
        assert ({"accuracy", "dice"} <= set(row["val"])) == val
    images = open_images(data)
    for name, known in (("val", val), ("test", test)):
        split, found = images.split(name), read_json(run / "metrics.json")[name]
        labelled = (split.labels.reshape(len(split), -1) >= 0).any(axis=1)
        assert (found["n"], found.get("dice_n", 0)) == (labelled.sum(), split.known_masks.sum())
        assert (found["accuracy"] is not None) == (found.get("dice") is not None) == known
        assert found["mse"] > 0
    with np.load(run / "samples.npz") as samples:
        assert len(samples["index"]) == 8


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
    make_config: MakeConfig, tmp_path: Path, several: bool, val: bool, test: bool, sampling: str
) -> None:
    data = write_partly_known(tmp_path / "half.npz", several=several, val=val, test=test)
    config = settings(make_config, tmp_path, data, sampling=sampling)
    check(medduet.train(config).path, data, val=val, test=test)


def test_each_head_learns_from_what_it_has(make_config: MakeConfig, tmp_path: Path) -> None:
    # The first step knows nothing, the second labels only, the third masks only.
    data = write_partly_known(tmp_path / "half.npz", several=False, val=True)
    with np.load(data) as arrays:
        first, second, third = train_batches(TRAIN, BATCH, seed=0, epoch=1)[:3]
        labels, has_mask = arrays["train_labels"][:, 0], arrays["train_has_mask"]
    assert not has_mask[np.concatenate([first, second])].any()
    assert has_mask[third].all()
    assert (labels[np.concatenate([first, third])] == -1).all()
    config = settings(make_config, tmp_path, data, epochs=1)
    objective = config.objective.model_copy(update={"tasks": ("classify", "segment")})
    sums: list[tuple[float, float]] = []

    class Notes(Reporter):
        def step(self, images: int, losses: Callable[[], dict[str, float]]) -> None:
            sums.append(tuple(losses().values()))

    medduet.train(config.model_copy(update={"objective": objective}), reporter=Notes())
    known = [[math.isfinite(value) for value in each] for each in sums[:3]]
    assert known == [[False, False], [True, False], [True, True]]


@pytest.mark.slow
def test_two_processes_with_known_halves(make_config: MakeConfig, tmp_path: Path) -> None:
    data = write_partly_known(tmp_path / "half.npz", several=False, val=False)
    config = settings(make_config, tmp_path, data, sampling="balanced")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(config.model_dump_json())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", "-m", "medduet", "train", str(recipe)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    check(tmp_path / "run", data, val=False, test=True)


def test_balance_twice_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    weighed = {"tasks": ["classify"], "class_weights": "balanced"}
    config = make_config(tmp_path / "run", objective=weighed, train={"sampling": "balanced"})
    with pytest.raises(ConfigError, match=r"count rare classes twice"):
        medduet.train(config)
    images = open_images("phantom", size=16, count=20)
    np.savez(
        tmp_path / "masks.npz",
        **{f"{name}_images": images.split(name).images for name in ("train", "val", "test")},
        **{f"{name}_masks": images.split(name).masks for name in ("train", "val", "test")},
    )
    data = {"name": str(tmp_path / "masks.npz"), "count": None}
    config = make_config(
        tmp_path / "run",
        data=data,
        objective={"tasks": ["segment"]},
        train={"sampling": "balanced"},
    )
    with pytest.raises(ConfigError, match=r"draws each class as often, but there are no"):
        medduet.train(config)
    assert not (tmp_path / "run").exists()
