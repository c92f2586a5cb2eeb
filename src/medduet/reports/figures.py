"""Figures of a run, drawn from its folder or plain data: no model, no GPU."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike
from sklearn.metrics import auc, roc_curve

from medduet.metrics.intervals import wilson
from medduet.metrics.names import METRICS
from medduet.reports import style
from medduet.reports.image_grid import prediction_grid
from medduet.reports.style import STYLE, WIDTH, panels, save, shorten
from medduet.runs.folder import RunFolder
from medduet.types import UNKNOWN_LABEL
from medduet.utils.palette import BLUE, FAINT, GREY, INK, LINES, VERMILION

_LEARNING = {
    "Training loss": ("train", ["loss", "classify", "segment", "reconstruct"]),
    "Score": ("val", ["accuracy", "auc", "dice", "iou", "ssim"]),
    "Reconstruction error": ("val", ["mse"]),
}
_ROW = 0.19  # inches of one bar


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
    shown = {
        title: (split, present)
        for title, (split, keys) in _LEARNING.items()
        if (present := [key for key in keys if f"{split}.{key}" in table])
    }
    figure, grid = panels(list(shown), height=2.9, legend=0.3, share=False)
    for axes, (split, keys) in zip(grid, shown.values(), strict=True):
        for key, color in zip(keys, LINES, strict=False):
            label = METRICS[key].name if key in METRICS else {"loss": "total"}.get(key, key)
            looks: Any = {split: {"label": label}, "test": {"label": f"{label}, test", "ls": "--"}}
            for part, look in looks.items():
                if f"{part}.{key}" in table:
                    values = table[f"{part}.{key}"]
                    marker = "o" if values.count() < 3 else ""
                    axes.plot(table["epoch"], values, color=color, marker=marker, **look)
        style.epoch_axis(axes)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, handlelength=2.4)
    lines: list[dict[str, Any]] = []
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
def confusion(counts: ArrayLike, class_names: Sequence[str]) -> Figure:
    """Draw how often each true class (row) was predicted as each class (column).

    Colours are shares of the row, numbers are counts.
    """
    matrix, k = np.asarray(counts), len(class_names)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(max(0.52 * k, 2.2), WIDTH - 2.4)
    figure, (axes,) = panels([""], height=side + 0.3, legend=0.9)
    figure.set_layout_engine("compressed")
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    text: Any = {"ha": "center", "va": "center"}
    text["fontsize"] = min(9.0, 72 * side / k / (0.75 * max(len(str(matrix.max())), 3)))
    for (row, column), count in np.ndenumerate(matrix):
        color = "white" if share[row, column] > 0.55 else INK if count else GREY
        axes.text(column, row, str(count), color=color, **text)
    names = [shorten(name, 22) for name in class_names]
    slanted: Any = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_xticks(range(k), names, **(slanted if k > 3 else {}))
    axes.set_yticks(range(k), names)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, format=PercentFormatter(1.0))
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
def reliability(summary: Mapping[str, Any], title: str) -> Figure:
    """Draw accuracy over confidence with 95% Wilson intervals, before and after calibration.

    `summary` is what `medduet.uncertainty.calibration.calibration_summary` returns.
    """
    figure, (axes,) = panels([title], height=3.3)
    figure.set_figwidth(WIDTH * 2 / 3)
    axes.plot([0, 1], [0, 1], color=GREY, lw=1.0, ls="--", label="perfectly calibrated")
    looks = {"before": ("uncalibrated", VERMILION, "s"), "after": ("calibrated", BLUE, "o")}
    for kind, (name, color, marker) in looks.items():
        bins = summary["reliability"][kind]
        n, x, y = (np.array(bins[key], float) for key in ("n", "confidence", "frequency"))
        n, x, y = n[n > 0], x[n > 0], y[n > 0]
        label = f"{name}, ECE {summary[f'ece_{kind}']:.3f}"
        look: Any = {"color": color, "marker": marker, "clip_on": False, "label": label}
        axes.scatter(x, y, 5 + 45 * np.sqrt(n / n.max()), **look)
        intervals = [wilson(round(p * m), int(m)) for p, m in zip(y, n, strict=True)]
        axes.vlines(x, *np.transpose(intervals), color=color, lw=0.9, alpha=0.5)
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    axes.set_xlabel("confidence; larger points: more images")
    axes.grid()
    axes.legend(loc="upper left")
    return figure


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
            figures["confusion_matrix"] = confusion(test["confusion_matrix"], data["class_names"])
        if test["auc"] is not None:
            figures["roc"] = roc(label, probability, data["class_names"], test["auc_interval"])
        if (calibration := test.get("calibration")) and calibration["n"]:
            figures["reliability"] = reliability(calibration, name)
    for key, figure in figures.items():
        save(figure, path / "figures" / f"{key}.png")
    return [path / "figures" / f"{key}.png" for key in figures]


@rc_context(STYLE)
def bars(cells: pd.DataFrame, label: str) -> Figure:
    """Draw a metric of every method on every data set, with 95% intervals and each seed.

    `cells` are rows of `medduet.reports.grouping.Measured`; the methods are sorted by their mean
    over data sets.
    """
    means = cells.groupby("method", sort=False)["mean"].mean()
    rows = means.sort_values(ascending=False, kind="stable").index.tolist()
    sets = dict(list(cells.groupby("dataset")))
    columns = 2 if max(map(len, rows)) > 24 else 3
    height = max(_ROW * len(rows), 0.9) + 0.7
    figure, grid = panels(list(sets), columns=columns, height=height, legend=0.3)
    seed: dict[str, Any] = {"color": BLUE, "ls": "", "marker": "o", "ms": 2.6}
    for axes, part in zip(grid, sets.values(), strict=True):
        for cell in part.itertuples():
            row = rows.index(cell.method)
            axes.barh(row, cell.mean, height=0.7, color=BLUE, alpha=0.35)
            axes.plot(cell.values, [row] * cell.seeds, **seed)
            axes.plot([cell.low, cell.high], [row, row], color=INK, lw=1.3)
        axes.set_yticks(range(len(rows)), [shorten(name, style.LONGEST) for name in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        highest = part["values"].map(max).max()
        limit = 1.1 * highest if 0 < highest < 0.1 else 1.0  # errors are far below 1
        axes.set(xlim=(0, limit), xlabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="x")
    lines = [
        {"color": BLUE, "alpha": 0.35, "lw": 6, "label": "mean over seeds"},
        {"color": INK, "lw": 1.3, "label": "95% CI, test images"},
        seed | {"label": "each seed"},
    ]
    style.legend_below(figure, lines)
    return figure


@rc_context(STYLE)
def curves(epochs: pd.DataFrame, column: str, label: str) -> Figure:
    """Draw a number of every epoch, mean over seeds with their range.

    The rows of `epochs` have dataset, method, seed, epoch and numbers.
    """
    epochs = epochs.dropna(subset=column)
    methods = list(epochs["method"].unique())
    sets = dict(list(epochs.groupby("dataset")))
    figure, grid = panels(list(sets))
    for axes, part in zip(grid, sets.values(), strict=True):
        for method, rows in part.groupby("method", sort=False):
            look = style.line_look(methods.index(method))
            over = rows.groupby("epoch")[column].agg(["mean", "min", "max"])
            axes.plot(over["mean"], lw=1.4, marker="o" if len(over) < 3 else "", **look)
            if len(methods) <= 6:
                band = {"color": look["color"], "alpha": 0.12, "lw": 0}
                axes.fill_between(over.index, over["min"], over["max"], **band)
        style.epoch_axis(axes)
    grid[0].set_ylabel(label)
    names = (shorten(method, style.LONGEST) for method in methods)
    style.legend_below(figure, ({"label": n} | style.line_look(i) for i, n in enumerate(names)))
    return figure
