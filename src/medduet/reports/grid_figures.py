"""Figures of many runs: data sets as panels, methods as rows, lines or points."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from medduet.metrics.paired import OverSets
from medduet.reports import style
from medduet.reports.style import STYLE, panels, shorten
from medduet.utils.palette import BLUE, FAINT, INK, VERMILION

_ROW = 0.19  # inches of one bar


@rc_context(STYLE)
def bars(cells: pd.DataFrame, label: str) -> Figure:
    """Draw a metric of every method on every data set, with 95% intervals and each seed.

    `cells` are rows of `medduet.reports.grouping.Measured`; the methods are sorted by their mean
    over data sets.
    """
    means = cells.groupby("method", sort=False)["mean"].mean()
    rows = means.sort_values(ascending=False, kind="stable").index.tolist()
    sets = dict(list(cells.groupby("dataset")))
    columns = 2 if max(map(len, rows)) > 24 else 3
    height = max(_ROW * len(rows), 0.9) + 0.7
    figure, grid = panels(list(sets), columns=columns, height=height, legend=0.3)
    seed: dict[str, Any] = {"color": BLUE, "ls": "", "marker": "o", "ms": 2.6}
    for axes, part in zip(grid, sets.values(), strict=True):
        for cell in part.itertuples():
            row = rows.index(cell.method)
            axes.barh(row, cell.mean, height=0.7, color=BLUE, alpha=0.35)
            axes.plot(cell.values, [row] * cell.seeds, **seed)
            axes.plot([cell.low, cell.high], [row, row], color=INK, lw=1.3)
        style.name_rows(axes, rows)
        highest = part["values"].map(max).max()
        limit = 1.1 * highest if 0 < highest < 0.1 else 1.0  # errors are far below 1
        axes.set(xlim=(0, limit), xlabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="x")
    lines = [
        {"color": BLUE, "alpha": 0.35, "lw": 6, "label": "mean over seeds"},
        {"color": INK, "lw": 1.3, "label": "95% CI, test images"},
        seed | {"label": "each seed"},
    ]
    style.legend_below(figure, lines)
    return figure


@rc_context(STYLE)
def ranks(result: OverSets, methods: Sequence[str]) -> Figure:
    """Draw the mean rank of each method over data sets, and Nemenyi's critical difference.

    After Demsar (2006): methods within the shaded range do not differ significantly from the best.
    """
    table = pd.Series(result.mean_ranks, index=methods).sort_values(kind="stable")
    title = f"{result.sets} data sets; critical difference {result.critical_difference:.1f}"
    figure, (axes,) = panels([title], height=1.1 + 0.24 * len(methods), legend=0)
    for row, rank in enumerate(table):
        axes.plot([1, rank], [row, row], color=FAINT, lw=1.0)
        axes.plot(rank, row, "o", color=BLUE, ms=6)
        axes.annotate(f"{rank:.2f}", (rank, row), xytext=(7, -3), textcoords="offset points")
    critical = min(table.iloc[0] + result.critical_difference, len(methods))
    axes.axvspan(table.iloc[0], critical, color=VERMILION, alpha=0.08, lw=0)
    style.name_rows(axes, list(table.index))
    label = "mean rank (1 is best); shaded: no significant difference from the best"
    axes.set(xlim=(0.9, 1.08 * len(methods)), xlabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(min(len(methods), 10), integer=True))
    return figure


@rc_context(STYLE)
def curves(epochs: pd.DataFrame, column: str, label: str) -> Figure:
    """Draw a number of every epoch, mean over seeds with their range.

    The rows of `epochs` have dataset, method, seed, epoch and numbers.
    """
    epochs = epochs.dropna(subset=column)
    methods = list(epochs["method"].unique())
    sets = dict(list(epochs.groupby("dataset")))
    figure, grid = panels(list(sets))
    for axes, part in zip(grid, sets.values(), strict=True):
        for method, rows in part.groupby("method", sort=False):
            look = style.line_look(methods.index(method))
            over = rows.groupby("epoch")[column].agg(["mean", "min", "max"])
            axes.plot(over["mean"], lw=1.4, marker="o" if len(over) < 3 else "", **look)
            if len(methods) <= 6:
                band = {"color": look["color"], "alpha": 0.12, "lw": 0}
                axes.fill_between(over.index, over["min"], over["max"], **band)
        style.epoch_axis(axes)
    grid[0].set_ylabel(label)
    names = (shorten(method, style.LONGEST) for method in methods)
    style.legend_below(figure, ({"label": n} | style.line_look(i) for i, n in enumerate(names)))
    return figure
