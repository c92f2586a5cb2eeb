"""Any network trains, is evaluated and saved like any other; where training starts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import medduet
from medduet import RunConfig, RunRecord, create_model
from medduet.training.loop import _parameter_groups
from medduet.utils.parsing import read_json

MakeConfig = Callable[..., RunConfig]


@pytest.mark.parametrize(
    "name",
    [
        "sharp_unet",
        "timm:mobilenetv3_small_050",
        pytest.param("timm:eva02_tiny_patch14_224", marks=pytest.mark.slow),
        "smp:fpn/tu-mobilenetv3_small_050",
    ],
)
def test_it_trains_evaluates_saves_and_loads(
    name: str, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    width = 2 if name == "sharp_unet" else None
    config = make_config(tmp_path, model={"name": name, "width": width}, train={"epochs": 1})
    record = medduet.train(config.model_copy(update={"out": None}))
    assert record.path.parent == Path("runs"), "a name with a slash makes no folder of its own"
    again = medduet.evaluate(record.path, split="test")
    assert again["test"] == record.metrics["test"]
    cost = read_json(record.path / "environment.json")["network"]
    trained = sum(p.numel() for p in medduet.load(record.path).parameters() if p.requires_grad)
    assert cost["parameters"] == trained
    assert cost["gmacs"] > cost["gmacs_alone"] > 0
    assert read_json(record.path / "bundle" / "config.json")["network"]["name"] == name


def test_training_starts_from_a_file_and_a_resumed_run_does_not_read_it_again(
    finished_run: RunRecord,
    make_config: MakeConfig,
    stop_after: Any,
    listener: Any,
    assert_same_run: Callable[..., None],
    tmp_path: Path,
) -> None:
    start, out = tmp_path / "start.safetensors", tmp_path / "run"
    old = load_file(finished_run.path / "bundle" / "model.safetensors")
    save_file(old, start)
    model = {"weights": str(start), "freeze_encoder": True}
    tasks = {"tasks": ["classify", "segment"]}
    straight = make_config(tmp_path / "straight", model=model, objective=tasks)
    medduet.train(straight, reporter=listener)
    report = read_json(straight.out / "weights.json")
    assert report["other_shape"] == ["dense_head.weight", "dense_head.bias"]
    assert any("tensors taken; other shape: dense_head" in text for text in listener.messages)
    new = load_file(straight.out / "bundle" / "model.safetensors")
    for key in old:
        if key.startswith(("stem.", "down.")):
            assert torch.equal(old[key], new[key]), f"{key} is frozen"
    for key in ("class_head.weight", "up.0.upsample.weight"):
        assert not torch.equal(old[key], new[key])
    stop_after(2, straight.model_copy(update={"out": out}))
    start.unlink()
    medduet.train(resume=out)
    assert_same_run(out, straight.out)


def test_the_encoder_learns_at_its_own_rate(
    make_config: MakeConfig, stop_after: Any, tmp_path: Path
) -> None:
    model: dict[str, Any] = {"name": "timm:mobilenetv3_small_050", "width": None}
    config = make_config(tmp_path, model=model, train={"encoder_learning_rate": 1e-5})
    network = create_model(model["name"], in_channels=1, num_classes=4, dense_channels=1)
    rest, encoder = (set(g["params"]) for g in _parameter_groups(network, config.train))
    assert encoder == set(network.encoder_parameters())
    assert not encoder & rest
    assert len(rest) + len(encoder) == sum(p.requires_grad for p in network.parameters())
    assert set(network.encoder.classifier.parameters()) <= rest
    # Both groups follow the cosine.
    train = {"epochs": 4, "learning_rate": 1e-3, "encoder_learning_rate": 1e-4}
    state = stop_after(9, make_config(tmp_path / "run", train=train))
    rates = [group["lr"] for group in state["optimizer"]["param_groups"]]
    assert rates == pytest.approx([1e-3 * 0.5, 1e-4 * 0.5])
