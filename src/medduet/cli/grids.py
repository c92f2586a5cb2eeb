"""The commands about many runs."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import Field

from medduet.cli.parse import parse, quiet_libraries, recipe_and_words, stopping_on_signals
from medduet.config import Frozen, RunConfig
from medduet.errors import ConfigError
from medduet.experiments.config import GridConfig, load_grid


class Where(Frozen):
    """Where and how the cells of a grid run."""

    engine: Literal["local", "ray"] = "local"
    """local: processes on this machine. ray: tasks on a Ray cluster."""
    workers: int = Field(1, ge=1)
    """local: cells at a time."""
    address: str | None = None
    """ray: of the cluster, such as auto or HOST:6379; None: one that is started here."""
    cpus_per_cell: float = Field(1, gt=0)
    """ray: CPU cores that are kept for each cell, or each rank of it."""
    gpus_per_cell: float | None = Field(None, ge=0)
    """ray: GPUs likewise; None: one, if the cluster has any."""
    ranks_per_cell: int = Field(1, ge=1)
    """ray: processes that train each cell together, by Ray Train."""
    retry_failed: bool = False
    """Try the cells again that failed before."""


_HERE = Where()


def benchmark(words: list[str]) -> int:
    """Train a grid of runs."""
    given = recipe_and_words("benchmark", words, "grid")
    recipe, rest = ("", words[2:]) if isinstance(given, Path) else given
    default = GridConfig() if isinstance(given, Path) else load_grid(recipe)

    def arguments(
        grid: Annotated[GridConfig, tyro.conf.arg(name="")] = default,
        where: Annotated[Where, tyro.conf.arg(name="")] = _HERE,
        datasets: tuple[str, ...] = (),
        networks: tuple[str, ...] = (),
        variants: tuple[str, ...] = (),
    ) -> tuple[GridConfig, Where, dict[str, tuple[str, ...]]]:
        """Train every cell of a grid that is not finished.

        Args:
            grid: What is run.
            where: Where it is run.
            datasets: MedMNIST flags or .npz files; default: those of the grid.
            networks: Names from `medduet models`; default: those of the grid.
            variants: Of the grid's variants, only these.
        """
        return grid, where, {"datasets": datasets, "networks": networks, "variants": variants}

    program = f"medduet benchmark {recipe or '--resume GRID'}"
    grid, where, chosen = parse(arguments, rest, program)
    resume = given if isinstance(given, Path) else None
    if resume is not None and (grid != default or any(chosen.values())):
        raise ConfigError(
            "--resume goes on with the grid as it is: to change it, give its recipe again with "
            f"--out {resume}"
        )
    if resume is None:
        _refuse_what_changes_nothing(grid.run, default.run, grid.choose(**chosen))
        grid = grid.choose(**chosen)
        if grid.out is None:
            grid = grid.model_copy(update={"out": Path("grids") / Path(recipe).stem})
    with quiet_libraries():
        return _run(None if resume else grid, resume, where)


def _refuse_what_changes_nothing(run: RunConfig, default: RunConfig, grid: GridConfig) -> None:
    """Refuse settings of all cells that every cell has otherwise."""
    axes = {"datasets": "data.name", "networks": "model.name"}
    by_axis = {path: axis for axis, path in axes.items() if getattr(grid, axis)}
    by_axis |= {
        path: axis
        for axis in ("datasets", "networks", "variants")
        for settings in getattr(grid, axis).values()
        for path in settings
    }
    by_axis["train.seed"] = "seeds"
    for path, axis in by_axis.items():
        section, _, name = path.partition(".")
        values = [getattr(getattr(config, section), name) for config in (run, default)]
        if values[0] != values[1]:
            hint = "" if axis == "variants" else f"; give --{axis}"
            raise ConfigError(f"{path} is set by the {axis} of the grid, not for all cells{hint}")


def _run(config: GridConfig | None, resume: Path | None, where: Where) -> int:
    from medduet.cli.display.grid import GridScreen, show_grid
    from medduet.cli.display.progress import draw_progress
    from medduet.experiments.grid import benchmark
    from medduet.reports.page import write_report

    stop = threading.Event()
    with stopping_on_signals(stop), GridScreen() as screen:
        record = benchmark(
            config,
            resume=resume,
            engine=_engine(where),
            retry_failed=where.retry_failed,
            watch=screen.watch,
            progress=draw_progress,
            stop=stop,
        )
    page = write_report([record.path]) if record.count("finished") else None
    show_grid(record, page)
    return 0 if record.count("failed") == 0 else 1


_OF_RAY = ("address", "cpus_per_cell", "gpus_per_cell", "ranks_per_cell")


def _engine(where: Where) -> Any:
    other, names = ("ray", _OF_RAY) if where.engine == "local" else ("local", ("workers",))
    for name in names:
        if getattr(where, name) != Where.model_fields[name].default:
            raise ConfigError(f"--{name.replace('_', '-')} needs --engine {other}")
    if where.engine == "local":

        def local(folder: Any) -> Any:
            from medduet.experiments.local import LocalEngine

            return LocalEngine(folder, where.workers)

        return local

    def ray(folder: Any) -> Any:
        from medduet.experiments.ray_engine import RayEngine

        return RayEngine(
            folder,
            address=where.address,
            cpus=where.cpus_per_cell,
            gpus=where.gpus_per_cell,
            ranks=where.ranks_per_cell,
        )

    return ray


def report(words: list[str]) -> int:
    """Write the page on finished runs."""

    def arguments(
        paths: tyro.conf.Positional[tuple[Path, ...]],
        out: Path | None = None,
        reference: str | None = None,
        samples: bool = True,
    ) -> dict[str, Any]:
        """Write one page, tables and figures on all finished runs in and under some folders.

        Args:
            paths: Folders with runs, such as that of a grid.
            out: Folder to write; default: report in the first of the folders.
            reference: The method that the others are tested against.
            samples: Whether sheets of test images are shown.
        """
        return dict(locals())

    given = parse(arguments, words, "medduet report")
    if not given["paths"]:
        raise ConfigError("expected folders of runs: medduet report DIR ...")
    with quiet_libraries():
        from medduet.reports.page import write_report

        page = write_report(**given)
    sys.stdout.write(f"look at: {page}\n")
    return 0


def compare(words: list[str]) -> int:
    """Compare two finished runs."""

    def arguments(
        runs: tyro.conf.Positional[tuple[Path, ...]] = (),
        split: Literal["val", "test"] = "test",
        out: Path | None = None,
    ) -> dict[str, Any]:
        """Compare two finished runs on the same images, with paired tests.

        Args:
            runs: The folders of two runs on the same data.
            split: Which split to compare them on.
            out: Write the numbers into this JSON file, too.
        """
        return dict(locals())

    given = parse(arguments, words, "medduet compare")
    runs, out = given["runs"], given["out"]
    if len(runs) != 2:
        raise ConfigError(f"expected two runs, given {len(runs)}: medduet compare RUN_A RUN_B")
    if out is not None and out.suffix != ".json":
        raise ConfigError(f"--out takes the path of a .json file, given {out}")
    from medduet.cli.display.compare import show_comparison
    from medduet.reports.compare import compare as work
    from medduet.utils.files import write_json

    comparison = work(runs[0], runs[1], split=given["split"])
    if out is not None:
        try:
            write_json(out, comparison.as_dict())
        except OSError as error:
            raise ConfigError(f"can't write --out {out}: {error.strerror}") from error
    show_comparison(comparison)
    return 0
