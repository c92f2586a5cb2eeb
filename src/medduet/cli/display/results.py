"""Metrics on the screen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

from medduet.cli.display.screen import make_table, write, write_table
from medduet.metrics.names import METRICS

if TYPE_CHECKING:
    from medduet.evaluation.ensemble import EnsembleRecord
    from medduet.experiments.run import RunRecord
    from medduet.experiments.search import SearchRecord
    from medduet.reports.compare import Comparison, Difference

_STRESS = {
    **{key: METRICS[key].name for key in ("accuracy", "balanced_error", "dice_nonempty", "ece")},
    "be": "BE / baseline",
    "rbe": "rBE / baseline",
}


def _interval(row: Mapping[str, Any], key: str, digits: int) -> str:
    interval = row.get(f"{key}_interval")
    if not interval or None in interval:
        return ""
    return f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"


def metrics_table(title: str, row: Mapping[str, Any]) -> Table:
    """Return the table of the metrics of one split."""
    table = make_table(title, ["metric"], ["value", "95% interval"])
    for key, metric in METRICS.items():
        if isinstance(row.get(key), float):
            interval = _interval(row, key, metric.digits)
            table.add_row(metric.name, metric.format(row[key]), interval)
    calibration = row.get("calibration") or {}
    for key, name in (("ece_before", "ECE, uncalibrated"), ("ece_after", "ECE, calibrated")):
        if calibration.get(key) is not None:
            table.add_row(name, f"{calibration[key]:.3f}", "")
    sets = calibration.get("sets", {}).get("0.90", {})
    if sets.get("coverage") is not None:
        interval = _interval(sets, "coverage", 3)
        table.add_row("coverage of 90% sets", f"{sets['coverage']:.3f}", interval)
        table.add_row("classes per 90% set", f"{sets['size']:.2f}", "")
    return table


def show_run(record: RunRecord, arguments: Mapping[str, Any]) -> None:
    """Print the test metrics of a run, and where it is."""
    blocks = [record.metrics]
    if "validation_selected" in record.metrics:
        blocks.append(record.metrics["validation_selected"])
    for block in blocks:
        title = f"test split, n = {block['test']['n']}: epoch {block['selected_epoch']}"
        write_table(metrics_table(f"{title}, {block['selection']}", block["test"]))
    missing = blocks[-1].get("calibration_missing")
    if missing and "accuracy" in blocks[-1]["test"]:
        write(
            f"not calibrated on the validation split: {missing}; --data.fractions 0.6 0.2 0.2 puts "
            "more there, and 'medduet calibrate' takes other images"
        )
    write(
        f"run: {record.path}",
        f"report: {record.path / 'figures' / 'predictions.png'}",
        f"next: medduet predict {record.path} IMAGES --out DIR",
    )


def show_evaluation(metrics: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Print the metrics of one split of a data set."""
    split, name = metrics["split"], metrics["data"]["name"]
    row = metrics[split]
    write_table(metrics_table(f"{name}, {split}, n = {row['n']}", row))
    out = arguments["out"] or f"{arguments['path']}/evaluations/{name}-{split}"
    write(f"written: {out}")


def show_stress(record: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Print the means of each corruption over its severities, and write the page."""
    from medduet.evaluation.stress import stress_folder
    from medduet.reports.stress import write_stress_page

    name, split, clean = record["data"]["name"], record["split"], record["clean"]
    rows = {"clean": clean}
    rows |= {key: each | each["mean"] for key, each in record["corruptions"].items()}
    rows["mean"] = record | record["mean"]
    shown = [key for key in _STRESS if isinstance(rows["mean"].get(key), float)]
    title = f"{record['network']} on {name}, {split}, n = {clean['n']}: mean over five severities"
    table = make_table(title, ["corruption"], [_STRESS[key] for key in shown])
    for corruption, row in rows.items():
        values = (row.get(key) for key in shown)
        table.add_row(corruption, *("" if value is None else f"{value:.3f}" for value in values))
    write_table(table)
    folder = arguments["out"] or stress_folder(arguments["path"], record)
    write_stress_page(record, folder)
    write(f"report: {folder / 'index.html'}")


def show_ensemble(record: EnsembleRecord, arguments: Mapping[str, Any]) -> None:
    """Print the metrics of the members and of the ensemble, and where it is."""
    numbers = [str(number + 1) for number in range(len(record.members))]
    for split, rows in record.scores.items():
        title = f"{record.images}, {split}, n = {rows[-1]['n']}"
        right = [*numbers, "mean of these", "ensemble", "95% interval"]
        table = make_table(title, ["metric"], right)
        for key, metric in METRICS.items():
            if all(isinstance(row.get(key), float) for row in rows):
                values = [row[key] for row in rows]
                values.insert(-1, sum(values[:-1]) / (len(values) - 1))
                interval = _interval(rows[-1], key, metric.digits)
                table.add_row(metric.name, *map(metric.format, values), interval)
        write_table(table)
    write(*(f"{number}: {name}" for number, name in zip(numbers, record.members, strict=True)))
    write(f"written: {record.path}")


def show_search(record: SearchRecord, arguments: Mapping[str, Any]) -> None:
    """Print the Pareto front of a search, and where its recipes are."""
    title = f"Pareto front of {len(record.trials)} trials"
    table = make_table(title, ["recipe", "settings"], ["validation score", "parameters", "GMAC"])
    for trial in record.front:
        values = (
            f"{name.partition('.')[2]} {f'{value:.3g}' if isinstance(value, float) else value}"
            for name, value in trial["values"].items()
        )
        costs = f"{trial['parameters']:,}", f"{trial['gmacs']:.3f}"
        table.add_row(f"{trial['front']}", ", ".join(values), f"{trial['score']:.4f}", *costs)
    write_table(table)
    write(
        f"search: {record.path}",
        f"report: {record.path / 'pareto.png'}",
        f"next: medduet train {record.path / 'recipes' / 'front-1.yaml'} --out RUN",
    )


def show_comparison(comparison: Comparison, arguments: Mapping[str, Any]) -> None:
    """Print the metrics of both runs with their tests."""
    write(
        f"a: {comparison.a}  {comparison.path_a}",
        f"b: {comparison.b}  {comparison.path_b}",
    )
    right = ["a", "b", "a - b", "95% CI", "effect", "n", "test", "p", "p (Holm)"]
    table = make_table(f"{comparison.data}, {comparison.split}", [""], right)
    for row in comparison.rows:
        table.add_row(*_comparison_cells(row))
    write_table(table)
    write(*comparison.skipped, *comparison.notes, comparison.sentence)


def _comparison_cells(row: Difference) -> list[str]:
    from medduet.reports.compare import shown_p

    digits = METRICS[row.metric].digits

    def number(value: float, sign: str = "") -> str:
        return "" if math.isnan(value) else f"{value:{sign}.{digits}f}"

    return [
        METRICS[row.metric].name,
        number(row.mean_a),
        number(row.mean_b),
        number(row.difference, "+"),
        " to ".join(filter(None, (number(bound, "+") for bound in row.interval))),
        "" if math.isnan(row.effect) else f"{row.effect_name} {row.effect:.2f}",
        str(row.n),
        row.test,
        *("" if math.isnan(p) else shown_p(p).removeprefix("= ") for p in (row.p, row.p_holm)),
    ]
