"""`medduet audit`, from what is typed to its files and exit code."""

import csv
from pathlib import Path

import numpy as np
import pytest

import medduet
from medduet.cli import main
from medduet.utils.parsing import read_json

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def leaky(tmp_path: Path) -> Path:
    """Phantoms of which two of test are in train, too."""
    images, arrays = medduet.open_images("phantom", size=32, count=80), {}
    for name in ("train", "val", "test"):
        split = images.split(name)
        arrays |= {f"{name}_images": split.images, f"{name}_labels": split.labels[:, None]}
        arrays[f"{name}_masks"] = split.masks
    arrays["train_images"][:2] = arrays["test_images"][:2]
    np.savez_compressed(tmp_path / "leaky.npz", **arrays)
    return tmp_path / "leaky.npz"


def test_a_set_with_leaks(leaky: Path, capsys: Capture) -> None:
    out, fix = leaky.parent / "out", leaky.parent / "fix.csv"
    words = ["audit", str(leaky), "--out", str(out)]
    assert main(words) == 0
    assert main([*words, "--strict", "--fix", str(fix)]) == 1
    shown = capsys.readouterr().out
    assert "leaky: 1 leak, " in shown
    assert f"report: {out / 'index.html'}\n" in shown
    assert "dropped 2 (2 train); test unchanged; now 54 train, 8 val, 16 test" in shown
    record = read_json(out / "audit.json")
    assert [f["kind"] for f in record["findings"] if f["severity"] == "leak"] == [
        "exact-duplicates-across-splits"
    ]
    with (out / "tables" / "duplicates.csv").open(newline="") as file:
        pairs = [(row["image_a"], row["image_b"], row["exact"]) for row in csv.DictReader(file)]
    assert pairs == [("train/0", "test/0", "1"), ("train/1", "test/1", "1")]
    again = [*words, "--strict", "--data.split", str(fix)]
    assert main(again) == 0
    assert "leaky: 0 leaks" in capsys.readouterr().out


def test_training_on_leaks_says_so(leaky: Path, tmp_path: Path, capsys: Capture) -> None:
    words = f"train auto --data {leaky} --model.width 2 --tasks classify --epochs 1 --out"
    assert main([*words.split(), str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert f"warning: data leakage inflates the scores: medduet audit {leaky}. Exact" in said
