"""Figures of many runs: data sets as panels, methods as rows, lines or points."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from medduet.metrics.paired import OverSets
from medduet.reports.grouping import Group, Runs
from medduet.reports.measures import Measured
from medduet.reports.published import Published
from medduet.reports.style import DASHES, STYLE, WIDTH, draw_series, epoch_axis, panels, shorten
from medduet.utils.palette import BLUE, FAINT, GREY, INK, LINES, VERMILION

_ROW = 0.19  # inches of one bar
_LONGEST = 40  # characters of a label
EpochValue = Callable[[Mapping[str, Any]], float | None]


@rc_context(STYLE)
def bars(
    cells: Mapping[tuple[str, str], Measured],
    datasets: Sequence[str],
    methods: Sequence[str],
    label: str,
    published: Mapping[str, Sequence[Published]],
) -> Figure:
    """Draw a metric of every method on every data set, with 95% intervals and each seed.

    Args:
        cells: by data set and method; cells may be missing.
        datasets: one panel each.
        methods: one row each.
        label: of the metric.
        published: by data set, accuracies from the literature; one more row each.
    """
    datasets = [name for name in datasets if any((name, method) in cells for method in methods)]
    literature = list(
        dict.fromkeys(row.label for name in datasets for row in published.get(name, ()))
    )
    rows = [*methods, *literature]
    columns = 2 if max(map(len, rows)) > 24 else 3
    height = max(_ROW * len(rows), 0.9) + 0.7
    figure, grid = panels(len(datasets), columns=columns, height=height, legend=0.3)
    for axes, dataset in zip(grid, datasets, strict=True):
        for row, method in enumerate(methods):
            if (cell := cells.get((dataset, method))) is not None:
                axes.barh(row, cell.mean, height=0.7, color=BLUE, alpha=0.35, zorder=2)
                seeds = [row] * len(cell.values)
                axes.plot(cell.values, seeds, "o", color=BLUE, ms=2.6, zorder=4, alpha=0.9)
                if not np.isnan(cell.interval).any():
                    axes.plot(cell.interval, [row, row], color=INK, lw=1.3, zorder=5)
        for each in published.get(dataset, ()):
            row = len(methods) + literature.index(each.label)
            axes.plot(each.accuracy / 100, row, "D", color=VERMILION, ms=4, zorder=6)
            interval = [bound / 100 for bound in each.interval]
            axes.plot(interval, [row, row], color=VERMILION, lw=1.0, zorder=5)
        axes.set_title(shorten(dataset, 40), fontsize=9)
        axes.set_yticks(range(len(rows)), [shorten(name, _LONGEST) for name in rows])
        highest = max(max(cell.values) for key, cell in cells.items() if key[0] == dataset)
        limit = 1.1 * highest if 0 < highest < 0.1 else 1.0  # errors are far below 1
        axes.set(xlim=(0, limit), ylim=(len(rows) - 0.4, -0.6), xlabel=label)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="x")
    handles: list[Any] = [
        Patch(color=BLUE, alpha=0.35, label="mean over seeds"),
        Line2D([], [], color=INK, lw=1.3, label="95% CI over test images"),
        Line2D([], [], color=BLUE, ls="", marker="o", ms=3, label="each seed"),
    ]
    if literature:
        text = "published, 95% CI for the number of test images"
        handles.append(Line2D([], [], color=VERMILION, lw=1.0, marker="D", ms=4, label=text))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


@rc_context(STYLE)
def ranks(result: OverSets, methods: Sequence[str]) -> Figure:
    """Draw the mean rank of each method over data sets, and Nemenyi's critical difference.

    After Demsar (2006): methods within the shaded range do not differ significantly from the best.
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
    critical = best + result.critical_difference
    axes.axvspan(best, min(critical, len(methods)), color=VERMILION, alpha=0.08, lw=0)
    axes.set_yticks(range(len(methods)), [shorten(methods[i], _LONGEST) for i in order])
    axes.set(ylim=(len(methods) - 0.5, -0.6), xlim=(0.9, 1.08 * len(methods)))
    axes.xaxis.set_major_locator(MaxNLocator(min(len(methods), 10), integer=True))
    axes.set_xlabel("mean rank (1 is best)")
    axes.tick_params(axis="y", length=0)
    title = f"{result.sets} data sets; shaded: critical difference {result.critical_difference:.1f}"
    axes.set_title(title, fontsize=9)
    return figure


@rc_context(STYLE)
def curves(runs: Runs, value: EpochValue, label: str) -> Figure | None:
    """Draw a number of every epoch, mean over seeds with their range; ``None`` if no run has it.

    Args:
        runs: whose methods are lines and whose data sets are panels.
        value: takes the number out of a line of ``epochs.jsonl``.
        label: of the number.
    """
    series: dict[str, dict[str, NDArray[np.float64]]] = {}
    for dataset in runs.datasets:
        for group in runs.of(dataset):
            rows = _by_epoch(group, value)
            if np.isfinite(rows).any():
                series.setdefault(dataset, {})[group.method] = rows
    if not series:
        return None
    shown = [method for method in runs.methods if any(method in rows for rows in series.values())]
    figure, grid = panels(len(series), height=2.2)
    for axes, (dataset, by_method) in zip(grid, series.items(), strict=True):
        for method, rows in by_method.items():
            color, style = _line(shown.index(method))
            present = np.isfinite(rows).any(axis=0)
            epochs = np.flatnonzero(present) + 1
            rows = rows[:, present]
            mean = np.nanmean(rows, axis=0)
            draw_series(axes, epochs.tolist(), mean, color=color, ls=style, lw=1.4)
            if len(shown) <= 6:
                low, high = np.nanmin(rows, axis=0), np.nanmax(rows, axis=0)
                axes.fill_between(epochs, low, high, color=color, alpha=0.12, lw=0)
        axes.set_title(shorten(dataset, 40), fontsize=9)
        epoch_axis(axes)
    grid[0].set_ylabel(label)
    handles = [
        Line2D([], [], color=_line(i)[0], ls=_line(i)[1], label=shorten(method, _LONGEST))
        for i, method in enumerate(shown)
    ]
    longest = max(map(len, shown))
    columns = 2 if longest > 34 else 3 if longest > 20 else 4
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    return figure


def _line(index: int) -> tuple[str, str]:
    return LINES[index % 8], DASHES[index // 8 % 4]


def _by_epoch(group: Group, value: EpochValue) -> NDArray[np.float64]:
    """Return ``(seeds, epochs)``, NaN where there is no number."""
    rows = [[value(row) for row in group.runs[seed].epochs] for seed in group.seeds]
    longest = max(map(len, rows))
    return np.array([row + [None] * (longest - len(row)) for row in rows], dtype=float)


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
    axes.set(xlabel="GMAC for one image", ylabel=label)
    axes.set_title(title, fontsize=9)
    axes.grid()
    return figure


@rc_context(STYLE)
def pareto(trials: Sequence[Mapping[str, Any]], cost: str, title: str) -> Figure:
    """Draw score over cost of all trials of a search, and the Pareto front.

    Args:
        trials: mappings with ``state``, ``score``, the cost, and ``front`` (its place) for those
            of the front, see `medduet.SearchRecord`.
        cost: ``"parameters"`` or ``"gmacs"``.
        title: of the data set.

    Example:
        >>> trial = {"state": "finished", "score": 0.7, "parameters": 1e5, "front": 1}
        >>> pareto([trial], "parameters", "phantom").axes[0].get_xscale()
        'log'
    """
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    scored = [trial for trial in trials if trial.get("score") is not None and cost in trial]
    for state, label, marker in (
        ("pruned", "pruned, best score so far", "x"),
        ("finished", "finished", "o"),
    ):
        points = [(trial[cost], trial["score"]) for trial in scored if trial["state"] == state]
        if points:
            x, y = np.transpose(points)
            axes.scatter(x, y, s=26, c=GREY, marker=marker, label=label)
    front = sorted((trial for trial in scored if trial.get("front")), key=lambda t: int(t["front"]))
    if front:
        x, y = np.transpose([(trial[cost], trial["score"]) for trial in front])
        axes.step(x, y, "-o", where="post", color=BLUE, ms=6.5, zorder=3, label="Pareto front")
        style: Any = {"textcoords": "offset points", "color": VERMILION, "fontweight": "bold"}
        for trial in front:
            place = (trial[cost], trial["score"])
            axes.annotate(str(trial["front"]), place, xytext=(0, 6), ha="center", **style)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter() if cost == "parameters" else "{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.1)
    xlabel = "parameters" if cost == "parameters" else "GMAC for one image"
    axes.set(xlabel=xlabel, ylabel="validation score")
    axes.set_title(f"{title}, {len(trials)} trials")
    axes.grid()
    axes.legend(loc="lower right")
    return figure
