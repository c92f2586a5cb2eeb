"""The figures of a run, drawn from its folder alone."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from medduet.reports.figures import confusion, learning_curves, reliability, roc
from medduet.reports.image_grid import UNKNOWN_MASK, prediction_grid
from medduet.reports.style import save
from medduet.runs.folder import RunFolder
from medduet.runs.predictions import Predictions


def draw_run(path: Path) -> list[Path]:
    """Draw the figures of the run in the folder `path` into ``figures/``; return their paths.

    All but the curves show the epoch that validation selected.
    """
    run = RunFolder(path)
    data, selected, other = run.data, run.validation_selected, run.test_selected
    name, test, predictions = data["name"], selected["test"], run.predictions("test")
    epochs = selected["selected_epoch"], other["selected_epoch"] if other else None
    figures = {
        "learning_curves": learning_curves(run.epochs, *epochs),
        "predictions": _sheet(run.samples, predictions, data),
    }
    label, probability = predictions.label, predictions.probability
    if label is not None and probability is not None:
        if not data["multi_label"]:
            matrix = {"": test["confusion_matrix"]}
            figures["confusion_matrix"] = confusion(matrix, data["class_names"])
        if test["auc"] is not None:
            figures["roc"] = roc(label, probability, data["class_names"], test["auc_interval"])
        if (calibration := test.get("calibration")) and calibration["n"]:
            figures["reliability"] = reliability({name: ([calibration], 1)})
    for key, figure in figures.items():
        save(figure, path / "figures" / f"{key}.png")
    return [path / "figures" / f"{key}.png" for key in figures]


def _sheet(path: Path, predictions: Predictions, data: Any) -> Figure:
    with np.load(path, allow_pickle=False) as samples:
        arrays = dict(samples)
    index, label, probability = arrays["index"], predictions.label, predictions.probability
    if "truth_masks" in arrays:
        masks, known = arrays["truth_masks"].astype(int), arrays["has_mask"]
        arrays["truth_masks"] = np.where(known[:, None, None], masks, UNKNOWN_MASK)
    return prediction_grid(
        arrays["images"],
        f"{data['name']}, the first test images of each class",
        data["class_names"],
        None if label is None else label[index],
        None if probability is None else probability[index],
        *(arrays.get(name) for name in ("truth_masks", "predicted_masks", "reconstructions")),
    )
