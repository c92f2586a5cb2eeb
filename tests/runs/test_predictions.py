"""Predictions are the same in memory and read back from their CSV."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from medduet import DataError, MissingFileError
from medduet.metrics.classification import accuracy
from medduet.runs.predictions import Predictions

NAN = np.nan
SHARES = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 1 / 3], [0.2, 0.8]])
LABELS = np.array([[1, 0], [0, -1], [0, 0], [1, 1]])


def full(n: int = 3) -> Predictions:
    rng = np.random.default_rng(0)
    known = np.array([True, False, True])
    dice = np.where(known[:, None], rng.random((n, 2)), NAN)
    return Predictions(
        np.arange(n),
        class_names=("a, b", 'c "d"'),
        mask_names=("lesion", "cyst"),
        ids=np.array(["x/1.png", "NA", "caf\u00e9.png"]),
        label=np.array([1, -1, 0]),
        probability=rng.random((n, 2)),
        has_mask=known,
        dice=dice,
        iou=dice / 2,
        hd95=np.where(dice > 0.3, dice, NAN),
        truth_pixels=np.array([[4, 0], [0, 0], [0, 0]]),
        predicted_pixels=np.array([[3, 1], [0, 0], [2, 0]]),
        mse=rng.random(n),
        psnr=np.array([np.inf, 20.0, 1e-3]),
        ssim=rng.random(n),
    )


def test_a_csv_gives_back_every_digit(tmp_path: Path) -> None:
    predictions = full()
    predictions.to_csv(tmp_path / "test.csv")
    read = Predictions.from_csv(tmp_path / "test.csv")
    for field in fields(Predictions):
        before, after = getattr(predictions, field.name), getattr(read, field.name)
        np.testing.assert_array_equal(after, before, err_msg=field.name)
    header = (tmp_path / "test.csv").read_text().splitlines()[0]
    assert header.startswith('index,image,label,predicted,"probability_a, b"')
    assert read.mask_present.any(axis=1).tolist() == [True, False, False]
    assert read.drawn.tolist() == [True, False, True]
    joined = Predictions.concatenate([read, read])
    assert (joined.index.tolist(), joined.label.tolist()) == (list(range(6)), [1, -1, 0] * 2)
    Predictions(np.arange(1), mse=np.array([0.1])).to_csv(tmp_path / "a")
    alone = Predictions.from_csv(tmp_path / "a")
    assert (alone.mse.tolist(), alone.label, alone.correct, alone.dice) == ([0.1], *[None] * 3)
    assert Predictions.concatenate([read, alone]).label is None


def test_what_is_correct_is_what_the_accuracy_counts(tmp_path: Path) -> None:
    one = Predictions(np.arange(4), ("a", "b"), label=LABELS[:, 1], probability=SHARES)
    assert one.correct.tolist() == (LABELS[:, 1] != -1).tolist() == [True, False, True, True]
    Predictions(np.arange(4), ("a", "b"), label=LABELS, probability=SHARES).to_csv(tmp_path / "a")
    several = Predictions.from_csv(tmp_path / "a")
    assert several.multi_label
    assert several.label.tolist() == LABELS.tolist()
    assert several.correct.tolist() == [[True] * 2, [True, False], [False, True], [False, True]]
    known = LABELS != -1
    share = np.mean([several.correct[known[:, i], i].mean() for i in range(2)])
    assert share == pytest.approx(accuracy(LABELS, SHARES, multi_label=True))


def test_a_damaged_csv_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "test.csv"
    Predictions(np.arange(4), ("a", "b"), label=LABELS[:, 1], probability=SHARES).to_csv(path)
    whole = path.read_text()
    for text in (
        "",
        whole.replace("0.9", "much"),
        whole + "7\n",
        whole.replace(",label,", ",labels,"),
        "\n".join(f"{line},1" if place else line for place, line in enumerate(whole.split("\n"))),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=r"test\.csv"):
            Predictions.from_csv(path)
    path.unlink()
    with pytest.raises(MissingFileError, match=r"test\.csv"):
        Predictions.from_csv(path)
