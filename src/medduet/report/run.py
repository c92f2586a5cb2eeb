"""The figures of a run, drawn from its folder alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from medduet.files import read_json
from medduet.report.balance import balance_curves
from medduet.report.figures import confusion, learning_curves, roc
from medduet.report.sheet import UNKNOWN_MASK, prediction_sheet
from medduet.report.style import save

Classes = tuple[NDArray[np.int64], NDArray[np.float64]]


def draw_run(path: Path) -> list[Path]:
    """Draw the figures of the run in the folder `path` into ``figures/``; return their paths.

    Learning curves always; the balance of the tasks where there are several; confusion matrix and
    ROC curves of the test split where there are classes; a sheet of test images with truth and
    prediction. All but the curves show the epoch that validation selected.
    """
    metrics = read_json(path / "metrics.json")
    data = read_json(path / "environment.json")["data"]
    epochs = [json.loads(line) for line in (path / "epochs.jsonl").read_text("utf-8").splitlines()]
    honest = metrics.get("validation_selected", metrics)
    test_epoch = metrics["selected_epoch"] if honest is not metrics else None
    figures = {"learning_curves": learning_curves(epochs, honest["selected_epoch"], test_epoch)}
    balance = read_json(path / "config.json")["objective"].get("balance", "sum")
    balanced = balance_curves(epochs, balance)
    if balanced is not None:
        figures["balance"] = balanced
    classes = _classes(path / "predictions" / "test.csv", data)
    if classes is not None:
        names, multi_label, test = data["class_names"], data["multi_label"], honest["test"]
        if not multi_label:
            figures["confusion_matrix"] = confusion(test["confusion_matrix"], names)
        if test["auc"] is not None:
            figures["roc"] = roc(*classes, names, multi_label, test["auc_interval"])
    figures["predictions"] = _sheet(path / "samples.npz", classes, data)
    for name, figure in figures.items():
        save(figure, path / "figures" / f"{name}.png")
    return [path / "figures" / f"{name}.png" for name in figures]


def _classes(path: Path, data: Any) -> Classes | None:
    """Return the labels ``(N,)`` or ``(N, K)`` and probabilities ``(N, K)`` of a CSV, if any."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = data["class_names"]
    if not names or f"probability_{names[0]}" not in rows[0]:
        return None
    columns = [f"label_{name}" for name in names] if data["multi_label"] else ["label"]
    label = np.array([[row[column] for column in columns] for row in rows], dtype=np.int64)
    probability = np.array([[row[f"probability_{name}"] for name in names] for row in rows], float)
    return label if data["multi_label"] else label[:, 0], probability


def _sheet(path: Path, classes: Classes | None, data: Any) -> Figure:
    with np.load(path, allow_pickle=False) as samples:
        arrays = dict(samples)
    truth_masks = arrays.get("truth_masks")
    if truth_masks is not None:
        truth_masks = np.where(arrays["has_mask"][:, None, None], truth_masks, UNKNOWN_MASK)
    label = predicted = share = None
    if classes is not None:
        label, share = (array[arrays["index"]] for array in classes)
        predicted = (share > 0.5).astype(np.int64) if data["multi_label"] else share.argmax(axis=1)
    return prediction_sheet(
        arrays["images"],
        label,
        predicted,
        share,
        data["class_names"],
        truth_masks,
        arrays.get("predicted_masks"),
        arrays.get("reconstructions"),
        f"{data['name']}, the first test images of each class",
    )
