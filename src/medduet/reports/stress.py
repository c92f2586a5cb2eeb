"""The page, the table and the figure of a stress test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from medduet.metrics.names import METRICS
from medduet.reports.page import Section, Table, numbers, write_page
from medduet.reports.style import DASHES, STYLE, legend_below, panels
from medduet.utils.palette import GREY, LINES

_CURVES = ("accuracy", "balanced_error", "dice_nonempty", "ece")
_NAMES = {key: METRICS[key].name for key in _CURVES}
_NAMES |= {"rise": "increase in error", "be": "BE", "rbe": "rBE"}


def write_stress_page(record: Mapping[str, Any], out: Path) -> Path:
    """Write ``index.html``, ``tables/`` and ``figures/`` of the record of `medduet.stress`."""
    clean, data, mean = record["clean"], record["data"], record["mean"]
    scores = ", ".join(
        f"{_NAMES[name]} {mean[name]:.3f} (clean images {clean[name]:.3f})"
        for name in _CURVES
        if name in mean
    )
    section = Section("Robustness to corruptions")
    section.text = [
        f"{record['network']} on {data['name']}, {record['split']} split, n = {clean['n']} images "
        f"of {' x '.join(map(str, data['size']))} pixels, {len(record['corruptions'])} corruptions "
        f"(modality {record['modality']}) at five severities.",
        f"Mean over corruptions and severities: {scores}.",
    ]
    if "baseline" in record:
        be, rbe = numbers((record["be"], record["rbe"]), ".3f")
        section.text.append(
            f"Relative to {record['baseline']['network']} (MedMNIST-C): balanced error (BE) {be}, "
            f"relative balanced error (rBE) {rbe}."
        )
    section.figure("stress", stress_figure(record), "Scores by severity; 0 is the clean image")
    section.tables.append(stress_table(record))
    title = f"Stress test of {record['network']} on {data['name']}"
    return write_page(out, title, [section], "medduet stress")


def stress_table(record: Mapping[str, Any]) -> Table:
    """Return the table of every corruption and severity, the clean images first.

    Example:
        >>> row = {"n": 5, "accuracy": 0.8}
        >>> table = stress_table({"clean": row, "corruptions": {
        ...     "jpeg": {"severities": {"1": row}, "mean": {"accuracy": 0.8}}}})
        >>> table.shown[["corruption", "severity", "n"]].to_numpy().tolist()
        [['clean', '0', '5'], ['jpeg', '1', '5'], ['jpeg', 'mean', '']]
    """
    rows = [{"corruption": "clean", "severity": "0"} | record["clean"]]
    for name, entry in record["corruptions"].items():
        mean = {"be": entry.get("be"), "rbe": entry.get("rbe")} | entry["mean"]
        parts = {**entry["severities"], "mean": mean}
        rows += [{"corruption": name, "severity": key} | part for key, part in parts.items()]
    values = pd.DataFrame(rows, dtype=object)
    present = [key for key in _NAMES if key in values and values[key].notna().any()]
    columns = ["corruption", "severity", "n", *present]
    if "dice_nonempty_n" in values:
        columns.append("dice_nonempty_n")
    if "accuracy_interval" in values:
        for place, end in enumerate(("accuracy_low", "accuracy_high")):
            values[end] = values["accuracy_interval"].str[place]
            columns.append(end)
    shown = values[["corruption", "severity"]].assign(n=numbers(values["n"], "d"))
    for key in present:
        shown[_NAMES[key]] = numbers(values[key], ".3f")
    title = "Every corruption at every severity"
    return Table("stress", title, shown, values[columns])


@rc_context(STYLE)
def stress_figure(record: Mapping[str, Any]) -> Figure:
    """Draw the scores of each corruption against its severity, one small panel for each."""
    corruptions, clean = record["corruptions"], record["clean"]
    looks: dict[str, dict[str, Any]] = {
        key: {"color": color, "ls": dashes, "marker": "o", "ms": 2.5, "label": _NAMES[key]}
        for key, color, dashes in zip(_CURVES, LINES, DASHES, strict=False)
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
