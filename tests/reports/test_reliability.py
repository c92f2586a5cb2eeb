"""Calibration in a report: what is drawn, what is counted, and runs that have none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from scipy.special import softmax

import medduet
from medduet.reports.details import calibration
from medduet.reports.figures import reliability
from medduet.reports.grouping import CrossValidated, group_runs
from medduet.runs.folder import open_run
from medduet.uncertainty.calibration import Calibration, calibration_summary
from medduet.utils.files import write_json
from medduet.utils.parsing import read_json

WriteRun = Callable[..., Path]
NAMES = ["benign", "malignant"]
N = 80


def answers(seed: int) -> tuple[np.ndarray, np.ndarray]:
    label = np.arange(N) % 2
    logits = np.random.default_rng(seed).normal(size=(N, 2)) + 1.2 * np.eye(2)[label]
    return label, softmax(3 * logits, axis=1)


def summaries() -> list[Any]:
    calibration = Calibration.fit(*answers(100))
    return [calibration_summary(calibration, *answers(seed), NAMES) for seed in (0, 1)]


@pytest.fixture(scope="module")
def folder(write_run: WriteRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of a calibrated network, and one seed of another that is not calibrated."""
    top = tmp_path_factory.mktemp("runs")
    for seed, model in enumerate(("vovunet_var", "vovunet_var", "unet_var")):
        label, probability = answers(seed)
        given = {"label": label, "probability": probability, "class_names": NAMES}
        path = write_run(top / f"run{seed}", model=model, seed=seed, **given)
        if seed < 2:
            metrics = read_json(path / "metrics.json")
            metrics["test"]["calibration"] = summaries()[seed]
            write_json(path / "metrics.json", metrics)
    return top


def test_the_table_is_the_mean_over_seeds(folder: Path) -> None:
    page = medduet.write_report([folder], folder / "report")
    assert ">Calibration<" in page.read_text("utf-8")
    errors = pd.read_csv(page.parent / "tables" / "ece.csv")
    assert errors["method"].tolist() == ["vovunet_var"]
    for column, kind in (("uncalibrated", "before"), ("calibrated", "after")):
        assert errors[column].tolist() == [np.mean([x[f"ece_{kind}"] for x in summaries()])]
    without = medduet.write_report([folder / "run2"], folder / "without")
    assert ">Calibration<" not in without.read_text("utf-8")


def test_the_figure_shows_every_answer_once() -> None:
    summary = summaries()[0]
    figure = reliability(summary, "a")
    points = [c for c in figure.axes[0].collections if isinstance(c, PathCollection)]
    for drawn, kind in zip(points, ("before", "after"), strict=True):
        bins = summary["reliability"][kind]
        expected = np.array([bins["confidence"], bins["frequency"]], dtype=float).T
        np.testing.assert_allclose(drawn.get_offsets(), expected[np.array(bins["n"]) > 0])
        assert drawn.get_label().endswith(f", ECE {summary[f'ece_{kind}']:.3f}")


def test_folds_count_by_their_mean(folder: Path) -> None:
    runs: list[Any] = [open_run(folder / f"run{seed}") for seed in (0, 1)]
    grouped = group_runs(runs[:1])
    grouped.groups[0].runs[0] = CrossValidated(runs)
    (table,) = calibration(grouped).tables
    assert table.values["calibrated"].tolist() == [np.mean([x["ece_after"] for x in summaries()])]
