"""The folder of a grid, and the work on one cell of it."""

import os
import platform
import threading
import time
import traceback
from pathlib import Path
from typing import Any, Literal, NamedTuple

from medduet.errors import Interrupted, MedDuetError
from medduet.experiments.config import Cell
from medduet.runs.folder import RunFolder
from medduet.utils.files import sweep, write_json
from medduet.utils.locks import exclusive, is_held
from medduet.utils.parsing import read_json

Outcome = Literal["finished", "failed", "interrupted", "busy"]
"""How work on a cell ended; busy: another process works on it."""


class CellState(NamedTuple):
    """A cell is finished, failed (with an `error`), running or waiting; `epochs` as in its run."""

    state: str
    epochs: list[dict[str, Any]]
    error: str = ""


class GridFolder:
    """The files of a grid: ``grid.json``, ``runs/CELL/``, in ``cells/`` locks, logs and errors."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, name: str, kind: str) -> Path:
        """Return a file of a cell: its ``lock``, its ``log``, or ``json`` of its error."""
        return self.path / "cells" / f"{name}.{kind}"

    def run(self, name: str) -> RunFolder:
        """The run of a cell."""
        return RunFolder(self.path / "runs" / name)

    def settled(self, name: str) -> bool:
        """Whether a cell has finished or failed."""
        return self.run(name).finished or self.file(name, "json").is_file()

    def busy(self, name: str) -> bool:
        """Whether a process works on a cell."""
        return is_held(self.file(name, "lock"))

    def state(self, name: str) -> CellState:
        """Return the state of a cell, from its files."""
        run, failure = self.run(name), self.file(name, "json")
        if run.finished:
            return CellState("finished", run.epochs)
        if failure.is_file():
            return CellState("failed", run.epochs, str(read_json(failure).get("error")))
        return CellState("running" if self.busy(name) else "waiting", run.epochs)

    def record_failure(self, name: str, error: str, details: str = "") -> None:
        """Record that a cell failed, with its error in one line."""
        text = " ".join(error.split())
        write_json(self.file(name, "json"), {"cell": name, "error": text, "details": details})


def run_cell(folder: GridFolder, cell: Cell, *, stop: threading.Event | None = None) -> Outcome:
    """Train the run of a cell, or continue it, unless another process does; record its error."""
    from medduet.experiments import run  # imports torch, which the parent of cells needs not

    with exclusive(folder.file(cell.name, "lock")) as alone:
        if not alone:
            return "busy"
        if folder.settled(cell.name):
            return "finished"
        sweep(folder.file(cell.name, "json"))
        path = folder.run(cell.name).path
        begun = (path / "config.json").is_file()
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        with folder.file(cell.name, "log").open("a", encoding="utf-8") as log:
            process = f"{platform.node()}, process {os.getpid()}"
            log.write(f"{when} UTC, {process}: {'continues' if begun else 'starts'}\n")
        try:
            run.train(None if begun else cell.run, resume=path if begun else None, stop=stop)
        except Interrupted:
            return "interrupted"
        except Exception as error:  # a defect in one network must not stop the others
            kind = "" if isinstance(error, MedDuetError) else f"{type(error).__name__}: "
            folder.record_failure(cell.name, f"{kind}{error}", traceback.format_exc())
            return "failed"
        return "finished"
