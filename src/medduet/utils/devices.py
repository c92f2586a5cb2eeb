"""Device, precision, memory format and memory of a process."""

import ctypes
import gc
import os
import re
from contextlib import suppress
from typing import Literal

import torch

from medduet.config import DEVICE
from medduet.errors import ConfigError

_OUT_OF_MEMORY = (
    *("can't allocate memory", "not enough memory", "out of memory"),
    *("could not create a memory object", "could not create a primitive"),  # of oneDNN
)
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def find_device(device: str = "auto") -> torch.device:
    """Return the device that ``--device`` names; ``auto`` is a CUDA GPU, else the CPU."""
    if not re.fullmatch(DEVICE, device):
        raise ConfigError(f"--device {device}: expected auto, cpu, cuda or cuda:N")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    result = torch.device(("cuda" if gpus else "cpu") if device == "auto" else device)
    if result.type == "cuda" and (result.index or 0) >= gpus:
        raise ConfigError(
            f"--device {device}: torch finds no such device here, and {gpus} GPUs, counted from "
            "cuda:0; try --device cpu"
        )
    return result


def best_precision(kind: str) -> Literal["32-true", "bf16-mixed"]:
    """Return bfloat16 where a CPU or GPU computes in it, not merely emulates it, else float32."""
    native = False
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif kind == "cpu":
        capabilities = torch.cpu.get_capabilities()
        native = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return "bf16-mixed" if native else "32-true"


def total_memory(device: torch.device) -> int:
    """Return the bytes of memory of a GPU, or of this machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there is no memory left, on a GPU or a CPU."""
    named = isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)
    return named or isinstance(error, MemoryError)


def free_memory(device: torch.device) -> None:
    """Free what a step that ran out of memory has left."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees (docs/performance.md), on Linux's glibc.

    The process stays at its peak of memory until it ends.
    """
    with suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
