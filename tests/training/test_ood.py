"""What training leaves in the bundle flags other images, wherever the network is used."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import medduet
from medduet import Predictor, RunConfig
from medduet.runs.bundle import load_bundle
from medduet.utils.parsing import read_json


def images(n: int, seed: int) -> np.ndarray:
    """Dark images with a bright lower half and stripes of either direction."""
    rng = np.random.default_rng(seed)
    level = np.where(np.arange(24) < 12, 30, 120)[:, None]
    stripes = np.broadcast_to(60 * (np.arange(24) // 3 % 2), (24, 24))
    both = np.stack([stripes, stripes.T])[np.arange(n) % 2]
    return (level + both + rng.normal(0, 12, (n, 24, 24))).clip(0, 255).astype(np.uint8)


NOISE = np.random.default_rng(0).integers(0, 256, (24, 24), np.uint8)


@pytest.fixture(scope="module")
def run(make_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, arrays = tmp_path_factory.mktemp("familiar"), {}
    for seed, (split, count) in enumerate((("train", 120), ("val", 60), ("test", 80))):
        arrays[f"{split}_images"] = images(count, seed)
        arrays[f"{split}_labels"] = (np.arange(count) % 2).astype(np.uint8)
    np.savez(folder / "stripes.npz", **arrays)
    config = make_config(
        folder / "run",
        data={"name": str(folder / "stripes.npz"), "count": None, "size": 24},
        objective={"tasks": ["classify"]},
        train={"epochs": 2, "batch_size": 16},
    )
    return medduet.train(config).path


def test_other_images_are_flagged_and_own_ones_are_not(run: Path) -> None:
    known = load_bundle(run).config.ood
    assert known.mean.shape == (10,)
    assert known.stretched
    assert len(known.val_distances) == 60
    assert len(json.dumps(read_json(run / "bundle" / "config.json")["ood"])) < 4_000
    predictor = Predictor(run, batch_size=7)
    own = list(predictor.predict(images(80, 9)))
    assert sum(answer.is_ood for answer in own) <= 10
    assert min(answer.ood_p for answer in own) >= 1 / 61
    alone = [Predictor(run)(image).ood_p for image in images(80, 9)[:10]]
    assert alone == [answer.ood_p for answer in own[:10]]
    one = images(1, 9)[0]
    in_colour, long = np.stack([one, one // 2, one // 4], axis=2), np.repeat(one, 4, axis=1)
    assert all(predictor(other).is_ood for other in (NOISE, one[::-1], in_colour, long))
    assert predictor(np.stack([one] * 3, axis=2)).ood_p == own[0].ood_p
    assert "flagged" in (run / "bundle" / "README.md").read_text()


def test_exported_networks_have_the_same_detector(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    medduet.export_bundle(run, tmp_path / "onnx", count=4)
    predictors = Predictor(run), Predictor(tmp_path / "onnx")
    for image in (NOISE, *images(5, 9)):
        first, second = (predictor(image).ood_p for predictor in predictors)
        assert first == second
