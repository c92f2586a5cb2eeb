"""Calibrating a bundle on other images than those of its training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import medduet
from medduet import ConfigError, DataConfig, DataError, RunConfig
from medduet.cli import main
from medduet.utils.parsing import read_json

MakeConfig = Callable[..., RunConfig]


def write_set(path: Path, flip: float, seed: int) -> Path:
    """Write images whose stripes tell their class, but for a share `flip`."""
    rng, arrays = np.random.default_rng(seed), {}
    for split, count in (("train", 64), ("val", 60), ("test", 200)):
        label = np.arange(count) % 2
        upright = np.where(rng.random(count) < flip, 1 - label, label) == 1
        stripes = np.broadcast_to(150 * (np.arange(16) // 2 % 2), (16, 16))
        image = np.where(upright[:, None, None], stripes, stripes.T)
        image = image + rng.integers(0, 60, (count, 16, 16))
        arrays[f"{split}_images"] = image.astype(np.uint8)
        arrays[f"{split}_labels"] = label.astype(np.uint8)
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def run(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recalibrate")
    name = str(write_set(folder / "here.npz", 0.0, 0))
    config = make_config(
        folder / "run",
        data={"name": name, "count": None},
        objective={"tasks": ["classify"]},
        train={"epochs": 8, "learning_rate": 0.01},
        evaluate={"select": "accuracy"},
    )
    return medduet.train(config).path


def test_other_images_put_right_what_the_sets_promise(run: Path, tmp_path: Path) -> None:
    # Elsewhere a quarter of the labels are not what this network learnt.
    name = str(write_set(tmp_path / "there.npz", 0.25, 1))
    data = DataConfig(name=name, size=16)
    before = medduet.evaluate(run, data=data, split="test", out=tmp_path / "a", device="cpu")
    words = ["calibrate", str(run), "--data", name, "--size", "16", "--split", "val"]
    assert main([*words, "--device", "cpu", "--out", str(tmp_path / "new")]) == 0
    after = medduet.evaluate(
        tmp_path / "new", data=data, split="test", out=tmp_path / "b", device="cpu"
    )
    old, new = (row["test"]["calibration"] for row in (before, after))
    assert before["test"]["accuracy"] == after["test"]["accuracy"]
    assert new["ece_after"] < old["ece_after"] - 0.05
    assert old["sets"]["0.90"]["coverage"] < 0.85 < new["sets"]["0.90"]["coverage"]

    weights = medduet.load(tmp_path / "new").state_dict()
    assert all(
        torch.equal(value, weights[key]) for key, value in medduet.load(run).state_dict().items()
    )
    config = read_json(tmp_path / "new" / "config.json")
    assert config["calibration"]["n"] == 60
    assert config["calibrated_on"]["name"] == "there"
    # What was measured with the old calibration is not told of the new one.
    assert "calibration" not in config["metrics"]["test"]
    assert config["metrics"]["test"]["accuracy"] is not None
    assert "Calibrated on 60 images of there" in (tmp_path / "new" / "README.md").read_text()


def test_what_cannot_be_calibrated_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="is there already"):
        medduet.calibrate_bundle(run, run, data=DataConfig(name="phantom"))
    arrays = dict(np.load(write_set(tmp_path / "few.npz", 0.0, 2)))
    arrays = {name: array[:10] for name, array in arrays.items()}
    np.savez(tmp_path / "few.npz", **arrays)
    data = DataConfig(name=str(tmp_path / "few.npz"), size=16)
    with pytest.raises(DataError, match="expected 20 labelled images"):
        medduet.calibrate_bundle(run, tmp_path / "out", data=data, split="val", device="cpu")
    # Of the images that it was trained on a network is too sure.
    trained_on = DataConfig(name=str(run.parent / "here.npz"), size=16)
    for bundle in (run, run / "bundle"):
        with pytest.raises(ConfigError, match="was trained on these images"):
            medduet.calibrate_bundle(
                bundle, tmp_path / "out", data=trained_on, split="all", device="cpu"
            )
    assert not (tmp_path / "out").exists()
    assert main(["calibrate", str(run)]) == 2
    assert "missing: --out" in capsys.readouterr().err
