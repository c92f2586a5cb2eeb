"""Figures of a run, drawn from plain data: no model, no GPU, no images of the training set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_curve

from medduet.errors import DataError
from medduet.metrics.names import metric_name
from medduet.reports.style import STYLE, WIDTH, shorten
from medduet.types import UNKNOWN_LABEL
from medduet.utils.palette import BLUE, FAINT, GREY, INK, LINES, VERMILION

_SCORES = ("accuracy", "auc", "dice", "iou", "ssim")
_JUDGED = ("val", "test")


@rc_context(STYLE)
def learning_curves(
    history: Sequence[Mapping[str, Any]],
    selected_epoch: int | None,
    test_selected_epoch: int | None = None,
) -> Figure:
    """Draw the losses, the scores and the reconstruction error of a run, as far as it has them.

    `history` has one mapping per epoch, with ``epoch`` and, each optional, ``train``, ``val`` and
    ``test`` mappings from name to number; DataError if it is empty. The epochs chosen on the
    validation and on the test split are marked.

    Example:
        >>> rows = [{"epoch": 1, "train": {"loss": 2.0}, "val": {"accuracy": 0.5}}]
        >>> [axes.get_title(loc="left") for axes in learning_curves(rows, 1).axes]
        ['Training loss', 'Score']
    """
    if not history:
        raise DataError("expected at least one epoch of history, given none")
    handles = []
    if any(row.get("test") for row in history):
        styles = (("validation", "-"), ("test", "--"))
        handles = [Line2D([], [], label=name, color=INK, ls=style) for name, style in styles]
    figure = Figure(figsize=(WIDTH, 3.2))
    figure.subplots_adjust(left=0.06, right=0.985, top=0.91, bottom=0.37, wspace=0.28)
    panels = _panels(history)
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, splits, keys) in zip(row, panels, strict=True):
        _curves(axes, history, splits, keys)
        axes.set_title(title)
        if axes.lines:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, handlelength=1.4)
    for rule, epoch, colour, style in (
        ("selected", selected_epoch, GREY, "-."),
        ("test-selected", test_selected_epoch, VERMILION, ":"),
    ):
        if epoch is not None:
            name = f"{rule} (epoch {epoch})"
            handles.append(Line2D([], [], label=name, color=colour, ls=style))
            for axes in figure.axes:
                axes.axvline(epoch, color=colour, ls=style, lw=1.2, zorder=1)
    if handles:
        figure.legend(handles=handles, loc="lower center", ncols=4)
    return figure


def _panels(history: Sequence[Mapping[str, Any]]) -> list[tuple[str, Sequence[str], list[str]]]:
    """Return title, splits and names of the numbers of each panel."""
    train = dict.fromkeys(key for row in history for key in row.get("train") or {})
    losses = [key for key in train if key in ("loss", "classify", "segment", "reconstruct")]
    if len(losses) == 2 and "loss" in losses:
        losses.remove("loss")
    measured = {key for row in history for split in _JUDGED for key in row.get(split) or {}}
    scores = [key for key in _SCORES if key in measured]
    panels: list[tuple[str, Sequence[str], list[str]]] = [("Training loss", ("train",), losses)]
    if scores:
        panels.append(("Score", _JUDGED, scores))
    if "mse" in measured:
        panels.append(("Reconstruction error", _JUDGED, ["mse"]))
    return panels


def _curves(
    axes: Axes, history: Sequence[Mapping[str, Any]], splits: Sequence[str], keys: Sequence[str]
) -> None:
    epochs = [row["epoch"] for row in history]
    for colour, key in zip(LINES, keys, strict=False):
        label = "all tasks" if key == "loss" else metric_name(key)
        for split in splits:
            series = np.array([(row.get(split) or {}).get(key) for row in history], dtype=float)
            known = np.isfinite(series).sum()
            if known:
                style, width, face = ("--", 1.2, "white") if split == "test" else ("-", 1.8, colour)
                (line,) = axes.plot(epochs, series, color=colour, ls=style, lw=width, label=label)
                line.set(marker="o" if known < 3 else "", markerfacecolor=face)
                label = ""
    axes.set_xlabel("epoch")
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.margins(x=0.04)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)


@rc_context(STYLE)
def confusion(matrix: ArrayLike, class_names: Sequence[str]) -> Figure:
    """Draw how often each true class (row) was called each class (column).

    Colours are shares of the row, so rare classes read like common ones; numbers are counts.
    DataError for a matrix that is not ``(K, K)`` with K names.

    Example:
        >>> [text.get_text() for text in confusion([[5, 0], [1, 4]], ["a", "b"]).axes[0].texts]
        ['5', '0', '1', '4']
    """
    counts = np.asarray(matrix, dtype=np.int64)
    k = len(class_names)
    if counts.shape != (k, k) or not k:
        raise DataError(f"expected a matrix ({k}, {k}) for {k} class names, given {counts.shape}")
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(0.52 * k, 2.2), WIDTH - 2.4)
    figure = Figure(figsize=(side + 2.6, side + 1.5), layout="compressed")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    size = min(9.0, 72 * side / k / (0.75 * max(len(str(counts.max())), 3)))
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if share[row, column] > 0.55 else INK if count else GREY
        axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=size)
    names = [shorten(str(name), 22) for name in class_names]
    slanted: Any = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if k > 3 else {}
    axes.set_xticks(range(k), names, **slanted)
    axes.set_yticks(range(k), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted class", ylabel="true class")
    bar = figure.colorbar(image, ax=axes, shrink=0.8, format=PercentFormatter(1.0))
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)
    return figure


@rc_context(STYLE)
def roc(
    label: ArrayLike,
    probability: ArrayLike,
    class_names: Sequence[str],
    multi_label: bool = False,
    auc_interval: Sequence[float] | None = None,
) -> Figure:
    """Draw one ROC curve per class against the rest (two classes: one curve) with its AUC.

    Labels are ``(N,)`` class indices or, if `multi_label`, ``(N, K)`` 0 and 1, with -1 where
    unknown; probabilities are ``(N, K)``; the interval of the set's AUC goes into the title.
    DataError for shapes that do not fit together.

    Example:
        >>> figure = roc([0, 1], [[0.9, 0.1], [0.2, 0.8]], ["benign", "malignant"])
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['malignant  1.000']
    """
    truth, score = np.asarray(label), np.asarray(probability, dtype=np.float64)
    k = len(class_names)
    wanted = (len(score), k) if multi_label else (len(score),)
    if score.shape != (len(score), k) or truth.shape != wanted:
        raise DataError(
            f"expected probability (N, {k}) and label {wanted}, given {score.shape}, {truth.shape}"
        )
    figure = Figure(figsize=(7.0, 4.2), layout="compressed")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2, zorder=1)
    for index in [1] if k == 2 and not multi_label else range(k):
        column = truth[:, index] if multi_label else truth
        known = column != UNKNOWN_LABEL
        x, y, area = _curve(column[known] == (1 if multi_label else index), score[known, index])
        name = shorten(str(class_names[index]), 22)
        colour = BLUE if k == 2 else LINES[index % 8]
        style = ("-", "--", ":")[index // 8 % 3]
        axes.plot(x, y, color=colour, linestyle=style, label=f"{name}  {area}")
    limits = (-0.01, 1.01)
    axes.set(xlabel="1 − specificity", ylabel="sensitivity", xlim=limits, ylim=limits, aspect=1)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    interval = "" if auc_interval is None else " · AUC interval {:.3f}–{:.3f}".format(*auc_interval)
    axes.set_title(f"ROC{interval}")
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), title="AUC", alignment="left")
    return figure


def _curve(has: NDArray[np.bool_], score: NDArray[np.float64]) -> tuple[Any, Any, str]:
    if has.all() or not has.any():
        return [], [], "n/a"
    false_rate, true_rate, _ = roc_curve(has, score)
    return false_rate, true_rate, f"{np.trapezoid(true_rate, false_rate):.3f}"
