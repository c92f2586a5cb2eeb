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
    fabric: Fabric, split: Split, indices: Sequence[NDArray[np.int64]]
) -> Iterator[Batch]:
    """Yield a batch on the device of `fabric` for each array of positions in `split`.

    A thread gathers the next ones, `AHEAD` of their use; for a GPU in pinned memory.
    """
    split.expect(indices)

    def read(index: NDArray[np.int64]) -> Batch:
        batch = split.batch(index)
        if fabric.device.type != "cuda":
            return batch
        # A thread begins with the first GPU, and would pin the memory by way of that one.
        with torch.cuda.device(fabric.device):
            return batch.apply(Tensor.pin_memory)

    waiting: deque[Future[Batch]] = deque()
    pool = ThreadPoolExecutor(1)
    try:
        for index in indices:
            waiting.append(pool.submit(read, index))
            if len(waiting) > AHEAD:
                yield fabric.to_device(waiting.popleft().result())
        while waiting:
            yield fabric.to_device(waiting.popleft().result())
    finally:
        pool.shutdown(cancel_futures=True)
