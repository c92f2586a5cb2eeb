"""Any network trains, is judged, saved and evaluated like any other; where training starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from lightning.fabric import Fabric
from safetensors.torch import load_file, save_file

import medduet
from medduet import Interrupted, RunConfig, RunRecord, create_model
from medduet.cli import main
from medduet.metrics.dense import reconstruction_errors
from medduet.training.loop import _parameter_groups
from medduet.training.reporter import Reporter
from medduet.training.state import load_checkpoint
from medduet.utils.parsing import read_json

MakeConfig = Callable[..., RunConfig]


class Listener(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


@pytest.mark.parametrize(
    "name",
    [
        "sharp_unet",
        "timm:mobilenetv3_small_050",
        pytest.param("timm:eva02_tiny_patch14_224", marks=pytest.mark.slow),
        "smp:fpn/tu-mobilenetv3_small_050",
    ],
)
def test_it_trains_judges_saves_and_loads(
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
    network = medduet.load(record.path)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert cost["parameters"] == trained
    assert cost["gmacs"] > cost["gmacs_alone"] > 0
    assert read_json(record.path / "bundle" / "config.json")["network"]["name"] == name


def test_training_starts_from_a_run(
    finished_run: RunRecord, make_config: MakeConfig, tmp_path: Path
) -> None:
    listener = Listener()
    frozen = {"weights": str(finished_run.path), "freeze_encoder": True}
    out = tmp_path / "run"
    config = make_config(out, model=frozen, objective={"tasks": ["classify", "segment"]})
    record = medduet.train(config, reporter=listener)
    report = read_json(out / "weights.json")
    assert report["other_shape"] == ["dense_head.weight", "dense_head.bias"]
    assert any("tensors taken; other shape: dense_head" in text for text in listener.messages)
    old, new = (
        load_file(path / "bundle" / "model.safetensors")
        for path in (finished_run.path, record.path)
    )
    for key in old:
        if key.startswith(("stem.", "down.")):
            assert torch.equal(old[key], new[key]), f"{key} is frozen"
    assert not torch.equal(old["class_head.weight"], new["class_head.weight"])
    assert not torch.equal(old["up.0.upsample.weight"], new["up.0.upsample.weight"])


def test_a_resumed_run_does_not_read_the_weights_again(
    finished_run: RunRecord, make_config: MakeConfig, tmp_path: Path
) -> None:
    import threading

    start = tmp_path / "start.safetensors"
    save_file(load_file(finished_run.path / "bundle" / "model.safetensors"), start)
    stop, out = threading.Event(), tmp_path / "run"

    class StopAtOnce(Reporter):
        def step(self, images: int, losses: Callable[[], dict[str, float]]) -> None:
            stop.set()

    config = make_config(out, model={"weights": str(start)})
    with pytest.raises(Interrupted):
        medduet.train(config, reporter=StopAtOnce(), stop=stop)
    start.unlink()
    resumed = medduet.train(resume=out)
    save_file(load_file(finished_run.path / "bundle" / "model.safetensors"), start)
    straight = medduet.train(config.model_copy(update={"out": tmp_path / "straight"}))
    assert resumed.metrics == straight.metrics


def test_the_encoder_learns_at_its_own_rate(make_config: MakeConfig, tmp_path: Path) -> None:
    model: dict[str, Any] = {"name": "timm:mobilenetv3_small_050", "width": None}
    config = make_config(tmp_path, model=model, train={"encoder_learning_rate": 1e-5})
    network = create_model(model["name"], in_channels=1, num_classes=4, dense_channels=1)
    rest, encoder = _parameter_groups(network, config.train)
    assert encoder["lr"] == 1e-5
    shared = {id(p) for p in network.encoder_parameters()}
    assert {id(p) for p in encoder["params"]} == shared
    assert not shared & {id(p) for p in rest["params"]}
    count = sum(p.requires_grad for p in network.parameters())
    assert len(rest["params"]) + len(encoder["params"]) == count
    assert {id(p) for p in network.encoder.classifier.parameters()} <= {
        id(p) for p in rest["params"]
    }


def test_both_groups_follow_the_cosine_and_survive_a_stop(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    import threading

    stop, out = threading.Event(), tmp_path / "run"

    class StopLate(Reporter):
        def end_epoch(self, row: Any) -> None:
            if row["epoch"] == 2:
                stop.set()

    train = {"epochs": 4, "learning_rate": 1e-3, "encoder_learning_rate": 1e-4}
    with pytest.raises(Interrupted):
        medduet.train(make_config(out, train=train), reporter=StopLate(), stop=stop)
    groups = load_checkpoint(out / "checkpoints" / "last.pt")["optimizer"]["param_groups"]
    rates = [group["lr"] for group in groups]
    assert rates == pytest.approx([1e-3 * 0.5, 1e-4 * 0.5])
    resumed = medduet.train(resume=out)
    straight = medduet.train(make_config(tmp_path / "straight", train=train))
    assert resumed.metrics == straight.metrics


def test_the_reconstruction_error_has_the_same_scale_for_every_normalisation() -> None:
    from medduet.data.sources import open_images
    from medduet.training.validation import predict_split
    from medduet.types import DenseLayout

    images = open_images("phantom", size=16, count=20)
    split = images.test
    network = create_model("unet", in_channels=1, num_classes=0, dense_channels=1, width=2)
    network.normalize.set((0.2,), (0.1,))
    network.eval()
    arguments = {"data": images, "batch_size": 4}
    found = predict_split(Fabric(accelerator="cpu"), network, split, DenseLayout(0, 1), **arguments)
    image = split.batch(np.arange(len(split))).image
    with torch.inference_mode():
        rebuilt = network(image).dense * 0.1 + 0.2
    expected = reconstruction_errors(2 * rebuilt - 1, 2 * image.float() / 255 - 1)
    for name in ("mse", "psnr", "ssim"):
        np.testing.assert_allclose(getattr(found, name), expected[name].numpy(), rtol=1e-4)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("--model timm:resnet18 --model.width 8", "no option 'width'"),
        ("--model unet --model.kernel-size 3", "no option 'kernel_size'"),
        ("--model unet --model.pretrained", "no pretrained weights for unet"),
        ("--model unet --model.weights no.safetensors", "no.safetensors"),
        ("--train.compile --train.activation-checkpointing", "leave one out"),
        ("--model timm:resnet18 --model.pretrained --model.weights x", "leave one out"),
        ("--objective.classify-weight 0 --tasks classify", "every task has weight 0"),
        ("--model timm:maxvit_tiny_tf_224", "does not take images of 32 x 32 pixels"),
        ("--model timm:resnet1", "timm:resnet18"),
        ("--model smp:unet/resnet35", "smp:unet/resnet34"),
        ("--model unet --model.freeze-encoder --train.encoder-learning-rate 1e-3", "frozen"),
    ],
)
def test_mistakes(
    words: str,
    wanted: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    start = "train segment --data phantom --data.count 40 --size 32 --epochs 1"
    assert main([*start.split(), *words.split()]) == 2
    line = capsys.readouterr().err
    assert line.startswith("medduet: ")
    assert line.count("\n") == 1, line
    assert wanted in line
    assert not list(tmp_path.iterdir()), "something was written"


@pytest.mark.slow
def test_real_images_with_an_encoder_of_timm(shared_data: Path, tmp_path: Path) -> None:
    words = f"train segment --data {shared_data / 'busi_seg_64.npz'} --size 64 --epochs 1"
    words += " --model timm:mobilenetv3_small_050 --lr 1e-3 --evaluate.bootstrap 100"
    assert main([*words.split(), "--out", str(tmp_path / "run")]) == 0
    metrics = read_json(tmp_path / "run" / "metrics.json")
    assert metrics["test"]["n"] == 156
    assert metrics["test"]["dice_nonempty"] > 0.1
    assert timm.get_pretrained_cfg("mobilenetv3_small_050").license
