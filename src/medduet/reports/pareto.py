"""The Pareto front of a search, and its figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from medduet.reports.style import STYLE, WIDTH
from medduet.utils.palette import BLUE, FAINT, GREY, VERMILION

_COSTS = {"parameters": "parameters", "gmacs": "10⁹ multiply-accumulates for one image"}


@rc_context(STYLE)
def pareto_figure(trials: Sequence[Mapping[str, Any]], cost: str, title: str) -> Figure:
    """Draw score over cost of all trials of a search, and the front.

    Args:
        trials: mappings with ``state``, ``score``, the cost, and ``front`` (its place) for those
            of the front, see `medduet.SearchRecord`.
        cost: ``"parameters"`` or ``"gmacs"``.
        title: what was searched on.

    Example:
        >>> trial = {"state": "finished", "score": 0.7, "parameters": 1e5, "front": 1}
        >>> pareto_figure([trial], "parameters", "phantom").axes[0].get_xscale()
        'log'
    """
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    known = [trial for trial in trials if trial.get("score") is not None and cost in trial]
    for state, label, marker in (
        ("pruned", "pruned, best score until then", "x"),
        ("finished", "finished", "o"),
    ):
        points = [(t[cost], t["score"]) for t in known if t["state"] == state]
        if points:
            x, y = np.transpose(points)
            axes.scatter(x, y, s=26, c=GREY, marker=marker, label=label)
    front = sorted((t for t in known if t.get("front")), key=lambda t: int(t["front"]))
    if front:
        x, y = [t[cost] for t in front], [t["score"] for t in front]
        axes.step(x, y, where="post", color=BLUE, label="Pareto front", zorder=3)
        axes.scatter(x, y, s=44, color=BLUE, zorder=4)
        for trial in front:
            axes.annotate(
                str(trial["front"]),
                (trial[cost], trial["score"]),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                color=VERMILION,
                fontweight="bold",
            )
    axes.set_xscale("log")
    # Whole words: the style draws no formulas, which is how powers of ten would come.
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter() if cost == "parameters" else "{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.1)
    axes.set_xlabel(_COSTS[cost])
    axes.set_ylabel("validation score")
    axes.set_title(f"{title}, {len(trials)} trials")
    axes.grid(color=FAINT, linewidth=0.6)
    axes.legend(loc="lower right")
    return figure
