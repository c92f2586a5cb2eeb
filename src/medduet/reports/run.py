"""The figures of a run, drawn from its folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from medduet.reports.figures import balance_curves, confusion, learning_curves, roc
from medduet.reports.image_grid import UNKNOWN_MASK, prediction_grid
from medduet.reports.reliability import Diagram, reliability_figure
from medduet.reports.style import save
from medduet.runs.reader import SplitPredictions, read_predictions
from medduet.utils.parsing import read_json, read_objects


def draw_run(path: Path) -> list[Path]:
    """Draw the figures of the run in the folder `path` into ``figures/``; return their paths.

    Learning curves always; the balance of the tasks where there are several; confusion matrix and
    ROC curves of the test split where there are classes, and a reliability diagram where they are
    calibrated; a sheet of test images with truth and prediction. All but the curves show the epoch
    that validation selected.
    """
    metrics = read_json(path / "metrics.json")
    data = read_json(path / "environment.json")["data"]
    epochs = read_objects(path / "epochs.jsonl")
    honest = metrics.get("validation_selected", metrics)
    test_epoch = metrics["selected_epoch"] if honest is not metrics else None
    figures = {"learning_curves": learning_curves(epochs, honest["selected_epoch"], test_epoch)}
    balance = read_json(path / "config.json")["objective"].get("balance", "sum")
    balanced = balance_curves(epochs, balance)
    if balanced is not None:
        figures["balance"] = balanced
    predictions = read_predictions(path / "predictions" / "test.csv")
    label, probability = predictions.label, predictions.probability
    if label is not None and probability is not None:
        names, multi_label, test = data["class_names"], data["multi_label"], honest["test"]
        if not multi_label:
            figures["confusion_matrix"] = confusion({"": test["confusion_matrix"]}, names)
        if test["auc"] is not None:
            figures["roc"] = roc(label, probability, names, multi_label, test["auc_interval"])
        if (judged := test.get("calibration")) and judged["n"]:
            figures["reliability"] = reliability_figure([Diagram(data["name"], [judged])])
    figures["predictions"] = _sheet(path / "samples.npz", predictions, data)
    for name, figure in figures.items():
        save(figure, path / "figures" / f"{name}.png")
    return [path / "figures" / f"{name}.png" for name in figures]


def _sheet(path: Path, predictions: SplitPredictions, data: Any) -> Figure:
    with np.load(path, allow_pickle=False) as samples:
        arrays = dict(samples)
    truth_masks = arrays.get("truth_masks")
    if truth_masks is not None:
        truth_masks = np.where(arrays["has_mask"][:, None, None], truth_masks, UNKNOWN_MASK)
    label = predicted = probability = None
    if predictions.label is not None and predictions.probability is not None:
        label = predictions.label[arrays["index"]]
        probability = predictions.probability[arrays["index"]]
        classes = probability > 0.5 if data["multi_label"] else probability.argmax(axis=1)
        predicted = classes.astype(np.int64)
    return prediction_grid(
        arrays["images"],
        label,
        predicted,
        probability,
        data["class_names"],
        truth_masks,
        arrays.get("predicted_masks"),
        arrays.get("reconstructions"),
        f"{data['name']}, the first test images of each class",
    )
