"""The page, the table and the figure of a stress test."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from medduet.evaluation.stress import MEASURED
from medduet.metrics.names import METRICS
from medduet.reports.page import Section, Table, numbers, say, write_page
from medduet.reports.style import DASHES, STYLE, legend_below, panels
from medduet.utils.palette import GREY, LINES

NAMES = {key: METRICS[key].name for key in MEASURED} | {"rise": "increase in error"}


def write_stress_page(record: Mapping[str, Any], out: Path) -> Path:
    """Write ``index.html``, ``tables/`` and ``figures/`` of the record of `medduet.stress`."""
    section = Section("Robustness to corruptions", [say("stress", record, NAMES)])
    section.figure("stress", stress_figure(record), "Scores by severity; 0 is the clean image")
    section.tables.append(stress_table(record))
    title = f"Stress test of {record['network']} on {record['data']['name']}"
    return write_page(out, title, [section], "medduet stress")


def stress_table(record: Mapping[str, Any]) -> Table:
    """Return the table of every corruption and severity, clean images first, the mean last."""
    rows = [{"corruption": "clean", "severity": "0"} | record["clean"]]
    for name, entry in record["corruptions"].items():
        parts = {**entry["severities"], "mean": entry["mean"]}
        rows += [{"corruption": name, "severity": key} | part for key, part in parts.items()]
    rows.append({"corruption": "mean", "severity": "mean"} | record["mean"])
    values = pd.DataFrame(rows, dtype=object)
    if "accuracy_interval" in values:
        values["accuracy_low"] = values["accuracy_interval"].str[0]
        values["accuracy_high"] = values["accuracy_interval"].str[1]
    shown = values[["corruption", "severity"]].assign(n=numbers(values["n"], "d"))
    for key in NAMES:
        if key in values and values[key].notna().any():
            shown[NAMES[key]] = numbers(values[key], ".3f")
    columns = ["corruption", "severity", "n", *NAMES, "dice_nonempty_n"]
    columns += ["accuracy_low", "accuracy_high"]
    values = values.reindex(columns=columns).dropna(axis=1, how="all")
    return Table("stress", "Every corruption at every severity", shown, values)


@rc_context(STYLE)
def stress_figure(record: Mapping[str, Any]) -> Figure:
    """Draw the scores of each corruption against its severity, one small panel for each."""
    corruptions, clean = record["corruptions"], record["clean"]
    looks: dict[str, dict[str, Any]] = {
        key: {"color": color, "ls": dashes, "marker": "o", "ms": 2.5, "label": NAMES[key]}
        for key, color, dashes in zip(MEASURED, LINES, DASHES, strict=False)
        if clean.get(key) is not None
    }
    titles = [name.replace("_", " ") for name in corruptions]
    figure, grid = panels(titles, columns=4, height=1.5, legend=0.3)
    for axes, entry in zip(grid, corruptions.values(), strict=True):
        rows = pd.DataFrame([clean, *entry["severities"].values()])
        for key, look in looks.items():
            axes.plot(rows[key].astype(float), **look)
            axes.axhline(clean[key], color=GREY, lw=0.5, zorder=0)
        axes.set(ylim=(0, 1), xticks=range(len(rows)))
    legend_below(figure, looks.values())
    return figure
