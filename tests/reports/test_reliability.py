"""Calibration in a report: what is drawn, what is counted, and runs that have none."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.patches import StepPatch
from scipy.special import softmax
from statsmodels.stats.proportion import proportion_confint

import medduet
from medduet.reports.folds import CrossValidated
from medduet.reports.grouping import group_runs
from medduet.reports.reliability import Diagram, coverage_table, reliability_figure, summaries_of
from medduet.runs.folder import find_runs, open_run
from medduet.uncertainty.calibration import Calibration
from medduet.uncertainty.summary import calibration_summary
from medduet.utils.files import write_json
from medduet.utils.parsing import read_json

WriteRun = Callable[..., Path]
NAMES = ["benign", "malignant"]
N = 80


def answers(seed: int) -> tuple[np.ndarray, np.ndarray]:
    label = np.arange(N) % 2
    logits = np.random.default_rng(seed).normal(size=(N, 2)) + 1.2 * np.eye(2)[label]
    return label, softmax(3 * logits, axis=1)


@pytest.fixture(scope="module")
def folder(write_run: WriteRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of a calibrated network, and one seed of another that is not calibrated."""
    top = tmp_path_factory.mktemp("runs")
    calibration = Calibration.fit(*answers(100))
    for seed in (0, 1):
        label, probability = answers(seed)
        path = write_run(
            top / f"run{seed}",
            seed=seed,
            label=label,
            probability=probability,
            class_names=NAMES,
        )
        metrics = read_json(path / "metrics.json")
        metrics["test"]["calibration"] = calibration_summary(calibration, label, probability, NAMES)
        write_json(path / "metrics.json", metrics)
    label, probability = answers(2)
    write_run(
        top / "older", model="unet_var", label=label, probability=probability, class_names=NAMES
    )
    return top


def test_the_table_is_the_mean_over_seeds_at_the_n_of_one(folder: Path) -> None:
    page = medduet.write_report([folder], folder / "report")
    with (page.parent / "tables" / "coverage.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} == {"vovunet_var"}
    assert [row["class"] for row in rows] == ["all", *NAMES] * 3
    (row,) = [r for r in rows if (r["class"], r["target"]) == ("malignant", "0.9")]
    calibration, held, sizes = Calibration.fit(*answers(100)), [], []
    for seed in (0, 1):
        label, probability = answers(seed)
        chosen = calibration.sets(calibration.calibrate(probability), 0.9)[label == 1]
        held.append(chosen[:, 1].mean())
        sizes.append(chosen.sum(axis=1).mean())
    assert float(row["coverage"]) == pytest.approx(np.mean(held))
    assert float(row["size"]) == pytest.approx(np.mean(sizes))
    assert row["n"] == "40"
    count = round(float(np.mean(held)) * 40)
    low, high = proportion_confint(count, 40, method="wilson")
    assert (float(row["low"]), float(row["high"])) == pytest.approx((low, high))
    text = page.read_text("utf-8")
    assert '<h2 id="Calibration">' in text or ">Calibration<" in text
    assert (page.parent / "figures" / "reliability-fakemnist.png").is_file()


def test_reports_on_older_runs_have_no_such_section(folder: Path, tmp_path: Path) -> None:
    page = medduet.write_report([folder / "older"], tmp_path / "report")
    assert ">Calibration<" not in page.read_text("utf-8")
    assert not (page.parent / "tables" / "coverage.csv").exists()


def test_the_figure_shows_every_answer_once(folder: Path) -> None:
    (group,) = [g for g in group_runs(find_runs([folder])).of("fakemnist") if summaries_of(g)]
    summaries = summaries_of(group)
    figure = reliability_figure([Diagram("a", summaries, 2), Diagram("b", summaries[:1])])
    assert len(figure.axes) == 4  # a diagram and its counts, twice
    drawn = [
        sum(patch.get_data().values.sum() for patch in axes.patches if isinstance(patch, StepPatch))
        for axes in figure.axes[2:]
    ]
    assert drawn == [2 * N, 2 * N]  # before and after, per seed
    before, after = (c for c in figure.axes[1].collections if isinstance(c, PathCollection))
    for points, kind in ((before, "before"), (after, "after")):
        bins = summaries[0]["reliability"][kind]
        there = np.array(bins["n"]) > 0
        expected = np.array([bins["confidence"], bins["frequency"]], dtype=float).T[there]
        np.testing.assert_allclose(points.get_offsets(), expected)
    assert f"ECE {summaries[0]['ece_before']:.3f} → {summaries[0]['ece_after']:.3f}" in {
        text.get_text() for text in figure.axes[1].texts
    }


def test_folds_count_each_image_once(folder: Path) -> None:
    runs: list[Any] = [open_run(folder / f"run{seed}") for seed in (0, 1)]
    group = group_runs(runs[:1]).of("fakemnist")[0]
    group.runs[0] = CrossValidated(runs)
    table = coverage_table([(group, summaries_of(group))])
    assert set(table.values["n"][table.values["class"] == "all"]) == {2 * N}


def test_of_many_classes_the_one_held_least_is_shown(folder: Path) -> None:
    (group,) = group_runs([open_run(folder / "run0")]).of("fakemnist")
    names = [f"class {i}" for i in range(7)]
    label = np.arange(70) % 7
    rng = np.random.default_rng(0)
    probability = softmax(2 * rng.normal(size=(70, 7)) + 2 * np.eye(7)[label], axis=1)
    summaries = calibration_summary(Calibration.fit(label, probability), label, probability, names)
    per_class = summaries["sets"]["0.80"]["per_class"]
    per_class["class 4"]["coverage"] = 0.1
    table = coverage_table([(group, [summaries])])
    assert list(table.shown["class"][:2]) == ["all", "class 4"]
    assert len(table.values) == 3 * 8
