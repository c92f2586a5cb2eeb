"""How every figure looks, and how it reaches the disk."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from medduet.utils.files import atomic_path
from medduet.utils.palette import GREY, INK

WIDTH = 8.0
"""Inches; shown 800 pixels wide, 9 points are 12.5 pixels high."""
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


def save(figure: Figure, path: Path, *, dpi: int = 200) -> None:
    """Write `figure` to `path`, a .png or .svg, atomically; equal figures make equal files.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "empty.png"
        >>> save(Figure(figsize=(1, 1)), target)
        >>> target.read_bytes()[1:4]
        b'PNG'
    """
    kind = path.suffix.removeprefix(".")
    about: dict[str, Any] = {"Software": None} if kind == "png" else {"Date": None}
    with atomic_path(path) as temporary, rc_context(STYLE | {"svg.hashsalt": path.stem}):
        figure.savefig(temporary, format=kind, dpi=dpi, metadata=about)


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
