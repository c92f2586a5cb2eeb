"""Run folders without any training, in the layout of `medduet.runs.folder.RunFolder`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike

from medduet.runs.folder import RunFolder
from medduet.runs.predictions import Predictions
from medduet.training.validation import summarize
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
    mse: ArrayLike | None = None,
    test_selected: ArrayLike | None = None,
    size: int = 28,
    class_names: Sequence[str] = (),
    environment: Mapping[str, Any] | None = None,
    finished: bool = True,
) -> Path:
    """Write a run whose val and test answers are the same, and return its folder.

    `label` is ``(N,)`` or ``(N, K)``, `probability` ``(N, K)``, `dice` and `present` (whether the
    true mask has any pixel, by default everywhere) ``(N, M)``, `mse` ``(N,)``; with
    `test_selected`, the probabilities of the epoch that the test split selected, the protocol is
    ``"paper"``. `environment` is added to ``environment.json``, its data to the data there.
    """
    arrays = {"label": label, "probability": probability, "dice": dice, "mse": mse}
    given: dict[str, Any] = {k: np.asarray(v) for k, v in arrays.items() if v is not None}
    n = len(next(iter(given.values())))
    if dice is not None:
        there = np.ones_like(given["dice"]) if present is None else np.asarray(present)
        given |= {"iou": given["dice"], "hd95": given["dice"], "has_mask": np.ones(n, bool)}
        drawn = ~np.isnan(given["dice"])
        given |= {"truth_pixels": 10 * there.astype(int), "predicted_pixels": 10 * drawn}
    if mse is not None:
        given |= {"psnr": given["mse"], "ssim": given["mse"]}
    k = given["probability"].shape[1] if probability is not None else 0
    names = tuple(class_names) or tuple(f"class {i}" for i in range(k))
    masks = tuple(f"mask {i}" for i in range(given["dice"].shape[1])) if dice is not None else ()
    predictions = Predictions(np.arange(n), class_names=names, mask_names=masks, **given)
    run = RunFolder(path)

    def judged(of: Predictions, suffix: str, epoch: int) -> dict[str, Any]:
        for split in ("val", "test"):
            of.to_csv(run.path / "predictions" / f"{split}{suffix}.csv")
        selection = "test-selected" if suffix else "validation-selected"
        summaries = {split: summarize(of) for split in ("val", "test")}
        return {"selection": selection, "selected_epoch": epoch, **summaries}

    metrics = {"seed": seed, **judged(predictions, "", 2)}
    if test_selected is not None:
        other = replace(predictions, probability=np.asarray(test_selected))
        metrics = judged(other, "-test-selected", 3) | {
            "validation_selected": metrics,
            "seed": seed,
        }
    config = {
        "data": {"name": data, "size": size},
        "model": {"name": model},
        "objective": {"tasks": list(tasks)},
        "train": {"seed": seed},
    }
    write_json(path / "config.json", config)
    described = {
        "name": data,
        "fingerprint": f"fingerprint of {data}",
        "splits": {"train": 2 * n, "val": n, "test": n},
        "size": [size, size],
        "channels": 1,
        "class_names": list(names),
        "multi_label": predictions.multi_label,
    }
    given = dict(environment or {})
    write_json(path / "environment.json", {**given, "data": described | given.get("data", {})})
    epochs = range(1, 4)
    run.write_epochs([{"epoch": e, "val": {"score": e / 3}, "seconds": 1.0} for e in epochs])
    if finished:
        write_json(path / "metrics.json", metrics)
    else:
        write_text(path / "checkpoints" / "last.pt", "")
    return path
