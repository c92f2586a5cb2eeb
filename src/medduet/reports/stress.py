"""The page, the table and the figure of a stress test."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from medduet.metrics.names import METRICS
from medduet.reports.page import render
from medduet.reports.style import STYLE, WIDTH
from medduet.reports.tables import Table
from medduet.reports.writer import Part, Writer
from medduet.utils.files import write_text
from medduet.utils.palette import BLUE, GREEN, GREY, LINES, VERMILION

_LINES = {
    "accuracy": (METRICS["accuracy"].name, BLUE, "-"),
    "balanced_error": (METRICS["balanced_error"].name, VERMILION, "--"),
    "dice_nonempty": (METRICS["dice_nonempty"].name, GREEN, "-."),
    "ece": (METRICS["ece"].name, LINES[3], ":"),
}
_COLUMNS = 4


def write_stress_page(record: Mapping[str, Any], out: Path) -> None:
    """Write ``index.html``, ``tables/`` and ``figures/`` on the record of `medduet.stress`."""
    writer, part = Writer(out), Part("What corruption does")
    clean, data, ways = record["clean"], record["data"], len(record["corruptions"])
    part.text = [
        f"{record['network']} on {data['name']}, {record['split']}, n = {clean['n']} images of "
        f"{' x '.join(map(str, data['size']))} pixels, each corrupted in {ways} ways "
        f"(modality {record['modality']}) at five severities.",
        "Mean over all corruptions and severities, and on clean images in brackets: "
        + ", ".join(
            f"{_LINES[name][0]} {value:.3f} ({clean[name]:.3f})"
            for name, value in record["mean"].items()
            if name in _LINES
        )
        + ".",
    ]
    if "baseline" in record:
        shown = {key: _shown(record[key]) for key in ("be", "rbe")}
        part.text.append(
            f"As a share of what {record['baseline']['network']} has: balanced error "
            f"{shown['be']}, rise of the error {shown['rbe']} (MedMNIST-C's BE and rBE)."
        )
    writer.figure(part, "stress", stress_figure(record), "Scores by severity; 0 is the clean image")
    writer.table(part, stress_table(record))
    title = f"Stress test of {record['network']} on {data['name']}"
    page = render("report.html", title=title, parts=[part], maker="medduet stress")
    write_text(out / "index.html", page)


def stress_table(record: Mapping[str, Any]) -> Table:
    """Return the table of every corruption and severity, the clean images first.

    Example:
        >>> row = {"n": 5, "accuracy": 0.8}
        >>> made = stress_table({"clean": row, "corruptions": {
        ...     "jpeg": {"severities": {"1": row}, "mean": {"accuracy": 0.8}}}})
        >>> [each[:3] for each in made.rows]
        [['clean', '0', '5'], ['jpeg', '1', '5'], ['jpeg', 'mean', '']]
    """
    rows: list[tuple[str, str, Mapping[str, Any]]] = [("clean", "0", record["clean"])]
    for name, of in record["corruptions"].items():
        rows += [(name, severity, row) for severity, row in of["severities"].items()]
        shares = {key: of[key] for key in ("be", "rbe") if key in of}
        rows.append((name, "mean", of["mean"] | shares))
    names = [*_LINES, "rise", "be", "rbe"]
    present = [name for name in names if any(row.get(name) is not None for _, _, row in rows)]
    extra = [name for name in ("dice_nonempty_n",) if name in record["clean"]]
    header = ["corruption", "severity", "n", *present]
    values = []
    for name, severity, row in rows:
        low, high = row.get("accuracy_interval") or (None, None)
        value = {"corruption": name, "severity": severity, "n": row.get("n")}
        value |= {key: row.get(key) for key in [*present, *extra]}
        if "accuracy" in present:
            value |= {"accuracy_low": low, "accuracy_high": high}
        values.append(value)
    shown = [
        [name, severity, str(row.get("n", "")), *(_shown(row.get(key)) for key in present)]
        for name, severity, row in rows
    ]
    return Table("stress", "Every corruption at every severity", header, shown, values)


@rc_context(STYLE)
def stress_figure(record: Mapping[str, Any]) -> Figure:
    """Draw the scores of each corruption against its severity, one small panel for each."""
    names = list(record["corruptions"])
    lines = {name: of for name, of in _LINES.items() if record["clean"].get(name) is not None}
    columns = min(_COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(WIDTH, 0.7 + 1.45 * rows))
    height = figure.get_figheight()
    figure.subplots_adjust(
        left=0.06, right=0.985, top=1 - 0.3 / height, bottom=0.75 / height, hspace=0.55, wspace=0.15
    )
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, name in zip(panels, names, strict=False):
        found = record["corruptions"][name]["severities"]
        for key, (_, colour, style) in lines.items():
            values = [row.get(key) for row in (record["clean"], *found.values())]
            points = [math.nan if value is None else value for value in values]
            axes.plot(range(len(points)), points, color=colour, ls=style, marker="o", ms=2.5)
            axes.axhline(points[0], color=GREY, lw=0.5, zorder=0)
        axes.set_title(name.replace("_", " "), fontsize=8.5)
        axes.set_ylim(0, 1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    for axes in panels[max(0, len(names) - columns) : len(names)]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("severity")
    labels = [name for name, _, _ in lines.values()]
    figure.legend(panels[0].lines[::2], labels, loc="lower center", ncols=4)
    return figure


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
