"""A grid of runs as one command that can be stopped, killed, repeated and shared."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medduet.config import validate
from medduet.data.cache import ProgressFactory
from medduet.data.sources import open_images
from medduet.errors import ConfigError, Interrupted, MedDuetError, MissingFileError
from medduet.experiments.cells import CellState, GridFolder
from medduet.experiments.config import Cell, EngineConfig, GridConfig
from medduet.utils.parsing import read_json

if TYPE_CHECKING:
    from medduet.experiments.local import LocalEngine
    from medduet.experiments.ray_engine import RayEngine

_PAUSE = 0.2  # seconds between two looks at what has ended
_PATHS = ("data.name", "model.weights")
_PLACES = ("data.cache", "data.mirror", "train.device")
_WATCH = 1.0  # seconds between two looks at how all cells stand

Watch = Callable[[list[Cell], Mapping[str, CellState]], None]
"""Is shown now and then where every cell of the grid stands."""


@dataclass(frozen=True)
class GridRecord:
    """A grid, as far as it has come.

    Attributes:
        path: its folder.
        cells: all its runs.
        states: where each stands, by its name.
    """

    path: Path
    cells: list[Cell]
    states: dict[str, CellState]

    def count(self, state: str) -> int:
        """Return how many cells are in that state."""
        return sum(each.state == state for each in self.states.values())


def benchmark(
    config: GridConfig | None = None,
    *,
    resume: str | Path | None = None,
    datasets: Sequence[str] = (),
    networks: Sequence[str] = (),
    variants: Sequence[str] = (),
    where: EngineConfig = EngineConfig(),  # noqa: B008  (frozen)
    retry_failed: bool = False,
    watch: Watch | None = None,
    progress: ProgressFactory | None = None,
    stop: threading.Event | None = None,
) -> GridRecord:
    """Train every cell of a grid that is not finished, and leave all in the grid's folder.

    The same call goes on where it was after a kill, and may run several times at once, on one
    machine or on several that share the folder: no cell runs twice. A cell that fails is recorded
    with its error and doesn't stop the others. More data sets, networks, variants or seeds can be
    added later; cells that are there must have been made with the same settings.

    Args:
        config: of the grid.
        resume: instead, the folder of a grid to continue, as it is.
        datasets: MedMNIST flags, .npz files or others; default: those of the grid.
        networks: names of `medduet models`; default: those of the grid.
        variants: of the grid's variants, only these.
        where: processes on this machine, or a Ray cluster.
        retry_failed: try the cells again that failed before.
        watch: is shown once a second where every cell stands.
        progress: draws the progress of downloads and conversions.
        stop: set it to let running cells save and end.

    Raises:
        ConfigError: settings that don't fit, or a folder that was made with others.
        Interrupted: `stop` was set.

    Example:
        >>> import tempfile
        >>> grid = GridConfig(
        ...     run={"data": {"name": "phantom", "size": 16, "count": 20}, "model": {"width": 2},
        ...          "train": {"epochs": 1}},
        ...     seeds=(0,), out=Path(tempfile.mkdtemp()))
        >>> benchmark(grid).count("finished")
        1
    """
    if (config is None) == (resume is None):
        raise ConfigError("expected either the settings of a new grid or a folder to resume")
    if resume is not None:
        if datasets or networks or variants:
            raise ConfigError(
                "--resume continues the grid as it is: to change it, give its recipe again with "
                f"--out {resume}"
            )
        config = _read(Path(resume)).model_copy(update={"out": Path(resume)})
    assert config is not None
    config = config.choose(tuple(datasets), tuple(networks), tuple(variants))
    if config.out is None:
        raise ConfigError("no folder given: add --out FOLDER")
    folder, stop = GridFolder(config.out), stop or threading.Event()
    cells = config.cells(folder.path)
    _check_made_alike(folder, cells)
    folder.write_settings(config.model_dump(mode="json"))
    if retry_failed:
        for cell in cells:
            folder.failure(cell.name).unlink(missing_ok=True)
    engine = _engine(folder, where)
    if where.engine == "local":
        _fetch(folder, cells, progress)
    record = _drive(folder, cells, engine, stop, watch)
    if stop.is_set() and record.count("finished") + record.count("failed") < len(cells):
        raise Interrupted(
            f"stopped with {record.count('finished')} of {len(cells)} cells finished; go on with: "
            f"medduet benchmark --resume {folder.path}"
        )
    return record


def _engine(folder: GridFolder, where: EngineConfig) -> LocalEngine | RayEngine:
    if where.engine == "local":
        from medduet.experiments.local import LocalEngine

        return LocalEngine(folder, where.workers)
    from medduet.experiments.ray_engine import RayEngine

    return RayEngine(folder, where)


def _read(path: Path) -> GridConfig:
    if not (path / "grid.json").is_file():
        raise MissingFileError(
            f"expected the folder of a grid, but {path} has no grid.json: give the folder that "
            "'medduet benchmark' printed"
        )
    return validate(GridConfig, read_json(path / "grid.json"), str(path / "grid.json"))


def _check_made_alike(folder: GridFolder, cells: list[Cell]) -> None:
    """Refuse a folder in which a cell was begun with other settings."""
    for cell in cells:
        made = folder.run(cell.name).path / "config.json"
        if not made.is_file():
            continue
        old, new = _that_matter(read_json(made)), _that_matter(cell.run.model_dump(mode="json"))
        for name, value in new.items():
            if name in old and old[name] != value:  # an older version may not have had it
                raise ConfigError(
                    f"{made.parent} was made with {name} {old[name]}, but the grid has {value}: "
                    "give another --out, the same settings, or remove that folder"
                )


def _that_matter(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings by path, without those that only say where things are."""
    flat = {
        f"{section}.{key}": value
        for section, values in config.items()
        if isinstance(values, Mapping)
        for key, value in values.items()
        if f"{section}.{key}" not in _PLACES
    }
    # Seen from another folder or machine it has another path.
    return {
        name: Path(value).name if name in _PATHS and isinstance(value, str) else value
        for name, value in flat.items()
    }


def _fetch(folder: GridFolder, cells: list[Cell], progress: ProgressFactory | None) -> None:
    """Download and unpack each data set once, before several cells want it at the same time."""
    sources = {
        cell.run.data.model_dump_json(): cell.run.data
        for cell in cells
        if not folder.settled(cell.name)
    }
    for source in sources.values():
        with suppress(MedDuetError):  # which every cell that needs it records as its own
            open_images(source, progress=progress)


def _drive(
    folder: GridFolder,
    cells: list[Cell],
    engine: LocalEngine | RayEngine,
    stop: threading.Event,
    watch: Watch | None,
) -> GridRecord:
    """Start cells as places get free, until all are settled or `stop` is set."""
    waiting = [cell for cell in cells if not folder.settled(cell.name)]
    running: dict[str, Cell] = {}
    states: dict[str, CellState] = {}
    watched = 0.0
    try:
        while running or (waiting and not stop.is_set()):
            if stop.is_set():
                engine.stop()
            else:
                waiting = _start(folder, waiting, running, engine)
            for name, outcome in engine.ended().items():
                cell = running.pop(name)
                if outcome in ("busy", "interrupted"):
                    waiting.append(cell)
            if watch is not None and time.monotonic() - watched > _WATCH:
                watched = time.monotonic()
                states = _states(folder, cells, states)
                watch(cells, states)
            if running or waiting:
                stop.wait(_PAUSE) if not stop.is_set() else time.sleep(_PAUSE)
    finally:
        engine.close()
    states = _states(folder, cells, states)
    if watch is not None:
        watch(cells, states)
    return GridRecord(folder.path, cells, states)


def _start(
    folder: GridFolder,
    waiting: list[Cell],
    running: dict[str, Cell],
    engine: LocalEngine | RayEngine,
) -> list[Cell]:
    """Start what can be started; return what must wait, for a place or for another process."""
    left = []
    for cell in waiting:
        if folder.settled(cell.name):
            continue  # by another process
        if len(running) < engine.slots and not folder.busy(cell.name):
            engine.start(cell)
            running[cell.name] = cell
        else:
            left.append(cell)
    return left


def _states(
    folder: GridFolder, cells: list[Cell], before: Mapping[str, CellState]
) -> dict[str, CellState]:
    """Return where every cell stands; those that are settled are not read again."""
    settled = {name: s for name, s in before.items() if s.state in ("finished", "failed")}
    return {cell.name: settled.get(cell.name) or folder.state(cell.name) for cell in cells}
