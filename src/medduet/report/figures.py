"""Figures of a run, drawn from plain data: no model, no GPU, no images of the training set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from matplotlib.typing import LineStyleType
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_curve

from medduet.errors import DataError
from medduet.report.style import BLUE, FAINT, GREY, INK, PALETTE, STYLE, VERMILION, WIDTH, shorten
from medduet.types import UNKNOWN_LABEL

_SCORES = ("accuracy", "auc", "dice", "iou", "ssim")
_NAMES = {
    "auc": "AUC",
    "iou": "IoU",
    "ssim": "SSIM",
    "dice": "Dice",
    "mse": "MSE",
    "loss": "all tasks",
}


@rc_context(STYLE)
def learning_curves(
    history: Sequence[Mapping[str, Any]],
    selected_epoch: int | None,
    test_selected_epoch: int | None = None,
) -> Figure:
    """Draw the losses, the scores and the reconstruction error of a run over its epochs.

    Args:
        history: one mapping per epoch, with ``epoch`` and, each optional, ``train``, ``val`` and
            ``test`` mappings from name to number.
        selected_epoch: the epoch chosen on the validation split; ``None`` if there is none.
        test_selected_epoch: the epoch chosen on the test split, drawn apart and so labelled.

    Returns:
        A figure with one panel for each kind of number that the history has, at least the loss.

    Raises:
        DataError: if the history is empty.

    Example:
        >>> rows = [{"epoch": 1, "train": {"loss": 2.0}, "val": {"accuracy": 0.5}}]
        >>> [axes.get_title(loc="left") for axes in learning_curves(rows, 1).axes]
        ['Training loss', 'Score']
    """
    if not history:
        raise DataError("expected at least one epoch of history, given none")
    train = _keys(history, ("train",))
    losses = [key for key in train if key in ("loss", "classify", "segment", "reconstruct")]
    if len(losses) == 2 and "loss" in losses:
        losses.remove("loss")
    measured = _keys(history, ("val", "test"))
    marks = _marks(history, selected_epoch, test_selected_epoch)
    panels: list[tuple[str, tuple[str, ...], list[str]]] = [("Training loss", ("train",), losses)]
    scores = [key for key in _SCORES if key in measured]
    if scores:
        panels.append(("Score", ("val", "test"), scores))
    if "mse" in measured:
        panels.append(("Reconstruction error", ("val", "test"), ["mse"]))
    figure = Figure(figsize=(WIDTH, 3.2))
    figure.subplots_adjust(left=0.06, right=0.985, top=0.91, bottom=0.37, wspace=0.28)
    for axes, (title, splits, keys) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        _curves(axes, history, splits, keys)
        axes.set_title(title)
        if axes.lines:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, handlelength=1.4)
        for mark in marks:
            if mark.epoch is not None:
                axes.axvline(mark.epoch, color=mark.colour, ls=mark.style, lw=1.2, zorder=1)
    if marks:
        handles = [Line2D([], [], label=m.name, color=m.colour, ls=m.style) for m in marks]
        figure.legend(handles=handles, loc="lower center", ncols=4)
    return figure


class _Mark(NamedTuple):
    """Something that all panels of a figure share: a split, or an epoch that some rule chose."""

    name: str
    colour: str
    style: LineStyleType
    epoch: int | None = None


def _marks(
    history: Sequence[Mapping[str, Any]], selected: int | None, test_selected: int | None
) -> list[_Mark]:
    marks = []
    if any(row.get("test") for row in history):
        marks += [_Mark("validation", INK, "-"), _Mark("test", INK, "--")]
    if selected is not None:
        marks.append(_Mark(f"selected (epoch {selected})", GREY, "-.", selected))
    if test_selected is not None:
        name = f"test-selected (epoch {test_selected})"
        marks.append(_Mark(name, VERMILION, ":", test_selected))
    return marks


def _keys(history: Sequence[Mapping[str, Any]], splits: Sequence[str]) -> list[str]:
    found = [key for row in history for split in splits for key in row.get(split) or {}]
    return list(dict.fromkeys(found))


def _curves(
    axes: Axes, history: Sequence[Mapping[str, Any]], splits: Sequence[str], keys: Sequence[str]
) -> None:
    epochs = [row["epoch"] for row in history]
    for colour, key in zip(PALETTE, keys, strict=False):
        label = _NAMES.get(key, key)
        for split in splits:
            values = [(row.get(split) or {}).get(key) for row in history]
            series = np.array([np.nan if value is None else value for value in values], dtype=float)
            if not np.isfinite(series).any():
                continue
            axes.plot(
                epochs,
                series,
                color=colour,
                linestyle="--" if split == "test" else "-",
                linewidth=1.2 if split == "test" else 1.8,
                marker="o" if np.isfinite(series).sum() < 3 else "",
                markerfacecolor="white" if split == "test" else colour,
                label=label,
            )
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

    Args:
        matrix: ``(K, K)`` counts.
        class_names: K names.

    Raises:
        DataError: for a matrix that is not square or does not fit the names.

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
    axes.set_xticks(range(k), names)
    if k > 3:
        axes.tick_params(axis="x", labelrotation=40)
        for tick in axes.get_xticklabels():
            tick.set(ha="right", rotation_mode="anchor")
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
    """Draw one ROC curve per class against the rest (two classes: one curve).

    Args:
        label: ``(N,)`` class index or ``(N, K)`` 0 and 1 if `multi_label`; -1 where unknown.
        probability: ``(N, K)`` float.
        class_names: K names.
        multi_label: whether an image may carry several labels.
        auc_interval: lower and upper bound of the set's AUC, for the title.

    Returns:
        A figure whose legend gives each AUC; ``n/a`` for a class without positives or negatives.

    Raises:
        DataError: for shapes that do not fit together.

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
        has = column[known] == (1 if multi_label else index)
        name = shorten(str(class_names[index]), 22)
        colour, style = PALETTE[index % 8], ("-", "--", ":")[index // 8 % 3]
        _roc_curve(axes, has, score[known, index], name, BLUE if k == 2 else colour, style)
    axes.set(xlabel="1 − specificity", ylabel="sensitivity", aspect="equal")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    interval = "" if auc_interval is None else " {:.3f}–{:.3f}".format(*auc_interval)
    axes.set_title("ROC" if not interval else f"ROC · AUC interval{interval}")
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), title="AUC", alignment="left")
    return figure


def _roc_curve(
    axes: Axes,
    has: NDArray[np.bool_],
    score: NDArray[np.float64],
    name: str,
    colour: str,
    style: str,
) -> None:
    if has.all() or not has.any():
        axes.plot([], [], color=colour, linestyle=style, label=f"{name}  n/a")
        return
    false_rate, true_rate, _ = roc_curve(has, score)
    area = np.trapezoid(true_rate, false_rate)
    axes.plot(
        false_rate, true_rate, color=colour, linestyle=style, label=f"{name}  {area:.3f}", zorder=2
    )
