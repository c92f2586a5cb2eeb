"""Cells as tasks on a Ray cluster."""

import logging
import os
import signal
import socket
import threading
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from medduet.errors import ConfigError
from medduet.experiments.cells import GridFolder, Outcome, run_cell
from medduet.experiments.config import Cell, EngineConfig

RETRIES = 3  # so often a cell starts again after its node or process was lost
_MANY = 1_000_000
_PATIENCE = 10.0  # seconds for a cluster to answer
_POLL = 0.5  # seconds between two looks for the file that asks to stop


class RayEngine:
    """Hands all cells to Ray; every node must see the grid's folder under the same path."""

    slots = _MANY

    def __init__(self, folder: GridFolder, where: EngineConfig) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError("--engine ray needs ray: type pip install 'medduet[ray]'") from error
        self._ray, self._started = ray, not ray.is_initialized()
        if self._started:
            self._connect(where.address)
        cpus, gpus = where.cpus_per_cell, where.gpus_per_cell
        if gpus is None:
            gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(n.get("CPU", 0) >= cpus and n.get("GPU", 0) >= gpus for n in nodes):
            self._leave()
            raise ConfigError(
                f"no node of the cluster has {cpus:g} CPU(s) and {gpus:g} GPU(s): lower "
                "--cpus-per-cell or --gpus-per-cell"
            )
        # One process per cell: it frees its memory, and GPU, at its end.
        options = {"max_retries": RETRIES, "max_calls": 1, "num_cpus": cpus, "num_gpus": gpus}
        self._task = ray.remote(**options)(_run)
        # Absolute, since tasks start in a folder of their own.
        self.folder = GridFolder(folder.path.absolute())
        self._stop_file = self.folder.path / "cells" / f"stop-{uuid.uuid4().hex}"
        self._running: dict[Any, str] = {}

    def _connect(self, address: str | None) -> None:
        if address is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        before = signal.getsignal(signal.SIGTERM)
        try:
            if address is not None and ":" in address:
                # Ray tries for minutes.
                host, _, port = address.rpartition("/")[2].rpartition(":")
                socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
            self._ray.init(
                address=address or "local",  # not the one that another program has started
                # The dashboard takes a port; a cluster that is there has its own.
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (OSError, ValueError, RuntimeError) as error:
            text = f"there is no Ray cluster at {address}: start one by 'ray start --head'"
            raise ConfigError(f"{text if address else 'failed to start Ray'} ({error})") from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)  # which Ray takes

    def start(self, cell: Cell) -> None:
        """Hand a cell to Ray."""
        run = cell.run.model_copy(update={"out": self.folder.run(cell.name).path})
        cell = cell.model_copy(update={"run": run})
        task = self._task.options(name=cell.name)
        self._running[task.remote(Path.cwd(), self.folder.path, cell, self._stop_file)] = cell.name

    def ended(self) -> dict[str, Outcome]:
        """Return the cells that ended since the last call, and how."""
        tasks = list(self._running)
        done, _ = self._ray.wait(tasks, num_returns=len(tasks), timeout=0) if tasks else ([], [])
        outcomes: dict[str, Outcome] = {}
        for task in done:
            name = self._running.pop(task)
            try:
                outcomes[name] = self._ray.get(task)
            except self._ray.exceptions.RayError as error:
                first_line = str(getattr(error, "cause", None) or error).strip().partition("\n")[0]
                text = f"lost {RETRIES + 1} times, or never started: {first_line}"
                self.folder.record_failure(name, text, str(error))
                outcomes[name] = "failed"
        return outcomes

    def stop(self) -> None:
        """Let the running cells finish their step, save and end; those not started never start."""
        self._stop_file.parent.mkdir(parents=True, exist_ok=True)
        self._stop_file.touch()

    def close(self) -> None:
        """Wait until all tasks have ended, and leave the cluster."""
        if self._running:
            self.stop()
            self._ray.wait(list(self._running), num_returns=len(self._running))
        self._stop_file.unlink(missing_ok=True)
        self._leave()

    def _leave(self) -> None:
        if self._started:
            self._ray.shutdown()


def _run(here: Path, folder: Path, cell: Cell, stop_file: Path) -> Outcome:
    """Run a cell, in a task, until there is a file that asks to stop."""
    stop, ended = threading.Event(), threading.Event()

    def poll() -> None:
        while not stop_file.exists() and not ended.wait(_POLL):
            pass
        stop.set()

    with suppress(OSError):  # a node that doesn't see the folder in which the grid was started
        os.chdir(here)
    if stop_file.exists():
        return "interrupted"
    threading.Thread(target=poll, daemon=True).start()
    try:
        return run_cell(GridFolder(folder), cell, stop=stop)
    finally:
        ended.set()
