"""Many runs sorted into data sets, methods and seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
    "train.activation_checkpointing",
    "objective.conflict_steps",
    "evaluate.bootstrap",
    "evaluate.batch_size",
)
RESAMPLES = 2000
REFERENCE = "vovunet_var"
"""The default reference: the paper's own network."""


@dataclass
class Group:
    """The runs that differ by their seed alone.

    Attributes:
        dataset: name of the data set, unique in a report.
        method: the network, and the settings that differ among the runs.
        runs: by seed.
    """

    dataset: str
    method: str
    runs: dict[int, RunFolder] = field(default_factory=dict)
    _predictions: dict[tuple[str, int], Predictions] = field(default_factory=dict, repr=False)

    @property
    def seeds(self) -> list[int]:
        """The seeds, in order."""
        return sorted(self.runs)

    @property
    def first(self) -> RunFolder:
        """The run of the lowest seed."""
        return self.runs[self.seeds[0]]

    def predictions(
        self, split: str = "test", seeds: Sequence[int] | None = None
    ) -> list[Predictions]:
        """Return the predictions of the validation-selected epochs, by default of all seeds."""
        for seed in self.seeds if seeds is None else seeds:
            if (split, seed) not in self._predictions:
                self._predictions[split, seed] = self.runs[seed].predictions(split)
        return [self._predictions[split, seed] for seed in (self.seeds if seeds is None else seeds)]


@dataclass(frozen=True)
class Runs:
    """Many runs as a table of data sets and methods.

    Attributes:
        groups: by data set and method; not every data set needs every method.
        datasets: their names, in order.
        methods: their names, in order, the reference first.
        notes: warnings, such as runs that were left out.
    """

    groups: dict[tuple[str, str], Group]
    datasets: list[str]
    methods: list[str]
    notes: list[str]

    def of(self, dataset: str) -> list[Group]:
        """Return the groups of a data set, in the order of the methods."""
        keys = [(dataset, method) for method in self.methods]
        return [self.groups[key] for key in keys if key in self.groups]


def group_runs(runs: Sequence[RunFolder], reference: str | None = None) -> Runs:
    """Sort runs by data set, method and seed.

    The method is named after the settings that differ: the network, if there are several; the
    tasks, if they are; and any other setting that differs between runs of one network on one data
    set. A setting that only follows from the data set or the network is not named. The folds of a
    cross-validation count as one run.

    Args:
        runs: any finished runs.
        reference: the method that comes first; ``None`` for the paper's network, then the one with
            most settings at their defaults, then the first by name.
    """
    runs, notes = join_folds(runs)
    datasets = _name_datasets(runs)
    settings = [_flatten(run.config) for run in runs]
    varying = _varying(runs, settings, datasets)
    methods = _name_methods(runs, settings, varying)
    groups: dict[tuple[str, str], Group] = {}
    for run, dataset, method in zip(runs, datasets, methods, strict=True):
        group = groups.setdefault((dataset, method), Group(dataset, method))
        if run.seed in group.runs:
            notes.append(
                f"{run.path.name} duplicates {group.runs[run.seed].path.name} (same settings and "
                "seed) and is ignored."
            )
        else:
            group.runs[run.seed] = run
    changes = dict(zip(methods, _changes(settings, varying), strict=True))
    order = sorted(
        changes,
        key=lambda method: (
            method != reference,
            method.split(" · ")[0] != REFERENCE,
            changes[method],
            method,
        ),
    )
    return Runs(groups, sorted(dict.fromkeys(datasets)), order, notes)


def _name_datasets(runs: Sequence[RunFolder]) -> list[str]:
    """Name each run's data set, with size, channels or fingerprint where names are the same."""
    facts_of_runs = [
        {
            "size": " x ".join(map(str, run.data.get("size", []))),
            "channels": {1: "grey", 3: "RGB"}.get(run.data.get("channels", 0), "other channels"),
            "fingerprint": str(run.data.get("fingerprint", ""))[:8],
        }
        for run in runs
    ]
    same_name: dict[str, list[dict[str, str]]] = defaultdict(list)
    for run, facts in zip(runs, facts_of_runs, strict=True):
        same_name[run.data_name].append(facts)
    labels = []
    for run, facts in zip(runs, facts_of_runs, strict=True):
        candidates, label = same_name[run.data_name], run.data_name
        for fact, value in facts.items():
            if len({other[fact] for other in candidates}) > 1:
                label += f", {value}"
                candidates = [other for other in candidates if other[fact] == value]
        labels.append(label)
    return labels


def _flatten(config: Mapping[str, Any]) -> dict[str, Hashable]:
    """Return the settings that can make a method, by path."""
    flat: dict[str, Hashable] = {}
    for section, values in config.items():
        if section in _IGNORED or not isinstance(values, Mapping):
            continue
        for key, value in values.items():
            path = f"{section}.{key}"
            if path not in _IGNORED:
                flat[path] = tuple(value) if isinstance(value, list) else value
    return flat


def _varying(
    runs: Sequence[RunFolder], settings: Sequence[Mapping[str, Hashable]], datasets: Sequence[str]
) -> list[str]:
    """Return the settings, by path, that make methods out of one network on one data set."""
    places = [(dataset, run.model_name) for dataset, run in zip(datasets, runs, strict=True)]
    paths = sorted({path for each in settings for path in each} - {"model.name"})
    return [path for path in paths if _differs(path, settings, places)]


def _name_methods(
    runs: Sequence[RunFolder], settings: Sequence[Mapping[str, Hashable]], varying: Sequence[str]
) -> list[str]:
    several = len({run.model_name for run in runs}) > 1
    names = []
    for run, each in zip(runs, settings, strict=True):
        changes = [_setting(path, each[path]) for path in varying if path in each]
        names.append(" · ".join([run.model_name] * (several or not changes) + changes))
    return names


def _changes(settings: Sequence[Mapping[str, Hashable]], varying: Sequence[str]) -> list[int]:
    """Return how many of the varying settings of each run are not the default; tasks aside."""
    default = _flatten(RunConfig().model_dump(mode="json"))
    return [
        sum(each.get(path) != default.get(path) for path in varying if path != "objective.tasks")
        for each in settings
    ]


def _differs(
    path: str, settings: Sequence[Mapping[str, Hashable]], places: Sequence[tuple[str, str]]
) -> bool:
    """Return whether a setting differs between runs of one network on one data set."""
    seen: dict[tuple[str, str], set[Hashable]] = defaultdict(set)
    for each, place in zip(settings, places, strict=True):
        if path in each:  # an older version may not have had it
            seen[place].add(each[path])
    return any(len(values) > 1 for values in seen.values())


def _setting(path: str, value: Hashable) -> str:
    if path == "objective.tasks" and isinstance(value, tuple):
        return "+".join(map(str, value))
    name = path.partition(".")[2].replace("_", " ")
    return str(value) if path == "objective.balance" else f"{name} {value}"
