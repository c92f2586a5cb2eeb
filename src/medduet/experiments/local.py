"""Cells as processes on this machine, one or several at a time."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from medduet.experiments.cells import GridFolder, Outcome, run_cell
from medduet.experiments.config import Cell

# 255 is what multiprocessing says of processes whose fork server was killed: the cell itself may
# go on, and is waited for by its lock.
_OUTCOMES: dict[int, Outcome]
_OUTCOMES = {0: "finished", 3: "failed", 4: "busy", 130: "interrupted", 255: "busy"}
_PRELOADED = (
    "medduet.experiments.local",
    "medduet.experiments.run",
    "timm",
    "segmentation_models_pytorch",
    "monai.losses",
    "kornia.augmentation",
)


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
