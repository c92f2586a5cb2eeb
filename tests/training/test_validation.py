"""Judging: the order of the split, the score of the selection, and any number of processes."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from safetensors.torch import load_file
from torch import Tensor, nn

import medduet
from medduet import DenseLayout, ObjectiveConfig, Outputs, RunConfig
from medduet.cli import main
from medduet.data.imageset import ImageSet
from medduet.data.sources import open_images
from medduet.losses.objective import Objective
from medduet.models.base import DuetNetwork
from medduet.models.normalize import Normalize
from medduet.runs.folder import RunFolder
from medduet.runs.predictions import Loss, Predictions
from medduet.training.experiment import Experiment
from medduet.training.loop import fit
from medduet.training.validation import (
    _in_pieces,
    predict_split,
    quick_metrics,
    selection_score,
    summarize,
)
from medduet.types import Batch
from medduet.utils.parsing import read_json

MakeConfig = Callable[..., RunConfig]


class Plain(DuetNetwork):
    """A network without batch normalisation, whose step is the same on any number of processes."""

    def __init__(self) -> None:
        super().__init__()
        self.normalize = Normalize(1)
        self.features = nn.Conv2d(1, 6, 3, padding=1)
        self.class_head = nn.Linear(6, 4)
        self.dense_head = nn.Conv2d(6, 2, 1)

    @property
    def encoder_modules(self) -> list[nn.Module]:
        return [self.features]

    def forward(self, image: Tensor) -> Outputs:
        """Return both heads."""
        features = self.features(self.normalize(image)).relu()
        return Outputs(self.class_head(features.mean(dim=(2, 3))), self.dense_head(features))


def test_a_batch_that_memory_does_not_hold_is_halved() -> None:
    images = open_images("phantom", size=16, count=40).train
    asked: list[int] = []

    def judge(batch: Batch) -> dict[str, Tensor]:
        asked.append(len(batch.indices))
        if len(batch.indices) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        assert batch.mask is not None
        return {"place": batch.indices, "pixels": batch.mask.sum(dim=(1, 2))}

    batch = images.batch(np.arange(2, 13))
    parts = list(_in_pieces(judge, batch))
    assert asked == [11, 5, 2, 3, 6, 3, 3]
    assert torch.cat([part["place"] for part in parts]).tolist() == list(range(2, 13))
    expected = np.asarray(images.masks)[2:13].sum(axis=(1, 2), dtype=int)
    assert torch.cat([part["pixels"] for part in parts]).tolist() == expected.tolist()

    def never(batch: Batch) -> dict[str, Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        list(_in_pieces(never, batch))


def uneven_images() -> ImageSet:
    """Phantoms with unknown labels and masks; 22 in train make batches of 8, 8 and 6."""
    images = open_images("phantom", size=16, count=31)
    train = images.train
    train.labels[2:9] = -1
    known = np.arange(len(train)) % 3 > 0
    object.__setattr__(train, "has_mask", known)
    return images


def fit_plain(config: RunConfig, fabric: Fabric) -> dict[str, Tensor]:
    torch.manual_seed(0)
    network, layout = Plain(), DenseLayout(2, 1)
    objective = Objective(config.objective, layout, torch.tensor([1.0, 4.0, 0.5, 2.0]))
    fit(Experiment(fabric, config, uneven_images(), network, objective, RunFolder(config.out)))
    return network.state_dict()


def test_predictions_come_in_the_order_of_the_split() -> None:
    images, network = open_images("phantom", size=16, count=40), Plain().train()
    layout, fabric = DenseLayout(2, 1), Fabric(accelerator="cpu", devices=1)
    whole = images.test.batch(np.arange(8))
    expected = network(whole.image)
    for size in (1, 3, 64):
        found = predict_split(
            fabric,
            network,
            images.test,
            layout,
            data=images,
            batch_size=size,
            objective=Objective(ObjectiveConfig(tasks=("classify", "segment")), layout),
        )
        assert network.training, "the mode was not given back"
        probability = expected.class_logits.softmax(dim=1).detach()
        np.testing.assert_allclose(found.probability, probability, atol=1e-6)
        assert found.label.tolist() == images.test.labels.tolist()
        pixels = (expected.dense[:, :1] > 0).sum(dim=(1, 2, 3))
        assert found.predicted_pixels[:, 0].tolist() == pixels.tolist()
        truth = (images.test.masks > 0).sum(axis=(1, 2))
        assert found.truth_pixels[:, 0].tolist() == truth.tolist()
        loss = nn.functional.cross_entropy(expected.class_logits, whole.label, reduction="none")
        np.testing.assert_allclose(found.losses["classify"].value, loss.detach(), atol=1e-5)
        error = (expected.dense[:, 1:] - (whole.image / 127.5 - 1)).square().mean(dim=(1, 2, 3))
        np.testing.assert_allclose(found.mse, error.detach(), rtol=1e-5)


def test_quick_metrics_leave_out_what_is_not_known() -> None:
    predictions = Predictions(
        np.arange(3),
        label=np.array([0, 1, -1]),
        probability=np.array([[0.9, 0.1], [0.8, 0.2], [0.5, 0.5]]),
        has_mask=np.array([True, False, True]),
        dice=np.array([[0.5], [np.nan], [1.0]]),
        losses={
            "classify": Loss(np.array([1.0, 3.0, 100.0]), np.array([1.0, 3.0, 0.0])),
            "segment": Loss(np.ones(3), np.zeros(3)),
        },
    )
    metrics = quick_metrics(predictions)
    assert metrics["accuracy"] == 0.5
    assert metrics["dice"] == 0.75
    assert metrics["classify"] == pytest.approx(2.5)
    assert np.isnan(metrics["segment"])
    unknown = replace(predictions, label=np.full(3, -1), has_mask=None, dice=None)
    assert not {"accuracy", "auc", "dice"} & set(quick_metrics(unknown))


def test_selection_score() -> None:
    nan = float("nan")
    metrics = {"auc": 0.8, "dice": 0.4, "mse": 0.1, "accuracy": 0.5, "balanced_accuracy": 0.3}
    assert selection_score(metrics, "auto") == pytest.approx(0.6)
    assert selection_score(metrics | {"auc": nan}, "auto") == 0.4
    assert selection_score({"auc": 0.8, "mse": 0.1}, "auto") == 0.8
    assert selection_score({"mse": 0.1}, "auto") == -0.1
    assert selection_score({"auc": nan, "accuracy": 0.7}, "auto") == 0.7
    for name in ("auc", "dice", "accuracy", "balanced_accuracy"):
        assert selection_score(metrics, name) == metrics[name]
    assert selection_score(metrics, "mse") == -0.1


def test_summary_names_both_kinds_of_classes() -> None:
    images = open_images("phantom", size=16, count=40)
    predictions = predict_split(
        Fabric(accelerator="cpu", devices=1),
        Plain(),
        images.val,
        DenseLayout(2, 1),
        data=images,
        batch_size=8,
    )
    summary = summarize(predictions, medduet.EvaluateConfig(bootstrap=100))
    assert list(summary["per_class"]) == list(images.class_names)
    assert list(summary["per_mask"]) == ["lesion"]
    assert summary["n"] == 4
    json.dumps(summary, allow_nan=False)


# Several processes ------------------------------------------------------------------------------


def torchrun(processes: int, *words: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", str(processes), *words],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Traceback" not in done.stderr


def assert_close(found: Any, expected: Any) -> None:
    """Numbers may differ in the last digits, since other batches go through the network."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_close(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for left, right in zip(found, expected, strict=True):
            assert_close(left, right)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-5, rel=1e-5)
    else:
        assert found == expected


def read_predictions(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def trained_by_two(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two processes; 7 images in train, 1 in val and 2 in test."""
    folder = tmp_path_factory.mktemp("two")
    config = make_config(folder, data={"count": 10}, train={"augment": "flip"})
    recipe = folder / "recipe.yaml"
    recipe.write_text(config.model_dump_json())
    torchrun(2, "-m", "medduet", "train", str(recipe), "--out", str(folder / "run"))
    return folder / "run"


@pytest.mark.slow
def test_two_processes_train_to_the_end(trained_by_two: Path) -> None:
    assert read_json(trained_by_two / "environment.json")["machine"]["processes"] == 2
    assert len((trained_by_two / "epochs.jsonl").read_text().splitlines()) == 2
    assert not (trained_by_two / "checkpoints").exists()
    for split, count in (("val", 1), ("test", 2)):
        rows = read_predictions(trained_by_two / "predictions" / f"{split}.csv")
        assert [int(row["index"]) for row in rows] == list(range(count))
        truth = open_images("phantom", size=16, count=10).split(split).labels
        assert [int(row["label"]) for row in rows] == truth.tolist()


SCRIPT = """
import importlib.util, json, sys
from pathlib import Path
from safetensors.torch import save_file
from medduet.cli import main
from medduet.config import parse_config
from medduet.training.fabric import launch_fabric
file, run, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
spec = importlib.util.spec_from_file_location("test_evaluate", file)
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
for split in ("train", "val"):
    assert main(["evaluate", run, "--split", split, "--out", str(out / split)]) == 0
config = parse_config(json.loads((out / "config.json").read_text()), "test")
fabric = launch_fabric(config.train)
weights = tests.fit_plain(config, fabric)
if fabric.is_global_zero:
    save_file(weights, out / "weights")
"""
# Adam forgets the scale of a gradient, but not beside a decay that is added to it.
PLAIN = {"epochs": 2, "learning_rate": 0.01, "grad_clip": 0.5, "weight_decay": 0.1}


@pytest.fixture(scope="module")
def three_processes(
    make_config: MakeConfig, trained_by_two: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What three processes evaluated and learnt, all in one launch."""
    out = tmp_path_factory.mktemp("three")
    config = make_config(out / "run", train=PLAIN)
    (out / "config.json").write_text(config.model_dump_json())
    (out / "script.py").write_text(SCRIPT)
    torchrun(3, str(out / "script.py"), __file__, str(trained_by_two), str(out))
    return out


# 7 images in train, so the shares differ; 1 in val, so two processes have none.
@pytest.mark.slow
@pytest.mark.parametrize(("split", "count"), [("train", 7), ("val", 1)])
def test_three_processes_judge_as_one(
    three_processes: Path, trained_by_two: Path, split: str, count: int, tmp_path: Path
) -> None:
    assert main(["evaluate", str(trained_by_two), "--split", split, "--out", str(tmp_path)]) == 0
    expected, found = (
        read_json(folder / "metrics.json") for folder in (tmp_path, three_processes / split)
    )
    assert found[split]["n"] == count
    assert_close(found, expected)
    rows = [
        read_predictions(folder / "predictions" / f"{split}.csv")
        for folder in (tmp_path, three_processes / split)
    ]
    assert [row["index"] for row in rows[1]] == [str(i) for i in range(count)]
    for left, right in zip(*rows, strict=True):
        for name, value in left.items():
            same = value == right[name] or float(right[name]) == pytest.approx(float(value), 1e-4)
            assert same, name


@pytest.mark.slow
def test_three_processes_learn_what_one_learns(
    three_processes: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    # Without batch normalisation the gradient of a step must be that of the whole batch, though
    # the processes know different numbers of labels and masks.
    config = make_config(tmp_path, train=PLAIN)
    with torch.random.fork_rng(devices=[]):
        expected = fit_plain(config, Fabric(accelerator="cpu", devices=1))
    found = load_file(three_processes / "weights")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)
    rows = [
        [json.loads(line) for line in (run / "epochs.jsonl").read_text().splitlines()]
        for run in (tmp_path, three_processes / "run")
    ]
    for left, right in zip(*rows, strict=True):
        for part in ("train", "val"):
            assert_close(right[part], left[part])


APART = """
import json, os, sys
from pathlib import Path
import medduet
from medduet.config import parse_config
run, out = sys.argv[1], Path(sys.argv[2])
rank = os.environ["RANK"]
settings = json.loads((out / "config.json").read_text())
settings["data"]["cache"] = str(out / f"cache {rank}")
config = parse_config(settings, "test")
errors = []
for act in (lambda: medduet.train(config), lambda: medduet.evaluate(run, data=config.data)):
    try:
        act()
    except medduet.ConfigError as error:
        errors.append(str(error))
(out / f"errors {rank}.json").write_text(json.dumps(errors))
"""


@pytest.mark.slow
def test_processes_with_other_splits_are_refused_in_each(
    make_config: MakeConfig, trained_by_two: Path, tmp_path: Path
) -> None:
    data = {"count": 20, "split": "made", "group_by": "none"}
    config = make_config(tmp_path / "run", data=data)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    (tmp_path / "script.py").write_text(APART)
    for rank in range(2):
        open_images(config.data.model_copy(update={"cache": tmp_path / f"cache {rank}"}))
    # As a search for duplicates on another processor may come to another split.
    (split,) = (tmp_path / "cache 1" / "splits").iterdir()
    text = split.read_text()
    split.write_text(text.replace(",val", ",x").replace(",test", ",val").replace(",x", ",test"))
    torchrun(2, str(tmp_path / "script.py"), str(trained_by_two), str(tmp_path))
    expected = (
        "expected the same images and split of phantom in all 2 processes, but process 1 has "
        "others than process 0: give them one shared cache by --data.cache, or a split by "
        "--data.split FILE.csv"
    )
    for rank in range(2):
        assert read_json(tmp_path / f"errors {rank}.json") == [expected, expected]
    assert not (tmp_path / "run").exists()
