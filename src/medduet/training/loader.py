"""Batches on the device: there before they are asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from operator import itemgetter

import numpy as np
import torch
from lightning.fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from medduet.data.imageset import Split
from medduet.types import Batch

AHEAD = 2
"""Batches that are read while another one is computed on."""
RESIDENT_BYTES = 1 << 30
"""Splits that take no more than this, and a tenth of the free memory, lie on the GPU whole."""


class Feed:
    """Gives batches of a split on the device of `fabric`.

    On a GPU, a small split is copied there once (``"resident"``), of a larger one a thread gathers
    the next batches in pinned memory (``"ahead"``). A CPU gathers each when asked (``"plain"``).
    """

    def __init__(self, fabric: Fabric, split: Split, how: str | None = None) -> None:
        self.fabric, self.split = fabric, split
        self.how = how or _choose(fabric.device, split)
        if self.how == "resident":
            self._whole = split.batch(np.arange(len(split))).apply(fabric.to_device)

    def batches(self, indices: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
        """Yield a batch for each array of positions in the split."""
        self.split.expect(indices)
        if self.how == "resident":
            for index in indices:
                yield self._whole.apply(itemgetter(torch.from_numpy(index).to(self.fabric.device)))
        else:
            read = self._ahead(indices) if self.how == "ahead" else map(self.split.batch, indices)
            for batch in read:
                yield self.fabric.to_device(batch)

    def _ahead(self, indices: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
        waiting: deque[Future[Batch]] = deque()
        pool = ThreadPoolExecutor(1)
        try:
            for index in indices:
                waiting.append(pool.submit(self._read, index))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, index: NDArray[np.int64]) -> Batch:
        batch = self.split.batch(index)
        if self.fabric.device.type != "cuda":
            return batch
        # A thread begins with the first GPU, and would pin the memory by way of that one.
        with torch.cuda.device(self.fabric.device):
            return batch.apply(Tensor.pin_memory)


def _choose(device: torch.device, split: Split) -> str:
    if device.type != "cuda":
        return "plain"
    # On the GPU a pixel of a mask is an int64.
    size = len(split) * int(np.prod(split.images.shape[1:])) * (9 if split.masks is not None else 1)
    free, _ = torch.cuda.mem_get_info(device)
    small = size <= min(RESIDENT_BYTES, free // 10) and split.shard_sizes is None
    return "resident" if small else "ahead"
