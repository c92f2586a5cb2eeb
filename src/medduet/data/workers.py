"""Maps a function over files in processes whose death costs one file, not the program.

A worker is a fresh interpreter with a limit of memory and of seconds for a file. It imports the
function by its name and never the program's main module, so scripts need no
``if __name__ == "__main__"``, and it ends with its parent. Imports no torch.
"""

from __future__ import annotations

import errno
import importlib
import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any, TypeVar

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from medduet.errors import DataError, MedDuetError

T = TypeVar("T")
R = TypeVar("R")

MEMORY = 6 << 30
"""Bytes that a worker may take; `medduet.data.reading.core` says what a read needs."""
SECONDS = 120.0
_CHUNK = 8
_TRANSIENT_ERRORS = (errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)


class Transient(str):
    """Why a file was not read, if another attempt may succeed: memory, time, or a remote disk."""


class WorkerPool:
    """Worker processes; several threads may use one pool.

    Args:
        processes: how many workers; ``None`` is one per core that this process may use.
        memory: bytes that each may take.
        seconds: how long one file may take.

    Example:
        >>> import math
        >>> with WorkerPool(1) as pool:
        ...     list(pool.map(math.sqrt, [4, -1]))
        [(0, 2.0), (1, 'ValueError: math domain error')]
    """

    def __init__(
        self, processes: int | None = None, *, memory: int = MEMORY, seconds: float = SECONDS
    ) -> None:
        self.processes = processes or len(os.sched_getaffinity(0))
        self._memory, self._seconds = memory, seconds
        self._lock = threading.Lock()
        self._pool = self._new_pool()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers, whatever they are at."""
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()

    def call(self, function: Callable[[T], R], item: T) -> R | str:
        """Call `function`, importable by its name, with `item` in a worker.

        Returns:
            The result, or one line of text that says why there is none: `Transient` if there may be
            one another time.

        Raises:
            DataError: workers don't start.
        """
        for _ in range(2):
            try:
                return self._submit(function, [item]).result()[0]
            except TimeoutError:
                return Transient(f"not read within {self._seconds:g} s")
            except ProcessExpired as error:
                return _death(error.exitcode)
            except BrokenProcessPool as error:  # also if workers died when they had nothing to do
                reason = error
        raise DataError(f"the processes that read files don't start: {reason}") from reason

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R | str]]:
        """Yield the number of each item, in order, and what `call` would return for it.

        Items are sent in chunks. Where one costs its worker, each of its chunk is tried alone: that
        finds the one, and once more, since the system may have killed the worker.
        """
        size = max(1, min(_CHUNK, len(items) // (4 * self.processes)))
        chunks = [items[start : start + size] for start in range(0, len(items), size)]
        futures: deque[ProcessFuture[list[R | str]]] = deque()
        for place, chunk in enumerate(chunks):
            while len(futures) < min(2 * self.processes, len(chunks) - place):
                futures.append(self._submit(function, chunks[place + len(futures)]))
            try:
                results = futures.popleft().result()
            except (TimeoutError, ProcessExpired, BrokenProcessPool):
                results = [self.call(function, item) for item in chunk]
            yield from enumerate(results, start=place * size)

    def _new_pool(self) -> ProcessPool:
        return ProcessPool(
            self.processes, initializer=_start, initargs=[self._memory], context=_Context()
        )

    def _submit(
        self, function: Callable[[T], R], items: Sequence[T]
    ) -> ProcessFuture[list[R | str]]:
        with self._lock:
            if not self._pool.active:
                self.close()
                self._pool = self._new_pool()
            return self._pool.schedule(_attempt, args=[function, items], timeout=self._seconds)


_starting = threading.Lock()


class _Process(SpawnProcess):
    """A process that does not import the main module of the program."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802  (the name is multiprocessing's)
        main = vars(sys.modules["__main__"])
        with _starting:
            before = {name: main[name] for name in ("__spec__", "__file__") if name in main}
            main.update(__spec__=None, __file__=None)
            try:
                return SpawnProcess._Popen(process_obj)
            finally:
                del main["__file__"]  # a notebook has none, and Ray asks
                main.update(before)


class _Context(SpawnContext):
    Process = _Process


def _start(memory: int) -> None:
    """Prepare a worker: limits, silence, and an end with its parent."""
    importlib.import_module("numpy")  # first, since its threads take addresses
    with suppress(ValueError, OSError):  # a system without this limit, or with a lower one
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = memory + pages * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # decoders in C write there what is returned as a reason
        os.dup2(silence, stream)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _attempt(function: Callable[[T], R], items: Sequence[T]) -> list[R | str]:
    """Call the function in the worker with each item."""
    return [_result(function, item) for item in items]


def _result(function: Callable[[T], R], item: T) -> R | str:
    """Call the function; whatever is wrong with a file becomes one line."""
    try:
        return function(item)
    except BaseException as error:
        reason = " ".join(str(error).split())
        if isinstance(error, MemoryError):
            reason = "not read: it needs more memory than a reader may take"
        elif not isinstance(error, MedDuetError):
            reason = f"{type(error).__name__}: {reason}"
        cause = error.__cause__ or error  # readers name the file and keep what was behind it
        passes = isinstance(cause, MemoryError) or (
            isinstance(cause, OSError) and cause.errno in _TRANSIENT_ERRORS
        )
        return Transient(reason) if passes else reason


def _death(code: int) -> str:
    if code >= 0:
        return f"not read: its reader ended with code {code}"
    reason = f"not read: its reader died of {signal.Signals(-code).name}"
    return Transient(reason) if code == -signal.SIGKILL else reason  # as the system does
