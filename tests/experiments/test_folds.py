"""The preset ``best``: every image of train and val is held out once, and test never seen."""

import threading
from pathlib import Path
from shutil import rmtree

import numpy as np
import pandas as pd
import pytest

import medduet
from medduet import DataConfig, ModelConfig, RunConfig, TrainConfig
from medduet.errors import Interrupted
from medduet.experiments.plan import FOLDS
from medduet.models.registry import create_model
from medduet.models.weights import save_network
from medduet.runs.bundle import load_bundle
from medduet.runs.folder import find_runs, open_run
from medduet.training.reporter import Reporter


class StopInFold(Reporter):
    """Asks for a stop when a member begins."""

    def __init__(self, fold: int) -> None:
        self.stop, self.fold = threading.Event(), fold

    def message(self, text: str) -> None:
        if text.startswith(f"fold {self.fold} of"):
            self.stop.set()


def best(out: Path, **folds: int) -> RunConfig:
    config = medduet.load_recipe("demo")
    changes = {
        "data": DataConfig(name="phantom", size=16, count=80, **folds),
        "model": ModelConfig(width=3),
        "train": TrainConfig(epochs=2, learning_rate=1e-3, preset="best"),
        "out": out,
    }
    return config.model_copy(update=changes)


def test_members_leave_the_test_images_of_a_cross_validation_alone(tmp_path: Path) -> None:
    out, reporter, weights = tmp_path / "run", StopInFold(1), tmp_path / "network"
    save_network(weights, create_model("vovunet_var", in_channels=1, num_classes=3, width=3))
    model = ModelConfig(width=3, weights=str(weights))
    config = best(out, folds=4, fold=2).model_copy(update={"model": model})
    with pytest.raises(Interrupted, match=f"medduet train --resume {out}$"):
        medduet.train(config, reporter=reporter, stop=reporter.stop)
    rmtree(weights)  # which all that has begun needs no longer
    with pytest.raises(Interrupted):
        medduet.train(resume=out, reporter=reporter, stop=reporter.stop)
    tables = [pd.read_csv(folder / "split.csv") for folder in (out, out / "folds/fold0")]
    tests = [{*table["image"][table["split"] == "test"]} for table in tables]
    assert tests[0] == tests[1]


@pytest.mark.slow
def test_best_is_an_ensemble_over_folds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out, reporter = tmp_path / "run", StopInFold(3)
    with pytest.raises(Interrupted):
        medduet.train(best(out), reporter=reporter, stop=reporter.stop)
    weights = out / "folds/fold0/bundle/model.safetensors"
    before = weights.stat().st_mtime_ns
    record = medduet.train(resume=out)
    assert weights.stat().st_mtime_ns == before, "a finished member was trained again"
    data = medduet.open_images("phantom", size=16, count=80)
    splits = [
        medduet.open_images("phantom", size=16, count=80, folds=FOLDS, fold=fold, keep_test=True)
        for fold in range(FOLDS)
    ]
    held_out = np.concatenate([images.val.ids for images in splits])
    assert len(held_out) == len({*held_out}) == len(data.train) + len(data.val)
    for images in splits:
        assert np.array_equal(images.test.images[:], data.test.images)
    assert record.metrics["val"]["n"] == len(held_out)
    assert record.metrics["test"]["n"] == len(data.test)
    bundle = load_bundle(out)
    assert len(bundle.network.arguments["ensemble"]) == FOLDS
    assert bundle.network.arguments["test_time"] == "flip"
    assert bundle.config.calibration is not None
    assert bundle.config.data.folds == FOLDS
    assert [run.path for run in find_runs([tmp_path])] == [out]  # the report has no members
    assert len({run.seed for run in find_runs([out / "folds"])}) == FOLDS
    assert open_run(out).seed == 0
    assert sum(bundle.config.calibration.counts) == len(held_out)
    medduet.evaluate(out, split="val")
    assert "was trained on images of val" in caplog.text
    again = medduet.evaluate(out)["test"]
    assert again["accuracy"] == record.metrics["test"]["accuracy"]
    assert again["dice"] == pytest.approx(record.metrics["test"]["dice"], abs=1e-6)
