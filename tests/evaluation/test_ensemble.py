"""Several runs become one bundle, which every command takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import medduet
from medduet import (
    ConfigError,
    DataConfig,
    RunConfig,
    ensemble,
    load,
    load_bundle,
)
from medduet.runs.bundle import save_bundle
from medduet.uncertainty.calibration import Calibration
from medduet.utils.parsing import read_json

PHANTOMS = DataConfig(name="phantom", size=16, count=40)


@pytest.fixture(scope="module")
def runs(
    make_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Two seeds of the same run; look, don't touch."""
    out = tmp_path_factory.mktemp("members")
    trains = [{"seed": seed, "learning_rate": 0.02} for seed in range(2)]
    return [medduet.train(make_config(out / str(t["seed"]), train=t)).path for t in trains]


@pytest.fixture(scope="module")
def record(runs: list[Path]) -> medduet.EnsembleRecord:
    return ensemble(runs, runs[0].parent / "ensemble", tta="flip")


def altered(run: Path, out: Path, **changes: Any) -> Path:
    """The bundle of a run, with another config and slightly other weights."""
    bundle = load_bundle(run)
    for parameter in bundle.network.parameters():
        parameter.data += 1e-4
    save_bundle(out, bundle.network, bundle.config.to_json() | changes)
    return out


def test_what_was_gained_is_told(record: medduet.EnsembleRecord, runs: list[Path]) -> None:
    assert record.images == "phantom"
    config = load_bundle(record.path).config
    assert config.members == [load_bundle(run).config.weights_sha256 for run in runs]
    for split in ("val", "test"):
        *members, own = record.scores[split]
        for run, found in zip(runs, members, strict=True):
            recorded = read_json(run / "metrics.json")[split]
            for key in ("n", "accuracy", "auc", "dice", "mse"):
                assert found[key] == pytest.approx(recorded[key], abs=1e-4), key
        assert config.metrics[split]["accuracy"] == own["accuracy"]
    # By hand, from what the members say.
    split = medduet.open_images(PHANTOMS).test
    batch = split.batch(np.arange(len(split)))
    with torch.inference_mode():
        said = [
            load(run)(image).class_logits.softmax(1)
            for run in runs
            for image in (batch.image, batch.image.flip(3))
        ]
    right = sum(said).argmax(1) == batch.label
    assert record.scores["test"][-1]["accuracy"] == pytest.approx(right.double().mean().item())


def test_calibration_of_a_member_is_dropped(runs: list[Path], tmp_path: Path) -> None:
    share = np.random.default_rng(0).dirichlet(np.ones(4), 60)
    calibration = Calibration.fit(share.argmax(axis=1), share).model_dump(mode="json")
    paths = [altered(run, tmp_path / run.name, calibration=calibration) for run in runs]
    record = ensemble(paths, tmp_path / "ensemble")
    assert (record.scores, record.images) == ({}, "")
    config = load_bundle(record.path).config
    assert config.calibration is None
    assert set(config.metrics) == {"seed", "selection", "selected_epoch"}


def test_bundles_are_judged_on_given_data(runs: list[Path], tmp_path: Path) -> None:
    bundles = [run / "bundle" for run in runs]
    record = ensemble(bundles, tmp_path / "same", data=PHANTOMS)
    assert len(record.scores["test"]) == 3
    found = medduet.evaluate(record.path, data=PHANTOMS, out=tmp_path / "judged")["test"]
    for key in ("n", "accuracy", "accuracy_interval", "auc", "dice", "mse"):
        assert found[key] == pytest.approx(record.scores["test"][-1][key]), key
    assert "test" in load_bundle(record.path).config.metrics
    other = PHANTOMS.model_copy(update={"count": 60})
    record = ensemble(bundles, tmp_path / "other", data=other)
    assert record.scores["test"][0]["n"] == 12
    assert "test" not in load_bundle(record.path).config.metrics, "not its own test split"


@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        ("class_names", list("abcd"), "the same class_names"),
        ("preprocessing", {"fit": "pad"}, "the same preprocessing"),
        ("data", {"fingerprint": "other"}, "the same images and split"),
    ],
)
def test_members_that_differ(
    runs: list[Path], tmp_path: Path, section: str, changes: Any, words: str
) -> None:
    config = load_bundle(runs[1]).config.to_json()[section]
    value = config | changes if isinstance(config, dict) else changes
    other = altered(runs[1], tmp_path / "other", **{section: value})
    with pytest.raises(ConfigError, match=words) as caught:
        ensemble([runs[0], other], tmp_path / "ensemble")
    assert str(runs[0]) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_views_that_would_change_the_truth(runs: list[Path], tmp_path: Path) -> None:
    names = ["kidney-left", "kidney-right", "liver", "spleen"]
    sided = altered(runs[0], tmp_path / "sided", class_names=names)
    with pytest.raises(ConfigError, match="says left or right"):
        ensemble([sided], tmp_path / "out", tta="flip")
    for views in ("flips", "turns"):
        with pytest.raises(ConfigError, match="may have an upper side"):
            ensemble(runs, tmp_path / "out", tta=views)
    data = load_bundle(runs[0]).config.to_json()["data"]
    blood = altered(runs[0], tmp_path / "blood", data=data | {"info": {"medmnist": "bloodmnist"}})
    assert ensemble([blood], tmp_path / "turned", tta="turns").path.is_dir()
