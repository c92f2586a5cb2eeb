"""Sheets of images: as they are and augmented, or with truth and prediction side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import patheffects, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray

from medduet.errors import DataError
from medduet.reports.style import STYLE, WIDTH, shorten
from medduet.types import UNKNOWN_LABEL
from medduet.utils.palette import GREEN, GREY, INK, MASKS, PREDICTION, TRUTH, VERMILION

MOST = 16
UNKNOWN_MASK = -1
_CARDS_PER_ROW = {1: 4, 2: 4, 3: 2}
# Inches.
_MARGIN, _GAP, _GUTTER, _ROW_GAP = 0.18, 0.05, 0.24, 0.2
_TOP, _HEADER, _LINE, _CAPTION = 0.66, 0.42, 0.23, 0.17
_LARGEST, _NARROWEST = 2.2, 4.4
_MARKS = {True: ("✓", "right", GREEN), False: ("✗", "wrong", VERMILION), None: ("", "", INK)}
_HALO = patheffects.withStroke(linewidth=3.0, foreground="black", alpha=0.55)


_MANY = ("", "one outline colour per mask class")
_Given = NDArray[Any] | None


class _Verdict(NamedTuple):
    """What the header of one card says."""

    truth: str
    prediction: str
    share: str
    right: bool | None
    note: str = ""


class _Panel(NamedTuple):
    """The pictures at one place of all cards; `colours` is that of each mask class in turn.

    `outline` is what a single colour shows; other outlines are explained elsewhere.
    """

    caption: str
    images: NDArray[np.uint8]
    masks: NDArray[np.int64] | None = None
    colours: Sequence[str] = ()
    outline: str = ""
    line: float = 1.7


@rc_context(STYLE)
def prediction_sheet(
    images: ArrayLike,
    truth_labels: ArrayLike | None,
    predicted_labels: ArrayLike | None,
    probability: ArrayLike | None,
    class_names: Sequence[str],
    truth_masks: ArrayLike | None = None,
    predicted_masks: ArrayLike | None = None,
    reconstructions: ArrayLike | None = None,
    title: str = "",
) -> Figure:
    """Draw 1 to 16 images, each with its true and predicted class, outlines and reconstruction.

    Wrong answers carry a cross and a frame, right ones a tick: the sheet reads without colour.

    Args:
        images: ``(n, H, W)`` or ``(n, H, W, 3)`` uint8.
        truth_labels: ``(n,)`` class index or, for multi-label sets, ``(n, K)`` of 0 and 1; -1 is
            unknown; ``None`` without labels.
        predicted_labels: likewise.
        probability: ``(n, K)`` float, of which the predicted class's is written.
        class_names: K names.
        truth_masks: ``(n, H, W)`` int mask class, 0 is background, -1 all over where unknown.
        predicted_masks: likewise.
        reconstructions: uint8, in the shape of `images`.
        title: written on top.

    Raises:
        DataError: for no image, more than 16, or arrays that do not fit together.

    Example:
        >>> images = np.zeros((2, 28, 28), dtype=np.uint8)
        >>> figure = prediction_sheet(images, [0, 1], [0, 0], [[0.9, 0.1], [0.6, 0.4]], ["a", "b"])
        >>> len(figure.axes)
        2
    """
    picture, k = np.asarray(images), len(class_names)
    n, shape = len(picture), picture.shape
    if picture.dtype != np.uint8 or picture.ndim not in (3, 4) or shape[3:] not in ((), (3,)):
        raise DataError(
            f"expected images (n, H, W) or (n, H, W, 3) uint8, given {shape} {picture.dtype}"
        )
    if not 1 <= n <= MOST:
        raise DataError(f"expected 1 to {MOST} images, given {n}; type images[:{MOST}]")
    truth = _fitting("labels", truth_labels, (n,), (n, k))
    alike = [(n,), (n, k)] if truth is None else [truth.shape]
    predicted = _fitting("labels", predicted_labels, *alike)
    for label in (truth, predicted):
        if label is not None and label.ndim == 1:
            least, largest = label.min(), label.max()
            if not UNKNOWN_LABEL <= least <= largest < k:
                raise DataError(
                    f"expected labels {UNKNOWN_LABEL} to {k - 1}, given {least} to {largest}"
                )
    labels = (truth, predicted, _fitting("probability", probability, (n, k)))
    verdicts = [
        _verdict(class_names, *(None if array is None else array[i] for array in labels))
        for i in range(n)
    ]
    true_masks = _fitting("truth arrays", truth_masks, shape[:3])
    said_masks = _fitting("predicted arrays", predicted_masks, shape[:3])
    rebuilt = _fitting("rebuilt arrays", reconstructions, shape)
    panels = _panels(picture, true_masks, said_masks, rebuilt)
    legend = [(panel.colours[0], panel.outline) for panel in panels if len(panel.colours) == 1]
    if len(panels[0].colours) > 1:
        legend = [_MANY]
    return _draw(panels, verdicts, title, legend)


@rc_context(STYLE)
def image_sheet(
    images: NDArray[np.uint8],
    labels: ArrayLike | None = None,
    class_names: Sequence[str] = (),
    masks: ArrayLike | None = None,
    mask_names: Sequence[str] = (),
    versions: Sequence[tuple[NDArray[np.uint8], ArrayLike | None]] = (),
    title: str = "",
    subtitle: str = "",
) -> Figure:
    """Draw images with the names of their classes and the outlines of their masks.

    Args:
        images: ``(n, H, W)`` or ``(n, H, W, 3)`` uint8.
        labels: as the `truth_labels` of `prediction_sheet`.
        class_names: K names.
        masks: as the `truth_masks` of `prediction_sheet`.
        mask_names: of the mask classes, background first.
        versions: further images and masks of the same shapes, drawn beside the first.
        title: written on top.
        subtitle: written below it, before the names of the mask classes.

    Raises:
        DataError: for no image, or arrays that do not fit together.

    Example:
        >>> images = np.zeros((3, 28, 28), dtype=np.uint8)
        >>> len(image_sheet(images, [0, 1, -1], ["a", "b"], versions=[(images, None)]).axes)
        6
    """
    if not len(images):
        raise DataError("expected at least one image to draw, given none")
    label = _fitting("labels", labels, (len(images),), (len(images), len(class_names)))
    panels, known = [], _fitting("masks", masks, images.shape[:3])
    line = 1.0 if versions else 1.7
    for caption, pictures, drawn in [
        ("original", images, masks),
        *(("augmented", *version) for version in versions),
    ]:
        beside = _fitting("images", pictures, images.shape)
        outlines = _fitting("masks", drawn, images.shape[:3])
        assert beside is not None
        # Small pictures need thin lines, which leave the small outlines open.
        panels.append(_Panel(caption, beside, outlines, MASKS, "", line))
    verdicts = []
    for i in range(len(images)):
        most = 1 if known is None else known[i].max()
        note = {UNKNOWN_MASK: "mask unknown", 0: "empty mask"}.get(int(most), "")
        truth = None if label is None else label[i]
        verdicts.append(_Verdict(_named(truth, class_names), "", "", None, note))
    legend = [("", subtitle)] if subtitle else []
    if known is not None:
        named = list(zip(MASKS, mask_names[1:], strict=False))
        room = WIDTH - 2 * _MARGIN - sum(_room(word) for _, word in [*legend, *named])
        legend += named if len(named) == len(mask_names[1:]) and room > 0 else [_MANY]
    return _draw(panels, verdicts, title, legend)


def _fitting(name: str, given: ArrayLike | None, *shapes: tuple[int, ...]) -> _Given:
    """Return what is given as an array, if it has one of `shapes`."""
    if given is None:
        return None
    array = np.asarray(given)
    if array.shape not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise DataError(f"expected {name} {wanted} for these images, given {array.shape}")
    return array


def _verdict(
    class_names: Sequence[str], truth: _Given, predicted: _Given, share: _Given
) -> _Verdict:
    right, sure = None, ""
    if predicted is not None and share is not None and not predicted.ndim:
        sure = f"{share[predicted]:.0%}"
    if predicted is not None and truth is not None and (truth != UNKNOWN_LABEL).any():
        known = truth != UNKNOWN_LABEL
        hits = (truth == predicted) & known
        right = bool(hits.sum() == known.sum())
        if predicted.ndim:
            sure = f"{hits.sum()} of {known.sum()}"
    return _Verdict(_named(truth, class_names), _named(predicted, class_names), sure, right)


def _named(label: _Given, class_names: Sequence[str]) -> str:
    if label is None:
        return ""
    if (label == UNKNOWN_LABEL).all():
        return "unknown"
    if not label.ndim:
        return str(class_names[int(label)])
    return " + ".join(str(class_names[int(i)]) for i in np.flatnonzero(label == 1)) or "none"


def _panels(
    images: NDArray[np.uint8], truth: _Given, predicted: _Given, rebuilt: _Given
) -> list[_Panel]:
    panels = []
    several = any(masks is not None and masks.max() > 1 for masks in (truth, predicted))
    if truth is not None:
        true_colours = MASKS if several else [TRUTH]
        panels.append(_Panel("truth", images, truth, true_colours, "true outline"))
    if predicted is not None:
        colours = MASKS if several else [PREDICTION]
        panels.append(_Panel("prediction", images, predicted, colours, "predicted outline"))
    if not panels:
        panels.append(_Panel("image", images))
    if rebuilt is not None:
        panels.append(_Panel("reconstruction", rebuilt))
    return panels


def _draw(
    panels: list[_Panel], verdicts: list[_Verdict], title: str, legend: list[tuple[str, str]]
) -> Figure:
    """Lay the cards out; everything is counted in inches from the top left."""
    count, per_card = len(verdicts), len(panels)
    columns = min(count, _CARDS_PER_ROW.get(per_card, 2))
    gaps = (columns - 1) * _GUTTER + columns * (per_card - 1) * _GAP
    side = min((WIDTH - 2 * _MARGIN - gaps) / (columns * per_card), _LARGEST)
    width = max(columns * per_card * side + gaps + 2 * _MARGIN, _NARROWEST)
    card = per_card * side + (per_card - 1) * _GAP
    high = side * panels[0].images.shape[1] / panels[0].images.shape[2]
    header = _LINE if any(v.truth or v.note for v in verdicts) else 0.0
    header = _HEADER if any(v.prediction for v in verdicts) else header
    step = header + high + (_CAPTION if per_card > 1 else 0.0) + _ROW_GAP
    height = _TOP + -(-count // columns) * step - _ROW_GAP + _MARGIN
    figure = Figure(figsize=(width, height))
    _banner(figure, title, legend, verdicts)
    for i, verdict in enumerate(verdicts):
        left = _MARGIN + i % columns * (card + _GUTTER)
        top = _TOP + i // columns * step
        if header:
            _header(figure, left, top, card, verdict)
        for k, panel in enumerate(panels):
            x, y = left + k * (side + _GAP), top + header
            box = (x / width, 1 - (y + high) / height, side / width, high / height)
            axes = figure.add_axes(box)
            _picture(axes, panel, i, wrong=verdict.right is False)
            if per_card > 1:
                caption = panel.caption
                if panel.outline and panel.masks is not None and panel.masks[i].max() <= 0:
                    unknown = panel.masks[i].min() == UNKNOWN_MASK
                    caption += ": unknown" if unknown else ": none"
                axes.set_xlabel(caption, fontsize=7.5, color=GREY, labelpad=3)
    return figure


def _write(
    figure: Figure, x: float, y: float, text: str, size: float, colour: str = INK, **style: Any
) -> None:
    width, height = figure.get_size_inches()
    figure.text(x / width, 1 - y / height, text, fontsize=size, color=colour, **style)


def _room(word: str) -> float:
    """Return the inches of a word and its line in the legend."""
    return 0.38 + 0.062 * len(word)


def _banner(
    figure: Figure, title: str, legend: list[tuple[str, str]], verdicts: list[_Verdict]
) -> None:
    width, height = figure.get_size_inches()
    room = int((width - 2 * _MARGIN) * 72 / (12 * 0.66))
    _write(figure, _MARGIN, 0.27, shorten(title, room), 12, fontweight="bold")
    x, y = _MARGIN, 0.48
    for colour, word in legend:
        if colour:
            ends = [x / width, (x + 0.2) / width], [1 - (y - 0.035) / height] * 2
            figure.add_artist(Line2D(*ends, color=colour, linewidth=2.4))
        _write(figure, x + (0.26 if colour else 0), y, word, 8, GREY)
        x += _room(word)
    for right in (True, False):
        sign, word, colour = _MARKS[right]
        if count := sum(verdict.right is right for verdict in verdicts):
            _write(figure, x, y, f"{sign} {count} {word}", 8, colour, fontweight="bold")
            x += 0.8


def _header(figure: Figure, left: float, top: float, width: float, verdict: _Verdict) -> None:
    sign, _, colour = _MARKS[verdict.right]
    end = left + width
    room = int((width - 0.22 - 0.06 * len(verdict.note)) * 72 / (9 * 0.66))
    _write(figure, left, top + 0.16, shorten(verdict.truth, room), 9, fontweight="bold")
    _write(figure, end, top + 0.16, verdict.note, 7.5, GREY, ha="right")
    _write(figure, end, top + 0.17, sign, 12, colour, ha="right", fontweight="bold")
    if verdict.prediction:
        room = int((width - 0.08 * len(verdict.share)) * 72 / (9 * 0.57)) - 4
        _write(figure, left, top + 0.34, f"→ {shorten(verdict.prediction, room)}", 9, colour)
        _write(figure, end, top + 0.34, verdict.share, 9, colour, ha="right")


def _picture(axes: Axes, panel: _Panel, i: int, *, wrong: bool) -> None:
    height, width = panel.images.shape[1:3]
    smooth = "nearest" if max(height, width) < 128 else "antialiased"
    axes.imshow(panel.images[i], cmap="gray", vmin=0, vmax=255, aspect="auto", interpolation=smooth)
    if panel.masks is not None:
        padded = np.pad(panel.masks[i], 1)
        grid = np.arange(-1, width + 1), np.arange(-1, height + 1)
        for k in np.unique(padded[padded > 0]):
            colour = panel.colours[(int(k) - 1) % len(panel.colours)]
            outline = axes.contour(
                *grid, padded == k, levels=[0.5], colors=colour, linewidths=panel.line
            )
            outline.set_path_effects([_HALO])
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
    axes.spines[:].set_visible(wrong)
    axes.spines[:].set(color=VERMILION, linewidth=2.2)
