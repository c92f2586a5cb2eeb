"""Many runs sorted into data sets, methods and seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from medduet.config import RunConfig
from medduet.reports.folds import join_folds
from medduet.runs.folder import RunFolder
from medduet.runs.predictions import Predictions

# Settings that don't change what is measured, or that are the data set or the seed.
_IGNORED = (
    "data",
    "out",
    "train.seed",
    "train.device",
    "objective.conflict_steps",
    "evaluate.bootstrap",
    "evaluate.batch_size",
)
_TASKS = "objective.tasks"
REFERENCE = "vovunet_var"
"""The default reference: the paper's own network."""


@dataclass
class Group:
    """The runs, by seed, of one method on one data set."""

    dataset: str
    method: str
    runs: dict[int, RunFolder] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        """The seeds, in order."""
        return sorted(self.runs)

    @property
    def first(self) -> RunFolder:
        """The run of the lowest seed."""
        return self.runs[self.seeds[0]]

    def values(self, metric: str) -> list[float]:
        """Return a test metric of each seed, validation-selected epoch; [] if one lacks it."""
        parts = [self.runs[seed].validation_selected["test"] for seed in self.seeds]
        found = [part.get(metric) for part in parts]
        return [] if None in found else found

    def predictions(self) -> list[Predictions]:
        """Return the predictions on test of each seed at the validation-selected epoch."""
        return [self.runs[seed].predictions() for seed in self.seeds]


@dataclass(frozen=True)
class Runs:
    """Many runs by data set and method, the reference first; notes are on runs left out."""

    groups: list[Group]
    datasets: list[str]
    methods: list[str]
    notes: list[str]

    def of(self, dataset: str) -> list[Group]:
        """Return the groups of a data set, in the order of the methods."""
        return [group for group in self.groups if group.dataset == dataset]


def group_runs(runs: Sequence[RunFolder], reference: str | None = None) -> Runs:
    """Sort runs by data set, method and seed.

    A method is named after its network, if there are several, and the settings that differ between
    runs of one network on one data set. The `reference` comes first, by default the paper's
    network, then the method with most settings at their defaults, then the first by name.
    """
    runs, notes = join_folds(runs)
    datasets = _name_datasets(runs)
    settings = pd.DataFrame([_settings(run.config) for run in runs])  # NaN: none in that version
    differ = settings.groupby([datasets, [run.model_name for run in runs]]).nunique().gt(1).any()
    varying = sorted(path for path in settings if differ.get(path, False))
    default = _settings(RunConfig().model_dump(mode="json"))
    several = len({run.model_name for run in runs}) > 1
    groups: dict[tuple[str, str], Group] = {}
    order = {}
    for run, dataset, row in zip(runs, datasets, settings.to_dict("records"), strict=True):
        changes = {path: row[path] for path in varying if not pd.isna(row[path])}
        names = [run.model_name] * (several or not changes)
        method = " · ".join(names + [_named(path, value) for path, value in changes.items()])
        changed = sum(
            value != default.get(path) for path, value in changes.items() if path != _TASKS
        )
        order[method] = (method != reference, names[:1] != [REFERENCE], changed, method)
        group = groups.setdefault((dataset, method), Group(dataset, method))
        if run.seed in group.runs:
            notes.append(
                f"{run.path.name} duplicates {group.runs[run.seed].path.name} (same settings and "
                "seed) and is ignored."
            )
        else:
            group.runs[run.seed] = run
    methods = sorted(order, key=order.__getitem__)
    keys = [(dataset, method) for dataset in sorted(set(datasets)) for method in methods]
    found = [groups[key] for key in keys if key in groups]
    return Runs(found, sorted(set(datasets)), methods, notes)


def _name_datasets(runs: Sequence[RunFolder]) -> list[str]:
    """Name each run's data set, with size or fingerprint where names are the same."""
    names = pd.Series([run.data_name for run in runs])
    for facts in (
        [" x ".join(map(str, run.data.get("size", []))) for run in runs],
        [str(run.data.get("fingerprint", ""))[:8] for run in runs],
    ):
        several = pd.Series(facts).groupby(names).transform("nunique") > 1
        names = names.where(~several, names + ", " + facts)
    return [str(name) for name in names]


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that can make a method, by path."""
    flat = {
        f"{section}.{key}": "+".join(value) if key == "tasks" else str(value)
        for section, values in config.items()
        if section not in _IGNORED
        for key, value in (values.items() if isinstance(values, Mapping) else ())
    }
    return {path: value for path, value in flat.items() if path not in (*_IGNORED, "model.name")}


def _named(path: str, value: str) -> str:
    if path in (_TASKS, "objective.balance"):
        return value
    return f"{path.partition('.')[2].replace('_', ' ')} {value}"
