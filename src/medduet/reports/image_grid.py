"""Images in a grid, with their classes, outlines of masks, and predictions or versions beside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import patheffects, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from medduet.data.audit.findings import label_texts
from medduet.reports.style import STYLE, WIDTH, shorten
from medduet.types import UNKNOWN_LABEL
from medduet.utils.palette import GREY, INK, MASKS, PREDICTION, TRUTH, VERMILION

UNKNOWN_MASK = -1
_CARDS_PER_ROW = {1: 4, 2: 4, 3: 2}  # by the panels of a card
_MARGIN, _TOP, _HEADING, _CAPTION = 0.18, 0.62, 0.18, 0.2  # inches
_GUTTER = 0.14  # between cards, as a share of a panel
_MAX_SIDE = 2.2  # inches
_HALO = patheffects.withStroke(linewidth=3.0, foreground="black", alpha=0.55)


class Panel(NamedTuple):
    """The picture at one place of every card.

    Attributes:
        caption: written below.
        images: ``(N, H, W)`` or ``(N, H, W, 3)`` uint8.
        masks: ``(N, H, W)`` int mask class, 0 is background, -1 all over where unknown.
        color: of all outlines; ``""`` for the color of each mask class.
    """

    caption: str
    images: NDArray[np.uint8]
    masks: NDArray[Any] | None = None
    color: str = ""


@rc_context(STYLE)
def image_grid(
    panels: Sequence[Panel],
    headings: Sequence[str],
    title: str,
    subtitle: str = "",
    *,
    wrong: Sequence[bool] = (),
    outlines: Sequence[tuple[str, str]] = (),
) -> Figure:
    """Draw N cards, each with a heading above its panels.

    Args:
        panels: those of each card, from left to right.
        headings: N texts of as many lines each.
        title: of the figure.
        subtitle: below the title.
        wrong: for each card, whether it is framed as an error.
        outlines: name and color of outlines, for a legend if there is room.

    Example:
        >>> images = np.zeros((2, 28, 28), dtype=np.uint8)
        >>> len(image_grid([Panel("", images), Panel("", images)], ["a", "b"], "images").axes)
        4
    """
    count, per_card = len(headings), len(panels)
    columns = min(count, _CARDS_PER_ROW.get(per_card, 2))
    rows, lines = -(-count // columns), max(text.count("\n") + bool(text) for text in headings)
    ratios = ([1.0] * per_card + [_GUTTER]) * columns
    side = min((WIDTH - 2 * _MARGIN) / sum(ratios[:-1]), _MAX_SIDE)
    width = max(side * sum(ratios[:-1]) + 2 * _MARGIN, 4.4)
    picture = side * panels[0].images.shape[1] / panels[0].images.shape[2]
    space = lines * _HEADING + _CAPTION
    height = _TOP + rows * (picture + space) + _MARGIN
    figure = Figure(figsize=(width, height))
    grid = figure.add_gridspec(
        rows,
        len(ratios) - 1,
        width_ratios=ratios[:-1],
        left=_MARGIN / width,
        right=(_MARGIN + side * sum(ratios[:-1])) / width,
        top=1 - (_TOP + lines * _HEADING) / height,
        bottom=(_MARGIN + _CAPTION) / height,
        wspace=0.03,
        hspace=space / picture,
    )
    _write_title(figure, title, subtitle, outlines)
    for card, heading in enumerate(headings):
        row, column = divmod(card, columns)
        for k, panel in enumerate(panels):
            axes = figure.add_subplot(grid[row, column * (per_card + 1) + k])
            framed = bool(wrong) and wrong[card]
            _draw_panel(axes, panel, card, framed=framed, linewidth=1.7 if per_card < 4 else 1.0)
            if k == 0:
                room = int(per_card * side * 72 / (8.5 * 0.6))
                text = "\n".join(shorten(line, room) for line in heading.split("\n"))
                color = VERMILION if framed else INK
                axes.set_title(text, loc="left", fontsize=8.5, color=color, pad=3)
    return figure


def _write_title(
    figure: Figure, title: str, subtitle: str, outlines: Sequence[tuple[str, str]]
) -> None:
    width, height = figure.get_size_inches()
    left, room = _MARGIN / width, int((width - 2 * _MARGIN) * 72 / (12 * 0.66))
    figure.text(left, 1 - 0.27 / height, shorten(title, room), fontsize=12, fontweight="bold")
    figure.text(left, 1 - 0.46 / height, subtitle, fontsize=8, color=GREY)
    if outlines and sum(len(name) + 8 for name, _ in outlines) + len(subtitle) < 1.4 * room:
        handles = [Line2D([], [], color=color, label=name) for name, color in outlines]
        place = (left + 0.065 * len(subtitle) / width, 1 - 0.36 / height)
        style = {"borderpad": 0.0, "borderaxespad": 0.0, "handlelength": 1.5, "columnspacing": 1.0}
        figure.legend(handles=handles, loc="upper left", bbox_to_anchor=place, ncols=9, **style)


def _draw_panel(axes: Axes, panel: Panel, row: int, *, framed: bool, linewidth: float) -> None:
    image, caption = panel.images[row], panel.caption
    height, width = image.shape[:2]
    smooth = "nearest" if max(height, width) < 128 else "antialiased"
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, aspect="auto", interpolation=smooth)
    if panel.masks is not None:
        padded = np.pad(panel.masks[row], 1)
        grid = np.arange(-1, width + 1), np.arange(-1, height + 1)
        for k in np.unique(padded[padded > 0]):
            color = panel.color or MASKS[(int(k) - 1) % len(MASKS)]
            outline = axes.contour(*grid, padded == k, [0.5], colors=color, linewidths=linewidth)
            outline.set_path_effects([_HALO])
        if padded.max() <= 0:
            state = "unknown" if padded.min() == UNKNOWN_MASK else "empty"
            caption = f"{caption}: {state}" if caption else f"{state} mask"
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
    axes.set_xlabel(caption, fontsize=7.5 if linewidth > 1 else 6, color=GREY, labelpad=3)
    axes.spines[:].set_visible(framed)
    axes.spines[:].set(color=VERMILION, linewidth=2.2)


def prediction_grid(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
    predicted: NDArray[np.int64] | None,
    probability: NDArray[np.float64] | None,
    class_names: Sequence[str],
    truth_masks: NDArray[np.int64] | None = None,
    predicted_masks: NDArray[np.int64] | None = None,
    reconstructions: NDArray[np.uint8] | None = None,
    title: str = "",
) -> Figure:
    """Draw N images, each with true and predicted class, outlines and reconstruction.

    Args:
        images: ``(N, H, W)`` or ``(N, H, W, 3)`` uint8.
        labels: ``(N,)`` class index or, for multi-label sets, ``(N, K)`` of 0 and 1; -1 is unknown;
            ``None`` without classes.
        predicted: likewise.
        probability: ``(N, K)``, of which that of the predicted class is written.
        class_names: K names.
        truth_masks: ``(N, H, W)`` int mask class, 0 is background, -1 all over where unknown.
        predicted_masks: likewise.
        reconstructions: uint8, in the shape of `images`.
        title: of the figure.

    Example:
        >>> images = np.zeros((2, 28, 28), dtype=np.uint8)
        >>> probability = np.array([[0.9, 0.1], [0.6, 0.4]])
        >>> labels = np.array([0, 1]), probability.argmax(axis=1)
        >>> figure = prediction_grid(images, *labels, probability, ["benign", "malignant"])
        >>> figure.axes[1].get_title(loc="left").splitlines()
        ['malignant', '→ benign 60% ✗']
    """
    several = any(masks is not None and masks.max() > 1 for masks in (truth_masks, predicted_masks))
    panels, legend = [], []
    for caption, masks, color in (
        ("truth", truth_masks, TRUTH),
        ("prediction", predicted_masks, PREDICTION),
    ):
        if masks is not None:
            panels.append(Panel(caption, images, masks, "" if several else color))
            legend.append((caption, color))
    panels = panels or [Panel("", images)]
    if reconstructions is not None:
        panels.append(Panel("reconstruction", reconstructions))
    headings, wrong, subtitle = [""] * len(images), [False] * len(images), ""
    if labels is not None and predicted is not None:
        labelled = (labels != UNKNOWN_LABEL).reshape(len(labels), -1)
        hits = (labels == predicted).reshape(len(labels), -1)
        scored, correct = labelled.any(axis=1), (hits | ~labelled).all(axis=1)
        wrong = (scored & ~correct).tolist()
        marks = np.where(scored, np.where(correct, " ✓", " ✗"), "").tolist()
        if labels.ndim == 1 and probability is not None:
            shares = probability[np.arange(len(predicted)), predicted]
            marks = [f" {share:.0%}{mark}" for share, mark in zip(shares, marks, strict=True)]
        names = label_texts(labels, class_names), label_texts(predicted, class_names)
        headings = [f"{a}\n→ {b}{mark}" for a, b, mark in zip(*names, marks, strict=True)]
        subtitle = f"{int((scored & correct).sum())} of {int(scored.sum())} correct"
    outlines = [] if several else legend
    return image_grid(panels, headings, title, subtitle, wrong=wrong, outlines=outlines)
