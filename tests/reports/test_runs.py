"""Runs are read from their folders, whatever version wrote them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medduet import ConfigError, DataError, MissingFileError, RunRecord
from medduet.metrics.classification import accuracy
from medduet.runs.folder import find_runs, open_run
from medduet.runs.predictions import Predictions
from medduet.utils.files import write_json
from medduet.utils.parsing import read_json

WriteRun = Callable[..., Path]
SHARES = [[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8]]


def test_a_real_run_reads_as_it_was_judged(finished_run: RunRecord) -> None:
    run = open_run(finished_run.path)
    assert (run.model_name, run.seed, run.data_name) == ("vovunet_var", 0, "phantom")
    assert run.tasks == ("classify", "segment", "reconstruct")
    assert [row["epoch"] for row in run.epochs] == [1, 2, 3, 4]
    parts = {"validation": run.validation_selected, "test": run.test_selected}
    for selection, part in parts.items():
        assert part is not None
        for split in ("val", "test"):
            read, said = run.predictions(split, selection), part[split]  # type: ignore[arg-type]
            assert read.correct is not None
            assert read.labelled is not None
            assert read.mean_dice is not None
            assert read.has_lesion is not None
            assert read.mse is not None
            assert read.labelled.all()
            assert read.correct.mean() == pytest.approx(said["accuracy"])
            assert np.nanmean(read.mean_dice) == pytest.approx(said["dice"])
            assert read.mean_dice.shape == read.has_lesion.shape
            assert (~read.has_lesion).sum() == said["empty_truth_n"]
            assert read.mse.mean() == pytest.approx(said["mse"])
    assert run.validation_selected["selected_epoch"] != run.metrics["selected_epoch"]


def test_what_is_right_is_what_the_accuracy_counts(write_run: WriteRun, tmp_path: Path) -> None:
    one = open_run(write_run(tmp_path / "one", label=[0, 0, -1, 1], probability=SHARES))
    read = one.predictions()
    assert read.correct is not None
    assert read.labelled is not None
    assert read.correct.tolist() == [True, False, False, True]
    assert read.labelled.tolist() == [True, True, False, True]
    label = np.array([[1, 0], [0, -1], [0, 0], [1, 1]])
    names = ["a, b", 'c "d"']
    path = write_run(tmp_path / "several", label=label, probability=SHARES, class_names=names)
    several = open_run(path).predictions()
    assert several.correct is not None
    assert several.label is not None
    assert np.array_equal(several.label, label)
    assert several.correct.tolist() == [[True, True], [True, False], [False, True], [False, True]]
    known = label != -1
    share = np.mean([several.correct[known[:, i], i].mean() for i in range(2)])
    assert share == pytest.approx(accuracy(label, SHARES, multi_label=True))


def test_what_is_absent_is_none(write_run: WriteRun, tmp_path: Path) -> None:
    dice = [[0.5, 0.7], [0.1, 0.1], [1.0, 0.0]]
    present = [[1, 1], [1, 0], [0, 1]]  # the second has no true mask at all
    path = write_run(
        tmp_path / "run", tasks=["segment"], dice=dice, present=present, has_mask=[1, 0, 1]
    )
    read = open_run(path).predictions("val")
    assert (read.label, read.probability, read.correct, read.labelled, read.mse) == (None,) * 5
    assert read.mean_dice is not None
    assert read.has_lesion is not None
    assert read.mean_dice == pytest.approx([0.6, np.nan, 0.5], nan_ok=True)
    assert read.has_lesion.tolist() == [True, False, True]
    rebuilt = write_run(tmp_path / "rebuilt", tasks=["reconstruct"], mse=[0.1, 0.2])
    read = open_run(rebuilt).predictions()
    assert (read.mean_dice, read.has_lesion) == (None, None)
    assert read.mse is not None
    assert read.mse.tolist() == [0.1, 0.2]


def test_older_folders_are_readable(write_run: WriteRun, tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", label=[0, 1, 0, 1], probability=SHARES)
    config = read_json(path / "config.json")
    write_json(path / "config.json", config | {"a section of another version": {}})
    (path / "environment.json").unlink()
    (path / "epochs.jsonl").unlink()
    run = open_run(path)
    assert (run.environment, run.data, run.epochs, run.data_name) == ({}, {}, [], "fakemnist")
    assert run.test_selected is None
    assert run.predictions().correct is not None
    with pytest.raises(ConfigError, match="no test-selected epoch"):
        run.predictions("test", "test")
    with pytest.raises(ConfigError, match="val or test"):
        run.predictions("train")


def test_runs_are_found_once_and_in_order(write_run: WriteRun, tmp_path: Path) -> None:
    given = {"label": [0, 1, 0, 1], "probability": SHARES}
    for name in ("b/2", "b/1", "a", "c/deep/er"):
        write_run(tmp_path / name, **given)
    write_run(tmp_path / "unfinished", finished=False, **given)
    evaluation = tmp_path / "a" / "evaluations" / "phantom-test"
    write_json(evaluation / "metrics.json", {})
    (tmp_path / "link").symlink_to(tmp_path / "a")
    found = find_runs([tmp_path / "b", tmp_path, tmp_path / "a"])
    names = [str(run.path.relative_to(tmp_path)) for run in found]
    assert names == ["a", "b/1", "b/2", "c/deep/er"]
    assert [run.path for run in find_runs([tmp_path / "a"])] == [tmp_path / "a"]
    assert len(find_runs([tmp_path / "link", tmp_path / "a"])) == 1


def test_nothing_found_says_what_was_expected(write_run: WriteRun, tmp_path: Path) -> None:
    write_run(tmp_path / "u", label=[0, 1, 0, 1], probability=SHARES, finished=False)
    with pytest.raises(MissingFileError, match=r"1 not finished, such as .*u\): medduet train"):
        find_runs([tmp_path])
    for paths in ([], [tmp_path / "no"]):
        with pytest.raises(MissingFileError, match="expected"):
            find_runs(paths)
    with pytest.raises(MissingFileError, match="--resume"):
        open_run(tmp_path / "u")
    with pytest.raises(MissingFileError, match=r"config\.json"):
        open_run(tmp_path)


def test_broken_files_are_one_line(write_run: WriteRun, tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", label=[0, 1, 0, 1], probability=SHARES)
    table = path / "predictions" / "test.csv"
    whole = table.read_text()
    for broken in (
        "",
        "index,label\n",
        whole.replace("index", "place"),
        whole.replace("0.9", "much"),
        whole + "7\n",
        whole.replace(",label,", ",labels,"),
    ):
        table.write_text(broken)
        with pytest.raises(DataError, match=r"test\.csv"):
            open_run(path).predictions()
    table.unlink()
    with pytest.raises(MissingFileError, match=r"test\.csv"):
        Predictions.from_csv(table)
    (path / "metrics.json").write_text("{")
    with pytest.raises(DataError, match=r"metrics\.json is not JSON"):
        open_run(path)
    write_json(path / "metrics.json", {})
    write_json(path / "config.json", [])
    with pytest.raises(DataError, match=r"config\.json: expected a JSON object"):
        open_run(path)
