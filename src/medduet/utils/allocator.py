"""How this process gets memory. Imports no torch."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_ITS_TRIM_THRESHOLD, _ITS_MMAP_MAX = 128 << 10, 65536  # what it begins with


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for its next allocations; on Linux's glibc.

    As it comes, glibc gives every large block back to the kernel, which clears it page by page when
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


def return_holes() -> None:
    """Give the system back what is free between the blocks in use, to be asked for again.

    For the moment before more memory is needed than ever: kept blocks that are too small for what
    comes are memory in use to the system. On Linux's glibc; elsewhere nothing is changed.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def return_freed_memory() -> None:
    """Give freed memory back to the system, now and from now on, whatever was said above.

    On Linux's glibc; elsewhere nothing is changed.
    """
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, _ITS_MMAP_MAX)
        libc.mallopt(_M_TRIM_THRESHOLD, _ITS_TRIM_THRESHOLD)
        libc.malloc_trim(0)
