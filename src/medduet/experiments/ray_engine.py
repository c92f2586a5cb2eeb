"""Cells as tasks on a Ray cluster, each alone or trained by several ranks together."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medduet.errors import ConfigError, Interrupted, MedDuetError, TrainingError
from medduet.experiments.cells import Fit, GridFolder, Outcome, run_cell
from medduet.experiments.config import Cell, EngineConfig
from medduet.experiments.run import train
from medduet.utils.parsing import read_json

RETRIES = 3
"""So often a cell starts again after the node or the process that it ran on was lost."""
_MANY = 1_000_000
_PATIENCE = 10.0  # seconds for a cluster to answer
_LOOK = 0.5  # seconds between two looks for the file that asks to stop


class RayEngine:
    """Hands all cells to Ray, which runs them as resources get free.

    The folder of the grid must be on storage that every node sees under the same path.

    Args:
        folder: of the grid.
        where: the cluster, and what is reserved for each cell.

    Raises:
        ConfigError: ray is not installed, the cluster isn't there, or no node of it is enough.
    """

    def __init__(self, folder: GridFolder, where: EngineConfig) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError("--engine ray needs ray: type pip install 'medduet[ray]'") from error
        self._ray = ray
        self._started = not ray.is_initialized()
        if self._started:
            self._connect(where.address)
        gpus = where.gpus_per_cell
        if gpus is None:
            gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0
        self._resources = {"CPU": where.cpus_per_cell} | ({"GPU": gpus} if gpus else {})
        self._ranks = where.ranks_per_cell
        try:
            self.slots = self._places()
        except ConfigError:
            self._leave()
            raise
        # Ray Train reserves for the ranks. One process per cell frees its memory, and GPU.
        alone = {"num_cpus": where.cpus_per_cell, "num_gpus": gpus}
        each = alone if self._ranks == 1 else {"num_cpus": 0}
        self._task = ray.remote(max_retries=RETRIES, max_calls=1, **each)(_run)
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
            if address is None:
                raise ConfigError(f"failed to start Ray here: {error}") from error
            raise ConfigError(
                f"there is no Ray cluster at {address}: start one by 'ray start --head', or leave "
                "--address out"
            ) from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)  # which Ray takes

    def _places(self) -> int:
        """Return how many cells may be handed to Ray at once: of several ranks, as many as fit."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        asked = self._resources.items()
        if not any(all(node.get(kind, 0) >= n for kind, n in asked) for node in nodes):
            needed = " and ".join(f"{n:g} {kind}(s)" for kind, n in asked)
            largest = " and ".join(
                f"{max((node.get(kind, 0) for node in nodes), default=0):g}" for kind, _ in asked
            )
            raise ConfigError(
                f"each cell needs {needed} of one node, but the nodes have {largest} at most: "
                "lower --cpus-per-cell or --gpus-per-cell"
            )
        if self._ranks == 1:
            return _MANY
        total = self._ray.cluster_resources()
        places = min(int(total.get(kind, 0) // (n * self._ranks)) for kind, n in asked)
        if not places:
            raise ConfigError(
                f"the cluster is too small for {self._ranks} ranks: lower --ranks-per-cell"
            )
        return places

    def start(self, cell: Cell) -> None:
        """Hand a cell to Ray."""
        task = self._task.options(name=cell.name).remote(
            self.folder.path, self._absolute(cell), self._stop_file, self._ranks, self._resources
        )
        self._running[task] = cell.name

    def _absolute(self, cell: Cell) -> Cell:
        """Return a cell whose relative paths are those of this process, wherever it runs."""
        data, model = cell.run.data, cell.run.model
        if Path(data.name).exists():
            data = data.model_copy(update={"name": str(Path(data.name).absolute())})
        if data.cache is not None:
            data = data.model_copy(update={"cache": data.cache.absolute()})
        if model.weights is not None:
            model = model.model_copy(update={"weights": model.weights.absolute()})
        out = self.folder.run(cell.name).path
        run = cell.run.model_copy(update={"data": data, "model": model, "out": out})
        return cell.model_copy(update={"run": run})

    def ended(self) -> dict[str, Outcome]:
        """Return the cells that ended since the last call, and how."""
        if not self._running:
            return {}
        tasks = list(self._running)
        done, _ = self._ray.wait(tasks, num_returns=len(tasks), timeout=0)
        outcomes: dict[str, Outcome] = {}
        for task in done:
            name = self._running.pop(task)
            try:
                outcomes[name] = self._ray.get(task)
            except self._ray.exceptions.RayTaskError as error:
                cause = error.cause or error
                self.folder.record_failure(name, f"{type(cause).__name__}: {cause}", str(error))
                outcomes[name] = "failed"
            except self._ray.exceptions.RayError as error:
                text = f"lost {RETRIES + 1} times: {str(error).strip().splitlines()[0]}"
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


def _run(
    folder: Path, cell: Cell, stop_file: Path, ranks: int, resources: dict[str, float]
) -> Outcome:
    """Run a cell, in a task."""
    grid = GridFolder(folder)
    with _stop_by(stop_file) as stop:
        if stop.is_set():
            return "interrupted"
        fit = None if ranks == 1 else _train_in_ranks(grid, cell, stop_file, ranks, resources)
        return run_cell(grid, cell, fit=fit, stop=stop)


@contextmanager
def _stop_by(path: Path) -> Iterator[threading.Event]:
    """Give an event that is set once there is a file at `path`."""
    stop, ended = threading.Event(), threading.Event()

    def look() -> None:
        while not path.exists():
            if ended.wait(_LOOK):
                return
        stop.set()

    if path.exists():
        stop.set()
    threading.Thread(target=look, daemon=True).start()
    try:
        yield stop
    finally:
        ended.set()


def _train_in_ranks(
    grid: GridFolder, cell: Cell, stop_file: Path, ranks: int, resources: dict[str, float]
) -> Fit:
    """Return what trains the run of a cell in several processes that Ray Train starts."""

    def fit(*config: Any, **options: Any) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        storage = grid.path / "cells" / f"{cell.name}.ray"
        trainer = TorchTrainer(
            _rank,
            train_loop_config={"folder": grid.path, "cell": cell, "stop_file": stop_file},
            scaling_config=ScalingConfig(
                num_workers=ranks, use_gpu="GPU" in resources, resources_per_worker=resources
            ),
            run_config=RunConfig(
                name=cell.name,
                storage_path=str(storage),
                failure_config=FailureConfig(max_failures=RETRIES),
            ),
        )
        try:
            trainer.fit()
        finally:
            shutil.rmtree(storage, ignore_errors=True)
        if grid.failure(cell.name).is_file():
            raise TrainingError(read_json(grid.failure(cell.name))["error"])
        if not grid.run(cell.name).finished:
            raise Interrupted("stopped")

    return fit


def _rank(arguments: dict[str, Any]) -> None:
    """Train the run of a cell as one of several ranks, each of which executes this."""
    import torch.distributed as distributed

    grid, cell = GridFolder(arguments["folder"]), arguments["cell"]
    # Ray Train says who we are as torchrun does, but for these two, by which Fabric knows it.
    os.environ.setdefault("TORCHELASTIC_RUN_ID", cell.name)
    os.environ.setdefault("GROUP_RANK", os.environ["NODE_RANK"])
    # The first rank makes the folder while others may still look: it decides for all.
    run = grid.run(cell.name)
    begun = [None if grid.settled(cell.name) else (run.path / "config.json").is_file()]
    distributed.broadcast_object_list(begun)
    if begun[0] is None:
        return
    with _stop_by(arguments["stop_file"]) as stop:
        try:
            if begun[0]:
                train(resume=run.path, stop=stop)
            else:
                train(cell.run, stop=stop)
        except Interrupted:
            pass
        except MedDuetError as error:  # which would only come again
            grid.record_failure(cell.name, str(error))
            raise
