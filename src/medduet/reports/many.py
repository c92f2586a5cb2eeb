"""Figures of many runs: data sets as panels, methods as rows or lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from medduet.metrics.repeats import OverSets
from medduet.reports.grouping import Group, Runs
from medduet.reports.measures import MEASURES, Measured
from medduet.reports.style import STYLE, WIDTH, shorten
from medduet.utils.palette import BLUE, FAINT, GREY, INK, LINES, VERMILION

_PER_ROW = 3
_ROW = 0.19  # inches of one bar
_LINES = ("-", "--", ":", "-.")
_MARKERS = ("D", "s", "^", "v", "P", "X")


def _panels(count: int, high: float, below: float, left: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` panels, each `high` inches, and room below and at the left."""
    columns = min(count, _PER_ROW)
    rows = -(-count // columns)
    height = rows * (high + 0.75) + below
    figure = Figure(figsize=(WIDTH, height))
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    figure.subplots_adjust(
        left=left / WIDTH,
        right=0.985,
        top=1 - 0.35 / height,
        bottom=(below + 0.42) / height,
        hspace=0.75 / high,
        wspace=0.12,
    )
    for spare in grid.flat[count:]:
        spare.set_visible(False)
    return figure, list(grid.flat[:count])


@rc_context(STYLE)
def bars(
    cells: Mapping[tuple[str, str], Measured],
    datasets: Sequence[str],
    methods: Sequence[str],
    measure: str,
    published: Mapping[str, Sequence[tuple[str, str | None, float]]],
) -> Figure:
    """Draw a measure of every method on every data set, with 95% intervals and each seed.

    Args:
        cells: by data set and method; cells may be missing.
        datasets: one panel each.
        methods: one row each.
        measure: see `medduet.reports.measures.MEASURES`.
        published: by data set, (who, the row it belongs to or ``None`` for all, value).
    """
    known = [name for name in datasets if any((name, method) in cells for method in methods)]
    left = min(0.25 + 0.068 * max(len(shorten(method, 34)) for method in methods), 3.0)
    whos = list(dict.fromkeys(who for name in known for who, _, _ in published.get(name, ())))
    below = 0.45 + 0.2 * (-(-len(whos) // 2) + 1)
    figure, panels = _panels(len(known), max(_ROW * len(methods), 0.9), below, left)
    for axes, dataset in zip(panels, known, strict=True):
        for row, method in enumerate(methods):
            if (cell := cells.get((dataset, method))) is not None:
                _bar(axes, row, cell)
        for who, method_of, value in published.get(dataset, ()):
            marker = _MARKERS[whos.index(who) % len(_MARKERS)]
            if method_of is None:
                axes.axvline(value, color=VERMILION, lw=0.9, ls=_LINES[whos.index(who) % 4])
            elif method_of in methods:
                place = methods.index(method_of)
                axes.plot(value, place, marker, color=VERMILION, ms=4.5, mec="white", zorder=6)
        axes.set_title(shorten(dataset, 40), fontsize=9)
        axes.set_yticks(range(len(methods)), [shorten(method, 34) for method in methods])
        axes.set(xlim=(0, 1.0), ylim=(len(methods) - 0.4, -0.6), xlabel=MEASURES[measure])
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="x", color=FAINT, linewidth=0.6)
    handles: list[Any] = [
        Patch(color=BLUE, alpha=0.35, label="mean over seeds"),
        Line2D([], [], color=INK, lw=1.3, label="95% interval over test images"),
        Line2D([], [], color=BLUE, ls="", marker="o", ms=3, label="each seed"),
    ]
    for index, who in enumerate(whos):
        whole = all(
            of is None for name in known for w, of, _ in published.get(name, ()) if w == who
        )
        look: dict[str, Any] = (
            {"lw": 0.9, "ls": _LINES[index % 4]}
            if whole
            else {"ls": "", "marker": _MARKERS[index % len(_MARKERS)], "ms": 4.5}
        )
        handles.append(
            Line2D([], [], color=VERMILION, label=shorten(f"published: {who}", 66), **look)
        )
    ours, theirs = handles[:3], handles[3:]
    above = float(0.19 * -(-len(whos) // 2) / figure.get_figheight())
    figure.legend(handles=ours, loc="lower center", ncols=3, bbox_to_anchor=(0.5, above))
    if theirs:
        figure.legend(handles=theirs, loc="lower center", ncols=2, fontsize=7)
    return figure


def _bar(axes: Axes, row: int, cell: Measured) -> None:
    axes.barh(row, cell.mean, height=0.7, color=BLUE, alpha=0.35, zorder=2)
    axes.plot(cell.values, [row] * len(cell.values), "o", color=BLUE, ms=2.6, zorder=4, alpha=0.9)
    if not np.isnan(cell.interval).any():
        axes.plot(cell.interval, [row, row], color=INK, lw=1.3, zorder=5)


@rc_context(STYLE)
def ranks(result: OverSets, methods: Sequence[str]) -> Figure:
    """Draw the mean rank of each method over data sets, and Nemenyi's critical difference.

    After Demsar (2006): methods nearer to each other than the bar can't be told apart by it.
    """
    order = np.argsort(result.mean_ranks)
    figure = Figure(figsize=(WIDTH, 1.1 + 0.24 * len(methods)), layout="constrained")
    axes = figure.subplots()
    for row, index in enumerate(order):
        rank = result.mean_ranks[index]
        axes.plot([1, rank], [row, row], color=FAINT, lw=1.0, zorder=1)
        axes.plot(rank, row, "o", color=BLUE, ms=6, zorder=3)
        axes.annotate(f"{rank:.2f}", (rank, row), xytext=(7, -3), textcoords="offset points")
    best = result.mean_ranks[order[0]]
    reach = best + result.critical_difference
    axes.axvspan(best, min(reach, len(methods)), color=VERMILION, alpha=0.08, lw=0)
    axes.set_yticks(range(len(methods)), [shorten(methods[i], 40) for i in order])
    axes.set(ylim=(len(methods) - 0.5, -0.6), xlim=(0.9, 1.08 * len(methods)))
    axes.xaxis.set_major_locator(MaxNLocator(min(len(methods), 10), integer=True))
    axes.set_xlabel("mean rank, 1 is best")
    axes.tick_params(axis="y", length=0)
    axes.set_title(
        f"{result.sets} data sets; shaded: critical difference, "
        f"{result.critical_difference:.1f} ranks",
        fontsize=9,
    )
    return figure


@rc_context(STYLE)
def curves(
    runs: Runs, value: Callable[[Mapping[str, Any]], float | None], label: str
) -> Figure | None:
    """Draw a number of every epoch, mean over seeds with their range; ``None`` if nobody has it.

    Args:
        runs: whose methods are lines and whose data sets are panels.
        value: takes the number out of a line of ``epochs.jsonl``.
        label: of the number.
    """
    found: dict[str, list[tuple[str, NDArray[np.float64]]]] = {}
    for dataset in runs.datasets:
        for group in runs.of(dataset):
            rows = _series(group, value)
            if np.isfinite(rows).any():
                found.setdefault(dataset, []).append((group.method, rows))
    if not found:
        return None
    shown = [
        m for m in runs.methods if any(m == name for lines in found.values() for name, _ in lines)
    ]
    columns = 2 if max(map(len, shown)) > 34 else 3 if max(map(len, shown)) > 20 else 4
    below = 0.2 + 0.19 * -(-len(shown) // columns)
    figure, panels = _panels(len(found), 1.9, below, 0.6)
    for axes, (dataset, lines) in zip(panels, found.items(), strict=True):
        for method, rows in lines:
            index = shown.index(method)
            colour, style = LINES[index % 8], _LINES[index // 8 % 4]
            epochs = np.arange(1, rows.shape[1] + 1)
            seen = np.isfinite(rows).any(axis=0)
            middle, low, high = (
                f(rows[:, seen], axis=0) for f in (np.nanmean, np.nanmin, np.nanmax)
            )
            mark = "o" if seen.sum() < 3 else ""
            axes.plot(epochs[seen], middle, color=colour, ls=style, lw=1.4, marker=mark)
            if len(shown) <= 6:
                axes.fill_between(epochs[seen], low, high, color=colour, alpha=0.12, lw=0)
        axes.set_title(shorten(dataset, 40), fontsize=9)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
    panels[0].set_ylabel(label)
    handles = [
        Line2D([], [], color=LINES[i % 8], ls=_LINES[i // 8 % 4], label=shorten(method, 44))
        for i, method in enumerate(shown)
    ]
    figure.legend(handles=handles, loc="lower center", ncols=columns)
    return figure


def _series(
    group: Group, value: Callable[[Mapping[str, Any]], float | None]
) -> NDArray[np.float64]:
    """Return ``(seeds, epochs)``, NaN where it is not known."""
    rows = [[value(row) for row in group.runs[seed].epochs] for seed in group.seeds]
    longest = max(map(len, rows))
    return np.array([row + [None] * (longest - len(row)) for row in rows], dtype=float)


@rc_context(STYLE)
def confusions(groups: Sequence[Group]) -> Figure | None:
    """Draw the confusion matrix of each method on one data set, summed over seeds.

    Colours are shares of the true class (row).
    """
    found = []
    for group in groups:
        each = [run.honest["test"].get("confusion_matrix") for run in group.runs.values()]
        if all(matrix is not None for matrix in each):
            found.append((group, np.sum(each, axis=0)))
    if not found:
        return None
    names = [shorten(str(name), 16) for name in _class_names(found[0])]
    k, columns = len(names), min(4, len(found))
    rows = -(-len(found) // columns)
    left = 0.25 + 0.065 * max(map(len, names))
    side = (WIDTH - left - 0.1) / columns - 0.2
    side = min(side, 2.2)
    width, height = left + columns * (side + 0.2), rows * (side + 0.42) + left
    figure = Figure(figsize=(width, height))
    for place, (group, counts) in enumerate(found):
        x, y = left + place % columns * (side + 0.2), (place // columns) * (side + 0.42) + 0.32
        axes = figure.add_axes((x / width, 1 - (y + side) / height, side / width, side / height))
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        if k <= 5:
            for (row, column), count in np.ndenumerate(counts):
                colour = "white" if share[row, column] > 0.55 else INK if count else GREY
                axes.text(column, row, str(count), ha="center", va="center", color=colour, size=7)
        axes.set_title(shorten(group.method, int(side * 13)), fontsize=8)
        axes.set_yticks(range(k), names if place % columns == 0 else [""] * k)
        last = place + columns >= len(found)
        axes.set_xticks(range(k), names if last else [""] * k, rotation=90)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def _class_names(found: tuple[Group, NDArray[np.int64]]) -> list[str]:
    group, counts = found
    names = group.first.data.get("class_names") or range(len(counts))
    return [str(name) for name in names]


@rc_context(STYLE)
def costs(points: Sequence[tuple[str, float, float]], title: str, label: str) -> Figure:
    """Draw a score over the operations for one image, one point per method.

    Args:
        points: method, 10⁹ multiply-accumulates, score.
        title: of the data set.
        label: of the score.
    """
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    for index, (method, gmacs, score) in enumerate(sorted(points, key=lambda point: point[1])):
        axes.plot(gmacs, score, "o", color=LINES[index % 8], ms=6)
        axes.annotate(
            shorten(method, 30),
            (gmacs, score),
            xytext=(5, 5 if index % 2 else -10),
            textcoords="offset points",
            fontsize=7.5,
            color=GREY,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.margins(x=0.12, y=0.12)
    axes.set(xlabel="10⁹ multiply-accumulates for one image", ylabel=label)
    axes.set_title(title, fontsize=9)
    axes.grid(color=FAINT, linewidth=0.6)
    return figure
