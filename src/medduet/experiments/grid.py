"""A grid of runs as one command that can be stopped, killed, repeated and shared."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from medduet.data.cache import Progress
from medduet.data.sources import open_images
from medduet.errors import ConfigError, DataError, DownloadError, Interrupted, MissingFileError
from medduet.experiments.cells import CellState, GridFolder, LocalEngine
from medduet.experiments.config import (
    Cell,
    EngineConfig,
    GridConfig,
    differing,
    read_grid,
    require_one,
)
from medduet.experiments.ray_engine import RayEngine
from medduet.models.registry import find_model
from medduet.utils.files import sweep, write_json
from medduet.utils.locks import exclusive, result_folder
from medduet.utils.parsing import read_json

_PAUSE = 0.2  # seconds between two looks at what has ended
_WATCH = 1.0  # seconds between two looks at how all cells stand
_FREE = {"data.cache", "data.mirror", "train.device"}
_PATHS = ("data.name", "model.weights")
"""Settings that may differ when a grid goes on, and those of which only the file name may not."""

Watch = Callable[[Mapping[str, CellState]], None]
"""Is shown now and then where every cell of the grid stands."""


@dataclass(frozen=True)
class GridRecord:
    """A grid, as far as it has come: its folder, and where each cell stands, by its name."""

    path: Path
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
    progress: Progress = None,
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
    require_one(config, resume, "grid")
    if resume is not None:
        if datasets or networks or variants:
            raise ConfigError(f"to change a grid, give its recipe again with --out {resume}")
        config = read_grid(Path(resume)).model_copy(update={"out": Path(resume)})
    assert config is not None
    config = config.choose(datasets=datasets, networks=networks, variants=variants)
    if config.out is None:
        raise ConfigError("no folder given: add --out FOLDER")
    folder, stop = GridFolder(result_folder(config.out)), stop or threading.Event()
    cells = config.cells(folder.path)
    for network in {cell.run.model.name for cell in cells} - {None}:
        find_model(network)
    _check_made_alike(folder, cells)
    if retry_failed:
        for cell in cells:
            folder.file(cell.name, "json").unlink(missing_ok=True)
    if where.engine == "local":
        # Each data set is fetched once, before several cells want it at the same time.
        for source in {cell.run.data: None for cell in cells if not folder.settled(cell.name)}:
            # What every cell that needs it records as its own; unknown names end all.
            with suppress(DataError, DownloadError, MissingFileError):
                open_images(source, progress=progress)
    with exclusive(folder.path / ".lock", wait=True):
        sweep(folder.path / "grid.json")
        write_json(folder.path / "grid.json", config.model_dump(mode="json"))
    ray = where.engine == "ray"
    engine = RayEngine(folder, where) if ray else LocalEngine(folder, where.workers)
    record = _drive(folder, cells, engine, stop, watch or (lambda states: None))
    if stop.is_set() and record.count("finished") + record.count("failed") < len(cells):
        raise Interrupted(
            f"stopped with {record.count('finished')} of {len(cells)} cells finished; go on with: "
            f"medduet benchmark --resume {folder.path}"
        )
    return record


def _check_made_alike(folder: GridFolder, cells: list[Cell]) -> None:
    """Refuse a folder in which a cell was begun with other settings."""
    for cell in cells:
        made = folder.run(cell.name).path / "config.json"
        if not made.is_file():
            continue
        for name, (before, now) in differing(read_json(made), cell.run).items():
            same_file = name in _PATHS and before and Path(before).name == Path(now).name
            if name not in _FREE and not same_file:
                raise ConfigError(
                    f"{made.parent} was made with {name} {before}, but the grid has {now}: give "
                    "another --out, the same settings, or remove that folder"
                )


def _drive(
    folder: GridFolder,
    cells: list[Cell],
    engine: LocalEngine | RayEngine,
    stop: threading.Event,
    watch: Watch,
) -> GridRecord:
    """Start cells as places get free, until all are settled or `stop` is set."""
    running, states, watched = dict[str, Cell](), dict[str, CellState](), 0.0
    waiting = list(cells)

    def look() -> None:
        for cell in cells:
            if cell.name not in states or states[cell.name].state not in ("finished", "failed"):
                states[cell.name] = folder.state(cell.name)
        watch(states)

    try:
        while running or (waiting and not stop.is_set()):
            waiting = [cell for cell in waiting if not folder.settled(cell.name)]
            free = 0 if stop.is_set() else engine.slots - len(running)
            ready = (cell for cell in waiting if not folder.busy(cell.name))
            for cell in list(islice(ready, free)):
                engine.start(cell)
                waiting.remove(cell)
                running[cell.name] = cell
            if stop.is_set():
                engine.stop()
            for name, outcome in engine.ended().items():
                cell = running.pop(name)
                if outcome in ("busy", "interrupted"):
                    waiting.append(cell)
            if time.monotonic() - watched > _WATCH:
                watched = time.monotonic()
                look()
            if running or waiting:
                time.sleep(_PAUSE)
    finally:
        engine.close()
    look()
    return GridRecord(folder.path, states)
