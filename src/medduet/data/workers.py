"""Maps a function over files in processes whose death costs one file, not the program.

A worker is a fresh interpreter with a limit of memory and of seconds for a file. It imports the
function by its name and never the program's main module, so scripts need no
``if __name__ == "__main__"``, and it ends with its parent. Imports no torch.
"""

import importlib
import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from types import ModuleType
from typing import Any, Self, TypeVar

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from medduet.errors import DataError, MedDuetError

T = TypeVar("T")
R = TypeVar("R")

_starting = threading.Lock()


class Transient(str):
    """Why a file was not read, if another attempt may succeed: memory, time, or a remote disk."""


class WorkerPool:
    """Worker processes, one per core without a number; several threads may use one pool.

    Each may take `memory` bytes, and `seconds` for a file.
    """

    def __init__(
        self, processes: int | None = None, *, memory: int = 6 << 30, seconds: float = 120.0
    ) -> None:
        self.processes = processes or len(os.sched_getaffinity(0))
        self._seconds, self._lock = seconds, threading.Lock()
        self._new_pool = partial(
            ProcessPool, self.processes, initializer=_start, initargs=[memory], context=_Context()
        )
        self._pool = self._new_pool()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()

    def call(self, function: Callable[[T], R], item: T) -> R | str:
        """Call `function`, importable by its name, with `item` in a worker.

        Without a result one line says why: `Transient` if there may be one another time.
        """
        return next(self.map(function, [item]))

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R | str]:
        """Yield what `call` would return for each item, in order."""
        waiting: deque[tuple[T, ProcessFuture[R | str]]] = deque()
        for item in items:
            waiting.append((item, self._submit(function, item)))
            if len(waiting) > 4 * self.processes:
                yield self._result(function, *waiting.popleft())
        while waiting:
            yield self._result(function, *waiting.popleft())

    def _submit(self, function: Callable[[T], R], item: T) -> ProcessFuture[R | str]:
        with self._lock:
            if not self._pool.active:  # its workers died when they had nothing to do
                self.__exit__()
                self._pool = self._new_pool()
            return self._pool.schedule(_attempt, args=[function, item], timeout=self._seconds)

    def _result(
        self, function: Callable[[T], R], item: T, future: ProcessFuture[R | str]
    ) -> R | str:
        """Wait for a result; an item whose worker died is tried once more."""
        try:
            try:
                return future.result()
            except (ProcessExpired, BrokenProcessPool):
                return self._submit(function, item).result()
        except TimeoutError:
            return Transient(f"not read within {self._seconds:g} s")
        except ProcessExpired as error:
            reason = f"not read: its reader ended with code {error.exitcode}"
            # The system frees memory by SIGKILL.
            return Transient(reason) if error.exitcode == -signal.SIGKILL else reason
        except BrokenProcessPool as error:
            raise DataError(f"the processes that read files fail to start: {error}") from error


class _Process(SpawnProcess):
    """A process that does not import the main module of the program."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802  (the name is multiprocessing's)
        with _starting:
            main = sys.modules["__main__"]
            sys.modules["__main__"] = ModuleType("__main__")
            try:
                return SpawnProcess._Popen(process_obj)
            finally:
                sys.modules["__main__"] = main


class _Context(SpawnContext):
    Process = _Process


def _start(memory: int) -> None:
    """Prepare a worker: limits, silence, and an end with its parent."""
    importlib.import_module("numpy")  # first, since its threads take addresses
    if sys.platform == "linux":  # elsewhere there is no such limit
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = memory + pages * resource.getpagesize()
        with suppress(ValueError):  # there is a lower one
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # decoders in C write there what is returned as a reason
        os.dup2(silence, stream)

    def end_with_parent() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _attempt(function: Callable[[T], R], item: T) -> R | str:
    """Call the function in the worker; whatever is wrong with a file becomes one line."""
    try:
        return function(item)
    except BaseException as error:
        cause = error.__cause__ or error  # readers name the file and keep what was behind it
        if isinstance(cause, MemoryError):
            return Transient("not read: it needs more memory than a reader may take")
        text = str(error) if isinstance(error, MedDuetError) else f"{type(error).__name__}: {error}"
        reason = " ".join(text.split())
        # Errors of the system have a number, those of decoders that are called so have none.
        return reason if getattr(cause, "errno", None) is None else Transient(reason)
