"""Images in a grid, with their classes, outlines of masks, and predictions or versions beside."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import patheffects, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from medduet.data.audit.findings import label_texts
from medduet.data.imageset import ImageSet, Split
from medduet.data.pixels import three_planes
from medduet.reports.style import STYLE, WIDTH, shorten
from medduet.types import IGNORED_MASK, UNKNOWN_LABEL
from medduet.utils.palette import GREY, INK, MASKS, PREDICTION, SILVER, TRUTH, VERMILION

UNKNOWN_MASK = -1
_TOP, _LINE = 0.6, 0.19  # inches: of the title, of a line of text
_GUTTER = 0.06  # between cards, as a share of a card
_HALO = patheffects.withStroke(linewidth=3.0, foreground="black", alpha=0.55)


class Panel(NamedTuple):
    """The picture at one place of every card: ``(N, H, W)`` or ``(N, H, W, 3)`` uint8.

    Masks are ``(N, H, W)`` mask classes, -1 all over where unknown; no `color`: one of each class.
    What is ignored has a dotted outline.
    """

    caption: str
    images: NDArray[np.uint8]
    masks: NDArray[Any] | None = None
    color: str = ""


def panel_of(images: ImageSet, split: Split, rows: NDArray[np.int64]) -> Panel:
    """Return the panel of some images of a split with their masks; of volumes, three planes."""
    pixels, masks = split.images[rows], None
    if split.masks is not None:
        has_mask = split.known_masks[rows].reshape(-1, *[1] * images.dims)
        masks = np.where(has_mask, split.masks[rows].astype(int), UNKNOWN_MASK)
    if images.dims == 3:
        pixels, *drawn = three_planes(masks, pixels, *([] if masks is None else [masks]))
        masks = next(iter(drawn), None)
    return Panel("", pixels, masks)


@rc_context(STYLE)
def image_grid(
    panels: Sequence[Panel],
    headings: Sequence[str],
    title: str,
    subtitle: str = "",
    *,
    wrong: Sequence[bool] = (),
    outlines: Sequence[tuple[str, str]] = (),
    columns: int = 0,
) -> Figure:
    """Draw N cards, each with a heading above its panels from left to right.

    Those that are `wrong` are framed. `outlines` are for a legend, if there is room.
    """
    per_card = len(panels)
    columns = columns or (4 if per_card < 3 else 2)
    rows, lines = -(-len(headings) // columns), max(text.count("\n") + 1 for text in headings)
    card = 0.96 * WIDTH / (columns + _GUTTER * (columns - 1))
    picture = card / per_card * panels[0].images.shape[1] / panels[0].images.shape[2]
    space = (lines + 1) * _LINE
    height = _TOP + rows * (picture + space) + _LINE
    figure = Figure(figsize=(WIDTH, height))
    figure.text(0.02, 1 - 0.27 / height, shorten(title, 68), fontsize=12, fontweight="bold")
    figure.text(0.02, 1 - 0.46 / height, subtitle, fontsize=8, color=GREY)
    handles = [Line2D([], [], color=color, label=name) for name, color in outlines]
    if any(np.any(panel.masks == IGNORED_MASK) for panel in panels):
        handles.append(Line2D([], [], color=SILVER, ls=":", label="ignored"))
    if sum(len(str(handle.get_label())) + 8 for handle in handles) < 85:
        anchor = (0.99, 1 - 0.28 / height)
        figure.legend(handles=handles, loc="upper right", bbox_to_anchor=anchor, ncols=9)
    cards = figure.add_gridspec(
        rows,
        columns,
        left=0.02,
        right=0.98,
        top=1 - (_TOP + lines * _LINE) / height,
        bottom=2 * _LINE / height,
        wspace=_GUTTER,
        hspace=space / picture,
    )
    for number, heading in enumerate(headings):
        framed = bool(wrong) and wrong[number]
        row = cards[number].subgridspec(1, per_card, wspace=0.03).subplots(squeeze=False)[0]
        text = "\n".join(shorten(line, int(14 * card)) for line in heading.split("\n"))
        look = {"fontsize": 8.5, "fontweight": "normal", "pad": 3}
        row[0].set_title(text, color=VERMILION if framed else INK, **look)
        for axes, panel in zip(row, panels, strict=True):
            _draw_panel(axes, panel, number, linewidth=1.7 if per_card < 4 else 1.0)
            axes.spines[:].set(visible=framed, color=VERMILION, linewidth=2.2)
    return figure


def _draw_panel(axes: Axes, panel: Panel, row: int, *, linewidth: float) -> None:
    image, caption = panel.images[row], panel.caption
    height, width = image.shape[:2]
    smooth = "nearest" if max(height, width) < 128 else "antialiased"
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, aspect="auto", interpolation=smooth)
    if panel.masks is not None:
        padded = np.pad(panel.masks[row], 1)
        grid = np.arange(-1, width + 1), np.arange(-1, height + 1)
        for k in np.unique(padded[padded > 0]).tolist():
            look: Any = {"colors": panel.color or MASKS[(k - 1) % len(MASKS)]}
            look = {"colors": SILVER, "linestyles": "dotted"} if k == IGNORED_MASK else look
            outline = axes.contour(*grid, padded == k, [0.5], linewidths=linewidth, **look)
            outline.set_path_effects([_HALO])
        if not ((padded > 0) & (padded != IGNORED_MASK)).any():
            state = "unknown" if padded.min() == UNKNOWN_MASK else "empty"
            caption = f"{caption}: {state}" if caption else f"{state} mask"
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
    axes.set_xlabel(caption, fontsize=7.5 if linewidth > 1 else 6, color=GREY, labelpad=3)


def prediction_grid(
    samples: Mapping[str, NDArray[Any]],
    title: str,
    class_names: Sequence[str] = (),
    labels: NDArray[np.int64] | None = None,
    probability: NDArray[np.float64] | None = None,
) -> Figure:
    """Draw the N images of ``samples.npz``, with true and predicted class, and what else is there.

    Labels are ``(N,)`` or ``(N, K)`` of 0 and 1, -1 is unknown, and probabilities ``(N, K)``.
    """
    images, panels = samples["images"], []
    drawn = [samples[name] for name in samples if name.endswith("_masks")]
    several = any(((masks > 1) & (masks != IGNORED_MASK)).any() for masks in drawn)
    if "truth_masks" in samples:
        has_mask, truth = samples["has_mask"][:, None, None], samples["truth_masks"].astype(int)
        masks = np.where(has_mask, truth, UNKNOWN_MASK)
        panels.append(Panel("truth", images, masks, "" if several else TRUTH))
    if "predicted_masks" in samples:
        color = "" if several else PREDICTION
        panels.append(Panel("prediction", images, samples["predicted_masks"], color))
    panels = panels or [Panel("", images)]
    if "reconstructions" in samples:
        panels.append(Panel("reconstruction", samples["reconstructions"]))
    if labels is None or probability is None:
        return image_grid(panels, [""] * len(images), title)
    predicted = probability.argmax(axis=1) if labels.ndim == 1 else (probability > 0.5).astype(int)
    labelled = (labels != UNKNOWN_LABEL).reshape(len(labels), -1)
    hits = (labels == predicted).reshape(len(labels), -1)
    scored, correct = labelled.any(axis=1), (hits | ~labelled).all(axis=1)
    marks = np.where(scored, np.where(correct, " ✓", " ✗"), "").tolist()
    if labels.ndim == 1:
        shares = probability.max(axis=1).tolist()
        marks = [f" {share:.0%}{mark}" for share, mark in zip(shares, marks, strict=True)]
    names = label_texts(labels, class_names), label_texts(predicted, class_names)
    headings = [f"{a}\n→ {b}{mark}" for a, b, mark in zip(*names, marks, strict=True)]
    subtitle = f"{int((scored & correct).sum())} of {int(scored.sum())} correct"
    wrong = (scored & ~correct).tolist()
    return image_grid(panels, headings, title, subtitle, wrong=wrong)
