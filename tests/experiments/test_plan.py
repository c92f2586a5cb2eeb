"""What is open is decided from images and machine; what is typed stays."""

import json
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric import Fabric
from PIL import Image

import medduet
from medduet import ConfigError, DataConfig, RunConfig
from medduet.config import validate
from medduet.experiments import plan as planning
from medduet.experiments.config import differing
from medduet.experiments.grid import benchmark
from medduet.experiments.plan import Decision, is_open, plan
from medduet.runs.folder import RunFolder
from medduet.training.reporter import Reporter


class Messages(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def decided(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.125, **sections: Any) -> Any:
    """Return the settings, and by their path the decisions, for phantoms of a machine so fast."""
    monkeypatch.setattr(planning, "_seconds_per_epoch", lambda *arguments: seconds)
    monkeypatch.setattr(planning, "weights_at_hand", lambda name: True)
    values = medduet.load_recipe("auto").model_dump()
    for section, changes in sections.items():
        values[section] |= changes
    config = validate(RunConfig, values, "a test")
    size = 16 if config.model.width is None else 64
    data = medduet.open_images(DataConfig(name="phantom", size=size, count=100))
    filled, decisions = plan(config, data, Fabric(accelerator="cpu", devices=1))
    assert not is_open(filled)
    return filled, {decision.setting: decision for decision in decisions}


def test_decides_all_that_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    config, decisions = decided(monkeypatch)
    assert config.objective.tasks == ("classify", "segment")
    assert config.model.name == planning.PRETRAINED
    assert config.model.pretrained
    assert config.train.epochs == 80  # 40,000 images would be 571
    assert config.train.batch_size == 4
    assert 0.9 < config.train.ema < 0.99
    assert config.data.size == (64,)
    assert {*decisions} == {
        *("model.name", "data.size", "objective.tasks", "train.batch_size", "train.learning_rate"),
        *("train.augment", "train.epochs", "train.ema"),
    }
    assert str(decisions["train.epochs"]).endswith("(preset balanced); about 2 s each")
    config, decisions = decided(monkeypatch, train={"preset": "fast", "learning_rate": 3e-3})
    assert config.train.encoder_learning_rate == 3e-3
    assert "train.encoder_learning_rate" in decisions


@pytest.mark.parametrize(
    ("memory", "patch", "batch"), [(8 << 30, None, 4), (12 << 20, None, 3), (7 << 20, (32, 48), 2)]
)
def test_patches_and_batches_fit_into_the_memory(
    monkeypatch: pytest.MonkeyPatch, memory: int, patch: tuple[int, ...] | None, batch: int
) -> None:
    monkeypatch.setattr(planning, "total_memory", lambda device: memory)
    config, decisions = decided(monkeypatch, model={"width": 2, "name": "unet_var"})
    assert (config.train.patch, config.train.batch_size) == (patch, batch)
    if patch:
        assert decisions["train.patch"].reason == "two whole images take more than half of 0 GB"


def test_what_is_typed_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    config, decisions = decided(
        monkeypatch, train={"epochs": 10, "learning_rate": 1e-4}, objective={"tasks": ["classify"]}
    )
    assert (config.train.epochs, config.train.learning_rate) == (10, 1e-4)
    assert config.objective.tasks == ("classify",)
    assert not {"train.epochs", "train.learning_rate", "objective.tasks"} & {*decisions}
    config, _ = decided(monkeypatch, model={"width": 4})  # which means a U-Net
    assert (config.model.name, config.model.pretrained) == ("vovunet_var", False)
    assert config.data.size is None


def test_a_time_budget_decides_the_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    config, decisions = decided(monkeypatch, train={"time_budget": "100s"})
    assert config.train.epochs == 42
    assert "as many as 100s allow, of 80 wished" in decisions["train.epochs"].reason
    config, decisions = decided(monkeypatch, train={"time_budget": "100s", "preset": "best"})
    assert config.train.epochs == 8  # a fifth of the time for each member
    assert decisions["train.epochs"].reason.count("a smaller --size allows more") == 1


def test_training_ends_within_its_budget(tmp_path: Path) -> None:
    config = medduet.load_recipe("demo").model_copy(
        update={
            "data": DataConfig(name="phantom", size=16, count=40),
            "model": medduet.ModelConfig(width=2),
            "train": medduet.TrainConfig(epochs=200, time_budget="1s"),
            "out": tmp_path / "run",
        }
    )
    epochs = RunFolder(medduet.train(config).path).epochs
    assert 1 <= len(epochs) < 200
    assert len(epochs) == 1 or sum(row["seconds"] for row in epochs) <= 1.5


def test_nothing_to_learn_is_said_first(tmp_path: Path) -> None:
    for k in range(6):
        Image.effect_noise((32, 32), 20 + k).save(tmp_path / f"{k}.png")
    rows = ["path,age,result"] + [f"{k}.png,{k},{k % 2}" for k in range(6)]
    (tmp_path / "set.csv").write_text("\n".join(rows))
    run = medduet.load_recipe("auto").model_copy(update={"out": tmp_path / "run"})
    data = run.data.model_copy(update={"name": str(tmp_path / "set.csv"), "group_by": "none"})
    with pytest.raises(
        ConfigError, match=r"given none; columns: not used: age, result: --tasks re"
    ):
        medduet.train(run.model_copy(update={"data": data}))
    objective = run.objective.model_copy(update={"tasks": ("segment",)})
    with pytest.raises(
        ConfigError, match="has no masks, so there is nothing to segment: --tasks re"
    ):
        medduet.train(run.model_copy(update={"data": data, "objective": objective}))
    config = medduet.load_recipe("auto").model_dump()
    config["data"] |= {
        "name": str(tmp_path / "set.csv"),
        "group_by": "none",
        "fractions": (0.5, 0.25, 0.25),
    }
    config["objective"]["tasks"], config["model"]["width"] = ("reconstruct",), 4
    typed = validate(RunConfig, config, "a test")
    images = medduet.open_images(typed.data)
    filled, _ = plan(typed, images, Fabric(accelerator="cpu", devices=1))
    assert filled.objective.tasks == ("reconstruct",)


def test_the_time_of_an_epoch_is_measured() -> None:
    config = medduet.load_recipe("demo")
    data = medduet.open_images(DataConfig(name="phantom", size=16, count=100))
    few, many = (
        planning._seconds_per_epoch(
            config.model_copy(update={"model": medduet.ModelConfig(width=width)}),
            data,
            Fabric(accelerator="cpu", devices=1),
        )
        for width in (2, 48)
    )
    assert 0 < 2 * few < many


def test_whether_pretrained_weights_can_be_had(hub: Any) -> None:
    name = planning.PRETRAINED
    code = f"from medduet.models.encoders import weights_at_hand; print(weights_at_hand({name!r}))"
    assert hub.run(code).stdout == "False\n"
    folder = hub.root / "timm" / "mobilenetv2_100.ra_in1k"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    assert hub.run(code).stdout == "True\n"
    assert hub.run(code, HF_HUB_OFFLINE="1").stdout == "False\n"


def test_weights_name_their_network(tmp_path: Path) -> None:
    start = medduet.load_recipe("demo").model_copy(
        update={
            "data": DataConfig(name="phantom", size=16, count=40),
            "model": medduet.ModelConfig(name="unet_var", width=3),
            "train": medduet.TrainConfig(epochs=1),
            "out": tmp_path / "first",
        }
    )
    medduet.train(start)
    values = medduet.load_recipe("auto").model_dump()
    values["data"] |= {"name": "phantom", "size": 16, "count": 40}
    values["model"] |= {"weights": tmp_path / "first"}
    values["train"] |= {"epochs": 1, "augment": "none"}
    config = validate(RunConfig, values | {"out": tmp_path / "second"}, "a test")
    reporter = Messages()
    record = medduet.train(config, reporter=reporter)
    assert "learning rate of the encoder: 0.0002 (the rest: 0.001)" in reporter.messages
    assert (record.config.model.name, record.config.model.width) == ("unet_var", 3)
    assert record.config.data.size == (16,)  # it takes small images, unlike ImageNet's encoders
    environment = json.loads((tmp_path / "second" / "environment.json").read_text())
    first = Decision(**environment["training"]["decisions"][0])
    assert first == Decision("model.name", "unet_var", f"that of {tmp_path / 'first'}")
    assert json.loads((tmp_path / "second" / "config.json").read_text())["train"]["batch_size"]


def test_a_grid_goes_on_with_what_was_decided(grids: Any, tmp_path: Path) -> None:
    grid = grids.small(tmp_path, variants={"auto": {"train.batch_size": None, "train.ema": None}})
    assert benchmark(grid).count("finished") == 2
    assert benchmark(grid).count("finished") == 2  # None agrees with what it became
    with pytest.raises(medduet.errors.ConfigError, match=r"train\.epochs 3, but the grid has 4"):
        benchmark(grids.small(tmp_path, variants={"auto": {"train.epochs": 4}}))
    saved = {"model": {"name": "timm:resnet18", "pretrained": True, "width": 3}}
    assert not differing(saved, RunConfig(model=medduet.ModelConfig(name=None)))
    assert differing(saved, RunConfig(model=medduet.ModelConfig(name="timm:resnet18")))
