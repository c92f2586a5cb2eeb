"""Two runs side by side: the right numbers from the right tests, and refusals in one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import medduet
from medduet import ConfigError, DataError
from medduet.cli import main
from medduet.metrics.paired import mcnemar, over_images
from medduet.metrics.repeats import holm
from medduet.metrics.roc import delong
from medduet.runs.reader import open_run
from medduet.utils.files import write_json
from medduet.utils.parsing import read_json

WriteRun = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
N = 60


def answers(seed: int, shift: float = 1.0) -> dict[str, Any]:
    """Three classes and one mask class; the truth is the same for every seed."""
    label = np.arange(N) % 3
    rng = np.random.default_rng(seed)
    scores = np.exp(rng.normal(size=(N, 3)) + shift * np.eye(3)[label])
    present = label[:, None] > 0
    dice = np.where(present, np.clip(rng.normal(0.6, 0.2, (N, 1)), 0, 1), rng.random((N, 1)) > 0.5)
    return {
        "label": label,
        "probability": scores / scores.sum(axis=1, keepdims=True),
        "dice": dice,
        "present": present,
        "mse": rng.random(N) / 10 + 0.01,
        "tasks": ["classify", "segment", "reconstruct"],
    }


def test_every_row_is_its_test(write_run: WriteRun, tmp_path: Path) -> None:
    one, other = answers(1), answers(2, shift=3)
    a = write_run(tmp_path / "a", model="unet_var", **one)
    b = write_run(tmp_path / "b", model="vovunet_var", **other)
    comparison = medduet.compare(a, b)
    rows = {row.measure: row for row in comparison.rows}
    assert list(rows) == ["accuracy", "AUC", "Dice", "Dice of lesions", "MSE"]
    said = [open_run(path).honest["test"] for path in (a, b)]
    keys = ["accuracy", "auc", "dice", "dice_nonempty", "mse"]
    for row, key in zip(comparison.rows, keys, strict=True):
        assert (row.a, row.b) == pytest.approx([part[key] for part in said])
        assert row.difference == pytest.approx(row.a - row.b)
    right = [x["probability"].argmax(axis=1) == x["label"] for x in (one, other)]
    by_mcnemar = mcnemar(*right)
    accuracy = rows["accuracy"]
    assert (accuracy.p, accuracy.interval) == (by_mcnemar.p, by_mcnemar.interval)
    assert accuracy.effect == by_mcnemar.odds_ratio
    assert rows["AUC"].p == delong(one["label"], one["probability"], other["probability"]).p
    assert rows["Dice"].p == over_images(one["dice"], other["dice"]).p
    lesion = one["present"][:, 0]
    of_lesions = over_images(one["dice"][lesion], other["dice"][lesion])
    assert rows["Dice of lesions"].p == of_lesions.p
    assert rows["Dice of lesions"].n == 40
    assert rows["MSE"].interval == over_images(one["mse"], other["mse"]).interval
    corrected = holm([row.p for row in comparison.rows])
    assert [row.p_holm for row in comparison.rows] == corrected
    assert (comparison.a, comparison.b) == ("unet_var", "vovunet_var")
    assert comparison.sentence.startswith("vovunet_var is right on ")
    assert "more of the 60 images than unet_var (95% interval" in comparison.sentence
    assert "): evidence of a difference, as there is in AUC (vovunet_var" in comparison.sentence
    assert comparison.left_out == ()


def test_turned_around_it_says_the_same(write_run: WriteRun, tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", model="unet_var", **answers(1))
    b = write_run(tmp_path / "b", model="vovunet_var", **answers(2, shift=2))
    there, back = medduet.compare(a, b), medduet.compare(b, a)
    assert there.sentence.split("(")[0] == back.sentence.split("(")[0]
    for one, other in zip(there.rows, back.rows, strict=True):
        assert one.p == pytest.approx(other.p, abs=0.01)
        assert one.difference == pytest.approx(-other.difference)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"seed": 1}, ("vovunet_var, seed 0", "vovunet_var, seed 1")),
        ({"model": "unet"}, ("vovunet_var", "unet")),
        ({"model": "unet", "seed": 4}, ("vovunet_var, seed 0", "unet, seed 4")),
        ({"tasks": ["classify"]}, ("vovunet_var, classify+segment", "vovunet_var, classify")),
        ({}, ("first", "second")),
    ],
)
def test_names_are_what_differs(
    changes: dict[str, Any], names: tuple[str, str], write_run: WriteRun, tmp_path: Path
) -> None:
    given = {key: answers(1)[key] for key in ("label", "probability")}
    tasks = {"tasks": ["classify", "segment"]}
    a = write_run(tmp_path / "first", **given, **tasks)
    b = write_run(tmp_path / "second", **given, **(tasks | changes))
    comparison = medduet.compare(a, b)
    assert (comparison.a, comparison.b) == names
    assert "about the same accuracy" in comparison.sentence
    assert "no evidence of a difference" in comparison.sentence


def test_equal_folder_names_are_told_apart_by_their_paths(
    write_run: WriteRun, tmp_path: Path
) -> None:
    a, b = (write_run(tmp_path / name / "run", **answers(1)) for name in ("x", "y"))
    comparison = medduet.compare(a, b)
    assert (comparison.a, comparison.b) == (str(a), str(b))
    assert {row.p for row in comparison.rows} == {1.0}


def test_what_one_run_lacks_is_said(write_run: WriteRun, tmp_path: Path) -> None:
    whole = write_run(tmp_path / "whole", **answers(1))
    only = {"dice": answers(2)["dice"], "present": answers(2)["present"]}
    environment = {"data": read_json(whole / "environment.json")["data"]}
    masks = write_run(tmp_path / "masks", tasks=["segment"], environment=environment, **only)
    comparison = medduet.compare(whole, masks)
    assert [row.measure for row in comparison.rows] == ["Dice", "Dice of lesions"]
    assert len(comparison.left_out) == 2
    assert "accuracy and AUC: only one run can classify" in comparison.left_out[0]
    assert comparison.left_out[0].endswith("vovunet_var, segment can't")
    assert " Dice " in comparison.sentence
    mse = answers(1)["mse"]
    rebuilt = write_run(tmp_path / "r", tasks=["reconstruct"], environment=environment, mse=mse)
    with pytest.raises(ConfigError, match="a task in common"):
        medduet.compare(masks, rebuilt)


def test_masks_of_other_sizes_are_not_compared(write_run: WriteRun, tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", **answers(1))
    b = write_run(tmp_path / "b", size=64, **answers(2))
    comparison = medduet.compare(a, b)
    assert [row.measure for row in comparison.rows] == ["accuracy", "AUC"]
    assert "other sizes" in comparison.left_out[0]
    c = write_run(tmp_path / "c", **(answers(2) | {"present": np.ones((N, 1), bool)}))
    assert "the true masks differ" in medduet.compare(a, c).left_out[0]


def test_several_labels(write_run: WriteRun, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label = (rng.random((N, 3)) < 0.5).astype(int)
    label[0, 1] = -1
    shares = [np.clip(rng.random((N, 3)) * 0.6 + 0.3 * label, 0, 1) for _ in range(2)]
    a, b = (
        write_run(tmp_path / str(i), label=label, probability=share, seed=i)
        for i, share in enumerate(shares)
    )
    row = medduet.compare(a, b).rows[0]
    said = [open_run(path).honest["test"]["accuracy"] for path in (a, b)]
    assert (row.a, row.b) == pytest.approx(said)
    assert row.difference == pytest.approx(row.a - row.b)
    assert row.test == "permutation"


def test_the_honest_epoch_is_compared(write_run: WriteRun, tmp_path: Path) -> None:
    one, other = ({key: answers(seed)[key] for key in ("label", "probability")} for seed in (1, 2))
    perfect = np.eye(3)[one["label"]]
    a = write_run(tmp_path / "a", protocol="paper", test_selected=perfect, **one)
    b = write_run(tmp_path / "b", **other)
    assert medduet.compare(a, b).rows[0].a < 1
    assert len(medduet.compare(a, b).notes) == 1
    assert "too good" in medduet.compare(a, b, split="val").notes[1]


def test_other_data_is_refused(write_run: WriteRun, tmp_path: Path) -> None:
    given = {key: answers(1)[key] for key in ("label", "probability")}
    a = write_run(tmp_path / "a", **given)
    b = write_run(tmp_path / "b", data="othermnist", **given)
    with pytest.raises(ConfigError, match="fingerprint of othermnist"):
        medduet.compare(a, b)
    environment = read_json(a / "environment.json")
    environment["data"]["splits"]["test"] += 1
    write_json(b / "environment.json", environment)
    with pytest.raises(ConfigError, match="has splits"):
        medduet.compare(a, b)
    other = np.roll(given["label"], 1)
    c = write_run(tmp_path / "c", **(given | {"label": other}))
    with pytest.raises(DataError, match="same images and labels"):
        medduet.compare(a, c)
    unknown = given | {"label": np.full(N, -1)}
    d, e = (write_run(tmp_path / name, **unknown) for name in "de")
    with pytest.raises(ConfigError, match="no label is known"):
        medduet.compare(d, e)


def test_on_the_screen_and_in_a_file(write_run: WriteRun, tmp_path: Path, capsys: Capture) -> None:
    a = write_run(tmp_path / "a", model="unet_var", **answers(1))
    b = write_run(tmp_path / "b", model="timm:resnet18", **answers(2))
    out = tmp_path / "new" / "both.json"
    assert main(["compare", str(a), str(b), "--split", "val", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    comparison = medduet.compare(a, b, split="val")
    assert comparison.sentence in shown
    assert f"a: unet_var  {a}\n" in shown
    assert "fakemnist, val" in shown
    assert f"{comparison.rows[0].a:.4f}" in shown
    written = read_json(out)
    assert [row["p"] for row in written["rows"]] == [row.p for row in comparison.rows]
    assert written["sentence"] == comparison.sentence
    assert all(not math.isnan(row.p_holm) for row in comparison.rows)


def test_mistakes_are_one_line(write_run: WriteRun, tmp_path: Path, capsys: Capture) -> None:
    given = {key: answers(1)[key] for key in ("label", "probability")}
    a, b = (str(write_run(tmp_path / name, **given)) for name in "ab")
    unfinished = str(write_run(tmp_path / "u", finished=False, **given))
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    mistakes = {
        "": "medduet compare RUN_A RUN_B",
        a: "expected two runs, given 1",
        f"{a} {b} {a}": "given 3",
        f"{a} {a}": "twice",
        f"{a} {a}/../a": "twice",
        f"{a} {tmp_path}/no": "is not there",
        f"{a} {tmp_path}/empty": "config.json",
        f"{a} {tmp_path}/file": "is no folder",
        f"{unfinished} {b}": "--resume",
        f"{a} {b} --split train": "train",
        f"{a} {b} --out x.txt": ".json",
        f"{a} {b} --out {tmp_path}/file/x.json": "can't write",
    }
    for words, wanted in mistakes.items():
        assert main(["compare", *words.split()]) == 2, words
        error = capsys.readouterr().err
        assert wanted in error
        assert error.startswith("medduet: ")
        assert error.count("\n") == 1
