"""A whole run leaves what it did in its folder, and refuses what can't work before it starts."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import medmnist
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, roc_auc_score

import medduet
import medduet.training.reporter
from medduet import ConfigError, DataConfig, MedDuetError, MissingFileError, RunConfig, RunRecord
from medduet.config import parse_config
from medduet.utils.parsing import read_json

MakeConfig = Callable[..., RunConfig]


def read_table(path: Path) -> dict[str, np.ndarray]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}


def write_npz(
    path: Path, *, classes: int = 2, masks: int = 0, labels: int = 0, size: int = 16
) -> str:
    """A set of 24 / 8 / 8 images; the class shows in the brightness, the mask in a bright block."""
    rng, arrays = np.random.default_rng(0), {}
    for split, count in (("train", 24), ("val", 8), ("test", 8)):
        images = rng.integers(0, 60, (count, size, size), dtype=np.uint8)
        label = np.arange(count) % max(classes, 1)
        arrays[f"{split}_images"] = images + (label * 60).astype(np.uint8)[:, None, None]
        if labels:
            arrays[f"{split}_labels"] = rng.integers(0, 2, (count, labels)).astype(np.uint8)
            arrays[f"{split}_labels"][:2] = [[0] * labels, [1] * labels]
        elif classes:
            arrays[f"{split}_labels"] = label.astype(np.uint8)[:, None]
        if masks:
            mask = np.zeros((count, size, size), np.uint8)
            for i in range(count):
                mask[i, 2 : 9 + i % 3, 3:9] = 1 + i % (masks - 1)
            arrays[f"{split}_masks"] = mask
    np.savez_compressed(path, **arrays)
    return str(path)


# What is in the folder --------------------------------------------------------------------------


def test_settings_and_environment(finished_run: RunRecord) -> None:
    saved = read_json(finished_run.path / "config.json")
    assert parse_config(saved, "a test") == finished_run.config
    images = medduet.open_images("phantom", size=16, count=40)
    environment = read_json(finished_run.path / "environment.json")
    data = environment["data"]
    assert data["fingerprint"] == images.fingerprint
    assert data["splits"] == {"train": 28, "val": 4, "test": 8}
    assert data["class_names"] == list(images.class_names)
    assert environment["medduet"] == medduet.__version__
    assert torch.__version__.startswith(environment["libraries"]["torch"])
    assert environment["machine"]["device"] == "cpu"
    assert environment["machine"]["processes"] == 1


def test_metrics_hold_what_was_promised(finished_run: RunRecord) -> None:
    metrics = read_json(finished_run.path / "metrics.json")
    assert metrics == finished_run.metrics
    assert metrics["seed"] == 0
    names = "n accuracy accuracy_interval auc balanced_accuracy macro_f1 mse psnr ssim dice"
    for block in (metrics, metrics["validation_selected"]):
        for split, count in (("val", 4), ("test", 8)):
            assert set(names.split()) | {"dice_nonempty", "iou", "hd95"} <= set(block[split])
            assert block[split]["n"] == count
            low, high = block[split]["accuracy_interval"]
            assert low <= block[split]["accuracy"] <= high


@pytest.mark.parametrize("suffix", ["", "-test-selected"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_predictions_give_the_metrics(finished_run: RunRecord, split: str, suffix: str) -> None:
    table = read_table(finished_run.path / "predictions" / f"{split}{suffix}.csv")
    metrics = finished_run.metrics
    metrics = (metrics if suffix else metrics["validation_selected"])[split]
    truth = medduet.open_images("phantom", size=16, count=40).split(split)
    names = ("normal", "smooth", "spiculated", "ring")
    probability = np.stack([table[f"probability_{name}"] for name in names], axis=1)
    assert table["index"].tolist() == list(range(len(truth)))
    assert table["label"].tolist() == truth.labels.tolist()
    assert table["predicted"].tolist() == probability.argmax(axis=1).tolist()
    np.testing.assert_allclose(probability.sum(axis=1), 1)
    assert metrics["accuracy"] == accuracy_score(table["label"], table["predicted"])
    area = roc_auc_score(table["label"], probability, multi_class="ovr", average="macro")
    assert metrics["auc"] == pytest.approx(area)
    assert table["truth_pixels_lesion"].tolist() == (truth.masks > 0).sum(axis=(1, 2)).tolist()
    lesion = table["truth_pixels_lesion"] > 0
    assert metrics["dice"] == pytest.approx(table["dice_lesion"].mean())
    assert metrics["dice_nonempty"] == pytest.approx(table["dice_lesion"][lesion].mean())
    assert metrics["iou"] == pytest.approx(table["iou_lesion"].mean())
    dice, iou = table["dice_lesion"], table["iou_lesion"]
    np.testing.assert_allclose(dice, 2 * iou / (1 + iou))
    drawn = lesion & (table["predicted_pixels_lesion"] > 0)
    assert np.isnan(table["hd95_lesion"]).tolist() == (~drawn).tolist()
    for name in ("mse", "psnr", "ssim"):
        assert metrics[name] == pytest.approx(table[name].mean())


# Protocols --------------------------------------------------------------------------------------


def test_paper_protocol_reports_the_best_test_epoch_and_says_so(finished_run: RunRecord) -> None:
    rows = [json.loads(x) for x in (finished_run.path / "epochs.jsonl").read_text().splitlines()]
    metrics = finished_run.metrics
    accuracies = [row["test"]["accuracy"] for row in rows]
    assert (metrics["protocol"], metrics["selection"]) == ("paper", "test-selected")
    assert metrics["selected_epoch"] == 1 + accuracies.index(max(accuracies))
    assert metrics["test"]["accuracy"] == max(accuracies)
    honest = metrics["validation_selected"]
    assert honest["selection"] == "validation-selected"
    assert honest["test"]["accuracy"] == accuracies[honest["selected_epoch"] - 1]
    bundle = read_json(finished_run.path / "bundle" / "config.json")["metrics"]
    assert bundle["selection"] == "validation-selected"
    assert bundle["test"] == honest["test"]


def test_honest_protocol_never_looks_at_test_while_it_trains(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real = medduet.ImageSet.split

    def note(images: medduet.ImageSet, name: str) -> medduet.Split:
        order.append(name)
        return real(images, name)

    class Epochs(medduet.training.reporter.Reporter):
        def begin_epoch(self, epoch: int, epochs: int, steps: int) -> None:
            order.append("begin")

        def end_epoch(self, row: Mapping[str, Any]) -> None:
            assert "test" not in row
            order.append("epoch")

    monkeypatch.setattr(medduet.ImageSet, "split", note)
    record = medduet.train(make_config(tmp_path / "run"), reporter=Epochs())
    last = len(order) - order[::-1].index("epoch")
    # Before the first epoch, splits are described, and searched for images that several have.
    first = order.index("begin")
    assert "test" not in order[first:last]
    assert "test" in order[last:]
    metrics = record.metrics
    assert (metrics["protocol"], metrics["selection"]) == ("honest", "validation-selected")
    assert "validation_selected" not in metrics
    assert not list((record.path / "predictions").glob("*test-selected*"))


# Folders ----------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(file): (file.stat().st_mtime_ns, file.read_bytes())
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.mark.parametrize(("batch_size", "told"), [(28, 0), (29, 1)])
def test_a_batch_larger_than_the_set_is_told(
    make_config: MakeConfig, tmp_path: Path, batch_size: int, told: int
) -> None:
    class Messages(medduet.training.reporter.Reporter):
        def message(self, text: str) -> None:
            messages.append(text)

    messages: list[str] = []
    train = {"batch_size": batch_size, "epochs": 1}
    medduet.train(make_config(tmp_path / "run", train=train), reporter=Messages())
    assert sum("holds all 28 training images" in each for each in messages) == told


def test_a_finished_run_is_left_alone(make_config: MakeConfig, finished_run: RunRecord) -> None:
    before = contents(finished_run.path)
    assert medduet.train(resume=finished_run.path) == finished_run
    with pytest.raises(ConfigError, match=r"holds a run already.*medduet train --resume"):
        medduet.train(make_config(finished_run.path))
    assert contents(finished_run.path) == before


def test_folders_that_cannot_be_used(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no config\.json"):
        medduet.train(resume=tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        medduet.train(make_config(tmp_path / "file"))
    with pytest.raises(ConfigError, match="either"):
        medduet.train()


# Tasks and data ---------------------------------------------------------------------------------


def refused(config: RunConfig, match: str) -> None:
    with pytest.raises(MedDuetError, match=match) as caught:
        medduet.train(config)
    assert "\n" not in str(caught.value)
    assert not config.out.exists(), "something was written"


def test_what_does_not_fit_is_refused_before_anything_is_written(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    plain = {"name": write_npz(tmp_path / "plain.npz"), "count": None}
    masked = {"name": write_npz(tmp_path / "masked.npz", classes=0, masks=2), "count": None}

    def config(data: dict[str, Any], *tasks: str, **changes: dict[str, Any]) -> RunConfig:
        return make_config(out, data=data, objective={"tasks": tasks}, **changes)

    refused(config(plain, "segment"), "no masks, so there is nothing to segment")
    refused(config(plain, "classify", "segment"), "--tasks classify$")
    refused(config(masked, "classify", "segment"), r"no classes .*: --tasks segment$")
    refused(config({}, "segment", evaluate={"select": "auc"}), "auc needs the task classify")
    refused(config(plain | {"size": 15}, "classify"), "--size 16 or more")
    refused(make_config(out, data={"name": ""}), "--data")
    refused(make_config(out, data={"name": str(tmp_path / "no.npz"), "count": None}), r"no\.npz")
    refused(make_config(out, model={"name": "vovunet"}), "the closest are vovunet_var, ")


@pytest.mark.parametrize(
    ("tasks", "known", "score"),
    [
        (["segment"], {"dice", "iou", "hd95"}, "dice"),
        (["reconstruct"], {"mse", "psnr", "ssim"}, "mse"),
        (["segment", "reconstruct"], {"dice", "mse"}, "dice"),
        (["classify"], {"accuracy", "auc"}, "auc"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_any_tasks(
    make_config: MakeConfig, tmp_path: Path, tasks: list[str], known: set[str], score: str
) -> None:
    changes = {"objective": {"tasks": tasks}, "train": {"epochs": 1}}
    # RGB for one of them
    changes["data"] = {"channels": 3 if "reconstruct" in tasks else 1}
    record = medduet.train(make_config(tmp_path / "run", **changes))
    test = record.metrics["test"]
    assert known <= set(test)
    others = {"accuracy", "dice", "mse"} - known
    assert not others & set(test)
    row = json.loads((record.path / "epochs.jsonl").read_text())
    assert set(row["train"]) == {"loss", *tasks}
    assert row["val"]["score"] == pytest.approx(
        -row["val"]["mse"] if score == "mse" else row["val"][score]
    )
    network = medduet.load(record.path)
    outputs = network(torch.zeros(2, changes["data"]["channels"], 16, 16))
    assert (outputs.class_logits is not None) == ("classify" in tasks)
    dense = ("segment" in tasks) + 3 * ("reconstruct" in tasks)
    assert (0 if outputs.dense is None else outputs.dense.shape[1]) == dense
    pictures = {file.stem for file in (record.path / "figures").iterdir()}
    expected = {"learning_curves", "predictions"}
    expected |= {"confusion_matrix", "roc"} if "classify" in tasks else set()
    expected |= {"balance"} if len(tasks) > 1 else set()
    assert pictures == expected


def test_multi_label_set(make_config: MakeConfig, tmp_path: Path) -> None:
    data = {"name": write_npz(tmp_path / "many.npz", labels=3), "count": None}
    objective = {"tasks": ["classify"], "class_weights": "balanced"}
    train = {"epochs": 1}
    record = medduet.train(
        make_config(tmp_path / "run", data=data, objective=objective, train=train)
    )
    with np.load(data["name"]) as arrays:
        truth = arrays["test_labels"]
    table = read_table(record.path / "predictions" / "test.csv")
    names = list(record.metrics["test"]["per_class"])
    assert np.stack([table[f"label_{name}"] for name in names], axis=1).tolist() == truth.tolist()
    probability = np.stack([table[f"probability_{name}"] for name in names], axis=1)
    assert not np.allclose(probability.sum(axis=1), 1), "softmax instead of sigmoid"
    right = (probability > 0.5) == truth
    assert record.metrics["test"]["accuracy"] == pytest.approx(right.mean())
    area = np.mean([roc_auc_score(truth[:, k], probability[:, k]) for k in range(3)])
    assert record.metrics["test"]["auc"] == pytest.approx(area)
    row = json.loads((record.path / "epochs.jsonl").read_text())
    assert 0.2 < row["train"]["classify"] < 3
    bundle = medduet.load_bundle(record.path)
    assert bundle.config.multi_label
    assert not (record.path / "figures" / "confusion_matrix.png").exists()


def test_masks_of_several_classes(make_config: MakeConfig, tmp_path: Path) -> None:
    data = {"name": write_npz(tmp_path / "masks.npz", masks=3), "count": None, "size": 24}
    record = medduet.train(make_config(tmp_path / "run", data=data, train={"epochs": 1}))
    assert len(record.metrics["test"]["per_mask"]) == 2
    bundle = medduet.load_bundle(record.path)
    assert bundle.layout == medduet.DenseLayout(mask_classes=3, image_channels=1)
    table = read_table(record.path / "predictions" / "test.csv")
    pixels = [name for name in table if name.startswith("truth_pixels_")]
    assert [np.count_nonzero(table[name]) for name in pixels] == [4, 4]


def test_medmnist_reads_our_result_file(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "medmnist"
    root.mkdir()
    data = {"name": write_npz(root / "breastmnist.npz", size=28), "size": 28, "count": None}
    tasks = {"tasks": ["classify"]}
    record = medduet.train(
        make_config(tmp_path / "run", data=data, objective=tasks, train={"epochs": 1})
    )
    # The official evaluator looks for breastmnist.npz in its own folder.
    monkeypatch.setattr(medmnist.Evaluator.__init__, "__defaults__", (None, str(root)))
    for split in ("val", "test"):
        (path,) = (record.path / "predictions" / "medmnist").glob(f"breastmnist_{split}_*.csv")
        metrics = record.metrics[split]
        expected = f"[AUC]{metrics['auc']:.3f}_[ACC]{metrics['accuracy']:.3f}@seed0.csv"
        assert path.name == f"breastmnist_{split}_{expected}"
        ours = path.read_text()
        found = medmnist.Evaluator.parse_and_evaluate(str(path))
        area, share = found
        assert area == pytest.approx(metrics["auc"], abs=1e-6)
        assert share == pytest.approx(metrics["accuracy"], abs=1e-6)
        # It writes the file again under the name that it would have given.
        assert [file.name for file in path.parent.glob(f"*_{split}_*")] == [path.name]
        again = np.loadtxt(path, delimiter=",")
        np.testing.assert_allclose(again, np.loadtxt(ours.splitlines(), delimiter=","))


# Judging again ----------------------------------------------------------------------------------


def test_evaluate_repeats_the_run_s_own_numbers(finished_run: RunRecord, tmp_path: Path) -> None:
    found = medduet.evaluate(finished_run.path, out=tmp_path)
    assert found["test"] == finished_run.metrics["validation_selected"]["test"]
    assert read_json(tmp_path / "metrics.json") == found
    ours, theirs = (
        (folder / "predictions" / "test.csv").read_text()
        for folder in (tmp_path, finished_run.path)
    )
    assert ours == theirs


def test_evaluate_on_other_data(finished_run: RunRecord, tmp_path: Path) -> None:
    bundle = finished_run.path / "bundle"
    with pytest.raises(ConfigError, match="--data NAME"):
        medduet.evaluate(bundle)
    data = DataConfig(name="phantom", count=50, seed=7)
    found = medduet.evaluate(bundle, data=data, split="val", out=tmp_path / "other")
    assert found["val"]["n"] == 5
    assert found["data"]["size"] == [16, 16]
    with pytest.raises(ConfigError, match="takes 1 channel"):
        medduet.evaluate(bundle, data=DataConfig(name="phantom", channels=3), out=tmp_path / "no")
    two = write_npz(tmp_path / "two.npz")
    with pytest.raises(ConfigError, match="has 4 classes"):
        medduet.evaluate(bundle, data=DataConfig(name=two), out=tmp_path / "no")
    masks = write_npz(tmp_path / "masks.npz", classes=4, masks=4)
    with pytest.raises(ConfigError, match="2 mask classes"):
        medduet.evaluate(bundle, data=DataConfig(name=masks), out=tmp_path / "no")
    assert not (tmp_path / "no").exists()
    with pytest.raises(MissingFileError, match="bundle"):
        medduet.evaluate(tmp_path)


# Global state -----------------------------------------------------------------------------------


def test_global_state_is_left_alone(make_config: MakeConfig, tmp_path: Path) -> None:
    def state() -> tuple[Any, ...]:
        numpy_state = np.random.get_state()  # noqa: NPY002
        return (
            torch.get_rng_state().tolist(),
            random.getstate(),
            [numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]],
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_num_threads(),
            torch.backends.cudnn.benchmark,
        )

    before = state()
    changes = {"train": {"epochs": 1, "augment": "strong"}}
    medduet.train(make_config(tmp_path / "run", **changes))
    assert state() == before
