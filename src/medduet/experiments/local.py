"""Cells as processes on this machine, one or several at a time.

Run as a module it is the process that starts them: it has read all libraries, which takes longer
than training a small cell, and makes each cell a copy of itself.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, NoReturn

from medduet.experiments.cells import GridFolder, Outcome, run_cell
from medduet.experiments.config import Cell

_CODES: dict[Outcome, int] = {"finished": 0, "failed": 3, "busy": 4, "interrupted": 130}
_SLOW_TO_READ = ("timm", "segmentation_models_pytorch", "monai.losses", "kornia.augmentation")
_STARTER = "starter.txt"
_MOST_DEATHS = 3
_LOOK = 0.1  # seconds between two looks at which cells have ended


class LocalEngine:
    """Runs each cell in a process of its own, so that one that dies takes no other along.

    Args:
        folder: of the grid.
        workers: cells at a time; they share the cores.
    """

    here = True

    def __init__(self, folder: GridFolder, workers: int) -> None:
        self.folder, self.slots = folder, workers
        self._running: set[str] = set()
        self._starter: subprocess.Popen[bytes] | None = None
        self._answers, self._deaths = b"", 0

    def start(self, cell: Cell) -> None:
        """Start the process of a cell."""
        if self._starter is None:
            self._starter = self._begin()
        line = cell.model_dump_json().encode() + b"\n"
        with suppress(BrokenPipeError):  # it died, which the next look finds
            _of(self._starter.stdin).write(line)
            _of(self._starter.stdin).flush()
        self._running.add(cell.name)

    def _begin(self) -> subprocess.Popen[bytes]:
        threads = str(max(1, len(os.sched_getaffinity(0)) // self.slots))
        log = self.folder.path / "cells" / _STARTER
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors:
            starter = subprocess.Popen(
                [sys.executable, "-m", "medduet.experiments.local", str(self.folder.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={"OMP_NUM_THREADS": threads} | os.environ,
                # Ctrl-C is for us; we then close its input.
                start_new_session=True,
            )
        os.set_blocking(_of(starter.stdout).fileno(), False)
        return starter

    def ended(self) -> dict[str, Outcome]:
        """Return the cells that ended since the last call, and how."""
        if self._starter is None:
            return {}
        dead = self._starter.poll() is not None
        self._answers += _of(self._starter.stdout).read() or b""
        *lines, self._answers = self._answers.split(b"\n")
        outcomes: dict[str, Outcome] = {}
        for line in lines:
            code, _, name = line.decode().partition(" ")
            outcomes[name] = self._outcome(name, int(code))
        self._running -= set(outcomes)
        if dead:
            # Its cells save and end by themselves. Once they are started again, unless it never
            # lives long enough for one to end.
            self._deaths = 0 if outcomes else self._deaths + 1
            for name in self._running:
                outcomes[name] = self._without_starter(name)
            self._running.clear()
            for stream in (self._starter.stdin, self._starter.stdout):
                with suppress(BrokenPipeError):
                    _of(stream).close()
            self._starter = None
        return outcomes

    def _without_starter(self, name: str) -> Outcome:
        if self._deaths < _MOST_DEATHS:
            return "interrupted"
        where = self.folder.path / "cells" / _STARTER
        text = f"the process that starts cells died {self._deaths} times; its output is in {where}"
        self.folder.record_failure(name, text)
        return "failed"

    def _outcome(self, name: str, code: int) -> Outcome:
        for outcome, known in _CODES.items():
            if code == known:
                return outcome
        log = self.folder.log(name)
        if code < 0:
            hint = " (out of memory?)" if code == -9 else ""
            text = f"its process was killed by signal {-code}{hint}"
        else:
            text = f"its process ended with code {code}"
        self.folder.record_failure(name, f"{text}; its output is in {log}")
        return "failed"

    def stop(self) -> None:
        """Let the running cells finish their step, save and end."""
        if self._starter is not None:
            with suppress(BrokenPipeError):
                _of(self._starter.stdin).close()

    def close(self) -> None:
        """Wait until all processes have ended."""
        self.stop()
        if self._starter is not None:
            self._starter.wait()
            self.ended()


def _of(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def main() -> None:
    """Start a cell for each line of the input, and answer with exit code and name as it ends.

    When the input ends, because its writer closed it or died, every cell is saved and ends; so it
    does if this process dies.
    """
    # Who ends every process of a job means the cells, which save; this one ends with the last.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for name in _SLOW_TO_READ:
        import_module(name)
    folder = GridFolder(Path(sys.argv[1]))
    # Nothing is ever written to this pipe: it ends with this process, or when it closes its side.
    ending, alive = os.pipe()
    children: dict[int, str] = {}
    given, waiting = b"", True
    while waiting or children:
        if waiting and select.select([0], [], [], _LOOK)[0]:
            piece = os.read(0, 65536)
            if not piece:
                waiting = False
                os.close(alive)
            *lines, given = (given + piece).split(b"\n")
            for line in lines:
                cell = Cell.model_validate_json(line)
                if not (child := os.fork()):
                    os.close(alive)
                    _child(folder, cell, ending)
                children[child] = cell.name
        # Waits for a child only when there is nothing else to do.
        while children:
            child, status = os.waitpid(-1, os.WNOHANG if waiting else 0)
            if not child:
                break
            code = os.waitstatus_to_exitcode(status)
            with suppress(BrokenPipeError):
                os.write(1, f"{code} {children.pop(child)}\n".encode())


def _child(folder: GridFolder, cell: Cell, ending: int) -> NoReturn:
    """Run a cell in this process, and end it."""
    log = os.open(folder.log(cell.name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())

    def wait_for_end() -> None:
        os.read(ending, 1)
        stop.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    code = 1
    try:
        code = _CODES[run_cell(folder, cell, stop=stop)]
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
