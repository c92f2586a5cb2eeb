"""Runs on volumes: folder, evaluation, calibration, export, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import medduet
from medduet import ModelError, RunConfig, RunRecord
from medduet.config import DataConfig
from medduet.runs.bundle import load_bundle
from medduet.serve.service import open_network


@pytest.fixture(scope="module")
def run(
    make_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> RunRecord:
    data = {"name": "phantom3d", "size": 16, "count": 40}
    train = {"epochs": 1, "augment": "light", "mask_ratio": 0.2}
    return medduet.train(
        make_config(tmp_path_factory.mktemp("run") / "run", data=data, train=train)
    )


def test_the_folder_of_a_run(run: RunRecord) -> None:
    config = load_bundle(run.path).config
    assert (config.network.dims, config.preprocessing.size) == (3, [16, 16, 16])
    assert {"dice", "hd95", "accuracy", "psnr"} <= run.metrics["test"].keys()
    data = medduet.open_images("phantom3d", size=16, count=40).test
    with np.load(run.path / "samples.npz") as samples:
        assert samples["images"].shape == samples["reconstructions"].shape == (8, 32, 32)
        arrays = (samples[name] for name in ("index", "images", "truth_masks"))
        for row, image, mask in zip(*arrays, strict=True):
            image, mask = image[:16, :16], mask[:16, :16]  # the axial ones of three planes
            place = np.flatnonzero((data.images[row] == image).all(axis=(1, 2)))
            areas = data.masks[row].sum(axis=(1, 2))
            assert place.item() == (areas.argmax() if areas.any() else 8)
            assert np.array_equal(data.masks[row, place.item()], mask)
    assert (run.path / "figures" / "predictions.png").is_file()


def test_evaluated_calibrated_and_exported(run: RunRecord, tmp_path: Path) -> None:
    again = medduet.evaluate(run.path, out=tmp_path / "again")["test"]
    assert again["dice"] == run.metrics["test"]["dice"]
    data = DataConfig(name="phantom3d", count=40, seed=1)
    medduet.calibrate_bundle(run.path, tmp_path / "calibrated", data=data)
    record = medduet.export_bundle(tmp_path / "calibrated", tmp_path / "onnx", count=4)
    assert record.images == "phantom3d"
    exported = medduet.ExportedModel(record.path)
    assert exported(np.zeros((1, 1, 16, 18, 20), np.uint8)).mask.shape == (1, 16, 18, 20)
    with pytest.raises(ModelError, match=r"\(N, 1, D >= 16, H >= 16, W >= 16\).*\(1, 1, 16, 16\)"):
        exported(np.zeros((1, 1, 16, 16), np.uint8))


def test_images_and_volumes_are_not_mistaken(run: RunRecord) -> None:
    assert not open_network(run.path, explain=True).explains
    with pytest.raises(medduet.ConfigError, match=r"takes 3 spatial dimensions.*phantom has 2"):
        medduet.evaluate(run.path, data=DataConfig(name="phantom", count=20))
