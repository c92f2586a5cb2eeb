"""The folds of a cross-validation as one run.

Every image is predicted once, by a network that was not trained on it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from medduet.errors import ConfigError
from medduet.metrics.classification import classification_metrics
from medduet.runs.reader import FinishedRun, Selection, SplitPredictions

_RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class CrossValidated(FinishedRun):
    """All folds of one cross-validation with one seed.

    Predictions are those of every fold, one after the other; accuracy, AUC and Dice are over all
    images together. Learning curves, samples and cost are those of the first fold.

    Attributes:
        folds: the runs, in order.
    """

    folds: tuple[FinishedRun, ...]

    @cached_property
    def honest(self) -> Mapping[str, Any]:
        """The metrics of the test images of all folds, each fold with the epoch it selected."""
        return {
            "selection": "validation-selected",
            "selected_epoch": self.folds[0].honest["selected_epoch"],
            "test": self._together("test"),
            "val": self._together("val"),
        }

    @property
    def test_selected(self) -> Mapping[str, Any] | None:
        """Not told: each fold would select on test images of its own."""
        return None

    def predictions(
        self, split: str = "test", selection: Selection = "validation"
    ) -> SplitPredictions:
        """Return what the folds answered, one after the other; errors as for one run."""
        if selection == "test":
            raise ConfigError(f"{self.path.parent}: folds together have no test-selected epoch")
        return _joined([run.predictions(split) for run in self.folds])

    def _together(self, split: str) -> dict[str, Any]:
        answers, first = self.predictions(split), self.folds[0].honest[split]
        summary: dict[str, Any] = {"n": len(answers.index)}
        if answers.label is not None and answers.probability is not None:
            summary |= classification_metrics(
                answers.label,
                answers.probability,
                multi_label=answers.label.ndim == 2,
                class_names=self.data["class_names"],
                bootstrap=_RESAMPLES,
            )
        if answers.dice is not None and answers.lesion is not None:
            known = ~np.isnan(answers.dice)
            lesion = known & answers.lesion
            summary["dice"] = float(answers.dice[known].mean())
            summary["dice_nonempty"] = float(answers.dice[lesion].mean()) if lesion.any() else None
        if answers.mse is not None:
            summary["mse"] = float(answers.mse.mean())
        return {**dict.fromkeys(first), **summary}


def _joined(answers: Sequence[SplitPredictions]) -> SplitPredictions:
    def together(name: str) -> Any:
        arrays = [getattr(each, name) for each in answers]
        return None if any(array is None for array in arrays) else np.concatenate(arrays)

    parts = {name: together(name) for name in SplitPredictions.__dataclass_fields__}
    parts["index"] = np.arange(sum(len(each.index) for each in answers))
    return SplitPredictions(**parts)


def join_folds(runs: Sequence[FinishedRun]) -> tuple[list[FinishedRun], list[str]]:
    """Return `runs` with the folds of each whole cross-validation as one, and notes on the others.

    Folds belong together if nothing but the fold differs in their settings and data.
    """
    found: dict[str, list[FinishedRun]] = defaultdict(list)
    for run in runs:
        found[_key(run) or str(run.path)].append(run)
    joined: list[FinishedRun] = []
    notes: list[str] = []
    for folds in found.values():
        wanted = folds[0].config["data"].get("folds")
        by_fold = {run.config["data"]["fold"]: run for run in folds} if wanted else {}
        if wanted and len(folds) == len(by_fold) == wanted:
            joined.append(_cross_validated([by_fold[fold] for fold in range(wanted)]))
            continue
        joined += folds
        if wanted:
            notes.append(
                f"{folds[0].path.name}: {len(by_fold)} of {wanted} folds are finished once; each "
                "run stands for itself"
            )
    return joined, notes


def _key(run: FinishedRun) -> str:
    """Return what the folds of one cross-validation have in common; empty for other runs."""
    if not run.config["data"].get("folds"):
        return ""
    config = {key: value for key, value in run.config.items() if key != "out"}
    config["data"] = config["data"] | {"fold": 0, "cache": None}
    undivided = run.data.get("info", {}).get("undivided")
    return json.dumps({"config": config, "undivided": undivided}, sort_keys=True)


def _cross_validated(folds: Sequence[FinishedRun]) -> CrossValidated:
    first, number = folds[0], len(folds)
    data = dict(first.data)
    data["name"] = f"{first.data_name}, {number} folds"
    data["fingerprint"] = f"{data['info']['undivided']} {data['info']['split']['made']}"
    data["splits"] = {
        name: sum(run.data["splits"][name] for run in folds) for name in data["splits"]
    }
    environment = {**first.environment, "data": data}
    return CrossValidated(first.path, first.config, first.metrics, environment, tuple(folds))
