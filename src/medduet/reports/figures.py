"""Figures of a run, drawn from its folder or plain data: no model, no GPU."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike
from sklearn.metrics import auc, roc_curve

from medduet.metrics.intervals import wilson
from medduet.metrics.names import metric_name
from medduet.reports import style
from medduet.reports.image_grid import prediction_grid
from medduet.reports.style import STYLE, WIDTH, panels, save, shorten
from medduet.runs.folder import RunFolder
from medduet.types import UNKNOWN_LABEL
from medduet.utils.palette import BLUE, FAINT, GREY, INK, LINES, VERMILION

_SMALL = 5  # classes of a matrix that is one of several and still has its counts written in
# By the title of a panel: parts of an epoch's record, and numbers in them.
_LEARNING: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "Training loss": (["train"], ["loss", "classify", "segment", "reconstruct"]),
    "Score": (["val", "test"], ["accuracy", "auc", "dice", "iou", "ssim"]),
    "Reconstruction error": (["val", "test"], ["mse"]),
}
Summary = Mapping[str, Any]
"""What `medduet.uncertainty.calibration.calibration_summary` returns."""


def epoch_table(history: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the numbers of each epoch, such as ``val.accuracy``; those of none are left out."""
    return pd.json_normalize(list(history)).dropna(axis=1, how="all")


@rc_context(STYLE)
def learning_curves(
    history: Sequence[Mapping[str, Any]],
    selected_epoch: int | None,
    test_selected_epoch: int | None = None,
) -> Figure:
    """Draw losses, scores and reconstruction error by ``epochs.jsonl``; mark selected epochs."""
    table = epoch_table(history)
    shown = {}
    for title, (parts, keys) in _LEARNING.items():
        present = [key for key in keys if any(f"{part}.{key}" in table for part in parts)]
        if present[0:1] == ["loss"] and len(present) == 2:
            present = present[1:]  # with one task, its loss is the total
        if present:
            shown[title] = parts, present
    figure, grid = panels(list(shown), height=2.9, legend=0.3, share=False)
    for axes, (parts, keys) in zip(grid, shown.values(), strict=True):
        for index, key in enumerate(keys):
            label = "total" if key == "loss" else metric_name(key)
            look: dict[str, Any] = {"color": LINES[index % 8], "label": label}
            for column in (f"{part}.{key}" for part in parts if f"{part}.{key}" in table):
                # Dashes show curves of the same height through one another.
                dashes = style.DASHES[index % 3] if len(parts) == 1 else "-"
                look["ls"] = "--" if column.startswith("test.") else dashes
                marker = "o" if table[column].count() < 3 else ""
                axes.plot(table["epoch"], table[column], marker=marker, **look)
                look |= {"label": "_", "lw": 1.2}
        style.epoch_axis(axes)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, handlelength=2.4)
    lines: list[dict[str, Any]] = []
    if any(column.startswith("test.") for column in table):
        lines = [{"label": "validation", "color": INK}, {"label": "test", "color": INK, "ls": "--"}]
    for rule, epoch, color, ls in (
        ("selected", selected_epoch, GREY, "-."),
        ("test-selected", test_selected_epoch, VERMILION, ":"),
    ):
        if epoch is not None:
            lines.append({"label": f"{rule} (epoch {epoch})", "color": color, "ls": ls})
            for axes in figure.axes:
                axes.axvline(epoch, color=color, ls=ls, lw=1.2, zorder=1)
    style.legend_below(figure, lines)
    return figure


@rc_context(STYLE)
def confusion(matrices: Mapping[str, ArrayLike], class_names: Sequence[str]) -> Figure:
    """Draw how often each true class (row) was predicted as each class (column), by title.

    Colours are shares of the row; numbers are counts, left out of several large matrices.
    """
    k, single = len(class_names), len(matrices) == 1
    side = min(max(0.52 * k, 2.2), WIDTH - 2.4) if single else 1.5
    height = side + (0.3 if single else 0.8)
    figure, grid = panels(list(matrices), columns=4, height=height, legend=0.9)
    figure.set_layout_engine("compressed")
    names = [shorten(name, 22 if single else 16) for name in class_names]
    slanted: Any = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    for axes, counts in zip(grid, matrices.values(), strict=True):
        matrix = np.asarray(counts)
        share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        text: Any = {"ha": "center", "va": "center"}
        text["fontsize"] = min(9.0, 72 * side / k / (0.75 * max(len(str(matrix.max())), 3)))
        for (row, column), count in np.ndenumerate(matrix if single or k <= _SMALL else []):
            color = "white" if share[row, column] > 0.55 else INK if count else GREY
            axes.text(column, row, str(count), color=color, **text)
        axes.set_xlabel("predicted class")
        axes.set_xticks(range(k), names, **(slanted if k > 3 or not single else {}))
        axes.set_yticks(range(k), names)
        axes.tick_params(length=0, labelsize=8 if single else 6.5)
        axes.spines[:].set_visible(False)
    grid[0].set_ylabel("true class")
    bar = figure.colorbar(image, ax=grid, format=PercentFormatter(1.0))
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)
    return figure


@rc_context(STYLE)
def roc(
    label: ArrayLike,
    probability: ArrayLike,
    class_names: Sequence[str],
    auc_interval: Sequence[float] | None = None,
) -> Figure:
    """Draw one ROC curve per class against the rest (two classes: one curve) with its AUC.

    Labels are ``(N,)`` or ``(N, K)`` 0 and 1, with -1 where unknown, probabilities ``(N, K)``.
    """
    truth, score = np.asarray(label), np.asarray(probability)
    interval = "" if auc_interval is None else " · AUC 95% CI {:.3f}–{:.3f}".format(*auc_interval)
    figure, (axes,) = panels([f"ROC{interval}"], height=4.2, legend=0)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2, zorder=1)
    for index in [1] if len(class_names) == 2 and truth.ndim == 1 else range(len(class_names)):
        column, hit = (truth[:, index], 1) if truth.ndim == 2 else (truth, index)
        labelled = column != UNKNOWN_LABEL
        positive = column[labelled] == hit
        x, y, area = [], [], "n/a"
        if positive.any() and not positive.all():
            x, y, _ = roc_curve(positive, score[labelled, index])
            area = f"{auc(x, y):.3f}"
        name = shorten(class_names[index], 22)
        axes.plot(x, y, label=f"{name}  {area}", **style.line_look(index))
    limits = (-0.01, 1.01)
    axes.set(xlabel="1 − specificity", ylabel="sensitivity", xlim=limits, ylim=limits, aspect=1)
    axes.grid(axis="y")
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), title="AUC", alignment="left")
    return figure


@rc_context(STYLE)
def reliability(diagrams: Mapping[str, tuple[Sequence[Summary], int]]) -> Figure:
    """Draw accuracy over confidence, before and after calibration, by title.

    A diagram has the summaries of its runs, whose bins are pooled, and the number of seeds. The
    95% Wilson intervals are at the n of one seed, since seeds share their images.
    """
    kinds: dict[str, dict[str, Any]] = {
        "before": {"color": VERMILION, "marker": "s", "label": "uncalibrated"},
        "after": {"color": BLUE, "marker": "o", "label": "calibrated"},
    }
    figure, grid = panels(list(diagrams), height=3.3)
    figure.set_figwidth(WIDTH * min(max(len(diagrams), 2), 3) / 3)
    ideal: dict[str, Any] = {"color": GREY, "lw": 1.0, "ls": "--", "label": "perfectly calibrated"}
    for axes, (summaries, seeds) in zip(grid, diagrams.values(), strict=True):
        axes.plot([0, 1], [0, 1], **ideal)
        lowest = 0.9
        for kind, look in kinds.items():
            n, confidence, accuracy = _pooled(summaries, kind)
            filled = n > 0
            x, y, images = confidence[filled], accuracy[filled], n[filled] / seeds
            axes.plot(x, y, color=look["color"], lw=0.9, alpha=0.45)
            axes.scatter(x, y, 5 + 45 * np.sqrt(images / images.max()), clip_on=False, **look)
            lowest = min(lowest, np.floor(10 * x.min()) / 10)
        counts = np.maximum(np.round(images), 1).astype(int).tolist()
        intervals = [wilson(round(p * m), m) for p, m in zip(y.tolist(), counts, strict=True)]
        axes.vlines(x, *np.transpose(intervals), color=BLUE, lw=0.9, alpha=0.5)
        eces = (np.mean([summary[f"ece_{kind}"] for summary in summaries]) for kind in kinds)
        text = "ECE {:.3f} → {:.3f}".format(*eces)
        axes.text(0.04, 0.96, text, transform=axes.transAxes, va="top", fontsize=8)
        axes.set(xlim=(lowest, 1), ylim=(0, 1), xlabel="confidence; larger points: more images")
        axes.grid()
    grid[0].set_ylabel("accuracy")
    style.legend_below(figure, [*kinds.values(), ideal])
    return figure


def _pooled(summaries: Sequence[Summary], kind: str) -> tuple[Any, Any, Any]:
    """Return n, mean confidence and accuracy of the bins of all runs together."""
    n, *means = (
        np.array([summary["reliability"][kind][name] for summary in summaries], dtype=float)
        for name in ("n", "confidence", "frequency")
    )
    total = n.sum(axis=0)
    x, y = (np.nansum(n * mean, axis=0) / np.maximum(total, 1) for mean in means)
    return total, x, y


def draw_run(path: Path) -> list[Path]:
    """Draw the figures of the run in the folder `path` into ``figures/``; return their paths.

    All but the curves show the epoch that validation selected.
    """
    run = RunFolder(path)
    data, selected, other = run.data, run.validation_selected, run.test_selected
    name, test, predictions = data["name"], selected["test"], run.predictions("test")
    epochs = selected["selected_epoch"], other["selected_epoch"] if other else None
    label, probability = predictions.label, predictions.probability
    shown = probability if predictions.calibrated is None else predictions.calibrated
    with np.load(run.samples, allow_pickle=False) as file:
        samples = dict(file)
    index = samples["index"]
    figures = {
        "predictions": prediction_grid(
            samples,
            f"{name}, the first test images of each class",
            data["class_names"],
            None if label is None else label[index],
            None if shown is None else shown[index],
        ),
    }
    if isinstance(epochs[0], int):  # an ensemble has several
        figures["learning_curves"] = learning_curves(run.epochs, *epochs)
    if label is not None and probability is not None:
        if not data["multi_label"]:
            matrix = {"": test["confusion_matrix"]}
            figures["confusion_matrix"] = confusion(matrix, data["class_names"])
        if test["auc"] is not None:
            figures["roc"] = roc(label, probability, data["class_names"], test["auc_interval"])
        if (calibration := test.get("calibration")) and calibration["n"]:
            figures["reliability"] = reliability({name: ([calibration], 1)})
    for key, figure in figures.items():
        save(figure, path / "figures" / f"{key}.png")
    return [path / "figures" / f"{key}.png" for key in figures]
