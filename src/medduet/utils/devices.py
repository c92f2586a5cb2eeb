"""Device, precision, memory format and memory of a process. Imports torch only where it is used."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from medduet.config import parse_device
from medduet.errors import ConfigError

if TYPE_CHECKING:
    import torch

_LARGE = 64
"""Side in pixels from which a CPU computes faster if the channels of a pixel lie side by side."""
_NO_PRIMITIVE = "could not create a primitive"
"""oneDNN's, which gives no reason."""
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "not enough memory",
    "out of memory",
    "could not create a memory object",
    _NO_PRIMITIVE,
)
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_DEFAULT_TRIM_THRESHOLD, _DEFAULT_MMAP_MAX = 128 << 10, 65536


def find_device(device: str = "auto") -> torch.device:
    """Return the device that ``--device`` names; ``auto`` is a GPU, else Apple's, else the CPU.

    Raises:
        ConfigError: it is no device, or this machine does not have it.

    Example:
        >>> find_device("cpu")
        device(type='cpu')
        >>> find_device("gpu")
        Traceback (most recent call last):
        medduet.errors.ConfigError: --device gpu: expected auto, cpu, cuda, cuda:N or mps; did you \
mean cuda?
    """
    try:
        kind, index = parse_device(device)
    except ValueError as error:
        raise ConfigError(f"--device {device}: {error}") from error

    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    if kind == "auto":
        kind = "cuda" if gpus else "mps" if mps else "cpu"
    if (kind == "cuda" and not gpus) or (kind == "mps" and not mps):
        raise ConfigError(f"--device {device}: torch finds no such device here; try --device cpu")
    if index is not None and index >= gpus:
        raise ConfigError(
            f"--device {device}: this machine has {gpus} GPU{'s' if gpus > 1 else ''}, counted "
            "from cuda:0"
        )
    return torch.device(kind) if index is None else torch.device(kind, index)


def best_precision(kind: str) -> Literal["32-true", "bf16-mixed"]:
    """Return the arithmetic that ``precision: auto`` means on a ``"cpu"``, ``"cuda"`` or ``"mps"``.

    bfloat16 where the machine computes in it, not merely emulates it: GPUs from Ampere on, CPUs
    with AVX-512 BF16 or AMX.

    Example:
        >>> best_precision("mps")
        '32-true'
    """
    import torch

    native = False
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif kind == "cpu":
        capabilities = torch.cpu.get_capabilities()
        native = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return "bf16-mixed" if native else "32-true"


def best_memory_format(
    kind: str, precision: str, side: int
) -> Literal["contiguous", "channels_last"]:
    """Return the faster order of feature maps in memory; docs/performance.md has why.

    Args:
        kind: of device, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        precision: as Lightning calls it.
        side: the longer one of the images in pixels.

    Example:
        >>> best_memory_format("cpu", "32-true", 28), best_memory_format("cpu", "32-true", 224)
        ('contiguous', 'channels_last')
    """
    if kind == "cuda":
        return "contiguous" if precision == "32-true" else "channels_last"
    if kind == "cpu":
        return "channels_last" if side >= _LARGE else "contiguous"
    return "contiguous"


def evaluation_batch_size(kind: str, height: int, width: int) -> int:
    """Return how many images of that size are evaluated at a time, if no number is given.

    A CPU is no faster with more, but needs memory for them: about 0.1 GB for each image of 224
    pixels at the paper's width.

    Example:
        >>> evaluation_batch_size("cpu", 224, 224), evaluation_batch_size("cpu", 28, 28)
        (16, 256)
    """
    pixels, most = (128 * 224**2, 2048) if kind == "cuda" else (16 * 224**2, 256)
    return max(1, min(most, pixels // (height * width)))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there is no memory left, on a GPU or a CPU.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("a wrong shape"))
        (True, False)
    """
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def is_permanent(error: BaseException) -> bool:
    """Return whether memory that ran out so leaves a thread unable to go on with fewer images.

    oneDNN's code generator (torch 2.14) keeps the first error of each thread, so that it makes no
    further convolution of a new shape.
    """
    return _NO_PRIMITIVE in str(error)


def free_memory(device: torch.device) -> None:
    """Free what a step that ran out of memory has left, and from now on whatever is freed."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        return_freed_memory()


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for its next allocations; on Linux's glibc.

    By default, glibc gives every large block back to the kernel, which clears it page by page when
    it is asked for again. A training step on the CPU does so for each of its feature maps, and
    spent half of its time there. The process stays at its peak of memory until it ends.

    Returns:
        Whether that was possible; elsewhere nothing is changed.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has none
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))


def trim_memory() -> None:
    """Give the system back what is free between the blocks in use, to be asked for again.

    For the moment before more memory is needed than ever: kept blocks that are too small for what
    comes are memory in use to the system. On Linux's glibc; elsewhere nothing is changed.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def return_freed_memory() -> None:
    """Undo `keep_freed_memory`: give freed memory back to the system, now and from now on."""
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, _DEFAULT_MMAP_MAX)
        libc.mallopt(_M_TRIM_THRESHOLD, _DEFAULT_TRIM_THRESHOLD)
        libc.malloc_trim(0)
