"""Cross-validation: folds as one run, and the split that a run was made with."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score

import medduet
from medduet import RunConfig
from medduet.reports.grouping import CrossValidated, group_runs, join_folds, measure
from medduet.runs.folder import RunFolder, find_runs

FOLDS = 3


@pytest.fixture(scope="module")
def runs(
    make_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> list[RunFolder]:
    root = tmp_path_factory.mktemp("folds")
    for rate in (1e-3, 1e-2):
        for fold in range(FOLDS):
            config = make_config(
                root / f"rate{rate}-fold{fold}",
                data={"folds": FOLDS, "fold": fold},
                train={"epochs": 1, "learning_rate": rate},
            )
            medduet.train(config)
    return find_runs([root])


def test_folds_become_one_run_for_each_method(runs: list[RunFolder]) -> None:
    for number, run in enumerate(runs):  # as `auto` decides for folds that differ in size
        run.config["train"]["ema"] = number % FOLDS / 10
        run.environment["training"]["decisions"] = [{"setting": "train.ema"}]
    joined, notes = join_folds(runs)
    assert len(joined) == 2
    assert not notes
    one = joined[0]
    assert isinstance(one, CrossValidated)
    answers = one.predictions()
    assert len(answers.index) == 40
    assert len(set(answers.index.tolist())) == 40
    parts = [run.predictions() for run in one.folds]
    label, probability = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("label", "probability")
    )
    assert np.bincount(label).tolist() == [10, 10, 10, 10]  # every image once
    test = one.validation_selected["test"]
    assert test["n"] == 40
    assert test["accuracy"] == accuracy_score(label, probability.argmax(axis=1))
    assert test["auc"] == pytest.approx(roc_auc_score(label, probability, multi_class="ovr"))
    assert test["dice"] == pytest.approx(np.nanmean(np.concatenate([part.dice for part in parts])))


def test_a_report_judges_all_images_together(runs: list[RunFolder], tmp_path: Path) -> None:
    grouped = group_runs(runs)
    assert grouped.datasets == ["phantom, 3 folds"]
    assert len(grouped.methods) == 2
    measured = measure(grouped.groups[0], "accuracy")
    assert measured is not None
    assert measured.n == 40
    text = medduet.write_report([runs[0].path.parent], tmp_path / "report").read_text()
    assert "phantom, 3 folds" in text
    assert "McNemar" in text


def test_folds_that_are_missing_are_told(runs: list[RunFolder]) -> None:
    joined, notes = join_folds([run for run in runs if "fold1" not in run.path.name])
    assert len(joined) == 4
    assert len(notes) == 2
    assert "2 of 3 folds are finished" in notes[0]
    assert not any(isinstance(run, CrossValidated) for run in joined)


def test_a_resumed_run_keeps_its_split(
    make_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if a later version would make another one; and what was decided."""
    stop = threading.Event()
    stop.set()
    data = {"split": "made", "seed": 1}
    config = make_config(tmp_path / "run", data=data, train={"ema": None})
    with pytest.raises(medduet.Interrupted):
        medduet.train(config, stop=stop)
    saved = (tmp_path / "run" / "split.csv").read_text()
    decisions = RunFolder(tmp_path / "run").environment["training"]["decisions"]
    monkeypatch.setenv("MEDDUET_CACHE", str(tmp_path / "elsewhere"))
    monkeypatch.setattr("medduet.data.splits.stratified_group_split", None)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # by torchrun: so it is resumed
    monkeypatch.setattr("medduet.experiments.run.plan", None)
    medduet.train(config)
    assert (tmp_path / "run" / "split.csv").read_text() == saved
    assert [each["setting"] for each in decisions] == ["train.ema"]
    assert RunFolder(tmp_path / "run").environment["training"]["decisions"] == decisions
    # The same images named again are not judged in a split of another making.
    plain = config.data.model_copy(update={"split": "auto"})
    medduet.evaluate(tmp_path / "run", data=plain)
    judged = tmp_path / "run" / "evaluations" / "phantom-test"
    names = [
        pd.read_csv(folder / "predictions" / "test.csv")["image"].tolist()
        for folder in (tmp_path / "run", judged)
    ]
    assert names[0] == names[1]
