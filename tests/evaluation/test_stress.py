"""A stress test tells where a network breaks, the same each time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import medduet
from medduet import ConfigError, DataConfig, MissingFileError, RunConfig, RunRecord
from medduet.cli import main
from medduet.utils.parsing import read_json

MakeConfig = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def bright_run(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that tells dark from bright images, and nothing else."""
    folder, rng, arrays = tmp_path_factory.mktemp("bright"), np.random.default_rng(0), {}
    for split, count in (("train", 64), ("val", 40), ("test", 60)):
        label = np.arange(count) % 2
        level = np.where(label == 1, 140, 60)[:, None, None]
        image = level + rng.integers(-20, 20, (count, 16, 16))
        arrays[f"{split}_images"] = image.astype(np.uint8)
        arrays[f"{split}_labels"] = label.astype(np.uint8)
    np.savez(folder / "bright.npz", **arrays)
    config = make_config(
        folder / "run",
        data={"name": str(folder / "bright.npz"), "count": None, "modality": "xray"},
        objective={"tasks": ["classify"]},
        train={"epochs": 8, "learning_rate": 0.01},
        evaluate={"select": "accuracy"},
    )
    return medduet.train(config).path


def test_it_breaks_where_it_has_to(bright_run: Path, tmp_path: Path) -> None:
    found = medduet.stress(bright_run, device="cpu", out=tmp_path / "a")
    assert found["modality"] == "xray"
    assert found["clean"]["balanced_error"] == 0
    assert found["clean"]["n"] == found["corruptions"]["jpeg"]["severities"]["3"]["n"] == 60
    dark = found["corruptions"]["brightness_down"]
    assert dark["severities"]["5"]["accuracy"] == dark["severities"]["5"]["balanced_error"] == 0.5
    assert found["corruptions"]["pixelate"]["mean"]["rise"] < 0.05 < dark["mean"]["rise"]
    errors = [row["balanced_error"] for row in dark["severities"].values()]
    assert dark["mean"]["balanced_error"] == pytest.approx(np.mean(errors))
    means = [each["mean"]["ece"] for each in found["corruptions"].values()]
    assert found["mean"]["ece"] == pytest.approx(np.mean(means))
    assert read_json(tmp_path / "a" / "stress.json") == found

    # Against itself every share is 1; where the baseline has no error, there is none.
    again = medduet.stress(
        bright_run,
        corruptions=["brightness_down", "pixelate", "defocus_blur"],  # no X-ray is out of focus
        device="cpu",
        out=tmp_path / "b",
    )
    assert set(again["corruptions"]) == {"brightness_down", "pixelate", "defocus_blur"}
    again = medduet.stress(
        bright_run,
        corruptions=["brightness_down", "pixelate"],
        baseline=tmp_path / "a",
        device="cpu",
        out=tmp_path / "b",
    )
    assert again["corruptions"]["brightness_down"]["severities"] == dark["severities"]
    assert again["corruptions"]["brightness_down"]["be"] == 1
    assert again["be"] == again["rbe"] == 1


def test_masks_alone_are_stressed_from_the_command_line(
    finished_run: RunRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["stress", str(finished_run.path), "--device", "cpu", "--split", "val"]
    words += ["--corruptions", "contrast_down", "--out", str(tmp_path / "a")]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "contrast_down" in told
    assert "Dice, non-empty masks" in told
    found = read_json(tmp_path / "a" / "stress.json")
    assert found["clean"]["dice_nonempty_n"] > 0
    assert len(found["corruptions"]["contrast_down"]["severities"]) == 5
    assert "medduet stress" in (tmp_path / "a" / "index.html").read_text()


def test_bad_input_gives_one_line(
    bright_run: Path, finished_run: RunRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"unknown corruption 'jpg'.*jpeg"):
        medduet.stress(bright_run, corruptions=["jpg"], device="cpu")
    with pytest.raises(ConfigError, match="'saturation_up' for images of 1"):
        medduet.stress(bright_run, corruptions=["saturation_up"], device="cpu")
    with pytest.raises(MissingFileError, match=r"expected stress\.json"):
        medduet.stress(bright_run, baseline=tmp_path / "none", device="cpu")
    (tmp_path / "stress.json").write_text("[]")
    with pytest.raises(ConfigError, match="is not as MedDuet writes it"):
        medduet.stress(bright_run, baseline=tmp_path, device="cpu")
    phantoms = DataConfig(name="phantom", size=16, count=40)
    medduet.stress(finished_run.path, corruptions=["jpeg"], device="cpu", out=tmp_path / "other")
    with pytest.raises(ConfigError, match="has other images"):
        medduet.stress(bright_run, corruptions=["jpeg"], baseline=tmp_path / "other", device="cpu")
    with pytest.raises(ConfigError, match="lacks pixelate"):
        medduet.stress(
            finished_run.path,
            data=phantoms,
            corruptions=["pixelate"],
            baseline=tmp_path / "other",
            device="cpu",
        )
    assert main(["stress", str(bright_run), "--corruptions", "jpg", "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert not (bright_run / "stress").exists()
