"""The sections of a report that describe methods: training, calibration, cost, provenance."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd

from medduet.reports.figures import curves, epoch_table
from medduet.reports.grouping import CrossValidated, Runs
from medduet.reports.page import Section, Table, numbers, say

_COSTS = {
    "parameters": ("parameters / 10⁶", ".2f"),
    "gmacs": ("GMAC", ".2f"),
    "images_per_second": ("images/s", ".1f"),
    "seconds_per_epoch": ("s/epoch", ".1f"),
    "minutes": ("total min", ".1f"),
    "peak_memory_gb": ("peak memory, GB", ".2f"),
}


def epochs_of(runs: Runs) -> pd.DataFrame:
    """Return a row for each epoch of all runs: dataset, method, seed and its numbers."""
    tables = []
    for group in runs.groups:
        for seed, run in group.runs.items():
            keys = {"dataset": group.dataset, "method": group.method, "seed": seed}
            tables.append(epoch_table(run.epochs).assign(**keys))
    return pd.concat(tables, ignore_index=True)


def training(runs: Runs, epochs: pd.DataFrame) -> Section:
    """Show the epochs: validation scores, and the weights of tasks where they are learnt."""
    section = Section("Training")
    caption = "Validation score, by which epochs are selected: mean and range over seeds"
    section.figure("curves", curves(epochs, "val.score", "validation score"), caption)
    for column in sorted(name for name in epochs if name.startswith("weights.")):
        task = column.removeprefix("weights.")
        figure = curves(epochs, column, f"weight, {task}")
        section.figure(f"weights-{task}", figure, f"{task}: learnt weight of the loss")
    return section


def calibration(runs: Runs) -> Section:
    """Show the calibration error."""
    section, errors = Section("Calibration"), list[dict[str, Any]]()
    for group in runs.groups:
        folds = [x.folds if isinstance(x, CrossValidated) else [x] for x in group.runs.values()]
        tests = [run.validation_selected["test"].get("calibration") for run in chain(*folds)]
        if summaries := [summary for summary in tests if summary and summary["n"]]:
            ece = [np.mean([x[f"ece_{kind}"] for x in summaries]) for kind in ("before", "after")]
            keys = {"data set": group.dataset, "method": group.method}
            errors.append(keys | {"uncalibrated": ece[0], "calibrated": ece[1]})
    if errors:
        table = pd.DataFrame(errors)
        shown = table.assign(**{x: numbers(table[x], ".3f") for x in list(table)[2:]})
        title = "Expected calibration error on test, mean over seeds"
        section.tables.append(Table("ece", title, shown, table))
    return section


def costs(runs: Runs, epochs: pd.DataFrame) -> Section:
    """Show what each method costs: means over epochs and seeds."""
    columns = ["images_per_second", "seconds", "peak_memory_gb"]
    table = epochs.reindex(columns=["dataset", "method", "seed", *columns])
    by_method = table.groupby(["dataset", "method"], sort=False)  # in the order of runs.groups
    values = by_method[columns].mean().rename(columns={"seconds": "seconds_per_epoch"})
    values["minutes"] = by_method["seconds"].sum() / by_method["seed"].nunique() / 60
    environments = [group.first.environment for group in runs.groups]
    for key in ("parameters", "gmacs"):
        values[key] = [record.get("network", {}).get(key) for record in environments]
    values["machine"] = [_machine(record.get("machine", {})) for record in environments]
    values = values.reset_index()
    shown = {"data set": values["dataset"], "method": values["method"]}
    for key, (label, spec) in _COSTS.items():
        unit = 1e6 if key == "parameters" else 1
        shown[label] = numbers(values[key].astype(float) / unit, spec)
    shown["machine"] = values["machine"]
    title = "Cost of training: network for one image, means over epochs and seeds"
    return Section("Cost", tables=[Table("cost", title, pd.DataFrame(shown), values)])


def _machine(machine: Mapping[str, Any]) -> str:
    threads = f", {say('counted', machine['threads'], 'thread')}" if machine.get("threads") else ""
    return str(machine.get("gpu") or f"{machine.get('processor') or ''}{threads}")


def provenance(runs: Runs) -> Section:
    """Show every run, with versions and data."""
    rows = []
    for group in runs.groups:
        for seed in group.seeds:
            run = group.runs[seed]
            images = " / ".join(map(str, run.data.get("splits", {}).values()))
            fingerprint = str(run.data.get("fingerprint", ""))[:12]
            torch = run.environment.get("libraries", {}).get("torch", "?")
            versions = f"medduet {run.environment.get('medduet', '?')}, torch {torch}"
            keys = (group.dataset, group.method, str(seed), run.path.name)
            rows.append((*keys, images, fingerprint, versions))
    columns = ["data set", "method", "seed", "run", "images (train / val / test)"]
    table = pd.DataFrame(rows, columns=[*columns, "data fingerprint", "versions"])
    return Section("Provenance", tables=[Table("runs", "All runs", table, table)])
