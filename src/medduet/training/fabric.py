"""Devices, precision and processes; and batches on the device before they are asked for."""

import atexit
import logging
import os
import resource
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from medduet.config import TrainConfig
from medduet.data.imageset import Split
from medduet.types import Batch
from medduet.utils.devices import best_precision, find_device

AHEAD = 2
"""Batches that are read while another one is computed on."""
_PATIENCE = timedelta(days=1)
"""For how long processes wait for the first one, which may convert images for hours."""


def launch_fabric(config: TrainConfig) -> Fabric:
    """Return a launched Fabric, which under torchrun (``WORLD_SIZE``) joins the other processes."""
    device = find_device(config.device)
    kind = device.type
    if config.deterministic and kind == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS is first used
        torch.use_deterministic_algorithms(True)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if world_size > 1 and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        _join_again(kind, world_size)
    disabled = logging.root.manager.disable
    logging.disable(logging.INFO)  # Lightning would tell its choices; environment.json says them
    try:
        fabric = Fabric(
            accelerator=kind,
            devices=local_size if device.index is None else [device.index],
            num_nodes=max(1, world_size // local_size),
            strategy=DDPStrategy(timeout=_PATIENCE) if world_size > 1 else "auto",
            precision=best_precision(kind) if config.precision == "auto" else config.precision,
        )
        fabric.launch()
    finally:
        logging.disable(disabled)
    if world_size > 1:
        atexit.register(_leave)
    return fabric


def _leave() -> None:
    """Leave the other processes: gloo's threads, if they outlive Python, may abort the process."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _join_again(kind: str, world_size: int) -> None:
    """Join the processes that torchrun has started again, before Fabric does.

    torchrun (2.14) keeps its store with the addresses of those that died: this needs other names.
    """
    if torch.distributed.is_initialized():
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, world_size, is_master=False)
    torch.distributed.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        store=PrefixStore(f"restart-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store),
        rank=int(os.environ["RANK"]),
        world_size=world_size,
        timeout=_PATIENCE,
    )


def all_sum(fabric: Fabric, value: Tensor) -> Tensor:
    """Return the sum of `value` over all processes."""
    total = fabric.all_reduce(value.clone(), reduce_op="sum")  # which it changes in place
    assert isinstance(total, Tensor)
    return total


def peak_memory(device: torch.device) -> float:
    """Return the most memory that this process has held so far, in GB: on the GPU, else of all."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e9, 3)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3)


def load_batches(
    fabric: Fabric, split: Split, indices: Sequence[NDArray[np.int64]], ahead: bool | None = None
) -> Iterator[Batch]:
    """Yield a batch on the device of `fabric` for each array of positions in `split`.

    For a GPU, a thread gathers the next ones in pinned memory, `ahead` of their use. A CPU gathers
    each when it is asked for: that takes less than 1% of a step.
    """
    split.expect(indices)
    ahead = fabric.device.type == "cuda" if ahead is None else ahead
    batches = _read_ahead(fabric.device, split, indices) if ahead else map(split.batch, indices)
    yield from map(fabric.to_device, batches)


def _read_ahead(
    device: torch.device, split: Split, indices: Sequence[NDArray[np.int64]]
) -> Iterator[Batch]:
    def read(index: NDArray[np.int64]) -> Batch:
        batch = split.batch(index)
        if device.type != "cuda":
            return batch
        # A thread begins with the first GPU, and would pin the memory by way of that one.
        with torch.cuda.device(device):
            return batch.apply(Tensor.pin_memory)

    waiting: deque[Future[Batch]] = deque()
    pool = ThreadPoolExecutor(1)
    try:
        for index in indices:
            waiting.append(pool.submit(read, index))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
