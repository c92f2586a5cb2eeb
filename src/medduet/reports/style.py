"""The style of every figure, its panels, and how a figure is written to disk."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from medduet.utils.files import atomic_path
from medduet.utils.palette import FAINT, GREY, INK, LINES

WIDTH = 8.0
"""Inches; shown 800 pixels wide, 8.5 points are 11.8 pixels high."""
LONGEST = 40
"""Characters of the name of a method."""
DASHES = ("-", "--", ":", "-.")
STYLE: Any = {
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlesize": "medium",
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.labelsize": "medium",
    "grid.color": FAINT,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "text.parse_math": False,
}


def panels(
    titles: Sequence[str],
    *,
    columns: int = 3,
    height: float = 2.2,
    legend: float = 0.5,
    share: bool = True,
) -> tuple[Figure, list[Axes]]:
    """Return a figure with axes of these titles in rows; row and legend so many inches high."""
    columns = min(len(titles), columns)
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(WIDTH, rows * height + legend), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=share).ravel()
    for spare in grid[len(titles) :]:
        spare.remove()
    for axes, title in zip(grid, titles, strict=False):
        axes.set_title(shorten(title, int(13 * WIDTH / columns)))
    return figure, list(grid[: len(titles)])


def epoch_axis(axes: Axes) -> None:
    """Label the x axis with whole epochs and draw horizontal grid lines."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.margins(x=0.04)
    axes.grid(axis="y")


def legend_below(figure: Figure, lines: Iterable[Any]) -> None:
    """Put a legend below all panels; a line is what `Line2D` takes, with its label."""
    handles = [Line2D([], [], **line) for line in lines]
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    columns = 2 if longest > 50 else 3 if longest > 24 else 4
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def line_look(index: int) -> dict[str, Any]:
    """Return colour and dashes of a line among many: 32 differ."""
    return {"color": LINES[index % 8], "ls": DASHES[index // 8 % 4]}


def save(figure: Figure, path: Path, *, dpi: int = 200) -> None:
    """Write `figure` to `path`, a .png or .svg, atomically; equal figures make equal files."""
    suffix = path.suffix.removeprefix(".")
    metadata: Any = {"Software": None} if suffix == "png" else {"Date": None}
    with atomic_path(path) as temporary, rc_context(STYLE | {"svg.hashsalt": path.stem}):
        figure.savefig(temporary, format=suffix, dpi=dpi, metadata=metadata)


def slug(text: str) -> str:
    """Return `text` as a name for files and anchors."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-")


def shorten(text: str, length: int) -> str:
    """Return at most `length` characters of `text`, its end replaced by an ellipsis if need be."""
    return text if len(text) <= length else text[: max(length - 1, 0)] + "…"
