"""Cells as processes on this machine, one or several at a time.

Run as a module it is such a process: it reads a cell from its input, and stops at its end.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from medduet.grid.cells import GridFolder, Outcome, run_cell
from medduet.plans import Cell

_CODES: dict[int, Outcome] = {0: "finished", 3: "failed", 4: "busy", 130: "interrupted"}


class LocalEngine:
    """Runs each cell in a process of its own, so that one that dies takes no other along.

    Args:
        folder: of the grid.
        workers: cells at a time; they share the cores.
    """

    def __init__(self, folder: GridFolder, workers: int) -> None:
        self.folder, self.slots = folder, workers
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, cell: Cell) -> None:
        """Start the process of a cell."""
        threads = str(max(1, (os.cpu_count() or 1) // self.slots))
        log = self.folder.log(cell.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "medduet.grid.local", str(self.folder.path)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={"OMP_NUM_THREADS": threads} | os.environ,
                # Ctrl-C is for us; we then close the input of the others.
                start_new_session=True,
            )
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.write(cell.model_dump_json().encode() + b"\n")
            process.stdin.flush()
        self._running[cell.name] = process

    def ended(self) -> dict[str, Outcome]:
        """Return the cells that ended since the last call, and how."""
        done = {name: p for name, p in self._running.items() if p.poll() is not None}
        outcomes: dict[str, Outcome] = {}
        for name, process in done.items():
            del self._running[name]
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()
            if process.returncode not in _CODES:
                self.folder.record_failure(name, self._death(name, process.returncode))
            outcomes[name] = _CODES.get(process.returncode, "failed")
        return outcomes

    def _death(self, name: str, code: int) -> str:
        log = self.folder.log(name)
        if code < 0:
            hint = " (out of memory?)" if code == -9 else ""
            return f"its process was killed by signal {-code}{hint}; its output is in {log}"
        lines = log.read_text("utf-8", errors="replace").strip().splitlines()
        last = lines[-1] if lines else "no output"
        return f"its process ended with code {code}: {last}; its output is in {log}"

    def stop(self) -> None:
        """Let the running cells finish their step, save and end."""
        for process in self._running.values():
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()

    def close(self) -> None:
        """Wait until all processes have ended."""
        self.stop()
        for process in self._running.values():
            process.wait()


def main() -> int:
    """Run the cell that stands in the first line of the input; return the exit code.

    When the input ends, because its writer closed it or died, the run is saved and ends.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    folder = GridFolder(Path(sys.argv[1]))
    line = b""
    while not line.endswith(b"\n"):
        # Not through sys.stdin, which the thread below would hold when the program ends.
        piece = os.read(0, 65536)
        if not piece:
            return 130
        line += piece
    cell, stop = Cell.model_validate_json(line), threading.Event()

    def wait_for_end() -> None:
        while os.read(0, 65536):
            pass
        stop.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    outcome = run_cell(folder, cell, stop=stop)
    return next(code for code, name in _CODES.items() if name == outcome)


if __name__ == "__main__":
    sys.exit(main())
