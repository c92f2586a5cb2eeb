"""The folder of a grid, and the work on one cell of it."""

from __future__ import annotations

import os
import platform
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from medduet.errors import Interrupted, MedDuetError
from medduet.experiments.config import Cell
from medduet.runs.folder import RunFolder
from medduet.utils.files import sweep, write_json
from medduet.utils.locks import exclusive, is_held
from medduet.utils.parsing import read_object

Outcome = Literal["finished", "failed", "interrupted", "busy"]
"""How work on a cell ended; busy: another process works on it."""


class CellState(NamedTuple):
    """The state of a cell.

    Attributes:
        state: ``"finished"``, ``"failed"``, ``"running"`` or ``"waiting"``.
        epoch: number of finished epochs.
        row: the line of the last of them in ``epochs.jsonl``; empty before.
        error: of a failed cell, in one line.
    """

    state: str
    epoch: int = 0
    row: dict[str, Any] = {}  # noqa: RUF012  (never changed)
    error: str = ""


class GridFolder:
    """The files of a grid; every process and machine that works on it sees the same ones.

    ::

        GRID/
        ├── grid.json        the settings
        ├── runs/CELL/       the folder of each run
        ├── cells/           for each cell its lock, its log, and its error if it failed
        └── report/          see `medduet.write_report`
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Write ``grid.json``; several processes may at the same time."""
        path = self.path / "grid.json"
        with exclusive(self.path / ".lock", wait=True):
            sweep(path)
            write_json(path, settings)

    def lock(self, name: str) -> Path:
        """Return the lock file of a cell; whoever holds it works on the cell."""
        return self.path / "cells" / f"{name}.lock"

    def log(self, name: str) -> Path:
        """Return the file with the output of a cell's process."""
        return self.path / "cells" / f"{name}.log"

    def failure(self, name: str) -> Path:
        """Return the file with the error of a cell, which exists if it failed."""
        return self.path / "cells" / f"{name}.json"

    def run(self, name: str) -> RunFolder:
        """Return the folder of the run of a cell."""
        return RunFolder(self.path / "runs" / name)

    def settled(self, name: str) -> bool:
        """Return whether a cell has finished or failed."""
        return self.run(name).finished or self.failure(name).is_file()

    def busy(self, name: str) -> bool:
        """Return whether a process works on a cell."""
        return is_held(self.lock(name))

    def state(self, name: str) -> CellState:
        """Return the state of a cell, from its files."""
        run, failure = self.run(name), self.failure(name)
        epochs = run.epochs
        progress = (len(epochs), epochs[-1] if epochs else {})
        if run.finished:
            return CellState("finished", *progress)
        if failure.is_file():
            return CellState("failed", *progress, error=str(read_object(failure).get("error")))
        return CellState("running" if self.busy(name) else "waiting", *progress)

    def record_failure(self, name: str, error: str, details: str = "") -> None:
        """Record that a cell failed, with its error in one line."""
        text = " ".join(error.split())
        write_json(self.failure(name), {"cell": name, "error": text, "details": details})


def run_cell(folder: GridFolder, cell: Cell, *, stop: threading.Event | None = None) -> Outcome:
    """Train the run of a cell, or continue it, unless another process does; record its error.

    Args:
        folder: of the grid.
        cell: to run.
        stop: set it to stop after the current step; the cell can be continued.
    """
    from medduet.experiments import run  # imports torch, which the parent of cells needs not

    with exclusive(folder.lock(cell.name)) as alone:
        if not alone:
            return "busy"
        if folder.settled(cell.name):
            return "finished"
        sweep(folder.failure(cell.name))
        path = folder.run(cell.name).path
        begun = (path / "config.json").is_file()
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        with folder.log(cell.name).open("a", encoding="utf-8") as log:
            process = f"{platform.node()}, process {os.getpid()}"
            log.write(f"{when} UTC, {process}: {'continues' if begun else 'starts'}\n")
        try:
            run.train(None if begun else cell.run, resume=path if begun else None, stop=stop)
        except Interrupted:
            return "interrupted"
        except MedDuetError as error:
            folder.record_failure(cell.name, str(error))
            return "failed"
        except Exception as error:  # a defect in one network must not stop the others
            text = f"{type(error).__name__}: {error}"
            folder.record_failure(cell.name, text, traceback.format_exc())
            return "failed"
        return "finished"
