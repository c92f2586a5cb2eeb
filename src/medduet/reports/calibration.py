"""Calibration in a report: reliability diagrams, and what the conformal sets hold."""

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
from medduet.reports.grouping import Group, Runs
from medduet.reports.style import STYLE, WIDTH, shorten, slug
from medduet.reports.tables import Table
from medduet.reports.writer import Part, Writer
from medduet.utils.palette import BLUE, FAINT, GREY, INK, VERMILION

MOST_CLASSES = 5
_PER_ROW = 3
_KINDS = {"before": (VERMILION, "s", "as trained"), "after": (BLUE, "o", "calibrated")}
Judged = Mapping[str, Any]
"""What `medduet.uncertainty.summary.calibration_summary` returns."""


class Diagram(NamedTuple):
    """A panel of the figure.

    Attributes:
        title: of it.
        judged: each run that it shows; their bins are pooled.
        seeds: how often each image was judged.
    """

    title: str
    judged: Sequence[Judged]
    seeds: int = 1


def judged_of(group: Group) -> list[Judged]:
    """Return what is known of the calibration of the runs of a group, on test."""
    runs = [
        each
        for run in group.runs.values()
        for each in (run.folds if isinstance(run, CrossValidated) else (run,))
    ]
    found = [run.honest["test"].get("calibration") for run in runs]
    return [each for each in found if each and each["n"]]


@rc_context(STYLE)
def reliability_figure(diagrams: Sequence[Diagram]) -> Figure:
    """Draw how often answers are right over how sure they were, before and after calibration.

    One panel each, with the number of answers of each bin below it. Bars are 95% Wilson intervals
    of the calibrated bins, at the number of answers of one seed, since seeds judge the same images.
    """
    columns = min(_PER_ROW, len(diagrams))
    rows = -(-len(diagrams) // columns)
    # As wide as three panels would be, so that one alone does not fill the page.
    side = (WIDTH - 0.75) / max(columns, 2) - 0.28
    width, high = 0.6 + columns * (side + 0.28), side + 1.35
    height = rows * high + 0.4
    figure = Figure(figsize=(width, height))
    for place, diagram in enumerate(diagrams):
        x = 0.6 + place % columns * (side + 0.28)
        y = height - (place // columns) * high - side - 0.3
        main = figure.add_axes((x / width, y / height, side / width, side / height))
        below = figure.add_axes((x / width, (y - 0.6) / height, side / width, 0.52 / height))
        main.set_title(shorten(diagram.title, int(11 * side)), fontsize=9)
        _diagram(main, diagram)
        _counts(below, diagram)
        if place % columns == 0:
            main.set_ylabel("share that is true")
            below.set_ylabel("n", rotation=0, ha="right", va="center")
        else:
            main.tick_params(labelleft=False)
    handles = [
        Line2D([], [], color=colour, marker=marker, ms=4, lw=1.2, label=label)
        for colour, marker, label in _KINDS.values()
    ]
    handles.append(Line2D([], [], color=GREY, lw=1.0, ls="--", label="as sure as right"))
    figure.legend(handles=handles, loc="lower center", ncols=3)
    return figure


def _diagram(axes: Axes, diagram: Diagram) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, lw=1.0, ls="--", zorder=1)
    lowest = 1.0
    for kind, (colour, marker, _) in _KINDS.items():
        n, confidence, frequency = _pooled(diagram.judged, kind)
        there = n > 0
        x, y = confidence[there], frequency[there]
        # Bins with few answers look their part.
        size = 5 + 45 * np.sqrt(n[there] / n.max())
        axes.plot(x, y, color=colour, lw=0.9, alpha=0.45, zorder=3)
        axes.scatter(x, y, size, color=colour, marker=marker, linewidths=0, zorder=4, clip_on=False)
        lowest = min(lowest, *x)
        if kind == "after":
            each = np.maximum(np.round(n[there] / diagram.seeds), 1).astype(int)
            ends = [wilson(round(k * m), int(m)) for k, m in zip(y, each, strict=True)]
            axes.vlines(x, *np.transpose(ends), color=colour, lw=0.9, alpha=0.5, zorder=2)
    lowest = np.floor(10 * lowest) / 10
    axes.set(xlim=(lowest, 1), ylim=(0, 1))
    error = {kind: np.mean([each[f"ece_{kind}"] for each in diagram.judged]) for kind in _KINDS}
    axes.text(
        0.04,
        0.96,
        f"ECE {error['before']:.3f} → {error['after']:.3f}",
        transform=axes.transAxes,
        va="top",
        color=INK,
        fontsize=8,
    )
    axes.tick_params(labelbottom=False)
    axes.grid(color=FAINT, linewidth=0.6)


def _counts(axes: Axes, diagram: Diagram) -> None:
    bins = len(diagram.judged[0]["reliability"]["after"]["n"])
    edges = np.linspace(0, 1, bins + 1)
    for kind, (colour, _, _) in _KINDS.items():
        n = _pooled(diagram.judged, kind)[0] / diagram.seeds
        axes.stairs(n, edges, color=colour, lw=1.2, fill=False)
    axes.set(xlim=axes.figure.axes[-2].get_xlim(), xlabel="confidence")
    axes.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    axes.tick_params(axis="y", labelsize=7)


def _pooled(
    judged: Sequence[Judged], kind: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return n, mean confidence and frequency of the bins of all runs together."""
    parts = [each["reliability"][kind] for each in judged]
    n = np.array([part["n"] for part in parts], dtype=np.float64)
    means = []
    for name in ("confidence", "frequency"):
        values = np.nan_to_num(np.array([part[name] for part in parts], dtype=np.float64))
        means.append((values * n).sum(axis=0) / np.maximum(n.sum(axis=0), 1))
    return n.sum(axis=0), means[0], means[1]


def coverage_table(found: Iterable[tuple[Group, Sequence[Judged]]]) -> Table:
    """Return what the sets promise and hold on test: means over seeds, overall and per class.

    Of more than `MOST_CLASSES` classes the one that is held least is shown; the CSV has all.
    """
    rows: list[list[str]] = []
    values: list[dict[str, Any]] = []
    for group, judged in found:
        # Folds have images of their own, seeds have the same.
        repeats = len(group.runs)
        for key in judged[0]["sets"]:
            sets = [each["sets"][key] for each in judged]
            names = list(sets[0]["per_class"])
            parts = {"all": sets} | {n: [each["per_class"][n] for each in sets] for n in names}
            dependent = sets[0]["coverage_interval"] is None
            about = {"dataset": group.dataset, "method": group.method, "promise": float(key)}
            told: dict[str, dict[str, Any]] = {
                name: about | {"class": name} | _held(part, repeats, dependent and name == "all")
                for name, part in parts.items()
                if sum(each["n"] for each in part)
            }
            values += told.values()
            shown = list(told)
            if len(names) > MOST_CLASSES and len(told) > 1:
                shown = ["all", min(shown[1:], key=lambda name: float(told[name]["coverage"]))]
            rows += [_row(told[name]) for name in shown]
    return Table(
        "coverage",
        "Share of the test images whose class is in the set, mean over seeds (95% Wilson interval)",
        ["data set", "method", "promised", "class", "held", "classes in the set", "n"],
        rows,
        values,
    )


def _held(part: Sequence[Mapping[str, Any]], repeats: int, dependent: bool) -> dict[str, Any]:
    """Return coverage and size, weighted by images, at the number of images of one seed."""
    n = sum(each["n"] for each in part)
    held, size = (sum(each["n"] * (each[of] or 0) for each in part) for of in ("coverage", "size"))
    images = round(n / repeats)
    low, high = UNDEFINED if dependent else wilson(round(held / n * images), images)
    return {"coverage": held / n, "low": low, "high": high, "size": size / n, "n": images}


def _row(told: Mapping[str, Any]) -> list[str]:
    held = f"{told['coverage']:.3f}"
    if not np.isnan(told["low"]):
        held += f" ({told['low']:.3f} to {told['high']:.3f})"
    first = [told["dataset"], told["method"], f"{told['promise']:.2f}", told["class"]]
    return [*first, held, f"{told['size']:.2f}", str(told["n"])]


def calibration(runs: Runs, writer: Writer) -> Part:
    """Show how far the probabilities of each method can be believed."""
    part = Part("Calibration")
    found = {
        dataset: [(group, judged) for group in runs.of(dataset) if (judged := judged_of(group))]
        for dataset in runs.datasets
    }
    for dataset, groups in found.items():
        if groups:
            figure = reliability_figure(
                [Diagram(group.method, judged, len(group.runs)) for group, judged in groups]
            )
            shows = (
                f"{dataset}: share of right answers by confidence, {groups[0][1][0]['ece_kind']}"
            )
            writer.figure(part, f"reliability-{slug(dataset)}", figure, shows)
    every = [each for groups in found.values() for each in groups]
    if every:
        part.text.append(
            "Temperature and sets were fitted on the validation split, and are judged on test. The "
            "sets promise to hold the true class in a share of the images of each class (classes "
            "with few validation images: of these together), as long as test images are like "
            "validation images. ECE is the expected calibration error, means over seeds."
        )
        writer.table(part, coverage_table(every))
    return part
