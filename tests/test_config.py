from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from medduet import ConfigError, MissingFileError, RunConfig, load_recipe, recipe_names
from medduet.experiments.config import load_grid


def test_the_paper_s_recipe_is_the_paper_s() -> None:
    config = load_recipe("paper")
    assert config.data.size == (224,)
    assert (config.model.name, config.model.width) == ("vovunet_var", None)  # its own: 64
    assert config.objective.tasks == ("classify", "reconstruct")
    assert (config.objective.classify_weight, config.objective.reconstruct_weight) == (1, 1)
    assert config.objective.class_weights == "none"
    train = config.train
    assert (train.epochs, train.batch_size, train.optimizer) == (10, 16, "adam")
    assert (train.learning_rate, train.cosine_epochs) == (1e-4, 100)
    assert (train.weight_decay, train.grad_clip, train.augment, train.patience) == (
        0,
        None,
        "none",
        None,
    )
    assert (config.evaluate.protocol, config.evaluate.select) == ("paper", "accuracy")


def test_honest_is_the_default_protocol() -> None:
    assert RunConfig().evaluate.protocol == "honest"
    honest = [load_recipe(name).evaluate.protocol for name in recipe_names() if name != "paper"]
    assert set(honest) == {"honest"}


@pytest.mark.parametrize("name", ["cross", "medmnist", "tasks"])
def test_grids_train_as_auto_does(name: str) -> None:
    run, auto = load_grid(name).run, load_recipe("auto")
    assert (run.model, run.train, run.evaluate) == (auto.model, auto.train, auto.evaluate)


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("train: {epochs: 3, learning_rate: 2.0e-3}\nobjective: {tasks: [segment]}\n")
    config = load_recipe(str(path))
    assert (config.train.epochs, config.train.learning_rate) == (3, 2e-3)
    assert config.train.batch_size == RunConfig().train.batch_size
    assert config.objective.tasks == ("segment",)
    path.write_text("# nothing but this\n")
    assert load_recipe(str(path)) == RunConfig()


BAD: list[tuple[Any, str]] = [
    ({"trian": {}}, r"unknown key trian: did you mean train"),
    ({"train": {"epoch": 1}}, r"unknown key train\.epoch: did you mean epochs"),
    ({"train": {"epochs": 0}}, r"train\.epochs: .*greater than or equal to 1, given 0"),
    ({"train": {"epochs": "many"}}, r"train\.epochs: .*'many'"),
    ({"train": {"device": "gpu"}}, r"train\.device: expected auto, cpu, .*, given 'gpu'"),
    ({"train": 3}, r"train: .*, given 3"),
    ({"objective": {"tasks": []}}, r"objective\.tasks: expected at least one task of classify"),
    ({"objective": {"tasks": ["classify", "classify"]}}, r"each once"),
    ({"objective": {"tasks": ["clasify"]}}, r"'classify', 'segment' or 'reconstruct'.*'clasify'"),
    ({"data": {"size": 0}, "model": {"width": 0}}, r"data\.size.*; model\.width"),
    ([1, 2], r"top level"),
    ("train", r"top level"),
]


@pytest.mark.parametrize(("values", "message"), BAD, ids=[str(values) for values, _ in BAD])
def test_what_is_wrong_is_said_in_one_line(values: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(str(path))
    assert str(caught.value).startswith(f"recipe {path}: ")
    assert "\n" not in str(caught.value)


def test_recipes_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown recipe 'papr': did you mean paper\?"):
        load_recipe("papr")
    with pytest.raises(MissingFileError, match=r"none\.yaml"):
        load_recipe(str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("train: [1, 2\nepochs: }")
    with pytest.raises(ConfigError, match=r"bad\.yaml is not YAML") as caught:
        load_recipe(str(tmp_path / "bad.yaml"))
    assert "\n" not in str(caught.value)


def test_no_yaml_can_run_code(tmp_path: Path) -> None:
    path, witness = tmp_path / "bad.yaml", tmp_path / "witness"
    path.write_text(f"train: !!python/object/apply:os.system ['touch {witness}']\n")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_recipe(str(path))
    assert not witness.exists()


def test_settings_are_frozen_and_explained() -> None:
    config = RunConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.train.epochs = 3
    for name, section in RunConfig.model_fields.items():
        if isinstance(section.annotation, type) and issubclass(section.annotation, BaseModel):
            for key, field in section.annotation.model_fields.items():
                assert field.description, f"{name}.{key} has no docstring"
