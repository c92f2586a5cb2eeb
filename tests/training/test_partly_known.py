"""Images with only a label, a mask or a part of one train what they can, and are judged so."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

import medduet
from medduet import RunConfig, open_images
from medduet.data.batches import train_batches
from medduet.losses import objective
from medduet.reports.audit_page import write_audit
from medduet.reports.report import write_report
from medduet.runs.folder import RunFolder
from medduet.training.reporter import Reporter

MakeConfig = Callable[..., RunConfig]
BATCH = 6


def write_partly_known(path: Path, *, several: bool, val: bool, test: bool) -> str:
    """Phantoms of which every other label and every other mask is known.

    The first batch of the first epoch knows nothing, the second labels only, the third masks only.
    """
    images, arrays = open_images("phantom", size=16, count=52), {}
    for name in ("train", "val", "test"):
        split = images.split(name)
        count = len(split)
        labels = split.labels[:, None].astype(np.int64)
        if several:
            labels = (labels >= np.arange(1, 4)).astype(np.int64)
        known, has_mask = np.arange(count) % 2 == 0, np.arange(count) // 2 % 2 == 0
        if name == "train":
            for step, (label, mask) in enumerate([(0, 0), (1, 0), (0, 1)]):
                batch = train_batches(count, BATCH, seed=0, epoch=1)[step]
                known[batch], has_mask[batch] = label, mask
        elif not {"val": val, "test": test}[name]:
            known, has_mask = np.zeros((2, count), dtype=bool)
        labels[~known] = -1
        if several and name == "train":
            labels[np.flatnonzero(known)[0], 1] = -1  # a part of a label
        arrays[f"{name}_images"], arrays[f"{name}_masks"] = split.images, split.masks
        arrays[f"{name}_labels"], arrays[f"{name}_has_mask"] = labels, has_mask
    np.savez_compressed(path, **arrays)
    return str(path)


class Notes(Reporter):
    """Notes which losses of an epoch are known after each step."""

    def __init__(self) -> None:
        self.known: list[list[bool]] = []

    def step(self, images: int, losses: Callable[[], dict[str, float]]) -> None:
        self.known.append([math.isfinite(value) for value in losses().values()])


@pytest.mark.parametrize(
    ("several", "val", "test", "sampling"),
    [
        (False, True, True, "shuffle"),
        (False, False, True, "balanced"),
        (True, True, False, "balanced"),
        (True, False, False, "shuffle"),
    ],
)
def test_known_halves_train_and_are_judged(
    make_config: MakeConfig,
    epochs: Any,
    tmp_path: Path,
    several: bool,
    val: bool,
    test: bool,
    sampling: str,
) -> None:
    data = write_partly_known(tmp_path / "half.npz", several=several, val=val, test=test)
    train = {"batch_size": BATCH, "augment": "light", "sampling": sampling}
    config = make_config(tmp_path / "run", data={"name": data, "count": None}, train=train)
    notes = Notes()
    record = medduet.train(config, reporter=notes)
    if sampling == "shuffle":
        # Classes, masks and reconstruction: each head learns from what it has.
        assert notes.known[:3] == [[False, False, True], [True, False, True], [True] * 3]
    for row in epochs(record.path):
        assert all(math.isfinite(value) for value in row["train"].values())
        assert math.isfinite(row["val"]["loss"])
        assert ({"accuracy", "dice"} <= set(row["val"])) == val
    images = open_images(data)
    for name, known in (("val", val), ("test", test)):
        split, found = images.split(name), record.metrics[name]
        labelled = (split.labels.reshape(len(split), -1) >= 0).any(axis=1)
        assert (found["n"], found.get("dice_n", 0)) == (labelled.sum(), split.known_masks.sum())
        assert (found["accuracy"] is not None) == (found.get("dice") is not None) == known
        assert found["mse"] > 0
    with np.load(record.path / "samples.npz") as samples:
        assert len(samples["index"]) == 8


def test_ignored_pixels_count_nowhere(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As with wrong truth in the first five columns, and a loss that cuts them off."""
    rng, losses, loss = np.random.default_rng(0), [], objective.segmentation_loss
    for cut in (5, 0):
        images, arrays = open_images("phantom", size=16, count=40), dict[str, Any]()
        for name in ("train", "val", "test"):
            for kind in ("images", "labels", "masks"):
                arrays[f"{name}_{kind}"] = np.array(getattr(images.split(name), kind))
            arrays[f"{name}_masks"] ^= 1  # so that something is drawn everywhere
            strip = arrays[f"{name}_masks"][:, :, :5]
            strip[:] = rng.integers(0, 2, strip.shape) if cut else 255
        arrays["test_masks"][0] = 0 if cut else 255
        np.savez(data := tmp_path / f"{cut}.npz", **arrays)
        rest = lambda x, y, *z, cut=cut: loss(x[..., cut:], y[..., cut:], *z)  # noqa: E731
        monkeypatch.setattr(objective, "segmentation_loss", rest)
        changes = {"data": {"name": str(data), "count": None}, "train": {"learning_rate": 0.02}}
        run = RunFolder(medduet.train(make_config(tmp_path / str(cut), **changes)).path)
        losses.append([row["train"]["segment"] + row["val"]["loss"] for row in run.epochs])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    found = run.predictions("test")
    assert np.flatnonzero(~found.has_mask).tolist() == [0]
    with np.load(run.samples) as samples:
        for row, index in enumerate(samples["index"]):
            pair = [samples[f"{kind}_masks"][row, :, 5:].ravel() for kind in ("truth", "predicted")]
            dice = f1_score(*pair, zero_division=np.nan) if index else np.nan
            np.testing.assert_allclose(found.dice[index, 0], dice)
            assert found.predicted_pixels[index, 0] == (pair[1].sum() if index else 0)
        assert samples["predicted_masks"][:, :, :5].any()
    audit = medduet.audit(images := open_images(str(data)))
    assert write_audit(audit, images, tmp_path / "audit").is_file()
    assert write_report([run.path], tmp_path / "report").is_file()
