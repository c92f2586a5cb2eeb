"""Figures are drawn from the folder of a run alone."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from medduet import RunRecord
from medduet.reports.run import draw_run
from medduet.utils.files import write_json
from medduet.utils.parsing import read_json

FIGURES = {"balance", "confusion_matrix", "learning_curves", "predictions", "roc"}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_figures_redraw_from_the_folder_alone(finished_run: RunRecord, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished_run.path, copy)
    for name in ("figures", "bundle"):
        shutil.rmtree(copy / name)
    written = draw_run(copy)
    assert {path.stem for path in written} == FIGURES
    for path in written:
        drawn = pixels(path)
        assert min(drawn.shape[:2]) > 200
        assert drawn.std() > 5, f"{path.name} is blank"
        assert np.array_equal(drawn, pixels(finished_run.path / "figures" / path.name))


def test_figures_show_what_the_folder_says(finished_run: RunRecord, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished_run.path, copy)
    metrics = read_json(copy / "metrics.json")
    test = metrics["validation_selected"]["test"]
    test["confusion_matrix"], test["auc"] = np.eye(4, dtype=int).tolist(), None
    write_json(copy / "metrics.json", metrics)
    (copy / "predictions" / "test-test-selected.csv").unlink()  # shown nowhere
    written = {path.stem: pixels(path) for path in draw_run(copy)}
    assert set(written) == FIGURES - {"roc"}
    old = {name: pixels(finished_run.path / "figures" / f"{name}.png") for name in written}
    changed = [name for name, drawn in written.items() if not np.array_equal(drawn, old[name])]
    assert changed == ["confusion_matrix"]
