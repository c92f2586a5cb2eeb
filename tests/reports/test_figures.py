"""Figures say what they should, lie within the paper, and are the same every time."""

import shutil
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import sklearn.metrics as sk
from matplotlib.figure import Figure
from PIL import Image

from medduet import RunRecord
from medduet.reports.figures import confusion, draw_run, learning_curves, roc

HISTORY = [
    {
        "epoch": epoch,
        "train": {"loss": 2 / epoch, "classify": 1.5 / epoch, "reconstruct": 0.5 / epoch},
        "val": {"score": 0.5, "accuracy": 1 - 0.5 / epoch, "auc": None, "mse": 0.1 / epoch},
        "test": {"accuracy": 1 - 0.6 / epoch},
    }
    for epoch in range(1, 6)
]


@pytest.fixture(autouse=True)
def global_state_is_left_alone() -> Any:
    before = dict(mpl.rcParams)
    yield
    assert dict(mpl.rcParams) == before


def words(figure: Figure) -> set[str]:
    legends = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    legends += figure.legends
    return {text.get_text() for legend in legends for text in legend.get_texts()}


def inside(figure: Figure) -> bool:
    """Whether all that is drawn lies within the paper, laid out at the figure's own resolution."""
    figure.draw_without_rendering()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    ends = (box.x0, box.y0, width - box.x1, height - box.y1)
    return min(ends) >= -0.02


def test_learning_curves_mark_the_epochs() -> None:
    figure = learning_curves(HISTORY, 4, 5)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["Training loss", "Score", "Reconstruction error"]
    names = {"total", "classify", "reconstruct", "accuracy", "accuracy, test", "MSE"}
    assert words(figure) == names | {"selected (epoch 4)", "test-selected (epoch 5)"}
    for axes in figure.axes:
        at = [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1]
        assert at == [4, 5]
    scores = figure.axes[1].lines
    assert scores[0].get_ydata().tolist() == [row["val"]["accuracy"] for row in HISTORY]
    assert inside(figure)


@pytest.mark.parametrize("k", [1, 2, 11, 26])
def test_confusion_writes_every_count(k: int) -> None:
    matrix = np.random.default_rng(k).integers(0, 2000, (k, k))
    matrix[0] = 0
    figure = confusion(matrix, [f"a rather long name of class {i}" for i in range(k)])
    assert [text.get_text() for text in figure.axes[0].texts] == [str(n) for n in matrix.flat]
    assert figure.axes[0].images[0].get_array().max() <= 1
    assert figure.get_size_inches()[0] <= 8.5
    assert inside(figure)


def test_roc_of_two_classes_is_one_curve() -> None:
    rng = np.random.default_rng(0)
    label, probability = rng.integers(-1, 2, 80), rng.dirichlet([1, 1], 80)
    figure = roc(label, probability, ["benign", "malignant"], auc_interval=[0.4, 0.6])
    area = sk.roc_auc_score(label[label >= 0], probability[label >= 0, 1])
    assert words(figure) == {f"malignant  {area:.3f}"}
    assert "0.400–0.600" in figure.axes[0].get_title(loc="left")


@pytest.mark.parametrize("multi_label", [False, True])
def test_roc_of_many_classes(multi_label: bool) -> None:
    """The last one never occurs."""
    rng = np.random.default_rng(1)
    label = rng.integers(0, 18, 90)
    if multi_label:
        label = (label[:, None] == np.arange(19)).astype(int)
    figure = roc(label, rng.dirichlet(np.ones(19), 90), [f"class number {i}" for i in range(19)])
    assert [word for word in words(figure) if "n/a" in word] == ["class number 18  n/a"]
    lines = figure.axes[0].lines[1:]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 19
    assert inside(figure)


def test_figures_redraw_from_the_folder_alone(finished_run: RunRecord, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished_run.path, copy)
    for name in ("figures", "bundle"):
        shutil.rmtree(copy / name)
    (copy / "predictions" / "test-test-selected.csv").unlink()  # shown nowhere
    written = draw_run(copy)
    assert {path.stem for path in written} == {
        "confusion_matrix",
        "learning_curves",
        "predictions",
        "roc",
    }
    for path in written:
        drawn = np.asarray(Image.open(path).convert("RGB"))
        assert min(drawn.shape[:2]) > 200
        assert drawn.std() > 5, f"{path.name} is blank"
        assert path.read_bytes() == (finished_run.path / "figures" / path.name).read_bytes()
