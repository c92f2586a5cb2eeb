"""The page, the table and the figure of a stress test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from medduet.metrics.names import METRICS
from medduet.reports.page import Section, Table, write_page
from medduet.reports.style import DASHES, STYLE, draw_series, panels
from medduet.utils.palette import GREY, LINES

_NAMES = {
    **{key: METRICS[key].name for key in ("accuracy", "balanced_error", "dice_nonempty", "ece")},
    "rise": "increase in error",
    "be": "BE",
    "rbe": "rBE",
}
_CURVES = ("accuracy", "balanced_error", "dice_nonempty", "ece")


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
        section.text.append(
            f"Relative to {record['baseline']['network']} (MedMNIST-C): balanced error (BE) "
            f"{_number(record['be'])}, relative balanced error (rBE) {_number(record['rbe'])}."
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
    scores: list[tuple[str, str, Mapping[str, Any]]] = [("clean", "0", record["clean"])]
    for name, entry in record["corruptions"].items():
        scores += [(name, severity, row) for severity, row in entry["severities"].items()]
        shares = {key: entry[key] for key in ("be", "rbe") if key in entry}
        scores.append((name, "mean", entry["mean"] | shares))
    present = [key for key in _NAMES if any(row.get(key) is not None for _, _, row in scores)]
    shown, values = [], []
    for name, severity, row in scores:
        place = {"corruption": name, "severity": severity}
        low, high = row.get("accuracy_interval") or (None, None)
        numbers = {"n": row.get("n")} | {key: row.get(key) for key in present}
        if "dice_nonempty_n" in record["clean"]:
            numbers["dice_nonempty_n"] = row.get("dice_nonempty_n")
        if "accuracy" in present:
            numbers |= {"accuracy_low": low, "accuracy_high": high}
        values.append(place | numbers)
        texts = {_NAMES[key]: _number(row.get(key)) for key in present}
        shown.append(place | {"n": str(row.get("n", ""))} | texts)
    return Table.of("stress", "Every corruption at every severity", shown, values)


@rc_context(STYLE)
def stress_figure(record: Mapping[str, Any]) -> Figure:
    """Draw the scores of each corruption against its severity, one small panel for each."""
    corruptions, clean = record["corruptions"], record["clean"]
    keys = [key for key in _CURVES if clean.get(key) is not None]
    figure, grid = panels(len(corruptions), columns=4, height=1.5, legend=0.3)
    for axes, (name, entry) in zip(grid, corruptions.items(), strict=True):
        rows = [clean, *entry["severities"].values()]
        for index, key in enumerate(keys):
            values = [row.get(key) for row in rows]
            line: Any = {"color": LINES[index], "ls": DASHES[index], "marker": "o", "ms": 2.5}
            label = _NAMES[key] if axes is grid[0] else None
            draw_series(axes, range(len(rows)), values, label=label, **line)
            axes.axhline(clean[key], color=GREY, lw=0.5, zorder=0)
        axes.set_title(name.replace("_", " "), fontsize=8.5)
        axes.set(ylim=(0, 1), xticks=range(len(rows)))
    figure.supxlabel("severity", fontsize=9)
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
