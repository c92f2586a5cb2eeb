"""The figures of a run, drawn from its folder alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medduet.files import read_json
from medduet.report.figures import confusion, learning_curves, roc
from medduet.report.sheet import prediction_sheet
from medduet.report.style import save


def draw_run(path: Path) -> list[Path]:
    """Draw the figures of the run in the folder `path` into ``figures/``; return their paths.

    Learning curves always; confusion matrix and ROC curves of the test split where there are
    classes; a sheet of test images with truth and prediction. All but the curves show the epoch
    that validation selected.
    """
    metrics = read_json(path / "metrics.json")
    data = read_json(path / "environment.json")["data"]
    epochs = [json.loads(line) for line in (path / "epochs.jsonl").read_text("utf-8").splitlines()]
    honest = metrics.get("validation_selected", metrics)
    test_epoch = metrics["selected_epoch"] if honest is not metrics else None
    figures = {"learning_curves": learning_curves(epochs, honest["selected_epoch"], test_epoch)}
    table = _read_table(path / "predictions" / "test.csv")
    label, probability = _classes(table, data)
    if probability is not None:
        if not data["multi_label"]:
            matrix = honest["test"]["confusion_matrix"]
            figures["confusion_matrix"] = confusion(matrix, data["class_names"])
        if honest["test"]["auc"] is not None:
            figures["roc"] = roc(
                label,
                probability,
                data["class_names"],
                data["multi_label"],
                honest["test"]["auc_interval"],
            )
    figures["predictions"] = _sheet(path / "samples.npz", label, probability, data)
    written = []
    for name, figure in figures.items():
        written.append(path / "figures" / f"{name}.png")
        save(figure, written[-1])
    return written


def _sheet(
    path: Path, label: NDArray[np.int64], probability: NDArray[np.float64] | None, data: Any
) -> Any:
    with np.load(path, allow_pickle=False) as samples:
        arrays = dict(samples)
    index = arrays["index"]
    predicted = None
    if probability is not None:
        each = probability[index]
        predicted = (each > 0.5).astype(np.int64) if data["multi_label"] else each.argmax(axis=1)
    return prediction_sheet(
        arrays["images"],
        label[index] if data["class_names"] else None,
        predicted,
        None if probability is None else probability[index],
        data["class_names"],
        arrays.get("truth_masks"),
        arrays.get("predicted_masks"),
        arrays.get("reconstructions"),
        f"{data['name']}, the first test images of each class",
    )


def _read_table(path: Path) -> dict[str, list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        names, *rows = csv.reader(file)
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def _classes(
    table: dict[str, list[str]], data: Any
) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
    """Return the labels ``(N,)`` or ``(N, K)`` and the probabilities ``(N, K)`` of a CSV."""
    names = data["class_names"]
    count = len(table["index"])
    if not names or f"probability_{names[0]}" not in table:
        return np.full(count, -1), None
    probability = np.array([table[f"probability_{name}"] for name in names], dtype=np.float64).T
    if data["multi_label"]:
        return np.array([table[f"label_{name}"] for name in names], dtype=np.int64).T, probability
    return np.array(table["label"], dtype=np.int64), probability
