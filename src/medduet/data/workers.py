"""Maps a function over many files in processes whose end costs one file, not the program.

A worker answers file by file, so it is known which one it died of. It is a fresh interpreter that
imports the function by its name and never the program's main module, so scripts need no
``if __name__ == "__main__"``; it has a limit of memory, and it ends with its parent.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

from medduet.errors import DataError, MedDuetError

T = TypeVar("T")
R = TypeVar("R")

MEMORY = 6 << 30  # bytes of addresses; `medduet.data.reading.core` says what a read may take
SECONDS = 120.0
_HELD = 1 << 28  # bytes of answers that wait for an earlier one before no more work is given out
_CHUNK = 64
_SHORT, _LONG = 0.05, 0.5  # seconds; chunks double and halve to take a time between
_PASSING = (errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)  # of memory and of far disks
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from medduet.data.workers import serve; serve(*map(int, sys.argv[2:]))"
)


class Passing(str):
    """Why there is no result, if that says nothing of the item: another time there may be one.

    It took too long, memory did not suffice, the system killed its reader, or a disk is away.
    """


def map_files(
    function: Callable[[T], R],
    items: Sequence[T],
    *,
    processes: int | None = None,
    memory: int = MEMORY,
    seconds: float = SECONDS,
) -> Iterator[tuple[int, R | str]]:
    """Call `function` with each item in worker processes.

    A worker that dies or takes too long is replaced, and the item it worked on is tried once more
    on its own: it may have been the system's lack of memory.

    Args:
        function: a function of an importable module, or a ``partial`` of one.
        items: what to call it with; they and the results are pickled.
        processes: how many workers; None is one per core that this process may use.
        memory: address space of each worker in bytes.
        seconds: how long an item may take.

    Yields:
        For each item in order its number and the result, or one line of text that says why there
        is none, `Passing` if there may be one another time. At most 256 MiB of results wait for an
        earlier one.

    Raises:
        DataError: if workers don't start.

    Example:
        >>> import math
        >>> list(map_files(math.sqrt, [4, -1, 9], processes=1))
        [(0, 2.0), (1, 'ValueError: math domain error'), (2, 3.0)]
    """
    count = len(items)
    wanted = min(processes or len(os.sched_getaffinity(0)), count)
    pool = _Pool(function, items, memory, seconds)
    try:
        pool.workers = [pool.new_worker() for _ in range(wanted)]
        for number in range(count):
            while number not in pool.answers:
                pool.give_out()
                pool.collect()
            yield number, pool.take(number)
    finally:
        for worker in pool.workers:
            worker.end()


class _Worker:
    """A process, what it still has to answer, and since when it works on the first of it."""

    def __init__(self, function: Callable[[Any], Any], memory: int) -> None:
        self.connection, theirs = Pipe()
        path = json.dumps([str(entry) for entry in sys.path])
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # each takes addresses
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, path, str(theirs.fileno()), str(memory)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # decoders in C write there what is told as a reason
            pass_fds=[theirs.fileno()],
            env=os.environ | threads,
            process_group=0,  # Ctrl-C is for the parent, which ends its workers
        )
        theirs.close()
        self.is_ready = False
        self.todo: deque[int] = deque()
        self.since = self.given = time.monotonic()
        with suppress(OSError):  # it died at once, which is seen when it is asked
            self.connection.send(function)

    def end(self) -> int:
        """Kill the process and return its exit code, its own if it had ended."""
        self.process.kill()
        self.connection.close()
        return self.process.wait()


class _Pool:
    """Workers, what is still to be given to them, and their answers."""

    def __init__(
        self, function: Callable[[T], Any], items: Sequence[T], memory: int, seconds: float
    ) -> None:
        self.function, self.items, self.memory, self.seconds = function, items, memory, seconds
        self.workers: list[_Worker] = []
        self.answers: dict[int, bytes | str] = {}
        self._held = 0
        self._fresh = 0
        self._chunk = 1
        self._again: deque[int] = deque()
        self._failed_once: set[int] = set()

    def new_worker(self) -> _Worker:
        return _Worker(self.function, self.memory)

    def give_out(self) -> None:
        """Give work to the workers that have none."""
        for worker in self.workers:
            if worker.todo or not worker.is_ready:
                continue
            if self._again:
                numbers = [self._again.popleft()]
            elif self._held < _HELD:
                numbers = list(range(self._fresh, min(self._fresh + self._chunk, len(self.items))))
                self._fresh += len(numbers)
            else:
                return
            if not numbers:
                return
            worker.todo.extend(numbers)
            worker.since = worker.given = time.monotonic()
            with suppress(OSError):  # it died, which `collect` sees
                worker.connection.send([self.items[number] for number in numbers])

    def collect(self) -> None:
        """Wait for answers, and replace workers that died or take too long."""
        answered = wait([worker.connection for worker in self.workers], timeout=0.5)
        now = time.monotonic()
        for place, worker in enumerate(self.workers):
            if worker.connection in answered:
                try:
                    message = worker.connection.recv_bytes()
                except (EOFError, OSError):
                    self._replace(place)
                else:
                    self._keep(worker, message)
            elif worker.todo and now - worker.since > self.seconds:
                self._replace(place, expired=True)

    def take(self, number: int) -> Any:
        """Return the answer for an item and forget it."""
        answer = self.answers.pop(number)
        if isinstance(answer, str):
            return answer
        self._held -= len(answer)
        return ForkingPickler.loads(answer)

    def _keep(self, worker: _Worker, message: bytes) -> None:
        if not worker.is_ready:
            if message:
                raise DataError(f"expected workers to start, given {message.decode()}")
            worker.is_ready = True
            return
        worker.since = time.monotonic()
        self.answers[worker.todo.popleft()] = message
        self._held += len(message)
        if not worker.todo:
            took = worker.since - worker.given
            if took < _SHORT:
                self._chunk = min(2 * self._chunk, _CHUNK)
            elif took > _LONG:
                self._chunk = max(1, self._chunk // 2)

    def _replace(self, place: int, *, expired: bool = False) -> None:
        """Put a new worker in the place of one that died or, if `expired`, takes too long."""
        worker = self.workers[place]
        if not expired:  # its end of the connection is closed, so it is about to die
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(timeout=1)
        code = worker.end()
        how = f"ended with code {code}" if code >= 0 else f"died of {signal.Signals(-code).name}"
        if not worker.is_ready:
            raise DataError(f"expected workers to start, given one that {how}")
        if worker.todo and worker.todo[0] not in self._failed_once:
            self._failed_once.add(worker.todo[0])
        elif worker.todo:
            reason = f"expected to be read, given a reader that {how}"
            if expired:
                reason = f"expected to take at most {self.seconds:g} s, given more"
            passing = expired or code == -signal.SIGKILL  # by the system, for lack of memory
            self.answers[worker.todo.popleft()] = Passing(reason) if passing else reason
        self._again.extend(worker.todo)
        self.workers[place] = self.new_worker()


def serve(descriptor: int, memory: int) -> None:
    """Be a worker: answer what comes through the connection until it is closed."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    with suppress(ValueError, OSError):  # a system that has no such limit, or a lower one
        resource.setrlimit(resource.RLIMIT_AS, (memory, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.Thread(target=_end_with_parent, args=[descriptor], daemon=True).start()
    with Connection(descriptor) as connection, suppress(EOFError, BrokenPipeError):
        try:
            function = connection.recv()
        except Exception as error:  # whatever an import may raise
            connection.send_bytes(_reason(error).encode())
            return
        connection.send_bytes(b"")
        while True:
            for item in connection.recv():
                connection.send_bytes(_answer(function, item))


def _end_with_parent(descriptor: int) -> None:
    """End the process when the other end of its connection is closed, whatever it is at."""
    closed = select.poll()
    closed.register(descriptor, 0)  # nothing but the end
    closed.poll()
    os._exit(1)


def _answer(function: Callable[[Any], Any], item: Any) -> bytes:
    try:
        return bytes(ForkingPickler.dumps(function(item)))
    except MemoryError:
        reason = Passing("expected to fit into the memory given, given more")
        return bytes(ForkingPickler.dumps(reason))
    except Exception as error:  # one file's fault, whatever it is
        cause = error.__cause__ or error  # readers name the file and tell what was behind it
        passing = isinstance(cause, MemoryError) or getattr(cause, "errno", None) in _PASSING
        return bytes(ForkingPickler.dumps((Passing if passing else str)(_reason(error))))


def _reason(error: Exception) -> str:
    """Return what went wrong in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, MedDuetError) else f"{type(error).__name__}: {text}"
