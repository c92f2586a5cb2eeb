"""A run is read from its folder alone, whatever version wrote it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medduet import ConfigError, DataError, MissingFileError, RunRecord
from medduet.runs.folder import find_runs, open_run
from medduet.runs.predictions import Predictions
from medduet.utils.files import write_json


def write_run(path: Path, *, finished: bool = True, **config: Any) -> Path:
    settings = {"data": {"name": "sets/eyes.npz"}, "model": {"name": "unet"}}
    settings |= {"objective": {"tasks": ["classify"]}, "train": {"seed": 3}}
    write_json(path / "config.json", settings | config)
    write_json(path / "metrics.json", {"selected_epoch": 2, "test": {"n": 2}})
    predictions = Predictions(
        np.arange(2), ("a", "b"), label=np.array([0, 1]), probability=np.full((2, 2), 0.5)
    )
    predictions.to_csv(path / "predictions" / "test.csv")
    if not finished:
        (path / "checkpoints").mkdir()
        (path / "checkpoints" / "last.pt").write_bytes(b"")
    return path


def test_a_real_run_reads_as_it_was_evaluated(finished_run: RunRecord) -> None:
    run = open_run(finished_run.path)
    assert (run.model_name, run.seed, run.data_name) == ("vovunet_var", 0, "phantom")
    assert run.tasks == ("classify", "segment", "reconstruct")
    assert [row["epoch"] for row in run.epochs] == [1, 2, 3, 4]
    assert run.run_config() == finished_run.config
    for suffix, part in (("", run.validation_selected), ("-test-selected", run.test_selected)):
        for split in ("val", "test"):
            read, metrics = run.predictions(f"{split}{suffix}"), part[split]
            assert (read.label != -1).all()
            assert read.correct.mean() == pytest.approx(metrics["accuracy"])
            assert np.nanmean(read.dice) == pytest.approx(metrics["dice"])
            assert (~read.mask_present.any(axis=1)).sum() == metrics["empty_truth_n"]
            assert read.mse.mean() == pytest.approx(metrics["mse"])
    assert run.validation_selected["selected_epoch"] != run.metrics["selected_epoch"]


def test_folders_of_other_versions_are_readable(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path, section_of_another_version={}))
    assert (run.environment, run.data, run.epochs) == ({}, {}, [])
    assert (run.data_name, run.seed, run.test_selected) == ("eyes", 3, None)
    assert len(run.predictions()) == 2
    with pytest.raises(ConfigError, match="section_of_another_version"):
        run.run_config()


def test_runs_are_found_once_and_in_order(tmp_path: Path) -> None:
    for name in ("b/2", "b/1", "a", "c/deep/er"):
        write_run(tmp_path / name)
    write_run(tmp_path / "unfinished", finished=False)
    write_json(tmp_path / "a" / "evaluations" / "phantom-test" / "metrics.json", {})
    (tmp_path / "link").symlink_to(tmp_path / "a")
    runs = find_runs([tmp_path / "b", tmp_path, tmp_path / "a"])
    names = [str(run.path.relative_to(tmp_path)) for run in runs]
    assert names == ["a", "b/1", "b/2", "c/deep/er"]


def test_where_no_run_is_the_error_names_what_was_expected(tmp_path: Path) -> None:
    write_run(tmp_path / "u", finished=False)
    with pytest.raises(MissingFileError, match="--resume RUN"):
        find_runs([tmp_path])
    with pytest.raises(MissingFileError, match="expected"):
        find_runs([])
    for path, words in ((tmp_path / "u", "--resume"), (tmp_path, r"config\.json")):
        with pytest.raises(MissingFileError, match=words):
            open_run(path)
    (write_run(tmp_path / "damaged") / "config.json").write_text("{}")
    with pytest.raises(DataError, match="damaged"):
        open_run(tmp_path / "damaged")
