"""The style of every figure, and how a figure is written to disk."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from medduet.utils.files import atomic_path
from medduet.utils.palette import FAINT, GREY, INK

WIDTH = 8.0
"""Inches; shown 800 pixels wide, 9 points are 12.5 pixels high."""
DASHES = ("-", "--", ":", "-.")
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "text.parse_math": False,
    "text.usetex": False,
}


def panels(
    count: int, *, columns: int = 3, height: float = 2.2, legend: float = 0.5, share: bool = True
) -> tuple[Figure, list[Axes]]:
    """Return a figure of `count` axes in rows, each row and the legend so many inches high.

    With `share` all axes have the same y axis.
    """
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH, rows * height + legend), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=share).ravel()
    for spare in grid[count:]:
        spare.remove()
    return figure, list(grid[:count])


def draw_series(axes: Axes, epochs: Sequence[int], values: Any, **line: Any) -> None:
    """Draw a number over the epochs, NaN and ``None`` left out; points if there are few of them."""
    series = np.array(values, dtype=float)
    line.setdefault("marker", "o" if np.isfinite(series).sum() < 3 else "")
    axes.plot(epochs, series, **line)


def epoch_axis(axes: Axes) -> None:
    """Label the x axis with whole epochs and draw horizontal grid lines."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.margins(x=0.04)
    axes.grid(axis="y")


def save(figure: Figure, path: Path, *, dpi: int = 200) -> None:
    """Write `figure` to `path`, a .png or .svg, atomically; equal figures make equal files.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "empty.png"
        >>> save(Figure(figsize=(1, 1)), target)
        >>> target.read_bytes()[1:4]
        b'PNG'
    """
    suffix = path.suffix.removeprefix(".")
    metadata: dict[str, Any] = {"Software": None} if suffix == "png" else {"Date": None}
    with atomic_path(path) as temporary, rc_context(STYLE | {"svg.hashsalt": path.stem}):
        figure.savefig(temporary, format=suffix, dpi=dpi, metadata=metadata)


def slug(text: str) -> str:
    """Return `text` as a name for files and anchors.

    Example:
        >>> slug("busi_seg_64, 64 x 64")
        'busi_seg_64-64-x-64'
    """
    return re.sub(r"[^\w.+-]+", "-", text).strip("-")


def shorten(text: str, length: int) -> str:
    """Return at most `length` characters of `text`, its end replaced by an ellipsis if need be.

    Example:
        >>> shorten("immature granulocytes", 10)
        'immature …'
    """
    return text if len(text) <= length else text[: max(length - 1, 0)] + "…"
