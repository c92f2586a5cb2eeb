"""The sections of a report that compare methods: summary, scores and tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from medduet.metrics.intervals import Interval
from medduet.metrics.names import METRICS
from medduet.metrics.paired import over_sets as compare_over_sets
from medduet.reports import grid_figures
from medduet.reports.compare import ALPHA, Difference, describe, differences, shown_p
from medduet.reports.grouping import Group, Runs
from medduet.reports.measures import COMPARED, Measured, measure
from medduet.reports.page import Section, Table
from medduet.reports.published import Published, notes_for, published_for
from medduet.reports.style import slug
from medduet.utils.parsing import read_object

FEWEST_SEEDS, FEW_SETS, MOST_SENTENCES = 3, 8, 6
PRIMARY = ("accuracy", "auc", "dice_nonempty")
"""Metrics of the summary and of the comparison over data sets: there larger is better."""
Cells = dict[tuple[str, str], Measured]
"""Of one metric, by data set and method."""


def measure_all(runs: Runs) -> dict[str, Cells]:
    """Return every metric that any group has, of every group that has it."""
    return {
        metric: cells
        for metric in COMPARED
        if (
            cells := {
                key: cell
                for key, group in runs.groups.items()
                if (cell := measure(group, metric)) is not None
            }
        )
    }


def compare_all(runs: Runs) -> dict[str, list[Difference]]:
    """Compare every method with the reference, on each data set."""
    rows = {dataset: differences(runs.of(dataset)) for dataset in runs.datasets}
    return {dataset: of for dataset, of in rows.items() if of}


def summary(
    runs: Runs, compared: Mapping[str, Sequence[Difference]], paths: Sequence[str | Path]
) -> Section:
    """Summarise what the tests show, and what is missing."""
    section = Section("Summary")
    counts = {
        "finished run": sum(len(group.runs) for group in runs.groups.values()),
        "method": len(runs.methods),
        "data set": len(runs.datasets),
        "seed": len({seed for group in runs.groups.values() for seed in group.runs}),
    }
    section.text.append(
        f"{', '.join(counted(count, what) for what, count in counts.items())}. Epochs were "
        "selected on the validation split unless marked test-selected."
    )
    tested = [
        row
        for rows in compared.values()
        for row in rows
        if row.metric in PRIMARY and not math.isnan(row.p)
    ]
    if len(tested) <= MOST_SENTENCES:
        section.text += [f"{row.dataset}. {describe(row)}{_over_seeds(row)}" for row in tested]
    else:
        families: dict[tuple[str, str], list[Difference]] = {}
        for row in tested:
            families.setdefault((row.dataset, row.metric), []).append(row)
        section.text += [_family(rows) for rows in families.values()]
    section.text += _failures(paths) + runs.notes + _gaps(runs, paths)
    return section


def counted(count: int, what: str) -> str:
    """Return a number and what it counts, in the plural if need be."""
    return f"{count} {what}" + ("" if count == 1 else "s")


def _title(metric: str) -> str:
    name = METRICS[metric].name
    return name[0].upper() + name[1:]


def _over_seeds(row: Difference) -> str:
    seeds, (factor, digits, unit) = row.seeds, row.scale
    if seeds.n < FEWEST_SEEDS or math.isnan(seeds.p):
        return ""
    low, high = (f"{factor * bound:+.{digits}f}" for bound in seeds.interval)
    return (
        f" Over {seeds.n} seeds, {row.a} minus {row.b}: {factor * seeds.difference:+.{digits}f}"
        f"{unit} (95% CI {low} to {high}; paired t test, Holm-corrected p "
        f"{shown_p(row.p_seeds_holm)})."
    )


def _family(rows: Sequence[Difference]) -> str:
    """Return the result of all tests on one metric of one data set."""
    first = rows[0]
    results = []
    for word, sign in (("higher", -1), ("lower", 1)):
        methods = [
            row.b + ("" if row.consistent else " (not in every seed)")
            for row in rows
            if row.significant and sign * row.difference > 0
        ]
        if methods:
            results.append(f"significantly {word} than {first.a}: {', '.join(methods)}")
    if rest := sum(not row.significant for row in rows):
        results.append(
            f"no significant difference (Holm-corrected p > {ALPHA}): {rest} of "
            f"{counted(len(rows), 'method')}"
        )
    return f"{first.dataset}, {METRICS[first.metric].name} (n = {first.n}): {'; '.join(results)}."


def _failures(paths: Sequence[str | Path]) -> list[str]:
    """Return the errors of the failed cells of those folders that are grids."""
    records = [
        read_object(file)
        for path in map(Path, paths)
        if (path / "grid.json").is_file()
        for file in sorted((path / "cells").glob("*.json"))
    ]
    return [f"Failed: {record.get('cell')}: {record.get('error')}" for record in records]


def _gaps(runs: Runs, paths: Sequence[str | Path]) -> list[str]:
    """Return which runs are unfinished, and which methods have fewer seeds than others."""
    unfinished = [
        file.parent.parent.name
        for path in map(Path, paths)
        for file in sorted(path.rglob("checkpoints/last.pt"))
    ]
    lines = [f"Unfinished runs, ignored: {', '.join(unfinished)}."] if unfinished else []
    for dataset in runs.datasets:
        groups = runs.of(dataset)
        most = max(len(group.runs) for group in groups)
        fewer = [f"{g.method} ({len(g.runs)})" for g in groups if len(g.runs) < most]
        if fewer:
            lines.append(f"{dataset}: fewer than {most} seeds: {', '.join(fewer)}.")
    return lines


def scores(runs: Runs, measured: Mapping[str, Cells]) -> list[Section]:
    """Show every metric that a run has, and published accuracies."""
    sections, official = [], _official(runs)
    for metric, cells in measured.items():
        name = METRICS[metric].name
        section = Section(_title(metric))
        published = official if metric == "accuracy" else {}
        figure = grid_figures.bars(cells, runs.datasets, _by_mean(runs, cells), name, published)
        section.figure(metric, figure, f"{section.title} on the test split")
        section.tables.append(_score_table(metric, cells, runs))
        if published:
            rows = [row for of in published.values() for row in of]
            section.tables.append(_published_table(rows))
            notes = [note for row in rows for note in notes_for(row.dataset, row.size)]
            section.text += list(dict.fromkeys(notes))
        sections.append(section)
    return sections


def _by_mean(runs: Runs, cells: Cells) -> list[str]:
    """Return the methods that have a metric, sorted by their mean over data sets: for display."""
    means = pd.Series({key: cell.mean for key, cell in cells.items()}).groupby(level=1).mean()
    return sorted((m for m in runs.methods if m in means), key=lambda method: -means[method])


def _official(runs: Runs) -> dict[str, list[Published]]:
    """Return what is published on each data set that has the official size and splits."""
    published = {}
    for dataset in runs.datasets:
        data = runs.of(dataset)[0].first.data
        rows = published_for(str(data.get("name")), max(data.get("size", [0])))
        if rows and list(rows[0].splits) == list(data.get("splits", {}).values()):
            published[dataset] = rows
    return published


def _score_table(metric: str, cells: Cells, runs: Runs) -> Table:
    """Return a row per method and a column per data set."""
    datasets = [dataset for dataset in runs.datasets if any(key[0] == dataset for key in cells)]
    methods = [method for method in runs.methods if any(key[1] == method for key in cells)]
    counts = {key[0]: cell.n for key, cell in cells.items()}
    shown, values = [], []
    for method in methods:
        row = {"method": method}
        for dataset in datasets:
            cell = cells.get((dataset, method))
            row[f"{dataset}, n = {counts[dataset]}"] = "" if cell is None else _cell(metric, cell)
            if cell is not None:
                place = {"dataset": dataset, "method": method, "mean": cell.mean, "sd": cell.sd}
                low, high = cell.interval
                seeds = len(cell.values)
                values.append(place | {"low": low, "high": high, "n": cell.n, "seeds": seeds})
        shown.append(row)
    title = f"{_title(metric)} on test, mean ± s.d. over seeds (95% CI over images)"
    return Table.of(metric, title, shown, values)


def _cell(metric: str, cell: Measured) -> str:
    digits = METRICS[metric].digits - 1  # beside an interval
    spread = "" if math.isnan(cell.sd) else f" ± {cell.sd:.{digits}f}"
    return f"{cell.mean:.{digits}f}{spread}{shown_interval(cell.interval, digits)}"


def shown_interval(interval: Interval, digits: int) -> str:
    """Return an interval in brackets after a space, nothing if it is not defined."""
    low, high = interval
    return "" if math.isnan(low) else f" ({low:.{digits}f} to {high:.{digits}f})"


def _published_table(rows: Sequence[Published]) -> Table:
    shown, values = [], []
    for row in rows:
        low, high = row.interval
        about = {"network": row.network}
        source = {"protocol": row.protocol, "source": row.source}
        interval = f"{low:.2f} to {high:.2f}"
        accuracy = {"accuracy (%)": f"{row.accuracy:.2f}", "95% CI": interval}
        shown.append({"data set": row.dataset, **about, **accuracy, **source})
        numbers = {"accuracy": row.accuracy, "low": low, "high": high}
        values.append({"dataset": row.dataset, **about, **numbers, **source})
    title = "Published test accuracy at 224 pixels; the CI follows from the number of test images"
    return Table.of("published", title, shown, values)


def selection(runs: Runs) -> Section:
    """Show what selecting the epoch on test adds, where runs follow the paper's protocol."""
    section = Section("Test-selection bias")
    shown, values = [], []
    for group in runs.groups.values():
        pairs = _selection_pairs(group)
        if not pairs:
            continue
        honest, chosen = (sum(side) / len(pairs) for side in zip(*pairs, strict=True))
        gaps = [test - val for val, test in pairs]
        low, high = (100 * extreme(gaps) for extreme in (min, max))
        mean = sum(gaps) / len(gaps)
        bias = f"{100 * mean:+.1f} ({low:+.1f} to {high:+.1f})"
        shown.append(
            {
                "data set": group.dataset,
                "method": group.method,
                "validation-selected": f"{honest:.3f}",
                "test-selected": f"{chosen:.3f}",
                "bias in points (range over seeds)": bias,
            }
        )
        place = {"dataset": group.dataset, "method": group.method}
        place |= {"validation_selected": honest, "test_selected": chosen}
        values.append(place | {"bias": mean, "low": min(gaps), "high": max(gaps)})
    if shown:
        section.text.append(
            "Test-selected accuracy is that of the epoch with the best test accuracy, as the paper "
            "appears to report; validation-selected accuracy is that of the same runs at the epoch "
            "with the best validation score. The difference is optimistic bias."
        )
        title = "Test accuracy by how the epoch was selected"
        section.tables.append(Table.of("selection", title, shown, values))
    return section


def _selection_pairs(group: Group) -> list[tuple[float, float]]:
    """Return validation- and test-selected accuracy of each seed; nothing if one lacks them."""
    pairs = []
    for run in group.runs.values():
        chosen = run.test_selected
        if chosen is None or chosen["test"].get("accuracy") is None:
            return []
        pairs.append(
            (float(run.validation_selected["test"]["accuracy"]), float(chosen["test"]["accuracy"]))
        )
    return pairs


def paired(runs: Runs, compared: Mapping[str, Sequence[Difference]]) -> Section:
    """Show the tests on the same images."""
    section = Section("Paired tests")
    if compared:
        section.text.append(
            f"Each method against {runs.methods[0]} (or the first that has the metric) on the same "
            "images and seeds. AUC: DeLong; accuracy of one seed: McNemar; otherwise sign-flip "
            "permutation over images. With several seeds each image counts with its mean over "
            "seeds. Holm's correction is over the methods of one metric and data set. The tests "
            "over images ask whether these networks differ on other images like these; the paired "
            "t test over seeds asks whether the methods differ when they are trained again. With "
            "few seeds the latter has little power. d_z is the mean difference over seeds divided "
            "by its standard deviation."
        )
    for dataset, rows in compared.items():
        name = f"paired-{slug(dataset)}"
        title = f"{dataset}: {' or '.join(dict.fromkeys(row.a for row in rows))} minus method"
        section.tables.append(
            Table.of(name, title, [_shown(row) for row in rows], [_values(row) for row in rows])
        )
    return section


def _shown(row: Difference) -> dict[str, str]:
    factor, digits, unit = row.scale
    low, high = (factor * bound for bound in row.interval)
    interval = shown_interval((low, high), digits)
    return {
        "metric": METRICS[row.metric].name,
        "method": row.b,
        "difference (95% CI)": f"{factor * row.difference:+.{digits}f}{unit}{interval}",
        "test": row.test,
        "p": _p(row.p),
        "p (Holm)": _p(row.p_holm),
        "p over seeds": _p(row.seeds.p),
        "p over seeds (Holm)": _p(row.p_seeds_holm),
        "d_z over seeds": "" if math.isnan(row.seeds.d_z) else f"{row.seeds.d_z:+.1f}",
        "significant over": row.evidence,
        "n": str(row.n),
    }


def _values(row: Difference) -> dict[str, object]:
    (low, high), seeds = row.interval, row.seeds
    return {
        "dataset": row.dataset,
        "reference": row.a,
        "method": row.b,
        "metric": row.metric,
        "difference": row.difference,
        "low": low,
        "high": high,
        "test": row.test,
        "p": row.p,
        "p_holm": row.p_holm,
        "n": row.n,
        "seeds": seeds.n,
        "consistent": row.consistent,
        "seed_low": seeds.interval[0],
        "seed_high": seeds.interval[1],
        "seed_t_p": seeds.p,
        "seed_t_p_holm": row.p_seeds_holm,
        "seed_wilcoxon_p": seeds.p_wilcoxon,
        "seed_d_z": seeds.d_z,
        "significant_over": row.evidence,
    }


def _p(p: float) -> str:
    return "" if math.isnan(p) else shown_p(p).removeprefix("= ")


def over_datasets(runs: Runs, measured: Mapping[str, Cells]) -> Section:
    """Show the tests over data sets, if there are several."""
    section = Section("Comparison over data sets")
    for metric in PRIMARY:
        cells = measured.get(metric, {})
        sets = [d for d in runs.datasets if any(key[0] == d for key in cells)]
        methods = [m for m in runs.methods if all((d, m) in cells for d in sets)]
        if len(sets) < 2 or len(methods) < 2:
            continue
        result = compare_over_sets([[cells[d, m].mean for m in methods] for d in sets])
        text = f"{_title(metric)} over {len(sets)} data sets"
        if not math.isnan(result.friedman_p):
            text += f": Friedman p {shown_p(result.friedman_p)}"
        if len(sets) < FEW_SETS:
            text += (
                f". With {len(sets)} data sets the smallest possible p of a pair is "
                f"{result.smallest_p:.2g}, after Holm's correction {result.smallest_p_holm:.2g}"
            )
        incomplete = [m for m in runs.methods if m not in methods and any(k[1] == m for k in cells)]
        if incomplete:
            text += f". Not on all data sets, ignored: {', '.join(incomplete)}"
        section.text.append(f"{text}.")
        figure = grid_figures.ranks(result, methods)
        section.figure(f"ranks-{metric}", figure, f"Mean ranks by {METRICS[metric].name}")
        shown, values = [], []
        for pair in result.pairs:
            first, second = methods[pair.first], methods[pair.second]
            effect = "" if math.isnan(pair.effect) else f"{pair.effect:+.2f}"
            texts = {"pair": f"{first} − {second}", "mean difference": f"{pair.difference:+.3f}"}
            texts |= {"p": _p(pair.p), "p (Holm)": _p(pair.p_holm), "rank-biserial": effect}
            shown.append(texts)
            numbers = {"first": first, "second": second, "difference": pair.difference}
            numbers |= {"p": pair.p, "p_holm": pair.p_holm, "rank_biserial": pair.effect}
            values.append(numbers)
        title = f"{_title(metric)} over {result.sets} data sets, Wilcoxon signed-rank test"
        section.tables.append(Table.of(f"sets-{metric}", title, shown, values))
    return section
