"""Figures of a run, drawn from plain data: no model, no GPU, no images of the training set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_curve

from medduet.errors import DataError
from medduet.metrics.names import metric_name
from medduet.reports.style import (
    DASHES,
    STYLE,
    WIDTH,
    draw_series,
    epoch_axis,
    panels,
    shorten,
)
from medduet.types import UNKNOWN_LABEL
from medduet.utils.palette import BLUE, FAINT, GREY, INK, LINES, VERMILION

_SCORES = ("accuracy", "auc", "dice", "iou", "ssim")
_SMALL = 5  # classes of a matrix that is one of several and still has its counts written in


@rc_context(STYLE)
def learning_curves(
    history: Sequence[Mapping[str, Any]],
    selected_epoch: int | None,
    test_selected_epoch: int | None = None,
) -> Figure:
    """Draw the losses, the scores and the reconstruction error of a run, as far as it has them.

    `history` has one mapping per epoch, with ``epoch`` and, each optional, ``train``, ``val`` and
    ``test`` mappings from name to number; DataError if it is empty. The epochs selected on the
    validation and on the test split are marked.

    Example:
        >>> rows = [{"epoch": 1, "train": {"loss": 2.0}, "val": {"accuracy": 0.5}}]
        >>> [axes.get_title(loc="left") for axes in learning_curves(rows, 1).axes]
        ['Training loss', 'Score']
    """
    if not history:
        raise DataError("expected at least one epoch of history, given none")
    contents = _contents(history)
    figure, grid = panels(len(contents), height=2.9, share=False)
    for axes, (title, splits, keys) in zip(grid, contents, strict=True):
        for color, key in zip(LINES, keys, strict=False):
            for split in splits:
                values = [(row.get(split) or {}).get(key) for row in history]
                if all(value is None for value in values):
                    continue
                style, width = ("--", 1.2) if split == "test" else ("-", 1.8)
                label = _label(key) if split == splits[0] else None
                epochs = [row["epoch"] for row in history]
                draw_series(axes, epochs, values, color=color, ls=style, lw=width, label=label)
        axes.set_title(title)
        epoch_axis(axes)
        _legend_below(axes)
    handles = []
    if any(row.get("test") for row in history):
        styles = (("validation", "-"), ("test", "--"))
        handles = [Line2D([], [], label=name, color=INK, ls=style) for name, style in styles]
    for rule, epoch, color, style in (
        ("selected", selected_epoch, GREY, "-."),
        ("test-selected", test_selected_epoch, VERMILION, ":"),
    ):
        if epoch is not None:
            label = f"{rule} (epoch {epoch})"
            handles.append(Line2D([], [], label=label, color=color, ls=style))
            for axes in grid:
                axes.axvline(epoch, color=color, ls=style, lw=1.2, zorder=1)
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def _contents(history: Sequence[Mapping[str, Any]]) -> list[tuple[str, Sequence[str], list[str]]]:
    """Return title, splits and names of the numbers of each panel."""
    train = dict.fromkeys(key for row in history for key in row.get("train") or {})
    losses = [key for key in train if key in ("loss", "classify", "segment", "reconstruct")]
    if len(losses) == 2 and "loss" in losses:
        losses.remove("loss")  # one task: its loss is the total
    splits = ("val", "test")
    measured = {key for row in history for split in splits for key in row.get(split) or {}}
    scores = [key for key in _SCORES if key in measured]
    contents: list[tuple[str, Sequence[str], list[str]]] = [("Training loss", ("train",), losses)]
    if scores:
        contents.append(("Score", splits, scores))
    if "mse" in measured:
        contents.append(("Reconstruction error", splits, ["mse"]))
    return contents


def _label(key: str) -> str:
    return "total" if key == "loss" else metric_name(key)


def _legend_below(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, handlelength=1.4)


@rc_context(STYLE)
def balance_curves(history: Sequence[Mapping[str, Any]], name: str = "") -> Figure | None:
    """Draw the weight of each task's loss and the cosine between each two tasks' gradients.

    Args:
        history: one mapping per epoch with ``epoch`` and, both optional, ``weights`` and
            ``conflict``, mappings from name to number or ``None``.
        name: of the balancing method, for the title.

    Returns:
        The figure; ``None`` if there is nothing to draw.

    Example:
        >>> rows = [{"epoch": 1, "weights": {"classify": 0.5, "segment": 1.5}}]
        >>> [axes.get_title(loc="left") for axes in balance_curves(rows, "dwa").axes]
        ['Loss weights (dwa)']
    """
    titles = {
        "weights": (f"Loss weights ({name})" if name else "Loss weights", "mean of the epoch"),
        "conflict": ("Gradient similarity", "cosine on the shared encoder"),
    }
    contents = {key: series for key in titles if (series := _series(history, key))}
    if not contents:
        return None
    figure, grid = panels(len(contents), columns=2, height=2.9, legend=0.3, share=False)
    epochs = [row["epoch"] for row in history]
    for axes, (key, series) in zip(grid, contents.items(), strict=True):
        for number, (pair, values) in enumerate(series.items()):
            # Dashes show curves of the same height, such as constant weights, through one another.
            style = DASHES[number % 3] if key == "weights" else "-"
            color = LINES[(number if key == "weights" else number + 3) % len(LINES)]
            label = pair.replace("-", " / ")
            draw_series(axes, epochs, values, color=color, ls=style, label=label)
        axes.set_title(titles[key][0])
        axes.set_ylabel(titles[key][1])
        epoch_axis(axes)
        if key == "weights":
            low, high = axes.get_ylim()
            axes.set_ylim(min(0.0, low), 1.15 * max(high, 0.1))
        else:
            axes.axhline(0, color=GREY, lw=1.2, zorder=1)
            axes.set_ylim(-1.05, 1.05)
        _legend_below(axes)
    return figure


def _series(history: Sequence[Mapping[str, Any]], key: str) -> dict[str, NDArray[np.float64]]:
    """Return the numbers of each name of which some epoch has one; NaN where there is none."""
    names = dict.fromkeys(name for row in history for name in row.get(key) or {})
    series = {
        name: np.array([(row.get(key) or {}).get(name) for row in history], dtype=float)
        for name in names
    }
    return {name: values for name, values in series.items() if np.isfinite(values).any()}


@rc_context(STYLE)
def confusion(matrices: Mapping[str, ArrayLike], class_names: Sequence[str]) -> Figure:
    """Draw how often each true class (row) was predicted as each class (column).

    Colours are shares of the row, so rare classes read like common ones; numbers are counts, left
    out where many classes stand in each of several matrices. DataError for a matrix that is not
    ``(K, K)`` with K names.

    Args:
        matrices: by title; one panel each.
        class_names: of the K classes.

    Example:
        >>> figure = confusion({"": [[5, 0], [1, 4]]}, ["a", "b"])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['5', '0', '1', '4']
    """
    k, single = len(class_names), len(matrices) == 1
    counts = {title: np.asarray(matrix, dtype=np.int64) for title, matrix in matrices.items()}
    for matrix in counts.values():
        if matrix.shape != (k, k) or not k:
            raise DataError(
                f"expected a matrix ({k}, {k}) for {k} class names, given {matrix.shape}"
            )
    columns = min(4, len(counts))
    rows = -(-len(counts) // columns)
    side = min(max(0.52 * k, 2.2), WIDTH - 2.4) if single else 1.55
    figure = Figure(figsize=(columns * side + 1.9, rows * (side + 0.3) + 0.8), layout="compressed")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    names = [shorten(str(name), 22 if single else 16) for name in class_names]
    for place, (axes, (title, matrix)) in enumerate(zip(grid, counts.items(), strict=False)):
        share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        if single or k <= _SMALL:
            size = min(9.0, 72 * side / k / (0.75 * max(len(str(matrix.max())), 3)))
            for (row, column), count in np.ndenumerate(matrix):
                color = "white" if share[row, column] > 0.55 else INK if count else GREY
                axes.text(
                    column, row, str(count), ha="center", va="center", color=color, fontsize=size
                )
        axes.set_title(shorten(title, int(12 * side)), fontsize=8)
        slanted: Any = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if k > 3 else {}
        lowest = place + columns >= len(counts)
        axes.set_xticks(range(k), names if lowest else [""] * k, **slanted)
        axes.set_yticks(range(k), names)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    for spare in grid[len(counts) :]:
        spare.remove()
    figure.supxlabel("predicted class", fontsize=9)
    figure.supylabel("true class", fontsize=9)
    bar = figure.colorbar(image, ax=list(grid[: len(counts)]), format=PercentFormatter(1.0))
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
    expected = (len(score), k) if multi_label else (len(score),)
    if score.shape != (len(score), k) or truth.shape != expected:
        raise DataError(
            f"expected probability (N, {k}) and label {expected}, "
            f"given {score.shape}, {truth.shape}"
        )
    figure = Figure(figsize=(7.0, 4.2), layout="compressed")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2, zorder=1)
    for index in [1] if k == 2 and not multi_label else range(k):
        column = truth[:, index] if multi_label else truth
        labelled = column != UNKNOWN_LABEL
        positive = column[labelled] == (1 if multi_label else index)
        x, y, area = _curve(positive, score[labelled, index])
        name = shorten(str(class_names[index]), 22)
        color = BLUE if k == 2 else LINES[index % 8]
        axes.plot(x, y, color=color, linestyle=DASHES[index // 8 % 4], label=f"{name}  {area}")
    limits = (-0.01, 1.01)
    axes.set(xlabel="1 − specificity", ylabel="sensitivity", xlim=limits, ylim=limits, aspect=1)
    axes.grid(axis="y")
    interval = "" if auc_interval is None else " · AUC 95% CI {:.3f}–{:.3f}".format(*auc_interval)
    axes.set_title(f"ROC{interval}")
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), title="AUC", alignment="left")
    return figure


def _curve(positive: NDArray[np.bool_], score: NDArray[np.float64]) -> tuple[Any, Any, str]:
    if positive.all() or not positive.any():
        return [], [], "n/a"
    false_rate, true_rate, _ = roc_curve(positive, score)
    return false_rate, true_rate, f"{np.trapezoid(true_rate, false_rate):.3f}"
