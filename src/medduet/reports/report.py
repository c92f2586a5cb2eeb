"""The report on many runs: one page, with its tables and figures as files beside it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, combinations, groupby
from pathlib import Path

import pandas as pd
import yaml
from statsmodels.stats.proportion import proportion_confint

from medduet.errors import ConfigError, closest
from medduet.metrics.intervals import CONFIDENCE
from medduet.metrics.names import METRICS
from medduet.metrics.paired import holm, over_sets
from medduet.reports import details, figures
from medduet.reports.compare import ALPHA, Difference, differences, shown_p
from medduet.reports.grouping import Runs, group_runs, measure_all
from medduet.reports.page import Section, Table, brackets, numbers, say, write_page
from medduet.reports.style import slug
from medduet.runs.folder import find_runs
from medduet.utils.locks import exclusive, result_folder
from medduet.utils.parsing import misread, read_json

FEW_SETS = 8
PRIMARY = ("accuracy", "auc", "dice_nonempty")
"""Metrics of the summary and of the comparison over data sets: there larger is better."""
Compared = Mapping[str, Sequence[Difference]]
"""Of each data set, every method against the reference."""


def write_report(
    paths: Sequence[str | Path],
    out: Path | None = None,
    *,
    reference: str | None = None,
) -> Path:
    """Write one page on all finished runs in and under some folders; return its path.

    The folder gets ``index.html``, which needs no other file and no network, ``tables/`` (CSV,
    Markdown, LaTeX) and ``figures/`` (PNG, SVG). Only run folders are read: no data, no network,
    no GPU. Every number is of the validation-selected epoch unless it says ``test-selected``.

    Args:
        paths: folders with runs, such as that of a grid.
        out: folder to write; ``None`` for ``report`` in the first of `paths`.
        reference: the method that others are tested against; ``None`` for vovunet_var, else the
            one with most settings at their defaults, else the first by name.

    Raises:
        MissingFileError: there is no finished run.
        ConfigError: no such reference.
        DataError: the files of a run can't be read.
    """
    finished = find_runs(paths)
    out = result_folder(out) if out else result_folder(Path(paths[0]), "report")
    with misread(f"a run in {', '.join(map(str, paths))}"):
        runs = group_runs(finished, reference)
        if reference is not None and reference not in runs.methods:
            hint = closest(reference, runs.methods)
            raise ConfigError(f"unknown --reference '{reference}': {hint}")
        with exclusive(out / ".lock", wait=True):  # several processes may finish one grid
            measured, epochs = measure_all(runs), details.epochs_of(runs)
            compared = {dataset: differences(runs.of(dataset)) for dataset in runs.datasets}
            compared = {dataset: rows for dataset, rows in compared.items() if rows}
            tests = [paired_table(*each) for each in compared.items()]
            contents = [
                summary(runs, compared, [Path(path) for path in paths]),
                *scores(runs, measured),
                selection(runs),
                Section("Paired tests", tables=tests),
                over_datasets(measured),
                details.training(runs, epochs),
                details.calibration(runs),
                details.costs(runs, epochs),
                details.provenance(runs),
            ]
            return write_page(out, say("title", runs), contents, "medduet report")


def summary(runs: Runs, compared: Compared, paths: Sequence[Path]) -> Section:
    """Summarise what the tests show, and what is missing."""
    rows = [row for row in chain(*compared.values()) if row.metric in PRIMARY and row.p >= 0]
    text = [
        say("family", list(family), METRICS[metric].name, ALPHA) + "."
        for (_, metric), family in groupby(rows, key=lambda row: (row.dataset, row.metric))
    ]
    return Section("Summary", [say("overview", runs), *text, *runs.notes, *_missing(runs, paths)])


def _title(metric: str) -> str:
    name = METRICS[metric].name
    return name[0].upper() + name[1:]


def _missing(runs: Runs, paths: Sequence[Path]) -> list[str]:
    """Return failed cells of grids, unfinished runs, and methods with fewer seeds than others."""
    grids = [path for path in paths if (path / "grid.json").is_file()]
    failed = [read_json(file) for grid in grids for file in sorted(grid.glob("cells/*.json"))]
    lines = [f"Failed: {record.get('cell')}: {record.get('error')}" for record in failed]
    last = [file for path in paths for file in sorted(path.rglob("checkpoints/last.pt"))]
    if unfinished := [file.parents[1].name for file in last]:
        lines.append(f"Unfinished runs, ignored: {', '.join(unfinished)}.")
    for dataset in runs.datasets:
        counts = {group.method: len(group.runs) for group in runs.of(dataset)}
        largest = max(counts.values())
        if fewer := [f"{method} ({n})" for method, n in counts.items() if n < largest]:
            lines.append(f"{dataset}: fewer than {largest} seeds: {', '.join(fewer)}.")
    return lines


def scores(runs: Runs, measured: pd.DataFrame) -> list[Section]:
    """Show every metric that a run has, and published accuracies."""
    sections = []
    for metric, cells in measured.groupby("metric", sort=False):
        section = Section(_title(metric))
        figure = figures.bars(cells, METRICS[metric].name)
        section.figure(metric, figure, f"{section.title} on the test split")
        section.tables.append(_score_table(metric, cells))
        if metric == "accuracy" and len(published := _official(runs)):
            columns = ["dataset", "network", "accuracy", "low", "high", "auc", "protocol", "source"]
            shown = published[["dataset", "network", "protocol", "source"]]
            shown = shown.rename(columns={"dataset": "data set"})
            shares = numbers(published["accuracy"], ".2f") + brackets(published, ".2f")
            shown.insert(2, "accuracy, % (95% CI)", shares)
            auc = published["auc"].map(METRICS["auc"].format).where(published["auc"].notna(), "")
            shown.insert(3, "AUC", auc)
            title = "Published test accuracy; CI: for the number of test images"
            section.tables.append(Table("published", title, shown, published[columns]))
            section.text += published["notes"].explode().unique().tolist()
        sections.append(section)
    return sections


def _official(runs: Runs) -> pd.DataFrame:
    """Return what is published on each data set whose file has the official size and splits."""
    table, facts = all_published(), []
    for data in (runs.of(dataset)[0].first.data for dataset in runs.datasets):
        size = data.get("info", {}).get("original_size") or data.get("size", [0])
        facts.append((data.get("name"), max(size), list(data.get("splits", {}).values())))
    keys = table[["dataset", "size", "splits"]].itertuples(index=False)
    return table[[tuple(row) in facts for row in keys]]


def _score_table(metric: str, cells: pd.DataFrame) -> Table:
    """Return a row per method and a column per data set."""
    spec = f".{METRICS[metric].digits - 1}f"  # beside an interval
    spread = (" ± " + numbers(cells["sd"], spec)).where(cells["sd"].notna(), "")
    texts = numbers(cells["mean"], spec) + spread + brackets(cells, spec)
    columns = cells["dataset"] + ", n = " + cells.groupby("dataset")["n"].transform("max").map(str)
    shown = texts.groupby([cells["method"], columns], sort=False).first().unstack(sort=False)
    shown = shown[sorted(shown)].fillna("").reset_index()
    title = f"{_title(metric)} on test, mean ± s.d. over seeds (95% CI over images)"
    return Table(metric, title, shown, cells.drop(columns=["metric", "values"]))


def selection(runs: Runs) -> Section:
    """Show what selecting the epoch on test adds, where runs follow the paper's protocol."""
    section = Section("Test-selection bias")
    rows = [
        (group.dataset, group.method, run.validation_selected["test"]["accuracy"], accuracy)
        for group in runs.groups
        for run in group.runs.values()
        if run.test_selected and (accuracy := run.test_selected["test"].get("accuracy")) is not None
    ]
    if rows:
        columns = ["dataset", "method", "validation_selected", "test_selected"]
        seeds = pd.DataFrame(rows, columns=columns)
        seeds["bias"] = seeds["test_selected"] - seeds["validation_selected"]
        by_method = seeds.groupby(["dataset", "method"], sort=False)
        values = by_method.mean().assign(low=by_method["bias"].min(), high=by_method["bias"].max())
        values = values.reset_index()
        shown = {
            "data set": values["dataset"],
            "method": values["method"],
            "validation-selected": numbers(values["validation_selected"], ".3f"),
            "test-selected": numbers(values["test_selected"], ".3f"),
            "bias (range over seeds)": numbers(values["bias"], "+.3f") + brackets(values, "+.3f"),
        }
        title = "Test accuracy by how the epoch was selected"
        section.tables.append(Table("selection", title, pd.DataFrame(shown), values))
    return section


def paired_table(dataset: str, rows: Sequence[Difference]) -> Table:
    """Return the table of the comparisons on one data set."""
    values = pd.DataFrame(rows).rename(columns={"a": "reference", "b": "method"})
    values[["low", "high"]] = values.pop("interval").tolist()
    seeds = pd.DataFrame(values.pop("seeds").tolist()).rename(columns={"effect": "d_z"})
    seeds[["low", "high"]] = seeds.pop("interval").tolist()
    values = values.join(seeds.add_prefix("seed_"))
    effect = (values["effect_name"] + " ").where(values["effect"].notna(), "")
    shown = {
        "metric": values["metric"].map(lambda metric: METRICS[metric].name),
        "method": values["method"],
        "reference's mean": numbers(values["mean_a"], ".4f"),
        "method's mean": numbers(values["mean_b"], ".4f"),
        "difference (95% CI)": numbers(values["difference"], "+.4f") + brackets(values, "+.4f"),
        "effect": effect + numbers(values["effect"], ".2f"),
        "test": values["test"],
        "p": _p(values["p"]),
        "p (Holm)": _p(values["p_holm"]),
        "p over seeds": _p(values["seed_p"]),
        "p over seeds (Holm)": _p(values["p_seeds_holm"]),
        "d_z over seeds": numbers(values["seed_d_z"], "+.1f"),
        "n": numbers(values["n"], "d"),
    }
    title = f"{dataset}: {' or '.join(values['reference'].unique())} minus method"
    return Table(f"paired-{slug(dataset)}", title, pd.DataFrame(shown), values)


def _p(values: Iterable[float]) -> list[str]:
    return ["" if math.isnan(p) else shown_p(p).removeprefix("= ") for p in values]


def over_datasets(measured: pd.DataFrame) -> Section:
    """Show the tests over data sets, if there are several."""
    section = Section("Comparison over data sets")
    for metric in PRIMARY:
        cells = measured[measured["metric"] == metric].set_index(["dataset", "method"])
        means = cells["mean"].unstack(sort=False).sort_index()
        complete = means.dropna(axis=1)
        methods = list(complete)
        if len(complete) < 2 or len(methods) < 2:
            continue
        result = over_sets(complete.to_numpy())
        over = f"{_title(metric)} over {result.sets} data sets"
        friedman = "" if math.isnan(result.friedman_p) else shown_p(result.friedman_p)
        incomplete = [method for method in means if method not in methods]
        ranks = zip(methods, numbers(result.mean_ranks, ".2f"), strict=True)
        told = over, result, friedman, list(ranks), FEW_SETS, incomplete
        section.text.append(say("over_sets", *told))
        values = pd.DataFrame(combinations(methods, 2), columns=["first", "second"])
        values = values.join(pd.DataFrame(result.pairs).drop(columns=["interval", "n"]))
        values = values.rename(columns={"effect": "rank_biserial"}).assign(p_holm=holm(values["p"]))
        shown = {
            "pair": values["first"] + " − " + values["second"],
            "mean difference": numbers(values["difference"], "+.3f"),
            "p": _p(values["p"]),
            "p (Holm)": _p(values["p_holm"]),
            "rank-biserial": numbers(values["rank_biserial"], "+.2f"),
        }
        title = f"{over}, Wilcoxon signed-rank test"
        section.tables.append(Table(f"sets-{metric}", title, pd.DataFrame(shown), values))
    return section


def all_published() -> pd.DataFrame:
    """Return every published test accuracy in percent, with its 95% Wilson interval, and AUC.

    The interval is for the size of the test split: it covers neither the spread between seeds nor
    selection on test. Protocol is how the epoch was selected, notes are caveats of the set.
    """
    content = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text("utf-8"))
    rows = [
        {"dataset": dataset, "accuracy": accuracy, "auc": row.get("auc", {}).get(dataset)}
        | {"size": content["size"]}
        | {key: row[key] for key in ("network", "source", "protocol", "size") if key in row}
        for row in content["tables"]
        for dataset, accuracy in row["accuracy"].items()
    ]
    table = pd.DataFrame(rows)
    table["source"] = table["source"].map(content["sources"])
    table["splits"] = [list(content["sets"][name].values()) for name in table["dataset"]]
    notes = content["notes"]
    table["notes"] = [notes["all"] + notes.get(name, []) for name in table["dataset"]]
    # Of the share as it is printed: a mean over seeds is no whole number of images.
    n = table["splits"].str[2]
    ends = proportion_confint(table["accuracy"] / 100 * n, n, 1 - CONFIDENCE, method="wilson")
    table["low"], table["high"] = (100 * end for end in ends)
    return table
