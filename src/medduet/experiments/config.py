"""Settings of many runs at once: grids."""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tyro
from pydantic import Field, field_validator

from medduet.config import Frozen, RunConfig, by_path, read_recipe, validate
from medduet.errors import ConfigError, MissingFileError, closest
from medduet.utils.parsing import read_json

Labelled = dict[str, dict[str, Any]]
"""Names, and for each the settings that it stands for, by their path such as model.width."""


def change(run: RunConfig, values: Mapping[str, Any], out: Path | None, origin: str) -> RunConfig:
    """Return the settings of `run` with `values`, by their path, in `out`; errors say `origin`."""
    settings = run.model_dump(mode="json")
    paths = by_path(settings).keys() - {"data.cache"}  # which is the machine's
    for path, value in values.items():
        if path not in paths:
            raise ConfigError(f"{origin}: unknown setting {path}: {closest(path, paths)}")
        section, _, name = path.partition(".")
        settings[section][name] = value
    return validate(RunConfig, settings | {"out": out}, origin)


def differing(saved: Mapping[str, Any], config: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Return by their path the settings that a run was begun with otherwise: saved, and now.

    What is None in `config` may have been decided when the run began, or be of a newer version;
    with the network goes whether it is pretrained.
    """
    old, new = by_path(saved), by_path(config.model_dump(mode="json"))
    if new["model.name"] is None:
        new["model.pretrained"] = None
    both = {name: (old[name], new[name]) for name in new if name in old}
    return {name: (a, b) for name, (a, b) in both.items() if a != b and b is not None}


def require_one(config: object, resume: object, kind: str) -> None:
    """Raise ConfigError unless there is either the settings or a folder to resume."""
    if (config is None) == (resume is None):
        raise ConfigError(f"expected either the settings of a new {kind} or a folder to resume")


class Cell(Frozen):
    """One run of a grid, in a folder called `name`."""

    name: str
    run: RunConfig


class GridConfig(Frozen):
    """A grid of runs: every data set with every network, every variant and every seed."""

    run: RunConfig = RunConfig()
    """What all cells share."""
    datasets: tyro.conf.Suppress[Labelled] = Field(default={})
    """Data sets by name; without any, the one of `run`."""
    networks: tyro.conf.Suppress[Labelled] = Field(default={})
    """Networks by name; without any, the one of `run`."""
    variants: tyro.conf.Suppress[Labelled] = Field(default={})
    """Other settings that are compared, by a name for them."""
    folds: int | None = Field(None, ge=3)
    """Cross-validation: each cell is run so many times, with another part of the images as test."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 1, 2), min_length=1)
    """Seeds of each; every other setting being equal, they differ by chance alone."""
    out: Path | None = None
    """Folder of the grid; None: grids/NAME."""

    @field_validator("datasets", "networks", "variants", mode="before")
    @classmethod
    def _names_alone_are_enough(cls, axis: Any) -> Any:
        if isinstance(axis, list):
            axis = dict.fromkeys(map(str, axis))
        if isinstance(axis, dict):
            axis = {str(name): values or {} for name, values in axis.items()}
        return axis

    def choose(self, **axes: Sequence[str]) -> Self:
        """Return the grid with only these names on each axis for which there are any."""
        for name in axes.get("variants", ()):
            if name not in self.variants:
                raise ConfigError(f"unknown variant {name}: {closest(name, self.variants)}")
        chosen = {
            axis: {name: getattr(self, axis).get(name, {}) for name in names}
            for axis, names in axes.items()
            if names
        }
        return self.model_copy(update=chosen)

    def check_axes(self, default: Self) -> None:
        """Raise ConfigError for a setting that differs from `default` and that an axis sets."""
        set_by = {"train.seed": "seeds"}
        set_by |= {"data.name": "datasets"} if self.datasets else {}
        set_by |= {"model.name": "networks"} if self.networks else {}
        for axis in ("datasets", "networks", "variants"):
            for values in getattr(self, axis).values():
                set_by |= dict.fromkeys(values, axis)
        run, before = by_path(self.run.model_dump()), by_path(default.run.model_dump())
        for path, axis in set_by.items():
            if run.get(path) != before.get(path):
                raise ConfigError(f"{path} is set by the {axis} of the grid, not for all cells")

    def cells(self, folder: Path) -> list[Cell]:
        """Return every run of the grid in `folder`; all seeds of one before those of the next."""
        datasets = self.datasets or {self.run.data.name: {}}
        networks = self.networks or {self.run.model.name: {}}
        variants = self.variants or {"": {}}
        folds = [None] if self.folds is None else range(self.folds)
        cells: dict[str, Cell] = {}
        for dataset, network, variant, fold, seed in itertools.product(
            datasets, networks, variants, folds, self.seeds
        ):
            values = {"data.name": dataset, "model.name": network, "train.seed": seed}
            values |= datasets[dataset] | networks[network] | variants[variant]
            if fold is not None:
                values |= {"data.folds": self.folds, "data.fold": fold}
            part = "" if fold is None else f"fold{fold}"
            parts = (Path(dataset).stem, network, variant, part, f"seed{seed}")
            name = "-".join(re.sub(r"[^\w.+-]+", "-", part) for part in parts if part)
            run = change(self.run, values, folder / "runs" / name, f"cell {name}")
            if not run.data.name:
                raise ConfigError("the grid has no data: add --datasets NAME ..., or FILE.npz ...")
            if name in cells:
                raise ConfigError(f"two cells of the grid are called {name}: rename one")
            cells[name] = Cell(name=name, run=run)
        return list(cells.values())


class EngineConfig(Frozen):
    """Where the cells of a grid run."""

    engine: Literal["local", "ray"] = "local"
    """local: processes on this machine. ray: tasks on a Ray cluster."""
    workers: int = Field(1, ge=1)
    """local: cells at a time."""
    address: str | None = None
    """ray: of the cluster, such as auto or HOST:6379; None: one that is started here."""
    cpus_per_cell: float = Field(1, gt=0)
    """ray: CPU cores that are reserved for each cell."""
    gpus_per_cell: float | None = Field(None, ge=0)
    """ray: GPUs likewise; None: one, if the cluster has any."""


def load_grid(name: str) -> GridConfig:
    """Return the grid called `name`, or in the YAML file there; errors as `load_recipe`.

    Example:
        >>> sorted(load_grid("tasks").variants)
        ['classify', 'classify+reconstruct', 'classify+segment', 'segment']
    """
    return validate(GridConfig, read_recipe(name, "grid"), f"grid {name}")


def read_grid(path: Path) -> GridConfig:
    """Return the settings of the grid in a folder."""
    file = path / "grid.json"
    if not file.is_file():
        raise MissingFileError(f"expected the folder of a grid, but {path} has no {file.name}")
    return validate(GridConfig, read_json(file), str(file), saved=True)
