"""Calibration in a report: reliability diagrams, and coverage of conformal prediction sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from medduet.metrics.intervals import UNDEFINED, wilson
from medduet.reports.folds import CrossValidated
from medduet.reports.grouping import Group
from medduet.reports.page import Table
from medduet.reports.style import STYLE, WIDTH, shorten
from medduet.utils.palette import BLUE, GREY, INK, VERMILION

MOST_CLASSES = 5
_KINDS = {"before": (VERMILION, "s", "uncalibrated"), "after": (BLUE, "o", "calibrated")}
Summary = Mapping[str, Any]
"""What `medduet.uncertainty.summary.calibration_summary` returns."""


class Diagram(NamedTuple):
    """A panel of the figure.

    Attributes:
        title: of it.
        summaries: of each run that it shows; their bins are pooled.
        seeds: in how many of them each image occurs.
    """

    title: str
    summaries: Sequence[Summary]
    seeds: int = 1


def summaries_of(group: Group) -> list[Summary]:
    """Return the calibration on test of the runs of a group that are calibrated."""
    runs = [
        each
        for run in group.runs.values()
        for each in (run.folds if isinstance(run, CrossValidated) else (run,))
    ]
    summaries = [run.validation_selected["test"].get("calibration") for run in runs]
    return [each for each in summaries if each and each["n"]]


@rc_context(STYLE)
def reliability_figure(diagrams: Sequence[Diagram]) -> Figure:
    """Draw accuracy over confidence, before and after calibration.

    One panel each, with the number of predictions in each bin below it. Bars are 95% Wilson
    intervals of the calibrated bins, at the number of predictions of one seed, since seeds share
    their images.
    """
    columns = min(3, len(diagrams))
    rows = -(-len(diagrams) // columns)
    width = WIDTH * max(columns, 2) / 3 if columns < 3 else WIDTH  # one panel doesn't fill a page
    figure = Figure(figsize=(width, rows * 3.3 + 0.4), layout="constrained")
    grid = figure.subplots(
        2 * rows, columns, squeeze=False, sharey="row", height_ratios=[4, 1] * rows
    )
    for place in range(rows * columns):
        top, column = 2 * (place // columns), place % columns
        main, below = grid[top, column], grid[top + 1, column]
        if place >= len(diagrams):
            main.remove()
            below.remove()
            continue
        main.set_title(shorten(diagrams[place].title, 30), fontsize=9)
        _draw_diagram(main, diagrams[place])
        _draw_counts(below, diagrams[place], main.get_xlim())
        if not column:
            main.set_ylabel("accuracy")
            below.set_ylabel("n", rotation=0, ha="right", va="center")
    handles = [
        Line2D([], [], color=color, marker=marker, ms=4, lw=1.2, label=label)
        for color, marker, label in _KINDS.values()
    ]
    handles.append(Line2D([], [], color=GREY, lw=1.0, ls="--", label="perfectly calibrated"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _draw_diagram(axes: Axes, diagram: Diagram) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, lw=1.0, ls="--", zorder=1)
    lowest = 1.0
    for kind, (color, marker, _) in _KINDS.items():
        n, confidence, frequency = _pooled(diagram.summaries, kind)
        filled = n > 0
        x, y = confidence[filled], frequency[filled]
        size = 5 + 45 * np.sqrt(n[filled] / n.max())
        axes.plot(x, y, color=color, lw=0.9, alpha=0.45, zorder=3)
        axes.scatter(x, y, size, color=color, marker=marker, linewidths=0, zorder=4, clip_on=False)
        lowest = min(lowest, *x)
        if kind == "after":
            per_seed = np.maximum(np.round(n[filled] / diagram.seeds), 1).astype(int)
            ends = [wilson(round(k * m), int(m)) for k, m in zip(y, per_seed, strict=True)]
            axes.vlines(x, *np.transpose(ends), color=color, lw=0.9, alpha=0.5, zorder=2)
    axes.set(xlim=(min(np.floor(10 * lowest) / 10, 0.9), 1), ylim=(0, 1))
    before, after = (
        np.mean([each[f"ece_{kind}"] for each in diagram.summaries]) for kind in _KINDS
    )
    text = f"ECE {before:.3f} → {after:.3f}"
    axes.text(0.04, 0.96, text, transform=axes.transAxes, va="top", color=INK, fontsize=8)
    axes.tick_params(labelbottom=False)
    axes.grid()


def _draw_counts(axes: Axes, diagram: Diagram, xlim: tuple[float, float]) -> None:
    for kind, (color, _, _) in _KINDS.items():
        n = _pooled(diagram.summaries, kind)[0] / diagram.seeds
        axes.stairs(n, np.linspace(0, 1, len(n) + 1), color=color, lw=1.2, fill=False)
    axes.set(xlim=xlim, xlabel="confidence")
    axes.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    axes.tick_params(axis="y", labelsize=7)


def _pooled(
    summaries: Sequence[Summary], kind: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return n, mean confidence and accuracy of the bins of all runs together."""
    bins = [each["reliability"][kind] for each in summaries]
    n = np.array([each["n"] for each in bins], dtype=np.float64)
    means = []
    for name in ("confidence", "frequency"):
        values = np.nan_to_num(np.array([each[name] for each in bins], dtype=np.float64))
        means.append((values * n).sum(axis=0) / np.maximum(n.sum(axis=0), 1))
    return n.sum(axis=0), means[0], means[1]


def coverage_table(groups: Iterable[tuple[Group, Sequence[Summary]]]) -> Table:
    """Return target and empirical coverage on test: means over seeds, overall and per class.

    Of more than `MOST_CLASSES` classes the one with the lowest coverage is shown; the CSV has all.
    """
    shown: list[dict[str, Any]] = []
    values: list[dict[str, Any]] = []
    for group, summaries in groups:
        for target in summaries[0]["sets"]:
            sets = [each["sets"][target] for each in summaries]
            names = list(sets[0]["per_class"])
            dependent = sets[0]["coverage_interval"] is None  # labels of one image
            place = {"dataset": group.dataset, "method": group.method, "target": float(target)}
            rows: list[dict[str, Any]] = [
                place | {"class": name} | _mean(part, len(group.runs), dependent and name == "all")
                for name, part in (
                    ("all", sets),
                    *((name, [each["per_class"][name] for each in sets]) for name in names),
                )
                if sum(each["n"] for each in part)
            ]
            values += rows
            if len(names) > MOST_CLASSES and len(rows) > 1:
                rows = [rows[0], min(rows[1:], key=lambda row: float(row["coverage"]))]
            shown += [_shown(row) for row in rows]
    title = "Coverage of conformal prediction sets on test, mean over seeds (95% Wilson CI)"
    return Table.of("coverage", title, shown, values)


def _mean(part: Sequence[Mapping[str, Any]], seeds: int, dependent: bool) -> dict[str, Any]:
    """Return coverage and size, weighted by images, at the number of images of one seed.

    Folds have images of their own, seeds have the same.
    """
    n = sum(each["n"] for each in part)
    coverage, size = (
        sum(each["n"] * (each[key] or 0) for each in part) / n for key in ("coverage", "size")
    )
    images = round(n / seeds)
    low, high = UNDEFINED if dependent else wilson(round(coverage * images), images)
    return {"coverage": coverage, "low": low, "high": high, "size": size, "n": images}


def _shown(row: Mapping[str, Any]) -> dict[str, str]:
    interval = "" if np.isnan(row["low"]) else f" ({row['low']:.3f} to {row['high']:.3f})"
    return {
        "data set": row["dataset"],
        "method": row["method"],
        "target": f"{row['target']:.2f}",
        "class": row["class"],
        "coverage": f"{row['coverage']:.3f}{interval}",
        "mean set size": f"{row['size']:.2f}",
        "n": str(row["n"]),
    }
