"""Batches on the device: there before they are asked for."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from lightning.fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from medduet.data.imageset import Split
from medduet.types import Batch

AHEAD = 2
"""Batches that are read while another one is computed on."""


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
