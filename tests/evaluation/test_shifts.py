"""A network on images unlike those of its training: calibrated on them, and stressed by them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import medduet
from medduet import ConfigError, DataConfig, RunConfig
from medduet.cli import main
from medduet.reports.stress import write_stress_page
from medduet.runs.bundle import save_bundle
from medduet.utils.parsing import read_json


def write_set(path: Path, flip: float, seed: int) -> DataConfig:
    """Write images that are bright or dark, which tells their class, but for a share `flip`."""
    rng, arrays = np.random.default_rng(seed), {}
    for split, count in (("train", 64), ("val", 60), ("test", 200)):
        label = np.arange(count) % 2
        bright = np.where(rng.random(count) < flip, 1 - label, label) == 1
        level = np.where(bright, 140, 60)[:, None, None]
        arrays[f"{split}_images"] = np.uint8(level + rng.integers(-20, 20, (count, 16, 16)))
        arrays[f"{split}_labels"] = label.astype(np.uint8)
    np.savez(path, **arrays)
    return DataConfig(name=str(path), size=16)


@pytest.fixture(scope="module")
def run(make_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that tells dark from bright images, and nothing else."""
    folder = tmp_path_factory.mktemp("bright")
    name = write_set(folder / "here.npz", 0.0, 0).name
    config = make_config(
        folder / "run",
        data={"name": name, "count": None, "modality": "xray"},
        objective={"tasks": ["classify"]},
        train={"epochs": 8, "learning_rate": 0.01},
        evaluate={"select": "accuracy"},
    )
    return medduet.train(config).path


def test_other_images_put_right_what_the_sets_promise(run: Path, tmp_path: Path) -> None:
    # Elsewhere a quarter of the labels are not what this network learnt.
    data, new = write_set(tmp_path / "there.npz", 0.25, 1), tmp_path / "new"
    words = ["calibrate", str(run), "--data", data.name, "--size", "16", "--split", "val"]
    assert main([*words, "--device", "cpu", "--out", str(new)]) == 0
    before, after = (
        medduet.evaluate(path, data=data, out=tmp_path / "out", device="cpu")["test"]
        for path in (run, new)
    )
    assert before["accuracy"] == after["accuracy"]
    old, calibrated = before["calibration"], after["calibration"]
    assert calibrated["ece_after"] < old["ece_after"] - 0.05
    assert old["sets"]["0.90"]["coverage"] < 0.85 < calibrated["sets"]["0.90"]["coverage"]
    weights, trained = (medduet.load(path).state_dict() for path in (new, run))
    assert all(torch.equal(value, weights[key]) for key, value in trained.items())
    config = read_json(new / "config.json")
    assert (config["calibration"]["n"], config["calibrated_on"]["name"]) == (60, "there")
    # What was measured with the old calibration is not told of the new one.
    assert "calibration" not in config["metrics"]["test"]
    assert config["metrics"]["test"]["accuracy"] is not None
    assert "Calibrated on 60 images of there" in (new / "README.md").read_text()


def test_images_of_the_training_are_refused_or_told(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match="already exists"):
        medduet.calibrate_bundle(run, run, data=DataConfig(name="phantom"))
    out = tmp_path / "out"
    # Of the images that it was trained on a network is too sure.
    here = DataConfig(name=str(run.parent / "here.npz"), size=16)
    for bundle in (run, run / "bundle"):
        with pytest.raises(ConfigError, match="was trained on these images"):
            medduet.calibrate_bundle(bundle, out, data=here, device="cpu")
    # Of an ensemble over folds, most members were trained on each image of val, too.
    folds, saved = tmp_path / "folds", medduet.load_bundle(run)
    data = saved.config.to_json()["data"] | {"folds": 5}
    save_bundle(folds, saved.network, saved.config.to_json() | {"data": data})
    with pytest.raises(ConfigError, match="was trained on these images: give other images"):
        medduet.calibrate_bundle(folds, out, data=here, split="val", device="cpu")
    assert not out.exists()
    for split, warnings in (("given", 0), ("made", 1)):
        data = here.model_copy(update={"split": split, "group_by": "none"})
        medduet.evaluate(run / "bundle", data=data, out=tmp_path / split, device="cpu")
        assert caplog.text.count("was trained on images of each part") == warnings


def test_it_breaks_where_it_has_to(run: Path, tmp_path: Path) -> None:
    found = medduet.stress(run, device="cpu", out=tmp_path / "a")
    assert found["modality"] == "xray"
    assert found["clean"]["balanced_error"] == 0
    assert found["clean"]["n"] == found["corruptions"]["pixelate"]["severities"]["3"]["n"] == 200
    dark = found["corruptions"]["brightness_down"]
    assert dark["severities"]["5"]["accuracy"] == dark["severities"]["5"]["balanced_error"] == 0.5
    assert found["corruptions"]["pixelate"]["mean"]["rise"] < 0.05 < dark["mean"]["rise"]
    errors = [row["balanced_error"] for row in dark["severities"].values()]
    assert dark["mean"]["balanced_error"] == pytest.approx(np.mean(errors))
    means = [each["mean"]["ece"] for each in found["corruptions"].values()]
    assert found["mean"]["ece"] == pytest.approx(np.mean(means))
    assert read_json(tmp_path / "a" / "stress.json") == found
    text = write_stress_page(found, tmp_path / "a").read_text()
    assert f"(clean images {found['clean']['accuracy']:.3f})" in text
    assert "increase in error" in text

    names = ["brightness_down", "defocus_blur"]  # no X-ray is out of focus
    again = medduet.stress(run, corruptions=names, device="cpu", out=tmp_path / "b")
    assert list(again["corruptions"]) == names
    assert again["corruptions"]["brightness_down"]["severities"] == dark["severities"]
