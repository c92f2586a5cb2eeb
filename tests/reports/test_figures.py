"""Figures are drawn without a warning, say what they should, and are the same every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import sklearn.metrics as sk
from matplotlib.figure import Figure
from PIL import Image

from medduet.errors import DataError
from medduet.reports.figures import balance_curves, confusion, learning_curves, roc
from medduet.reports.style import save

HISTORY = [
    {
        "epoch": epoch,
        "learning_rate": 1e-4,
        "train": {"loss": 2 / epoch, "classify": 1.5 / epoch, "reconstruct": 0.5 / epoch},
        "val": {"score": 0.5, "accuracy": 1 - 0.5 / epoch, "auc": None, "mse": 0.1 / epoch},
        "test": {"accuracy": 1 - 0.6 / epoch},
    }
    for epoch in range(1, 6)
]
LONG = ["basophil", "immature granulocytes (myelocytes, metamyelocytes)", "platelet $x$"]


@pytest.fixture(autouse=True)
def global_state_is_left_alone() -> Any:
    before = dict(mpl.rcParams)
    yield
    assert dict(mpl.rcParams) == before


def words(figure: Figure) -> list[str]:
    found = [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        found += [text.get_text() for text in axes.texts] + [axes.get_xlabel()]
        legend = axes.get_legend()
        found += [text.get_text() for text in legend.get_texts()] if legend else []
    for legend in figure.legends:
        found += [text.get_text() for text in legend.get_texts()]
    return found


def drawn(figure: Figure, folder: Path) -> bytes:
    save(figure, folder / "figure.png", dpi=40)
    return (folder / "figure.png").read_bytes()


def inside(figure: Figure) -> bool:
    """Whether all that is drawn lies within the paper, laid out at the figure's own resolution."""
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    return bool(
        box.x0 >= -0.02 and box.y0 >= -0.02 and box.x1 <= width + 0.02 and box.y1 <= height + 0.02
    )


def test_learning_curves_mark_the_epochs(tmp_path: Path) -> None:
    figure = learning_curves(HISTORY, 4, 5)
    drawn(figure, tmp_path)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["Training loss", "Score", "Reconstruction error"]
    said = words(figure)
    for name in ("total", "classify", "reconstruct", "accuracy", "MSE", "validation", "test"):
        assert name in said
    assert "AUC" not in said
    assert {"selected (epoch 4)", "test-selected (epoch 5)"} <= set(said)
    for axes in figure.axes:
        at = [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1]
        assert at == [4, 5]
    scores = figure.axes[1].lines
    assert scores[0].get_ydata().tolist() == [row["val"]["accuracy"] for row in HISTORY]
    assert inside(figure)


@pytest.mark.parametrize(
    ("history", "panels"),
    [
        ([{"epoch": 1, "train": {"loss": 1.0, "classify": 1.0}}], 1),
        ([{"epoch": 1, "train": {"loss": 1.0}, "val": None}, {"epoch": 2}], 1),
        ([{"epoch": 1, "val": {"dice": 0.4}}], 2),
        ([{"epoch": 1, "train": {"loss": None}, "test": {"accuracy": 0.4}}], 2),
    ],
)
def test_sparse_histories(history: list[dict[str, Any]], panels: int, tmp_path: Path) -> None:
    figure = learning_curves(history, None)
    drawn(figure, tmp_path)
    assert len(figure.axes) == panels
    assert inside(figure)


def test_balance_curves_are_the_numbers() -> None:
    rows = [
        {
            "epoch": epoch,
            "weights": {"classify": 0.5, "segment": epoch / 2},
            "conflict": {"classify-segment": None if epoch == 2 else -0.25},
        }
        for epoch in (1, 2, 3)
    ]
    figure = balance_curves(rows, "dwa")
    assert figure is not None
    weights, conflict = figure.axes
    assert weights.get_title(loc="left") == "Loss weights (dwa)"
    drawn = {line.get_label(): line.get_ydata() for line in weights.lines}
    assert list(drawn) == ["classify", "segment"]
    assert drawn["segment"].tolist() == [0.5, 1.0, 1.5]
    curve, zero = conflict.lines
    np.testing.assert_array_equal(curve.get_ydata(), [-0.25, np.nan, -0.25])
    assert set(zero.get_ydata()) == {0}


def test_balance_without_numbers_has_no_panel() -> None:
    rows = [{"epoch": 1, "weights": {"classify": None}, "conflict": {"classify-segment": 0.5}}]
    figure = balance_curves(rows)
    assert figure is not None
    assert [axes.get_ylabel() for axes in figure.axes] == ["cosine on the shared encoder"]
    assert balance_curves([{"epoch": 1, "conflict": {"classify-segment": None}}]) is None
    assert balance_curves([{"epoch": 1}]) is None


def test_no_history() -> None:
    with pytest.raises(DataError, match="at least one epoch"):
        learning_curves([], 1)


@pytest.mark.parametrize("k", [1, 2, 3, 11, 26])
def test_confusion_writes_every_count(k: int, tmp_path: Path) -> None:
    matrix = np.random.default_rng(k).integers(0, 2000, (k, k))
    matrix[0] = 0
    names = [f"a rather long name of class {i}" for i in range(k)]
    figure = confusion({"": matrix}, names)
    drawn(figure, tmp_path)
    assert [text.get_text() for text in figure.axes[0].texts] == [str(n) for n in matrix.flat]
    assert figure.axes[0].images[0].get_array().max() <= 1
    assert figure.get_size_inches()[0] <= 8.5
    assert inside(figure)


@pytest.mark.parametrize("matrix", [[[1, 2]], [[1]], []])
def test_confusion_refuses(matrix: Any) -> None:
    with pytest.raises(DataError, match=r"matrix \(2, 2\)"):
        confusion({"": matrix}, ["a", "b"])


def test_roc_of_two_classes_is_one_curve(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label, probability = rng.integers(-1, 2, 80), rng.dirichlet([1, 1], 80)
    figure = roc(label, probability, ["benign", "malignant"], auc_interval=[0.4, 0.6])
    drawn(figure, tmp_path)
    known = label >= 0
    area = sk.roc_auc_score(label[known], probability[known, 1])
    assert f"malignant  {area:.3f}" in words(figure)
    assert len(figure.axes[0].lines) == 2
    assert "0.400–0.600" in figure.axes[0].get_title(loc="left")
    assert inside(figure)


@pytest.mark.parametrize("multi_label", [False, True])
def test_roc_of_many_classes(multi_label: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    k = 19
    label = rng.integers(0, 2, (90, k)) if multi_label else rng.integers(0, k - 1, 90)
    if multi_label:
        label[:, k - 1] = 0
    names = [f"class number {i} of many" for i in range(k)]
    figure = roc(label, rng.dirichlet(np.ones(k), 90), names, multi_label)
    drawn(figure, tmp_path)
    said = words(figure)
    assert len(figure.axes[0].lines) == k + 1
    assert sum("class number" in word for word in said) == k
    missing = [word for word in said if word.endswith("n/a")]
    assert len(missing) == 1
    assert missing[0].startswith("class number 18")
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines[1:]}
    assert len(looks) == k
    assert inside(figure)


def test_roc_refuses() -> None:
    with pytest.raises(DataError, match=r"probability \(N, 2\)"):
        roc([0, 1], np.ones((2, 3)), ["a", "b"])
    with pytest.raises(DataError, match=r"label \(2, 2\)"):
        roc([0, 1], np.ones((2, 2)), ["a", "b"], True)


def test_equal_figures_make_equal_files(tmp_path: Path) -> None:
    files = [drawn(learning_curves(HISTORY, 4), tmp_path) for _ in range(2)]
    assert files[0] == files[1]
    with Image.open(tmp_path / "figure.png") as image:
        assert "Software" not in image.info
        assert image.size == (320, 136)
