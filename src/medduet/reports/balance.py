"""The figure of how a run balanced its tasks, drawn from its epochs alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from medduet.reports.style import STYLE, WIDTH
from medduet.utils.palette import FAINT, GREY, LINES

_PANELS = (
    ("weights", "Weight of each loss", "coefficient, mean of the epoch"),
    ("conflict", "Agreement of the gradients", "cosine on the encoder"),
)


@rc_context(STYLE)
def balance_curves(history: Sequence[Mapping[str, Any]], name: str = "") -> Figure | None:
    """Draw the weight of each task's loss and the cosine between each two tasks' gradients.

    Args:
        history: one mapping per epoch with ``epoch`` and, both optional, ``weights`` and
            ``conflict``, mappings from name to number or ``None``.
        name: of the balance, for the title.

    Returns:
        The figure; ``None`` if there is nothing to draw.

    Example:
        >>> rows = [{"epoch": 1, "weights": {"classify": 0.5, "segment": 1.5}}]
        >>> [axes.get_title(loc="left") for axes in balance_curves(rows, "dwa").axes]
        ['Weight of each loss (dwa)']
    """
    panels = [panel for panel in _PANELS if _known(history, panel[0])]
    if not panels:
        return None
    figure = Figure(figsize=(WIDTH * len(panels) / 2, 3.2))
    figure.subplots_adjust(left=0.16 / len(panels), right=0.985, top=0.91, bottom=0.31, wspace=0.26)
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (key, title, label) in zip(row, panels, strict=True):
        _curves(axes, history, key)
        axes.set_title(f"{title} ({name})" if axes is row[0] and name else title)
        axes.set(xlabel="epoch", ylabel=label)
        if key == "weights":
            axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.15 * max(axes.get_ylim()[1], 0.1))
        else:
            axes.axhline(0, color=GREY, lw=1.2, zorder=1)
            axes.set_ylim(-1.05, 1.05)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, handlelength=1.6)
    return figure


def _known(history: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[float]]:
    """Return the series of each name of which some epoch has a number; NaN where it has none."""
    names = dict.fromkeys(name for row in history for name in row.get(key) or {})
    series = {
        name: np.array([(row.get(key) or {}).get(name) for row in history], float).tolist()
        for name in names
    }
    return {name: values for name, values in series.items() if np.isfinite(values).any()}


def _curves(axes: Axes, history: Sequence[Mapping[str, Any]], key: str) -> None:
    epochs = [row["epoch"] for row in history]
    series = _known(history, key)
    for number, (name, values) in enumerate(series.items()):
        # Curves of the same height, as those of the sum, stay visible through one another.
        style = ("-", "--", ":")[number % 3] if key == "weights" else "-"
        colour = LINES[number if key == "weights" else number + 3]
        marker = "o" if np.isfinite(values).sum() < 3 else ""
        label = name.replace("-", " / ")
        axes.plot(epochs, values, color=colour, ls=style, marker=marker, label=label)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.margins(x=0.04)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
