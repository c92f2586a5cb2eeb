"""Figures are drawn from the folder of a run alone."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from medduet import RunRecord
from medduet.reports.figures import draw_run

FIGURES = {"confusion_matrix", "learning_curves", "predictions", "roc"}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_figures_redraw_from_the_folder_alone(finished_run: RunRecord, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished_run.path, copy)
    for name in ("figures", "bundle"):
        shutil.rmtree(copy / name)
    (copy / "predictions" / "test-test-selected.csv").unlink()  # shown nowhere
    written = draw_run(copy)
    assert {path.stem for path in written} == FIGURES
    for path in written:
        drawn = pixels(path)
        assert min(drawn.shape[:2]) > 200
        assert drawn.std() > 5, f"{path.name} is blank"
        assert path.read_bytes() == (finished_run.path / "figures" / path.name).read_bytes()
