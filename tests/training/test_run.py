"""A whole run leaves what it did in its folder, and refuses what can't work before it starts."""

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
from medduet import ConfigError, MedDuetError, MissingFileError, RunConfig, RunRecord
from medduet.config import validate
from medduet.runs.folder import RunFolder
from medduet.training.reporter import Reporter
from medduet.utils.parsing import read_json

MakeConfig = Callable[..., RunConfig]


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
    assert validate(RunConfig, saved, "a test") == finished_run.config
    environment = read_json(finished_run.path / "environment.json")
    images = medduet.open_images("phantom", size=16, count=40)
    assert environment["data"]["fingerprint"] == images.fingerprint
    assert environment["data"]["splits"] == {"train": 28, "val": 4, "test": 8}
    assert environment["medduet"] == medduet.__version__
    assert (environment["machine"]["device"], environment["machine"]["processes"]) == ("cpu", 1)


@pytest.mark.parametrize("selection", ["validation", "test"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_predictions_give_the_metrics(finished_run: RunRecord, split: str, selection: Any) -> None:
    run = RunFolder(finished_run.path)
    said = run.predictions(split if selection == "validation" else f"{split}-test-selected")
    part = run.validation_selected if selection == "validation" else run.test_selected
    metrics = part[split]
    truth = medduet.open_images("phantom", size=16, count=40).split(split)
    assert said.index.tolist() == list(range(len(truth)))
    assert said.label.tolist() == truth.labels.tolist()
    np.testing.assert_allclose(said.probability.sum(axis=1), 1)
    assert metrics["n"] == len(truth)
    assert metrics["accuracy"] == accuracy_score(said.label, said.probability.argmax(axis=1))
    low, high = metrics["accuracy_interval"]
    assert low <= metrics["accuracy"] <= high
    area = roc_auc_score(said.label, said.probability, multi_class="ovr", average="macro")
    assert metrics["auc"] == pytest.approx(area)
    assert said.truth_pixels[:, 0].tolist() == (truth.masks > 0).sum(axis=(1, 2)).tolist()
    lesion = said.truth_pixels > 0
    assert metrics["dice"] == pytest.approx(np.nanmean(said.dice))
    assert metrics["dice_nonempty"] == pytest.approx(said.dice[lesion].mean())
    assert metrics["iou"] == pytest.approx(np.nanmean(said.iou))
    np.testing.assert_allclose(said.dice, 2 * said.iou / (1 + said.iou))
    drawn = lesion & (said.predicted_pixels > 0)
    assert np.isnan(said.hd95).tolist() == (~drawn).tolist()
    for name in ("mse", "psnr", "ssim"):
        assert metrics[name] == pytest.approx(getattr(said, name).mean())


# Protocols --------------------------------------------------------------------------------------


def test_honest_protocol_never_looks_at_test_while_it_trains(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real = medduet.ImageSet.split

    def note(images: medduet.ImageSet, name: str) -> medduet.Split:
        order.append(name)
        return real(images, name)

    class Epochs(Reporter):
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


def test_a_finished_run_is_left_alone(make_config: MakeConfig, finished_run: RunRecord) -> None:
    def contents() -> dict[Path, tuple[int, bytes]]:
        files = [file for file in finished_run.path.rglob("*") if file.is_file()]
        return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}

    before = contents()
    assert medduet.train(resume=finished_run.path) == finished_run
    with pytest.raises(ConfigError, match=r"holds a run already.*medduet train --resume"):
        medduet.train(make_config(finished_run.path))
    assert contents() == before


def test_folders_that_cannot_be_used(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no config\.json"):
        medduet.train(resume=tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        medduet.train(make_config(tmp_path / "file"))
    with pytest.raises(ConfigError, match="either"):
        medduet.train()


# Tasks and data ---------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_before_anything_is_written(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    plain = {"name": write_npz(tmp_path / "plain.npz"), "count": None}
    masked = {"name": write_npz(tmp_path / "masked.npz", classes=0, masks=2), "count": None}
    best = {"train": {"preset": "best"}, "evaluate": {"protocol": "paper"}}
    twice = {"train": {"sampling": "balanced"}, "objective": {"class_weights": "balanced"}}
    for match, data, tasks, changes in (
        ("no masks, so there is nothing to segment", plain, ["segment"], {}),
        ("--tasks classify$", plain, ["classify", "segment"], {}),
        (r"no classes .*: --tasks segment$", masked, ["classify", "segment"], {}),
        ("auc needs the task classify", {}, ["segment"], {"evaluate": {"select": "auc"}}),
        ("--size 16 or more", plain | {"size": 15}, ["classify"], {}),
        ("--data", {"name": ""}, ["classify"], {}),
        (r"no\.npz", {"name": str(tmp_path / "no.npz"), "count": None}, ["classify"], {}),
        ("rise again", {}, ["classify"], {"train": {"cosine_epochs": 1, "epochs": 2}}),
        ("no epoch on test", {}, ["classify"], best),
        ("given no classes", masked, ["segment"], {"train": {"sampling": "balanced"}}),
        ("count rare classes twice", {}, ["classify"], twice),
        ("the closest are vovunet_var, ", {}, ["classify"], {"model": {"name": "vovunet"}}),
    ):
        objective = {"tasks": tasks} | changes.pop("objective", {})
        config = make_config(tmp_path / "run", data=data, objective=objective, **changes)
        with pytest.raises(MedDuetError, match=match) as told:
            medduet.train(config)
        assert "\n" not in str(told.value)
        assert not config.out.exists(), "something was written"


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
    make_config: MakeConfig,
    listener: Any,
    tmp_path: Path,
    tasks: list[str],
    known: set[str],
    score: str,
) -> None:
    channels = 3 if "reconstruct" in tasks else 1
    config = make_config(
        tmp_path / "run",
        objective={"tasks": tasks},
        train={"epochs": 1, "batch_size": 29 if channels == 1 else 28},
        data={"channels": channels},
    )
    record = medduet.train(config, reporter=listener)
    told = any("holds all 28 training images" in text for text in listener.messages)
    assert told == (channels == 1), "a batch that is larger than the set"
    test = record.metrics["test"]
    assert known <= set(test)
    others = {"accuracy", "dice", "mse"} - known
    assert not others & set(test)
    [row] = RunFolder(record.path).epochs
    assert set(row["train"]) == {"loss", *tasks}
    value = row["val"][score]
    assert row["val"]["score"] == pytest.approx(-value if score == "mse" else value)
    outputs = medduet.load(record.path)(torch.zeros(2, channels, 16, 16))
    assert (outputs.class_logits is not None) == ("classify" in tasks)
    dense = ("segment" in tasks) + 3 * ("reconstruct" in tasks)
    assert (0 if outputs.dense is None else outputs.dense.shape[1]) == dense
    pictures = {file.stem for file in (record.path / "figures").iterdir()}
    expected = {"learning_curves", "predictions"}
    expected |= {"confusion_matrix", "roc"} if "classify" in tasks else set()
    assert pictures == expected


def test_multi_label_set(make_config: MakeConfig, tmp_path: Path) -> None:
    data = {"name": write_npz(tmp_path / "many.npz", labels=3), "count": None}
    objective = {"tasks": ["classify"], "class_weights": "balanced"}
    config = make_config(tmp_path / "run", data=data, objective=objective, train={"epochs": 1})
    record = medduet.train(config)
    with np.load(data["name"]) as arrays:
        truth = arrays["test_labels"]
    said = RunFolder(record.path).predictions("test")
    assert said.label.tolist() == truth.tolist()
    assert not np.allclose(said.probability.sum(axis=1), 1), "softmax instead of sigmoid"
    right = (said.probability > 0.5) == truth
    assert record.metrics["test"]["accuracy"] == pytest.approx(right.mean())
    area = np.mean([roc_auc_score(truth[:, k], said.probability[:, k]) for k in range(3)])
    assert record.metrics["test"]["auc"] == pytest.approx(area)
    assert medduet.load_bundle(record.path).config.multi_label
    assert not (record.path / "figures" / "confusion_matrix.png").exists()


def test_masks_of_several_classes(make_config: MakeConfig, tmp_path: Path) -> None:
    data = {"name": write_npz(tmp_path / "masks.npz", masks=3), "count": None, "size": 24}
    record = medduet.train(make_config(tmp_path / "run", data=data, train={"epochs": 1}))
    assert len(record.metrics["test"]["per_mask"]) == 2
    layout = medduet.load_bundle(record.path).layout
    assert layout == medduet.DenseLayout(mask_classes=3, image_channels=1)
    pixels = RunFolder(record.path).predictions("test").truth_pixels
    assert np.count_nonzero(pixels, axis=0).tolist() == [4, 4]


def test_medmnist_reads_our_result_file(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "medmnist"
    root.mkdir()
    data = {"name": write_npz(root / "breastmnist.npz", size=28), "size": 28, "count": None}
    tasks = {"tasks": ["classify"]}
    config = make_config(tmp_path / "run", data=data, objective=tasks, train={"epochs": 1})
    record = medduet.train(config)
    # The official evaluator looks for breastmnist.npz in its own folder.
    monkeypatch.setattr(medmnist.Evaluator.__init__, "__defaults__", (None, str(root)))
    for split in ("val", "test"):
        (path,) = (record.path / "predictions" / "medmnist").glob(f"breastmnist_{split}_*.csv")
        metrics = record.metrics[split]
        expected = f"[AUC]{metrics['auc']:.3f}_[ACC]{metrics['accuracy']:.3f}@seed0.csv"
        assert path.name == f"breastmnist_{split}_{expected}"
        found = medmnist.Evaluator.parse_and_evaluate(str(path))
        assert tuple(found) == pytest.approx((metrics["auc"], metrics["accuracy"]), abs=1e-6)
        # It writes the file again under the name that it would have given.
        assert [file.name for file in path.parent.glob(f"*_{split}_*")] == [path.name]


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
    medduet.train(make_config(tmp_path / "run", train={"epochs": 1, "augment": "strong"}))
    assert state() == before
