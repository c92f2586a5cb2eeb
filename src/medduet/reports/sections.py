"""The sections of a report, each with its words, tables and figures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medduet.metrics.repeats import over_sets as test_over_sets
from medduet.reports import many, tables
from medduet.reports.grouping import Runs
from medduet.reports.measures import MEASURES, Difference, differences
from medduet.reports.published import Published, notes_for, published_for
from medduet.reports.style import slug
from medduet.reports.tables import Table
from medduet.reports.verdict import shown_p
from medduet.reports.words import counted
from medduet.reports.writer import Part, Writer
from medduet.runs.reader import FinishedRun

FEWEST_SETS, FEW_SETS = 2, 8


def compare(runs: Runs) -> dict[str, list[Difference]]:
    """Compare every method with the reference, on each data set."""
    found = {}
    for dataset in runs.datasets:
        if rows := differences(runs.of(dataset)):
            found[dataset] = rows
    return found


def scores(runs: Runs, cells: tables.Cells, writer: Writer) -> list[Part]:
    """Show every measure that a run has, and what is published."""
    parts, official = [], _official(runs)
    for name, of in cells.items():
        part = Part(MEASURES[name][0].upper() + MEASURES[name][1:])
        published = _published(runs, official) if name == "accuracy" else {}
        methods = _best_first(
            [method for method in runs.methods if any(m == method for _, m in of)], of
        )
        figure = many.bars(of, runs.datasets, methods, name, published)
        shows = f"{MEASURES[name]} on the test split"
        writer.figure(part, name, figure, shows)
        writer.table(part, tables.scores(name, cells, runs))
        if name == "accuracy" and official:
            rows = [row for found in official.values() for row in found]
            writer.table(part, tables.published_table(rows))
            notes = [note for row in rows for note in notes_for(row.set, row.size)]
            part.text += list(dict.fromkeys(notes))
        parts.append(part)
    return parts


def _best_first(methods: list[str], of: dict[tuple[str, str], Any]) -> list[str]:
    """Sort methods by their mean over the data sets, for the eye only."""
    means = {
        method: [cell.mean for (_, name), cell in of.items() if name == method]
        for method in methods
    }
    return sorted(methods, key=lambda method: -sum(means[method]) / len(means[method]))


def _official(runs: Runs) -> dict[str, list[Published]]:
    """Return what is published on each data set that is the official one."""
    found = {}
    for dataset in runs.datasets:
        data = runs.of(dataset)[0].first.data
        rows = published_for(str(data.get("name")), max(data.get("size", [0])))
        if rows and list(rows[0].splits) == list(data.get("splits", {}).values()):
            found[dataset] = rows
    return found


def _published(
    runs: Runs, official: Mapping[str, Sequence[Published]]
) -> dict[str, list[tuple[str, str | None, float]]]:
    """Return what is published on each data set: who, for which method (or all), and the share."""
    marks: dict[str, list[tuple[str, str | None, float]]] = {}
    for dataset, rows in official.items():
        for row in rows:
            same: list[str | None] = [
                group.method
                for group in runs.of(dataset)
                if group.first.model in (row.network, f"timm:{row.network}")
            ]
            who = row.protocol if same else f"{row.network}, {row.protocol}"
            marks.setdefault(dataset, []).extend(
                (who, method, row.accuracy / 100) for method in same or [None]
            )
    return marks


def selection(runs: Runs, writer: Writer) -> Part:
    """Show what selecting the epoch on test adds."""
    part = Part("What selecting on test adds")
    if (table := tables.gaps(runs)) is not None:
        part.text.append(
            "The same runs, the same weights to choose from: test-selected takes the epoch with "
            "the best test accuracy, as the paper appears to do. The gap is what that adds by "
            "itself; it is not a better network."
        )
        writer.table(part, table)
    return part


def paired(runs: Runs, compared: dict[str, list[Difference]], writer: Writer) -> Part:
    """Show the tests on the same images."""
    part = Part("Paired tests")
    if compared:
        part.text.append(
            f"Each method against {runs.methods[0]}, or the first that has the measure, on the "
            "same images and seeds. Accuracy (in points): McNemar; AUC: DeLong; Dice: sign-flip "
            "permutation of the images. With several seeds McNemar's and DeLong's p are combined: "
            "twice the median, which holds however the seeds depend on each other. Holm's "
            "correction is over the methods of one measure and data set. The tests over images "
            "ask whether these networks differ on other images like these; the paired t test over "
            "seeds asks whether training again would tell the methods apart on these images. "
            "Evidence says which of the two find something after correction; few seeds seldom can. "
            "d_z is the mean difference over seeds in units of its standard deviation."
        )
    for dataset, rows in compared.items():
        writer.table(part, tables.paired(rows, f"paired-{slug(dataset)}", dataset))
    return part


def over_sets(runs: Runs, cells: tables.Cells, writer: Writer) -> Part:
    """Show the tests over data sets, if there are several."""
    part = Part("Over data sets")
    for name in ("accuracy", "auc", "dice_nonempty"):
        of = cells.get(name, {})
        sets = [d for d in runs.datasets if any(key[0] == d for key in of)]
        methods = [m for m in runs.methods if all((d, m) in of for d in sets)]
        if len(sets) < FEWEST_SETS or len(methods) < 2:
            continue
        result = test_over_sets([[of[d, m].mean for m in methods] for d in sets])
        said = f"{MEASURES[name]} over {len(sets)} data sets"
        if not math.isnan(result.friedman_p):
            said += f", Friedman p {shown_p(result.friedman_p)}"
        if len(sets) < FEW_SETS:
            said += (
                "; with so few sets the smallest p that a pair can reach is "
                f"{result.smallest_p:.2g}, and {result.smallest_p_holm:.2g} after Holm's correction"
            )
        if without := [m for m in runs.methods if m not in methods and any(k[1] == m for k in of)]:
            said += f"; left out, not being on all of them: {', '.join(without)}"
        part.text.append(f"{said}.")
        figure = many.ranks(result, methods)
        writer.figure(part, f"ranks-{name}", figure, f"ranks by {MEASURES[name]}")
        writer.table(part, tables.over_datasets(result, methods, name))
    return part


def training(runs: Runs, writer: Writer) -> Part:
    """Show the epochs: scores, and how the tasks get along."""
    part = Part("Training")
    score = many.curves(runs, _number("val", "score"), "validation score")
    shows = "validation score by which epochs are selected, mean over seeds"
    writer.figure(part, "curves", score, shows)
    for pair in _keys(runs, "conflict"):
        figure = many.curves(runs, _number("conflict", pair), f"cosine, {pair}")
        shows = f"cosine between the gradients of {pair.replace('-', ' and ')} on the encoder"
        writer.figure(part, slug(f"conflict-{pair}"), figure, f"{shows}; below 0 they pull apart")
    every = [run for group in runs.groups.values() for run in group.runs.values()]
    if any(run.config["objective"].get("balance", "sum") != "sum" for run in every):
        for task in _keys(runs, "weights"):
            figure = many.curves(runs, _number("weights", task), f"weight, {task}")
            writer.figure(
                part, slug(f"weights-{task}"), figure, f"weight of {task}, mean of an epoch"
            )
    return part


def _keys(runs: Runs, section: str) -> list[str]:
    """Return the names under a section of the epochs' lines, of all runs."""
    return sorted(
        {
            key
            for group in runs.groups.values()
            for run in group.runs.values()
            for row in run.epochs
            for key in row.get(section) or {}
        }
    )


def _number(section: str, key: str) -> Callable[[Mapping[str, Any]], float | None]:
    def take(row: Mapping[str, Any]) -> float | None:
        value: float | None = (row.get(section) or {}).get(key)
        return value

    return take


def confusion(runs: Runs, writer: Writer) -> Part:
    """Show which classes are taken for which."""
    part = Part("Confusion matrices")
    for dataset in runs.datasets:
        figure = many.confusions(runs.of(dataset))
        shows = f"{dataset}: true class (row) and predicted class (column), all seeds together"
        writer.figure(part, f"confusion-{slug(dataset)}", figure, shows)
    return part


def samples(runs: Runs, writer: Writer) -> Part:
    """Show sheets of test images of the first methods."""
    part = Part("Samples")
    for dataset in runs.datasets:
        for group in runs.of(dataset)[:2]:
            sheet = group.first.path / "figures" / "predictions.png"
            if sheet.is_file():
                shows = f"{dataset}, {group.method}, seed {group.seeds[0]}"
                writer.picture(part, f"samples-{slug(shows)}", sheet, shows, dark=False)
    return part


def costs(runs: Runs, cells: tables.Cells, writer: Writer) -> Part:
    """Show what each method costs."""
    part = Part("Cost")
    name, of = next(iter(cells.items()), ("", {}))
    for dataset in runs.datasets:
        points = []
        for group in runs.of(dataset):
            gmacs = group.first.environment.get("network", {}).get("gmacs")
            if gmacs and (cell := of.get((dataset, group.method))) is not None:
                points.append((group.method, gmacs, cell.mean))
        if len(points) > 1:
            figure = many.costs(points, dataset, MEASURES[name])
            writer.figure(part, f"cost-{slug(dataset)}", figure, f"{MEASURES[name]} and cost")
    writer.table(part, tables.cost(runs))
    return part


def provenance(runs: Runs, paths: Sequence[str | Path], writer: Writer) -> Part:
    """Show every run, with the versions and data behind it."""
    part = Part("Where it comes from")
    every = [run for group in runs.groups.values() for run in group.runs.values()]
    versions = Counter(_versions(run) for run in every)
    part.text += [f"{counted(count, 'run')} by {version}." for version, count in versions.items()]
    rows = [
        [dataset, group.method, str(seed), run.path.name, _data(run)]
        for dataset in runs.datasets
        for group in runs.of(dataset)
        for seed, run in sorted(group.runs.items())
    ]
    header = ["data set", "method", "seed", "run", "data"]
    values = [dict(zip(header, row, strict=True)) for row in rows]
    writer.table(part, Table("runs", "Every run", header, rows, values))
    return part


def _versions(run: FinishedRun) -> str:
    torch = run.environment.get("libraries", {}).get("torch", "?")
    return f"medduet {run.environment.get('medduet', '?')}, torch {torch}"


def _data(run: FinishedRun) -> str:
    splits = run.data.get("splits", {})
    counts = " / ".join(str(count) for count in splits.values())
    return f"{counts}; {str(run.data.get('fingerprint', ''))[:12]}"
