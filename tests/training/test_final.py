"""The calibration of a run: from its validation predictions to its bundle, metrics and figures."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import medduet
from medduet import RunConfig, RunRecord
from medduet.runs.folder import RunFolder, open_run
from medduet.training import final
from medduet.uncertainty.calibration import Calibration, calibration_summary
from medduet.utils.files import finite
from medduet.utils.parsing import read_json

MakeConfig = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def calibrated_run(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """A run of the paper's protocol with enough validation images; look, don't touch."""
    data = {"count": 260}
    changes = {"objective": {"tasks": ["classify"]}, "evaluate": {"protocol": "paper"}}
    out = tmp_path_factory.mktemp("calibrated") / "run"
    return medduet.train(
        make_config(out, data=data, train={"learning_rate": 0.01, "epochs": 4}, **changes)
    )


@pytest.mark.parametrize("selection", ["validation", "test"])
def test_each_epoch_is_calibrated_on_val_and_judged_on_test(
    calibrated_run: RunRecord, selection: str
) -> None:
    run = open_run(calibrated_run.path)
    suffix = "" if selection == "validation" else "-test-selected"
    val, test = (run.predictions(f"{split}{suffix}") for split in ("val", "test"))
    calibration = Calibration.fit(val.label, val.probability)
    part = run.validation_selected if selection == "validation" else run.test_selected
    expected = calibration_summary(
        calibration, test.label, test.probability, run.data["class_names"]
    )
    assert part["test"]["calibration"] == finite(expected)
    assert part["test"]["calibration"]["n"] == 52
    assert "calibration" not in part["val"]  # it was fitted there
    assert (run.path / "figures" / "reliability.png").is_file()
    if selection == "validation":  # whose weights are in the bundle
        config = read_json(run.path / "bundle" / "config.json")
        assert (config["calibration"]["n"], config["calibration_missing"]) == (26, None)
        assert config["calibration"] == calibration.model_dump(mode="json")


def test_evaluate_takes_the_calibration_of_the_bundle(
    calibrated_run: RunRecord, tmp_path: Path
) -> None:
    run = open_run(calibrated_run.path)
    again = medduet.evaluate(run.path, split="test", out=tmp_path / "a", device="cpu")
    assert finite(again["test"]["calibration"]) == run.validation_selected["test"]["calibration"]
    # On images that are unlike those it was fitted on, with the same thresholds.
    data = medduet.DataConfig(name="phantom", count=60, seed=5, size=16)
    bundle = tmp_path / "bundle"
    shutil.copytree(run.path / "bundle", bundle)
    other = medduet.evaluate(bundle, data=data, split="all", out=tmp_path / "b", device="cpu")
    said = np.genfromtxt(tmp_path / "b" / "predictions" / "all.csv", delimiter=",", names=True)
    probability = np.stack([said[f"probability_{name}"] for name in run.data["class_names"]], 1)
    saved = medduet.load_bundle(bundle).config.calibration
    assert saved is not None
    label = said["label"].astype(int)
    chosen = saved.sets(saved.calibrate(probability), 0.9)
    held = other["all"]["calibration"]["sets"]["0.90"]
    assert held["n"] == 60
    assert held["coverage"] == chosen[np.arange(60), label].mean()


def test_too_few_validation_images_are_told(finished_run: RunRecord) -> None:
    config = read_json(finished_run.path / "bundle" / "config.json")
    why = "expected 20 labelled images or more, given 4"
    assert (config["calibration"], config["calibration_missing"]) == (None, why)
    honest = finished_run.metrics["validation_selected"]
    assert honest["calibration_missing"] == why
    assert "calibration" not in honest["test"]
    assert not (finished_run.path / "figures" / "reliability.png").exists()


def test_samples_need_no_more_memory_than_the_evaluation(
    finished_run: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, sizes = medduet.load_bundle(finished_run.path), list[int]()
    bundle.network.register_forward_hook(lambda module, inputs, _: sizes.append(len(inputs[0])))
    monkeypatch.setattr(final, "evaluation_batch_size", lambda *_: 3)
    folder, data = RunFolder(tmp_path), medduet.open_images(finished_run.config.data)
    final.write_samples(folder, bundle.network, data, bundle.layout)
    assert sizes == [3, 3, 2]
    drawn, expected = (np.load(run / "samples.npz") for run in (tmp_path, finished_run.path))
    assert all(np.array_equal(drawn[name], expected[name]) for name in expected)
