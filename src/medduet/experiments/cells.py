"""The folder of a grid, and the work on one cell of it."""

import logging
import multiprocessing
import os
import platform
import signal
import sys
import threading
import time
import traceback
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Literal, NamedTuple

from medduet.errors import Interrupted, MedDuetError, one_line
from medduet.experiments.config import Cell
from medduet.runs.folder import RunFolder
from medduet.utils.files import sweep, write_json
from medduet.utils.locks import exclusive, is_held
from medduet.utils.parsing import read_json

Outcome = Literal["finished", "failed", "interrupted", "busy"]
"""How work on a cell ended; busy: another process works on it."""
# 255 is what multiprocessing says of processes whose fork server was killed: the cell itself may
# go on, and is waited for by its lock.
_OUTCOMES: dict[int, Outcome]
_OUTCOMES = {0: "finished", 3: "failed", 4: "busy", 130: "interrupted", 255: "busy"}
_PRELOADED = (
    "medduet.experiments.cells",
    "medduet.experiments.run",
    "timm",
    "segmentation_models_pytorch",
    "monai.losses",
    "kornia.augmentation",
)


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
        failure = {"cell": name, "error": one_line(error), "details": details}
        write_json(self.file(name, "json"), failure)


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


class LocalEngine:
    """Runs each cell in a process of its own, forked in 0.05 s from one that has all libraries."""

    def __init__(self, folder: GridFolder, workers: int) -> None:
        self.folder, self.slots = folder, workers
        self._threads = max(1, len(os.sched_getaffinity(0)) // workers)
        self._processes: dict[str, ForkServerProcess] = {}

    def start(self, cell: Cell) -> None:
        """Start the process of a cell."""
        _ensure_server()
        process = multiprocessing.get_context("forkserver").Process(
            target=_work, args=(self.folder.path, cell, dict(os.environ), self._threads)
        )
        process.start()
        self._processes[cell.name] = process

    def ended(self) -> dict[str, Outcome]:
        """Return the cells that ended since the last call, and how."""
        outcomes: dict[str, Outcome] = {}
        for name, process in list(self._processes.items()):
            if (code := process.exitcode) is not None:
                self._processes.pop(name).close()
                if code not in _OUTCOMES:
                    how = f"killed by signal {-code}" if code < 0 else f"ended with code {code}"
                    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
                    text = f"its process: {how}{hint}; its output is in"
                    self.folder.record_failure(name, f"{text} {self.folder.file(name, 'log')}")
                outcomes[name] = _OUTCOMES.get(code, "failed")
        return outcomes

    def stop(self) -> None:
        """Let the running cells finish their step, save and end."""
        for process in self._processes.values():
            process.terminate()

    def close(self) -> None:
        """Wait until all processes have ended."""
        self.stop()
        for process in self._processes.values():
            process.join()
        self.ended()


def _ensure_server() -> None:
    """Start the fork server; it and its cells block SIGINT and SIGTERM, sent to whole groups."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(_PRELOADED))
    resource_tracker.ensure_running()  # which unblocks both signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(path: Path, cell: Cell, environment: dict[str, str], threads: int) -> None:
    """Run a cell in this process, and exit with its outcome."""
    import torch

    os.environ.update(environment)  # the server may be older
    folder, stop = GridFolder(path), threading.Event()
    path = folder.file(cell.name, "log")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    parent = multiprocessing.parent_process()
    assert parent is not None

    def stop_with_parent() -> None:
        parent.join()
        stop.set()

    threading.Thread(target=stop_with_parent, daemon=True).start()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads)
    outcome = run_cell(folder, cell, stop=stop)
    sys.exit(next(code for code, each in _OUTCOMES.items() if each == outcome))
