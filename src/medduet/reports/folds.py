"""The folds of a cross-validation as one run.

Every image is predicted once, by a network that was not trained on it.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from medduet.config import EvaluateConfig
from medduet.runs.folder import RunFolder
from medduet.runs.predictions import Predictions


class CrossValidated(RunFolder):
    """All folds of one cross-validation with one seed, judged on all images together.

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

        together = {
            split: summarize(self.predictions(split), EvaluateConfig()) for split in ("val", "test")
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
        experiments[_key(run)].append(run)
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
            notes.append(
                f"{folds[0].path.name}: {len(by_fold)} of {number} folds are finished once; each "
                "run stands for itself"
            )
    return joined, notes


def _key(run: RunFolder) -> str:
    """Return what the folds of one cross-validation have in common; other runs stand alone."""
    if not run.config["data"].get("folds"):
        return str(run.path)
    config = {key: value for key, value in run.config.items() if key != "out"}
    config["data"] = config["data"] | {"fold": 0, "cache": None}
    undivided = run.data.get("info", {}).get("undivided")
    return json.dumps({"config": config, "undivided": undivided}, sort_keys=True)
