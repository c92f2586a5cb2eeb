"""The sections of a report that describe methods: training, errors, cost and provenance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medduet.metrics.names import METRICS
from medduet.reports import grid_figures
from medduet.reports.figures import confusion as confusion_figure
from medduet.reports.grouping import Group, Runs
from medduet.reports.page import Section, Table
from medduet.reports.reliability import Diagram, coverage_table, reliability_figure, summaries_of
from medduet.reports.sections import Cells, counted
from medduet.runs.folder import RunFolder

_COSTS = {
    "parameters": ("parameters / 10⁶", 2),
    "gmacs": ("GMAC", 2),
    "images_per_second": ("images/s", 1),
    "seconds_per_epoch": ("s/epoch", 1),
    "minutes": ("total min", 1),
    "peak_memory_gb": ("peak memory, GB", 2),
}


def training(runs: Runs) -> Section:
    """Show the epochs: validation scores, task weights and gradient conflicts."""
    section = Section("Training")
    figure = grid_figures.curves(runs, _number("val", "score"), "validation score")
    shows = "Validation score, by which epochs are selected: mean and range over seeds"
    section.figure("curves", figure, shows)
    for pair in _keys(runs, "conflict"):
        tasks = pair.replace("-", " and ")
        figure = grid_figures.curves(runs, _number("conflict", pair), f"cosine, {pair}")
        shows = f"Cosine similarity of the gradients of {tasks} on the encoder; below 0: conflict"
        section.figure(f"conflict-{pair}", figure, shows)
    every = _runs(runs)
    if any(run.config["objective"].get("balance", "sum") != "sum" for run in every):
        for task in _keys(runs, "weights"):
            figure = grid_figures.curves(runs, _number("weights", task), f"weight, {task}")
            section.figure(f"weights-{task}", figure, f"Loss weight of {task}, mean of each epoch")
    return section


def _runs(runs: Runs) -> list[RunFolder]:
    return [run for group in runs.groups.values() for run in group.runs.values()]


def _keys(runs: Runs, part: str) -> list[str]:
    """Return the names under a key of the epochs' lines, of all runs."""
    rows = [row for run in _runs(runs) for row in run.epochs]
    return sorted({key for row in rows for key in row.get(part) or {}})


def _number(part: str, key: str) -> grid_figures.EpochValue:
    return lambda row: (row.get(part) or {}).get(key)


def confusion(runs: Runs) -> Section:
    """Show which classes are mistaken for which."""
    section = Section("Confusion matrices")
    for dataset in runs.datasets:
        matrices = {}
        for group in runs.of(dataset):
            each = [
                run.validation_selected["test"].get("confusion_matrix")
                for run in group.runs.values()
            ]
            if all(matrix is not None for matrix in each):
                matrices[group.method] = np.sum(each, axis=0)
        if matrices:
            k = len(next(iter(matrices.values())))
            names = runs.of(dataset)[0].first.data.get("class_names") or range(k)
            figure = confusion_figure(matrices, [str(name) for name in names])
            section.figure(f"confusion-{dataset}", figure, f"{dataset}, sum over seeds")
    return section


def calibration(runs: Runs) -> Section:
    """Show reliability diagrams and the coverage of prediction sets."""
    section = Section("Calibration")
    calibrated: list[tuple[Group, Sequence[Mapping[str, Any]]]] = []
    for dataset in runs.datasets:
        summaries = [(group, summaries_of(group)) for group in runs.of(dataset)]
        groups = [(group, each) for group, each in summaries if each]
        if groups:
            figure = reliability_figure(
                [Diagram(group.method, each, len(group.runs)) for group, each in groups]
            )
            shows = f"{dataset}: reliability diagrams, {groups[0][1][0]['ece_kind']}"
            section.figure(f"reliability-{dataset}", figure, shows)
            calibrated += groups
    if calibrated:
        section.text.append(
            "Temperature and conformal thresholds were fitted on the validation split and are "
            "evaluated on the test split. The prediction sets target class-conditional coverage "
            "(classes with few validation images are pooled), provided that test and validation "
            "images are exchangeable. ECE is the expected calibration error, mean over seeds."
        )
        section.tables.append(coverage_table(calibrated))
    return section


def samples(runs: Runs) -> Section:
    """Show test images with truth and prediction, of the first two methods."""
    section = Section("Sample predictions")
    for dataset in runs.datasets:
        for group in runs.of(dataset)[:2]:
            sheet = group.first.path / "figures" / "predictions.png"
            if sheet.is_file():
                caption = f"{dataset}, {group.method}, seed {group.seeds[0]}"
                section.figure(f"samples-{caption}", sheet, caption)
    return section


def costs(runs: Runs, measured: Mapping[str, Cells]) -> Section:
    """Show what each method costs: means over epochs and seeds."""
    section = Section("Cost")
    metric, cells = next(iter(measured.items()), ("", {}))
    shown, values = [], []
    for dataset in runs.datasets:
        points = []
        for group in runs.of(dataset):
            place, numbers, machine = {"method": group.method}, _costs(group), _machine(group)
            texts = {
                label: "" if numbers[key] is None else f"{numbers[key]:.{digits}f}"
                for key, (label, digits) in _COSTS.items()
            }
            if numbers["parameters"] is not None:
                texts["parameters / 10⁶"] = f"{numbers['parameters'] / 1e6:.2f}"
            shown.append({"data set": dataset, **place, **texts, "machine": machine})
            values.append({"dataset": dataset, **place, **numbers, "machine": machine})
            cell = cells.get((dataset, group.method))
            if numbers["gmacs"] and cell is not None:
                points.append((group.method, numbers["gmacs"], cell.mean))
        if len(points) > 1:
            figure = grid_figures.costs(points, dataset, METRICS[metric].name)
            section.figure(
                f"cost-{dataset}", figure, f"{dataset}: {METRICS[metric].name} over GMAC"
            )
    title = "Cost of training: network for one image, means over epochs and seeds"
    section.tables.append(Table.of("cost", title, shown, values))
    return section


def _costs(group: Group) -> dict[str, Any]:
    network = group.first.environment.get("network", {})
    epochs = [row for run in group.runs.values() for row in run.epochs]
    totals = [sum(row["seconds"] for row in run.epochs) / 60 for run in group.runs.values()]
    return {
        "parameters": network.get("parameters"),
        "gmacs": network.get("gmacs"),
        "images_per_second": _mean([row.get("images_per_second") for row in epochs]),
        "seconds_per_epoch": _mean([row.get("seconds") for row in epochs]),
        "minutes": _mean(totals),
        "peak_memory_gb": _mean([row.get("peak_memory_gb") for row in epochs]),
    }


def _machine(group: Group) -> str:
    machine = group.first.environment.get("machine", {})
    name = str(machine.get("gpu") or machine.get("processor") or "")
    if machine.get("gpu") is None and machine.get("threads"):
        name += f", {counted(machine['threads'], 'thread')}"
    return name


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def provenance(runs: Runs) -> Section:
    """Show every run, with versions and data."""
    section = Section("Provenance")
    versions = Counter(_versions(run) for run in _runs(runs))
    section.text += [f"{counted(count, 'run')}: {text}." for text, count in versions.items()]
    images = "images (train / val / test)"
    rows = [
        {
            "data set": dataset,
            "method": group.method,
            "seed": str(seed),
            "run": run.path.name,
            images: " / ".join(map(str, run.data.get("splits", {}).values())),
            "data fingerprint": str(run.data.get("fingerprint", ""))[:12],
        }
        for dataset in runs.datasets
        for group in runs.of(dataset)
        for seed, run in sorted(group.runs.items())
    ]
    section.tables.append(Table.of("runs", "All runs", rows))
    return section


def _versions(run: RunFolder) -> str:
    torch = run.environment.get("libraries", {}).get("torch", "?")
    return f"medduet {run.environment.get('medduet', '?')}, torch {torch}"
