"""What came of training, judging, searching and joining, on the screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from medduet.metrics.names import METRICS

if TYPE_CHECKING:
    from medduet.evaluation.ensemble import EnsembleRecord
    from medduet.experiments.run import RunRecord
    from medduet.experiments.search import SearchRecord


def _interval(row: Mapping[str, Any], key: str, digits: int) -> str:
    interval = row.get(f"{key}_interval")
    if not interval or None in interval:
        return ""
    return f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"


def metrics_table(title: str, row: Mapping[str, Any]) -> Table:
    """Return the table of the metrics of one split."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("95% interval", justify="right")
    for key, metric in METRICS.items():
        if isinstance(row.get(key), float):
            interval = _interval(row, key, metric.digits)
            table.add_row(metric.name, metric.format(row[key]), interval)
    calibration = row.get("calibration") or {}
    for key, name in (("ece_before", "ECE, as trained"), ("ece_after", "ECE, calibrated")):
        if calibration.get(key) is not None:
            table.add_row(name, f"{calibration[key]:.3f}", "")
    held = calibration.get("sets", {}).get("0.90", {})
    if held.get("coverage") is not None:
        table.add_row("in the 90% set", f"{held['coverage']:.3f}", _interval(held, "coverage", 3))
        table.add_row("classes in the 90% set", f"{held['size']:.2f}", "")
    return table


def show_run(record: RunRecord) -> None:
    """Print what came out of a run, and where it is."""
    console = Console()
    metrics = record.metrics
    blocks = [metrics]
    if "validation_selected" in metrics:
        blocks.append(metrics["validation_selected"])
    for block in blocks:
        title = f"test split, n = {block['test']['n']}: epoch {block['selected_epoch']}"
        console.print(metrics_table(f"{title}, {block['selection']}", block["test"]))
    missing = blocks[-1].get("calibration_missing")
    if missing and "accuracy" in blocks[-1]["test"]:
        told = (
            f"not calibrated on the validation split: {missing}; --data.fractions 0.6 0.2 0.2 puts "
            "more there, and 'medduet calibrate' takes other images"
        )
        console.print(told, highlight=False, soft_wrap=True)
    console.print(f"run: {record.path}", highlight=False, soft_wrap=True)
    console.print(f"look at: {record.path / 'figures' / 'predictions.png'}", soft_wrap=True)
    console.print(
        f"use it:  medduet predict {record.path} IMAGES --out DIR", highlight=False, soft_wrap=True
    )


def show_search(record: SearchRecord) -> None:
    """Print the Pareto front of a search, and where its recipes are."""
    table = Table(
        title=f"Pareto front of {len(record.trials)} trials",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in ("front", "validation score", "parameters", "GMAC"):
        table.add_column(name, justify="right")
    table.add_column("settings")
    for trial in record.front:
        values = (
            f"{name.partition('.')[2]} {f'{value:.3g}' if isinstance(value, float) else value}"
            for name, value in trial["values"].items()
        )
        table.add_row(
            str(trial["front"]),
            f"{trial['score']:.4f}",
            f"{trial['parameters']:,}",
            f"{trial['gmacs']:.3f}",
            ", ".join(values),
        )
    console = Console()
    console.print(table)
    for text in (
        f"search: {record.path}",
        f"look at: {record.path / 'pareto.png'}",
        f"train one: medduet train {record.path / 'recipes' / 'front-1.yaml'} --out RUN",
    ):
        console.print(text, highlight=False, soft_wrap=True)


def show_evaluation(metrics: Mapping[str, Any], split: str) -> None:
    """Print the metrics of one split of a data set."""
    row = metrics[split]
    Console().print(metrics_table(f"{metrics['data']['name']}, {split}, n = {row['n']}", row))


def show_ensemble(record: EnsembleRecord) -> None:
    """Print how good the members of an ensemble are, and how good it is, and where it is."""
    console = Console()
    for split, rows in record.scores.items():
        shown = [key for key in METRICS if all(isinstance(row.get(key), float) for row in rows)]
        table = Table(
            title=f"{record.images}, {split}, n = {rows[-1]['n']}",
            title_justify="left",
            box=SIMPLE_HEAD,
            pad_edge=False,
        )
        table.add_column("metric")
        numbers = [str(number + 1) for number in range(len(record.members))]
        for name in (*numbers, "mean of these", "ensemble", "95% interval"):
            table.add_column(name, justify="right")
        for key in shown:
            metric = METRICS[key]
            values = [row[key] for row in rows]
            values.insert(-1, sum(values[:-1]) / (len(values) - 1))
            cells = [metric.format(value) for value in values]
            table.add_row(metric.name, *cells, _interval(rows[-1], key, metric.digits))
        console.print(table)
    for number, name in enumerate(record.members, 1):
        console.print(f"{number}: {name}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"written: {record.path}", highlight=False, soft_wrap=True)
