"""Memory that runs out: what says so, and going on with fewer images at a time."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from medduet.errors import TrainingError
from medduet.types import Batch
from medduet.utils.devices import return_freed_memory
from medduet.utils.files import write_json
from medduet.utils.parsing import read_json

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from medduet.runs.folder import RunFolder

_NO_PRIMITIVE = "could not create a primitive"
"""oneDNN's, which tells no reason."""
_NO_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "not enough memory",
    "out of memory",
    "could not create a memory object",
    _NO_PRIMITIVE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there is no memory left, on a GPU or a CPU.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("a wrong shape"))
        (True, False)
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


def lasts(error: BaseException) -> bool:
    """Return whether memory that ran out so leaves a thread unable to go on with fewer images.

    oneDNN's code generator (torch 2.14) keeps the first error of each thread, so that it makes no
    further convolution of a new shape.
    """
    return _NO_PRIMITIVE in str(error)


def free_memory(device: torch.device) -> None:
    """Give back what a step that ran out of memory has left, and from now on whatever is freed."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        return_freed_memory()


def parts_of(batch: Batch, most: int | None) -> list[Batch]:
    """Split a batch into parts of `most` images, of about the same size and never of a single one.

    Example:
        >>> batch = Batch(torch.zeros(9, 1, 4, 4), *[torch.zeros(9)] * 4)
        >>> [len(part.image) for part in parts_of(batch, 4)], len(parts_of(batch, None))
        ([3, 3, 3], 1)
    """
    images = len(batch.image)
    if most is None or images <= most:
        return [batch]
    # A feature map of one pixel from one image has no variance for batch normalisation.
    count = min(-(-images // most), images // 2)
    starts = torch.arange(images).tensor_split(count)
    return [_between(batch, int(some[0]), int(some[-1]) + 1) for some in starts]


def _between(batch: Batch, start: int, end: int) -> Batch:
    return batch.apply(lambda part: part[start:end])


def _note(folder: RunFolder) -> Path:
    return folder.path / "checkpoints" / "micro-batch.json"


def noted_micro_batch(folder: RunFolder) -> int | None:
    """Return at how many images a time an earlier process ran out of no memory, if it did not."""
    path = _note(folder)
    return int(read_json(path)) if path.is_file() else None


def smaller_micro_batch(folder: RunFolder, fabric: Fabric, images: int, lasting: bool) -> int:
    """Return how many images to try next after so many did not fit, and note it in the folder.

    Args:
        folder: of the run.
        fabric: its processes.
        images: how many did not fit.
        lasting: whether this process can't go on, see `lasts`.

    Raises:
        TrainingError: it was the fewest already; or the run has to be started again, and goes on
            with fewer. So have several processes, which can't agree in the middle of a step.
    """
    fewer = images // 2
    if fewer < 2:
        raise TrainingError(
            f"out of memory with {images} images: give a smaller --size or --model.width, or "
            "--train.activation-checkpointing"
        )
    write_json(_note(folder), fewer)
    if lasting or fabric.world_size > 1:
        where = f" on process {fabric.global_rank}" if fabric.world_size > 1 else ""
        raise TrainingError(
            f"out of memory{where} with {images} images at a time: start "
            f"again with medduet train --resume {folder.path}, which goes on with {fewer}"
        )
    return fewer
