"""Many runs sorted into data sets, methods and seeds, and what is measured of them."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medduet.config import RunConfig, by_path
from medduet.metrics.intervals import bootstrap_mean, wilson
from medduet.metrics.roc import auc_interval
from medduet.runs.folder import RunFolder
from medduet.runs.predictions import Predictions
from medduet.types import UNKNOWN_LABEL

# Settings that don't change what is measured, or that are the data set, the network or the seed.
_IGNORED = ("model.name", "train.seed", "train.device")
_TASKS = "objective.tasks"
REFERENCE = "vovunet_var"
"""The default reference: the paper's own network."""
COMPARED = ("accuracy", "auc", "dice_nonempty", "dice", "false_positive_rate", "mse")
"""Keys of the metrics of a report."""
RESAMPLES = 2000
Floats = NDArray[np.float64]


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
        values = [self.runs[seed].validation_selected["test"].get(metric) for seed in self.seeds]
        return [] if None in values else values

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
    settings = pd.DataFrame([_settings(run.config, _by_time(run)) for run in runs])  # NaN: none
    differ = settings.groupby([datasets, [run.model_name for run in runs]]).nunique().gt(1).any()
    varying = sorted(path for path in settings if differ.get(path, False))
    default = _settings(RunConfig().model_dump(mode="json"), set())
    several = len({run.model_name for run in runs}) > 1
    groups: dict[tuple[str, str], Group] = {}
    order = {}
    for run, dataset, row in zip(runs, datasets, settings.to_dict("records"), strict=True):
        changes = {path: row[path] for path in varying if not pd.isna(row[path])}
        names = [run.model_name] * (several or not changes)
        words = {path: path.partition(".")[2].replace("_", " ") for path in changes}
        words |= dict.fromkeys((_TASKS, "objective.balance"), "")
        shown = [f"{words[path]} {value}".strip() for path, value in changes.items()]
        method = " · ".join(names + shown)
        changed = sum(v != default.get(k) for k, v in changes.items() if k != _TASKS)
        order[method] = (method != reference, names[:1] != [REFERENCE], changed, method)
        group = groups.setdefault((dataset, method), Group(dataset, method))
        if run.seed in group.runs:
            twin = group.runs[run.seed].path.name
            notes.append(f"{run.path.name} duplicates {twin} (same settings and seed): ignored.")
        else:
            group.runs[run.seed] = run
    methods = sorted(order, key=order.__getitem__)
    keys = [(dataset, method) for dataset in sorted(set(datasets)) for method in methods]
    present = [groups[key] for key in keys if key in groups]
    return Runs(present, sorted(set(datasets)), methods, notes)


def _name_datasets(runs: Sequence[RunFolder]) -> list[str]:
    """Name each run's data set, with what tells it from others of that name."""
    names = pd.Series([run.data_name for run in runs])
    for facts in (
        [" x ".join(map(str, run.data.get("size", []))) for run in runs],
        ["RGB" if run.data.get("channels") == 3 else "grey" for run in runs],
        [str(run.data.get("fingerprint", ""))[:8] for run in runs],
    ):
        several = pd.Series(facts).groupby(names).transform("nunique") > 1
        names = names.where(~several, names + ", " + facts)
    return [str(name) for name in names]


def _by_time(run: RunFolder) -> set[str]:
    """Return which settings a time budget decided, by the speed of the moment."""
    is_timed = run.config["train"].get("time_budget") is not None
    return {decision["setting"] for decision in run.decisions if is_timed}


def _settings(config: Mapping[str, Any], without: Set[str]) -> dict[str, str]:
    """Return the settings that can make a method, by path."""
    return {
        path: "+".join(value) if path == _TASKS else str(value)
        for path, value in by_path(config).items()
        if path not in {*_IGNORED, *without} and not path.startswith("data.")
    }


class CrossValidated(RunFolder):
    """All folds of one cross-validation with one seed, evaluated on all images together.

    Learning curves, samples and cost are those of the first fold.
    """

    def __init__(self, folds: Sequence[RunFolder]) -> None:
        super().__init__(folds[0].path)
        self.folds = tuple(folds)

    @cached_property
    def environment(self) -> Mapping[str, Any]:
        """That of the first fold, with the images of all folds."""
        first, data = self.folds[0], dict(self.folds[0].data)
        data["name"] = f"{first.data_name}, {len(self.folds)} folds"
        data["fingerprint"] = f"{data['info']['undivided']} {data['info']['split']['made']}"
        data["splits"] = {
            name: sum(run.data["splits"][name] for run in self.folds) for name in data["splits"]
        }
        return {**first.environment, "data": data}

    @cached_property
    def validation_selected(self) -> Mapping[str, Any]:
        """The metrics of the images of all folds, each fold with the epoch it selected."""
        from medduet.training.validation import summarize  # torch: only where there are folds

        ordinal = self.config["objective"].get("ordinal", False)
        together = {
            split: summarize(self.predictions(split), ordinal=ordinal) for split in ("val", "test")
        }
        return {**self.folds[0].validation_selected, **together}

    @property
    def test_selected(self) -> None:
        """``None``: each fold would select on test images of its own."""
        return None

    def predictions(self, split: str = "test") -> Predictions:
        """Return the predictions of all folds, one after the other."""
        return Predictions.concatenate([run.predictions(split) for run in self.folds])


def join_folds(runs: Sequence[RunFolder]) -> tuple[list[RunFolder], list[str]]:
    """Return `runs` with the folds of each whole cross-validation as one, and notes on others."""
    experiments: dict[str, list[RunFolder]] = defaultdict(list)
    for run in runs:
        experiments[_experiment(run)].append(run)
    joined: list[RunFolder] = []
    notes: list[str] = []
    for folds in experiments.values():
        number = folds[0].config["data"].get("folds")
        by_fold = {run.config["data"].get("fold"): run for run in folds}
        if number and len(folds) == len(by_fold) == number:
            joined.append(CrossValidated([by_fold[fold] for fold in range(number)]))
            continue
        joined += folds
        if number:
            finished = f"{len(by_fold)} of {number} folds are finished"
            notes.append(f"{folds[0].path.name}: {finished}; each counts as a run of its own.")
    return joined, notes


def _experiment(run: RunFolder) -> str:
    """Return what folds of a cross-validation share, without what `auto` decided for each."""
    if not run.config["data"].get("folds"):
        return str(run.path)
    config = {key: value for key, value in run.config.items() if key != "out"}
    config["data"] = config["data"] | {"fold": 0, "cache": None}
    for decision in run.decisions:
        section, _, key = decision["setting"].partition(".")
        config[section] = config[section] | {key: None}
    undivided = run.data.get("info", {}).get("undivided")
    return json.dumps({"config": config, "undivided": undivided}, sort_keys=True)


class Measured(NamedTuple):
    """A metric of the test split: mean and s.d. over seeds, and its 95% interval over n images."""

    metric: str
    dataset: str
    method: str
    mean: float
    sd: float
    low: float
    high: float
    n: int
    seeds: int
    values: list[float]


def measure_all(runs: Runs) -> pd.DataFrame:
    """Return every metric that any group has, as rows of `Measured`."""
    rows = [measure(group, metric) for metric in COMPARED for group in runs.groups]
    return pd.DataFrame([row for row in rows if row], columns=Measured._fields)


def measure(group: Group, metric: str) -> Measured | None:
    """Return a metric of a group on the test split, ``None`` if its runs don't have it.

    Intervals are of the mean over seeds: accuracy Wilson's, AUC DeLong's on the logit scale, others
    a bootstrap over images, drawn within classes, the same images for every seed.
    """
    values = group.values(metric)
    if not values:
        return None
    mean = float(np.mean(values))
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    predictions = group.predictions()
    label = predictions[0].label
    scores, weights = image_scores(predictions, "accuracy" if metric == "auc" else metric)
    rows = weights.reshape(len(weights), -1).any(axis=1)
    n = int(rows.sum())
    if metric == "auc" and label is not None:
        stacked = np.array([each.probability for each in predictions])
        interval = auc_interval(label, stacked, label.ndim == 2)
    elif metric == "accuracy" and weights.ndim == 1:
        interval = wilson(round(mean * n), n)
    else:
        strata = label[rows] if label is not None and label.ndim == 1 else None
        interval = bootstrap_mean(scores[rows], weights[rows], resamples=RESAMPLES, strata=strata)
    place = (metric, group.dataset, group.method)
    return Measured(*place, mean, sd, *interval, n, len(values), values)


def image_scores(predictions: Sequence[Predictions], metric: str) -> tuple[Floats, Floats]:
    """Return the score of each image, mean over seeds, and its weight in the mean over images.

    ``(n,)`` each, or ``(n, K)`` of several labels or mask classes; not for the AUC. What is not
    labelled or does not count has weight 0. Which images count for ``dice`` depends on what is
    predicted, so it has columns for each seed.
    """
    first = predictions[0]
    if metric == "dice":
        score: Floats = np.hstack([np.asarray(each.dice) for each in predictions])
        return np.nan_to_num(score), (~np.isnan(score)).astype(float)
    name = {"accuracy": "correct", "mse": "mse", "dice_nonempty": "dice"}.get(metric, "drawn")
    score = np.mean([getattr(each, name) for each in predictions], axis=0)
    weights = np.ones(len(score), dtype=bool)
    if metric == "accuracy":
        weights = np.asarray(first.label) != UNKNOWN_LABEL
    elif metric != "mse":
        present = np.asarray(first.mask_present)
        empty = np.asarray(first.has_mask) & ~present.any(axis=1)
        weights = present if metric == "dice_nonempty" else empty
    return np.nan_to_num(score), weights.astype(float)
