"""Grids: their axes, names and recipes."""

from pathlib import Path
from typing import Any

import pytest

from medduet import ConfigError, GridConfig, load_grid, recipe_names
from medduet.config import validate

OUT = Path("grids/test")


def grid(**values: Any) -> GridConfig:
    return validate(GridConfig, {"run": {"data": {"name": "phantom"}}} | values, "a test")


def test_cells_are_the_product_of_the_axes() -> None:
    cells = grid(
        datasets={"a": {"data.name": "phantom", "train.epochs": 9}, "folder/b.npz": None},
        networks=["unet_var", "timm:resnet18"],
        variants={"x": {"train.epochs": 1}, "y": {"train.epochs": 2}},
        seeds=[3, 5],
    ).cells(OUT)
    assert len(cells) == 16
    assert len({cell.name for cell in cells}) == 16
    first, last = cells[0], cells[-1]
    assert (first.name, last.name) == ("a-unet_var-x-seed3", "b-timm-resnet18-y-seed5")
    assert (first.run.data.name, last.run.data.name) == ("phantom", "folder/b.npz")
    assert (last.run.model.name, last.run.train.epochs) == ("timm:resnet18", 2)
    assert last.run.train.seed == 5
    assert last.run.out == OUT / "runs" / last.name


def test_choosing_keeps_the_settings_of_names_that_are_known() -> None:
    config = grid(networks={"unet_var": {"model.width": 8}}, variants={"x": {}, "y": {}})
    chosen = config.choose(networks=("unet_var", "unet"), variants=("y",), datasets=("z.npz",))
    assert chosen.networks == {"unet_var": {"model.width": 8}, "unet": {}}
    assert (list(chosen.variants), list(chosen.datasets)) == (["y"], ["z.npz"])
    with pytest.raises(ConfigError, match="unknown variant yy"):
        config.choose(variants=("yy",))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"variants": {"x": {"train.epoch": 1}}},
            "cell phantom-vovunet_var-x-seed0: unknown setting train.epoch: did",
        ),
        ({"run": {}}, "the grid has no data: add --datasets"),
        ({"networks": ["a:b", "a-b"]}, "two cells of the grid are called phantom-a-b-seed0"),
    ],
)
def test_mistakes_are_one_line(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        grid(**values).cells(OUT)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", recipe_names("grid"))
def test_every_recipe_makes_cells(name: str) -> None:
    config = load_grid(name)
    cells = config.choose(datasets=() if config.datasets else ("set.npz",)).cells(OUT)
    assert len(cells) == len({cell.run.model_dump_json() for cell in cells})


def test_the_grid_of_the_paper_is_the_papers() -> None:
    cells = load_grid("paper").cells(OUT)
    assert len({cell.run.data.name for cell in cells}) == 9
    assert {cell.run.evaluate.protocol for cell in cells} == {"paper"}
    assert {cell.run.data.size for cell in cells} == {(224,)}
    ours = [cell for cell in cells if cell.run.model.name == "vovunet_var"]
    others = [cell for cell in cells if cell.run.model.name == "timm:resnet18"]
    assert {(c.run.train.epochs, c.run.train.cosine_epochs) for c in ours} == {(10, 100)}
    assert {(c.run.train.epochs, c.run.train.cosine_epochs) for c in others} == {(5, 10)}
    assert {c.run.objective.tasks for c in ours} == {("classify", "reconstruct")}
    assert {c.run.objective.tasks for c in others} == {("classify",)}


def test_folds_are_cells() -> None:
    cells = grid(folds=3).cells(OUT)
    assert len(cells) == 9
    assert {cell.run.data.fold for cell in cells} == {0, 1, 2}
    assert all(cell.run.data.folds == 3 for cell in cells)
    assert cells[0].name == "phantom-vovunet_var-fold0-seed0"
