"""The tables of a report, and how they are written for papers and spreadsheets."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tabulate import tabulate

from medduet.metrics.intervals import Interval
from medduet.metrics.repeats import OverSets
from medduet.reports.grouping import Group, Runs
from medduet.reports.measures import (
    MEASURES,
    Difference,
    Measured,
    SelectionGap,
    measure,
    selection_gap,
)
from medduet.reports.published import Published
from medduet.reports.verdict import shown_p

Cells = dict[str, dict[tuple[str, str], Measured]]
"""Per measure, the cell of each data set and method."""


class Table(NamedTuple):
    """One table of a report.

    Attributes:
        name: of its files.
        title: in a few words.
        header: of each column.
        rows: as they are read; a number is rounded.
        values: the same as plain numbers and words by column, for the CSV.
    """

    name: str
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    values: Sequence[Mapping[str, Any]]

    def csv(self) -> str:
        """Return it as CSV, with every digit."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.values[0]), lineterminator="\n")
        writer.writeheader()
        for row in self.values:
            writer.writerow({key: "" if _unknown(cell) else cell for key, cell in row.items()})
        return text.getvalue()

    def markdown(self) -> str:
        """Return it as a Markdown table."""
        rows = [[cell.replace("|", "\\|") for cell in row] for row in self.rows]
        return f"{tabulate(rows, self.header, 'pipe', disable_numparse=True)}\n"

    def latex(self) -> str:
        """Return it as a LaTeX tabular, for the package booktabs."""
        signs = {"±": "$\\pm$", "≤": "$\\leq$", "−": "$-$", "⁶": "$^6$"}
        table = tabulate(self.rows, self.header, "latex_booktabs", disable_numparse=True)
        text = f"% {self.title}\n{table}\n"
        for sign, word in signs.items():
            text = text.replace(sign, word)
        return text


def _unknown(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and not math.isfinite(cell))


def measure_cells(runs: Runs) -> Cells:
    """Return every measure of every group that has it."""
    cells: Cells = {}
    for name in MEASURES:
        for key, group in runs.groups.items():
            if (cell := measure(group, name)) is not None:
                cells.setdefault(name, {})[key] = cell
    return cells


def scores(name: str, cells: Cells, runs: Runs) -> Table:
    """Return the table of one measure: a row per method, a column per data set."""
    of = cells[name]
    datasets = [dataset for dataset in runs.datasets if any(key[0] == dataset for key in of)]
    methods = [method for method in runs.methods if any(key[1] == method for key in of)]
    rows = [[m] + [shown_cell(of.get((dataset, m))) for dataset in datasets] for m in methods]
    values = [
        {"dataset": d, "method": m, "mean": cell.mean, "sd": cell.spread}
        | {
            "low": cell.interval[0],
            "high": cell.interval[1],
            "n": cell.n,
            "seeds": len(cell.values),
        }
        for m in methods
        for d in datasets
        if (cell := of.get((d, m))) is not None
    ]
    counts = {key[0]: cell.n for key, cell in of.items()}
    return Table(
        name,
        f"{MEASURES[name]} on test, mean ± s.d. over seeds (95% interval over images)",
        ["method"] + [f"{dataset}, n = {counts[dataset]}" for dataset in datasets],
        rows,
        values,
    )


def shown_cell(cell: Measured | None) -> str:
    """Return mean, spread over seeds and interval as they are read."""
    if cell is None:
        return ""
    spread = "" if math.isnan(cell.spread) else f" ± {cell.spread:.3f}"
    return f"{cell.mean:.3f}{spread}{_interval(cell.interval)}"


def _interval(interval: Interval, digits: int = 3) -> str:
    low, high = interval
    return "" if math.isnan(low) else f" ({low:.{digits}f} to {high:.{digits}f})"


def gaps(runs: Runs) -> Table | None:
    """Return what selecting the epoch on test adds, per cell; ``None`` if it was never tried."""
    found: list[tuple[Group, SelectionGap]] = []
    for dataset in runs.datasets:
        for group in runs.of(dataset):
            if (gap := selection_gap(group)) is not None:
                found.append((group, gap))
    if not found:
        return None
    rows, values = [], []
    for group, gap in found:
        mean = sum(gap.gaps) / len(gap.gaps)
        low, high = min(gap.gaps), max(gap.gaps)
        rows.append(
            [
                group.dataset,
                group.method,
                f"{gap.honest:.3f}",
                f"{gap.test_selected:.3f}",
                f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
            ]
        )
        values.append(
            {"dataset": group.dataset, "method": group.method}
            | {"validation_selected": gap.honest, "test_selected": gap.test_selected}
            | {"gap": mean, "lowest": low, "highest": high}
        )
    return Table(
        "selection",
        "Accuracy by the split that selects the epoch; gap in points, mean and range over seeds",
        ["data set", "method", "validation-selected", "test-selected", "gap"],
        rows,
        values,
    )


def paired(found: Sequence[Difference], name: str, title: str) -> Table:
    """Return the table of paired comparisons with the reference."""
    rows, values = [], []
    for row in found:
        scale, digits = (100, 1) if row.measure == "accuracy" else (1, 3)
        low, high = (scale * end for end in row.interval)
        seeds = row.seeds
        rows.append(
            [
                MEASURES[row.measure],
                row.reference,
                row.method,
                f"{scale * row.difference:+.{digits}f}{_interval((low, high), digits)}",
                row.test,
                *(_p(p) for p in (row.p, row.p_holm, seeds.p, row.p_seeds_holm)),
                "" if math.isnan(seeds.d_z) else f"{seeds.d_z:+.1f}",
                row.evidence,
                str(row.n),
            ]
        )
        values.append(
            {"dataset": row.dataset, "reference": row.reference, "method": row.method}
            | {"measure": row.measure, "difference": row.difference}
            | {"low": row.interval[0], "high": row.interval[1], "test": row.test, "p": row.p}
            | {"p_holm": row.p_holm, "n": row.n, "seeds": seeds.n}
            | {"seed_low": seeds.interval[0], "seed_high": seeds.interval[1], "seed_t_p": seeds.p}
            | {"seed_t_p_holm": row.p_seeds_holm, "seed_wilcoxon_p": seeds.p_wilcoxon}
            | {"seed_d_z": seeds.d_z, "evidence": row.evidence}
        )
    header = ["measure", "reference", "method", "reference minus method", "test over images"]
    header += ["p", "p, Holm", "p over seeds", "p, Holm", "d_z over seeds", "evidence", "n"]
    return Table(name, title, header, rows, values)


def _p(p: float) -> str:
    return "" if math.isnan(p) else shown_p(p).removeprefix("= ")


def over_datasets(result: OverSets, methods: Sequence[str], measure_name: str) -> Table:
    """Return the table of all pairs over data sets."""
    rows = [
        [
            f"{methods[pair.first]} − {methods[pair.second]}",
            f"{pair.difference:+.3f}",
            _p(pair.p),
            _p(pair.p_holm),
            "" if math.isnan(pair.effect) else f"{pair.effect:+.2f}",
        ]
        for pair in result.pairs
    ]
    values = [
        {"first": methods[pair.first], "second": methods[pair.second]}
        | {"difference": pair.difference, "p": pair.p, "p_holm": pair.p_holm}
        | {"rank_biserial": pair.effect}
        for pair in result.pairs
    ]
    return Table(
        f"sets-{measure_name}",
        f"{MEASURES[measure_name]} over {result.sets} data sets, Wilcoxon signed-rank",
        ["pair", "mean difference", "p", "p, Holm", "rank-biserial"],
        rows,
        values,
    )


def cost(runs: Runs) -> Table:
    """Return what each method costs: means over its seeds."""
    rows, values = [], []
    for dataset in runs.datasets:
        for group in runs.of(dataset):
            network = group.first.environment.get("network", {})
            machine = group.first.environment.get("machine", {})
            epochs = [row for run in group.runs.values() for row in run.epochs]
            numbers = {
                "parameters": network.get("parameters"),
                "gmacs": network.get("gmacs"),
                "images_per_second": _mean([row.get("images_per_second") for row in epochs]),
                "seconds_per_epoch": _mean([row.get("seconds") for row in epochs]),
                "minutes": _mean(
                    [sum(row["seconds"] for row in run.epochs) / 60 for run in group.runs.values()]
                ),
                "peak_memory_gb": _mean([row.get("peak_memory_gb") for row in epochs]),
            }
            device = str(machine.get("gpu") or machine.get("processor") or "")
            threads = machine.get("threads")
            if machine.get("gpu") is None and threads:
                device += f", {threads} thread(s)"
            rows.append(
                [
                    dataset,
                    group.method,
                    "" if numbers["parameters"] is None else f"{numbers['parameters'] / 1e6:.2f}",
                    *(
                        "" if numbers[key] is None else f"{numbers[key]:.{digits}f}"
                        for key, digits in (
                            ("gmacs", 2),
                            ("images_per_second", 1),
                            ("seconds_per_epoch", 1),
                            ("minutes", 1),
                            ("peak_memory_gb", 2),
                        )
                    ),
                    device,
                ]
            )
            values.append(
                {"dataset": dataset, "method": group.method, **numbers, "machine": device}
            )
    return Table(
        "cost",
        "Cost of training: the network for one image, and means over epochs and seeds",
        [
            "data set",
            "method",
            "parameters / 10⁶",
            "GMAC",
            "images/s",
            "s/epoch",
            "min in all",
            "peak memory, GB",
            "machine",
        ],
        rows,
        values,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def published_table(found: Sequence[Published]) -> Table:
    """Return the published numbers that stand beside ours."""
    rows = [
        [
            each.set,
            each.network,
            f"{each.accuracy:.2f}",
            f"{each.interval[0]:.2f} to {each.interval[1]:.2f}",
            each.protocol,
            each.source,
        ]
        for each in found
    ]
    values = [
        {"dataset": each.set, "network": each.network, "accuracy": each.accuracy}
        | {"low": each.interval[0], "high": each.interval[1]}
        | {"protocol": each.protocol, "source": each.source}
        for each in found
    ]
    return Table(
        "published",
        "Published test accuracy (%) at 224 pixels, with the interval that n test images imply",
        ["data set", "network", "accuracy", "95% interval", "protocol", "source"],
        rows,
        values,
    )
