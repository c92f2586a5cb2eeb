"""Run folders without any training, in the layout of `medduet.runs.folder.RunFolder`."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike

from medduet.metrics.classification import classification_metrics
from medduet.metrics.summaries import reconstruction_summary, segmentation_summary
from medduet.utils.files import write_json, write_text

WriteRun = Callable[..., Path]


@pytest.fixture(scope="session")
def write_run() -> WriteRun:
    """See `_write_run`."""
    return _write_run


def _write_run(
    path: Path,
    *,
    data: str = "fakemnist",
    model: str = "vovunet_var",
    seed: int = 0,
    tasks: Sequence[str] = ("classify",),
    label: ArrayLike | None = None,
    probability: ArrayLike | None = None,
    dice: ArrayLike | None = None,
    present: ArrayLike | None = None,
    has_mask: ArrayLike | None = None,
    mse: ArrayLike | None = None,
    test_selected: ArrayLike | None = None,
    epochs: int = 3,
    protocol: str = "honest",
    size: int = 28,
    class_names: Sequence[str] = (),
    environment: Mapping[str, Any] | None = None,
    finished: bool = True,
    bootstrap: int = 0,
) -> Path:
    """Write a run whose val and test answers are the same, and return its folder.

    `label` is ``(N,)`` or ``(N, K)``, `probability` ``(N, K)``, `dice` and `present` (whether the
    true mask has any pixel, by default everywhere) ``(N, M)``, `mse` ``(N,)``; `test_selected` are
    the probabilities of the epoch that the test split selected, for the protocol ``"paper"``.
    `environment` is added to ``environment.json``; ``{"network": {...}}`` gives costs.
    """
    given = [array for array in (probability, dice, mse) if array is not None]
    n = len(np.asarray(given[0]))
    truth = np.zeros(n, int) if label is None else np.asarray(label)
    several = truth.ndim == 2
    k = 0 if probability is None else np.asarray(probability).shape[1]
    m = 0 if dice is None else np.asarray(dice).shape[1]
    names = list(class_names) or [f"class {i}" for i in range(k)]
    masks = [f"mask {i}" for i in range(m)]
    there = np.ones((n, m), bool) if present is None else np.asarray(present, dtype=bool)
    known = np.ones(n, bool) if has_mask is None else np.asarray(has_mask, dtype=bool)

    def columns(answers: Any) -> dict[str, Any]:
        cells: dict[str, Any] = {"index": np.arange(n)}
        if answers is not None:
            share = np.asarray(answers, dtype=float)
            if several:
                cells |= {f"label_{name}": truth[:, i] for i, name in enumerate(names)}
            else:
                cells |= {"label": truth, "predicted": share.argmax(axis=1)}
            cells |= {f"probability_{name}": share[:, i] for i, name in enumerate(names)}
        if dice is not None:
            cells["has_mask"] = known.astype(int)
            for i, name in enumerate(masks):
                cells[f"dice_{name}"] = np.asarray(dice, dtype=float)[:, i]
                cells[f"truth_pixels_{name}"] = 10.0 * there[:, i]
        if mse is not None:
            cells["mse"] = np.asarray(mse, dtype=float)
        return cells

    def summary(answers: Any) -> dict[str, Any]:
        found: dict[str, Any] = {"n": n}
        if answers is not None:
            found |= classification_metrics(
                truth, answers, multi_label=several, class_names=names, bootstrap=bootstrap
            )
        if dice is not None:
            score = np.asarray(dice, dtype=float)[known]
            found |= segmentation_summary(
                score, score, None, there[known], masks, bootstrap=bootstrap
            )
        if mse is not None:
            psnr = -10 * np.log10(np.asarray(mse, dtype=float))
            found |= reconstruction_summary({"mse": mse, "psnr": psnr, "ssim": psnr * 0})
        return found

    def judged(answers: Any, suffix: str, epoch: int) -> dict[str, Any]:
        for split in ("val", "test"):
            _write_csv(path / "predictions" / f"{split}{suffix}.csv", columns(answers))
        part = {split: summary(answers) for split in ("val", "test")}
        selection = "test-selected" if suffix else "validation-selected"
        return {"selection": selection, "selected_epoch": epoch, **part}

    metrics: dict[str, Any] = {"protocol": protocol, "seed": seed}
    honest = judged(probability, "", min(2, epochs))
    if protocol == "paper":
        other = probability if test_selected is None else test_selected
        metrics |= judged(other, "-test-selected", epochs) | {"validation_selected": honest}
    else:
        metrics |= honest
    write_json(
        path / "config.json",
        {
            "data": {"name": data, "size": size},
            "model": {"name": model},
            "objective": {"tasks": list(tasks)},
            "train": {"epochs": epochs, "seed": seed},
            "evaluate": {"protocol": protocol},
        },
    )
    described = {
        "name": data,
        "fingerprint": f"fingerprint of {data}",
        "splits": {"train": 2 * n, "val": n, "test": n},
        "size": [size, size],
        "channels": 1,
        "class_names": names,
        "mask_names": ["background", *masks] if m else [],
        "multi_label": several,
        "info": {},
    }
    write_json(path / "environment.json", {"data": described, **(environment or {})})
    rows = [
        {"epoch": e, "train": {"loss": 1 / e}, "val": {"score": e / epochs}, "seconds": 1.0}
        for e in range(1, epochs + 1)
    ]
    write_text(path / "epochs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        write_json(path / "metrics.json", metrics)
    else:
        write_text(path / "checkpoints" / "last.pt", "")
    return path


def _write_csv(path: Path, columns: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        cells = zip(*(np.asarray(column).tolist() for column in columns.values()), strict=True)
        writer.writerows(["" if cell != cell else cell for cell in row] for row in cells)
