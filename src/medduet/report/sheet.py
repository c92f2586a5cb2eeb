"""A sheet of images with truth and prediction side by side."""

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
from medduet.report.style import GREEN, GREY, INK, STYLE, VERMILION, WIDTH, shorten
from medduet.types import UNKNOWN_LABEL

MOST = 16
_CARDS_PER_ROW = {1: 4, 2: 3, 3: 2}
# Inches.
_MARGIN, _GAP, _GUTTER, _ROW_GAP = 0.18, 0.05, 0.24, 0.2
_TOP, _HEADER, _CAPTION = 0.66, 0.42, 0.17
_LARGEST, _NARROWEST = 2.2, 4.4
_TRUTH, _PREDICTION = "#56B4E9", "#E69F00"
_CLASS_COLOURS = ("#56B4E9", "#E69F00", "#CC79A7", "#00C08B", "#F0E442", "#D55E00")
_HALO = patheffects.withStroke(linewidth=3.0, foreground="black", alpha=0.55)


class _Verdict(NamedTuple):
    """What the header of one card says."""

    truth: str
    prediction: str
    share: str
    right: bool | None


class _Panel(NamedTuple):
    """One of the pictures of a card."""

    caption: str
    image: NDArray[np.uint8]
    mask: NDArray[np.int64] | None
    colour: str


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
        truth_labels: ``(n,)`` class index, -1 where unknown, or ``(n, K)`` of 0, 1 and -1 for
            multi-label sets; ``None`` without labels.
        predicted_labels: likewise; ``None`` without a class head.
        probability: ``(n, K)`` float, of which the predicted class's is written; or ``None``.
        class_names: K names.
        truth_masks: ``(n, H, W)`` int mask class, 0 is background.
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
    picture = np.asarray(images)
    extras = [
        None if array is None else np.asarray(array)
        for array in (truth_masks, predicted_masks, reconstructions)
    ]
    _check(picture, *extras)
    truth, predicted = (
        None if a is None else np.asarray(a) for a in (truth_labels, predicted_labels)
    )
    share = None if probability is None else np.asarray(probability, dtype=np.float64)
    _check_labels(len(picture), truth, predicted, share, len(class_names))
    verdicts = [
        _verdict(_row(truth, i), _row(predicted, i), _row(share, i), class_names)
        for i in range(len(picture))
    ]
    many = max((int(mask.max()) for mask in extras[:2] if mask is not None), default=0) > 1
    cards = [
        _panels(picture[i], *(_row(array, i) for array in extras)) for i in range(len(picture))
    ]
    return _draw(cards, verdicts, title, many)


def _check(images: NDArray[np.uint8], *others: NDArray[np.generic] | None) -> None:
    colour = images.ndim == 4 and images.shape[-1] == 3
    if images.dtype != np.uint8 or not (images.ndim == 3 or colour):
        raise DataError(
            f"expected images (n, H, W) or (n, H, W, 3) uint8, given {images.shape} {images.dtype}"
        )
    if not 1 <= len(images) <= MOST:
        raise DataError(f"expected 1 to {MOST} images, given {len(images)}; type images[:{MOST}]")
    wanted = (images.shape[:3], images.shape[:3], images.shape)
    for name, other, shape in zip(("truth", "predicted", "rebuilt"), others, wanted, strict=True):
        if other is not None and other.shape != shape:
            raise DataError(f"expected {name} arrays {shape} as the images, given {other.shape}")


def _check_labels(
    n: int,
    truth: NDArray[np.int64] | None,
    predicted: NDArray[np.int64] | None,
    share: NDArray[np.float64] | None,
    k: int,
) -> None:
    given = [label for label in (truth, predicted) if label is not None]
    shapes = {label.shape for label in given}
    if len(shapes) > 1 or not shapes <= {(n,), (n, k)}:
        raise DataError(f"expected labels ({n},) or ({n}, {k}), given {sorted(shapes)}")
    for label in given:
        if label.ndim == 1 and not (label.min() >= UNKNOWN_LABEL and label.max() < k):
            raise DataError(
                f"expected labels {UNKNOWN_LABEL} to {k - 1} for {k} class names, "
                f"given {label.min()} to {label.max()}"
            )
    if share is not None and share.shape != (n, k):
        raise DataError(f"expected probability ({n}, {k}), given {share.shape}")


def _row(array: NDArray[Any] | None, i: int) -> Any:
    return None if array is None else array[i]


def _verdict(
    truth: NDArray[np.int64] | None,
    predicted: NDArray[np.int64] | None,
    share: NDArray[np.float64] | None,
    class_names: Sequence[str],
) -> _Verdict:
    known = None if truth is None else np.asarray(truth) != UNKNOWN_LABEL
    right = None
    if known is not None and known.any() and predicted is not None:
        right = bool((np.asarray(truth == predicted) | ~known).all())
    sure = ""
    if predicted is not None and np.ndim(predicted):
        if known is not None and known.any():
            sure = f"{int((np.asarray(truth == predicted) & known).sum())} of {known.sum()}"
    elif predicted is not None and share is not None:
        sure = f"{share[int(predicted)]:.0%}"
    return _Verdict(_named(truth, class_names), _named(predicted, class_names), sure, right)


def _named(label: NDArray[np.int64] | None, class_names: Sequence[str]) -> str:
    if label is None:
        return ""
    if not np.ndim(label):
        return "unknown" if label == UNKNOWN_LABEL else str(class_names[int(label)])
    if (label == UNKNOWN_LABEL).all():
        return "unknown"
    return " + ".join(str(class_names[int(i)]) for i in np.flatnonzero(label == 1)) or "none"


def _panels(
    image: NDArray[np.uint8],
    truth: NDArray[np.int64] | None,
    predicted: NDArray[np.int64] | None,
    rebuilt: NDArray[np.uint8] | None,
) -> list[_Panel]:
    panels = []
    if truth is not None:
        panels.append(_Panel("truth", image, truth, _TRUTH))
    if predicted is not None:
        panels.append(_Panel("prediction", image, predicted, _PREDICTION))
    if rebuilt is not None:
        panels.append(_Panel("reconstruction", rebuilt, None, ""))
    if truth is None and predicted is None:
        panels.insert(0, _Panel("image", image, None, ""))
    return panels


def _draw(
    cards: list[list[_Panel]], verdicts: list[_Verdict], title: str, many_classes: bool
) -> Figure:
    """Lay the cards out; everything is counted in inches from the top left."""
    per_card = len(cards[0])
    columns = min(len(cards), _CARDS_PER_ROW[per_card])
    gaps = (columns - 1) * _GUTTER + columns * (per_card - 1) * _GAP
    side = min((WIDTH - 2 * _MARGIN - gaps) / (columns * per_card), _LARGEST)
    width = max(columns * per_card * side + gaps + 2 * _MARGIN, _NARROWEST)
    card = per_card * side + (per_card - 1) * _GAP
    high = side * cards[0][0].image.shape[0] / cards[0][0].image.shape[1]
    header = _HEADER if any(v.truth or v.prediction for v in verdicts) else 0.0
    step = header + high + (_CAPTION if per_card > 1 else 0.0) + _ROW_GAP
    rows = -(-len(cards) // columns)
    height = _TOP + rows * step - _ROW_GAP + _MARGIN
    figure = Figure(figsize=(width, height))
    _banner(figure, title, cards[0], verdicts, many_classes)
    for i, (panels, verdict) in enumerate(zip(cards, verdicts, strict=True)):
        left = _MARGIN + i % columns * (card + _GUTTER)
        top = _TOP + i // columns * step
        if header:
            _header(figure, left, top, card, verdict)
        for k, panel in enumerate(panels):
            x, y = left + k * (side + _GAP), top + header
            axes = figure.add_axes(
                (x / width, 1 - (y + high) / height, side / width, high / height)
            )
            _picture(axes, panel, many_classes, wrong=verdict.right is False)
            if per_card > 1:
                axes.set_xlabel(_caption(panel), fontsize=7.5, color=GREY, labelpad=3)
    return figure


def _caption(panel: _Panel) -> str:
    return panel.caption if panel.mask is None or panel.mask.any() else f"{panel.caption}: none"


def _write(
    figure: Figure, x: float, y: float, text: str, size: float, colour: str = INK, **style: Any
) -> None:
    width, height = figure.get_size_inches()
    figure.text(x / width, 1 - y / height, text, fontsize=size, color=colour, **style)


def _banner(
    figure: Figure,
    title: str,
    panels: list[_Panel],
    verdicts: list[_Verdict],
    many_classes: bool,
) -> None:
    width, height = figure.get_size_inches()
    room = int((width - 2 * _MARGIN) * 72 / (12 * 0.66))
    _write(figure, _MARGIN, 0.27, shorten(title, room), 12, fontweight="bold")
    x, y = _MARGIN, 0.48
    outlines = [panel for panel in panels if panel.mask is not None]
    if many_classes and outlines:
        _write(figure, x, y, "one outline colour per mask class", 8, GREY)
        x += 2.15
    for panel in [] if many_classes else outlines:
        ends = [x / width, (x + 0.2) / width], [1 - (y - 0.035) / height] * 2
        figure.add_artist(Line2D(*ends, color=panel.colour, linewidth=2.4))
        word = "true outline" if panel.caption == "truth" else "predicted outline"
        _write(figure, x + 0.26, y, word, 8, GREY)
        x += 0.38 + 0.062 * len(word)
    for right, words, colour in ((True, "✓ {} right", GREEN), (False, "✗ {} wrong", VERMILION)):
        count = sum(verdict.right is right for verdict in verdicts)
        if count:
            _write(figure, x, y, words.format(count), 8, colour, fontweight="bold")
            x += 0.8


def _header(figure: Figure, left: float, top: float, width: float, verdict: _Verdict) -> None:
    colour = {True: GREEN, False: VERMILION, None: INK}[verdict.right]
    end = left + width
    room = int((width - 0.22) * 72 / (9 * 0.66))
    _write(figure, left, top + 0.16, shorten(verdict.truth, room), 9, fontweight="bold")
    if verdict.right is not None:
        sign = "✓" if verdict.right else "✗"
        _write(figure, end, top + 0.17, sign, 12, colour, ha="right", fontweight="bold")
    if verdict.prediction:
        room = int((width - 0.08 * len(verdict.share)) * 72 / (9 * 0.57)) - 4
        _write(figure, left, top + 0.34, f"→ {shorten(verdict.prediction, room)}", 9, colour)
        _write(figure, end, top + 0.34, verdict.share, 9, colour, ha="right")


def _picture(axes: Axes, panel: _Panel, many_classes: bool, *, wrong: bool) -> None:
    height, width = panel.image.shape[:2]
    small = max(height, width) < 128
    axes.imshow(
        panel.image,
        cmap="gray",
        vmin=0,
        vmax=255,
        aspect="auto",
        interpolation="nearest" if small else "antialiased",
    )
    if panel.mask is not None:
        padded = np.pad(panel.mask, 1)
        across, down = np.arange(-1, width + 1), np.arange(-1, height + 1)
        for k in np.unique(panel.mask[panel.mask > 0]):
            colour = (
                _CLASS_COLOURS[(int(k) - 1) % len(_CLASS_COLOURS)] if many_classes else panel.colour
            )
            outline = axes.contour(
                across,
                down,
                (padded == k).astype(float),
                levels=[0.5],
                colors=colour,
                linewidths=1.7,
            )
            outline.set_path_effects([_HALO])
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
    axes.spines[:].set_visible(wrong)
    axes.spines[:].set(color=VERMILION, linewidth=2.2)
