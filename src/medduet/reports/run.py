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
from medduet.runs.folder import RunFolder
from medduet.runs.predictions import Predictions


def draw_run(path: Path) -> list[Path]:
    """Draw the figures of the run in the folder `path` into ``figures/``; return their paths.

    Learning curves always; the balance of the tasks where there are several; confusion matrix and
    ROC curves of the test split where there are classes, and a reliability diagram where they are
    calibrated; a sheet of test images with truth and prediction. All but the curves show the epoch
    that validation selected.
    """
    run = RunFolder(path)
    data, selected = run.data, run.validation_selected
    test_epoch = None if run.test_selected is None else run.test_selected["selected_epoch"]
    curves = learning_curves(run.epochs, selected["selected_epoch"], test_epoch)
    figures = {"learning_curves": curves}
    balanced = balance_curves(run.epochs, run.config["objective"].get("balance", "sum"))
    if balanced is not None:
        figures["balance"] = balanced
    predictions = run.predictions("test")
    label, probability = predictions.label, predictions.probability
    if label is not None and probability is not None:
        names, multi_label, test = data["class_names"], data["multi_label"], selected["test"]
        if not multi_label:
            figures["confusion_matrix"] = confusion({"": test["confusion_matrix"]}, names)
        if test["auc"] is not None:
            figures["roc"] = roc(label, probability, names, multi_label, test["auc_interval"])
        if (calibration := test.get("calibration")) and calibration["n"]:
            figures["reliability"] = reliability_figure([Diagram(data["name"], [calibration])])
    figures["predictions"] = _sheet(run.samples, predictions, data)
    for name, figure in figures.items():
        save(figure, path / "figures" / f"{name}.png")
    return [path / "figures" / f"{name}.png" for name in figures]


def _sheet(path: Path, predictions: Predictions, data: Any) -> Figure:
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
