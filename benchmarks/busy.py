"""What other programs cost: training with one thread and with all, beside busy cores. On the CPU.

    python -m benchmarks.busy [--rounds 5] [--quick]

`medduet demo` on 200 images, two epochs, each time in a fresh process, while none, half or all of
the cores each have one other program that computes without end in a session of its own, as another
user's would. Printed are the seconds of the second epoch.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from benchmarks.turns import asked_rounds

from medduet.utils.parsing import read_objects

CORES = os.cpu_count() or 1


def epoch(threads: int) -> float:
    """Return the seconds of the second epoch with so many threads."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        words = [sys.executable, "-m", "medduet", "demo", "--data.count", "200", "--epochs", "2"]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run([*words, "--out", str(out)], env=environment, capture_output=True)
        done.check_returncode()
        return float(read_objects(out / "epochs.jsonl")[-1]["seconds"])


def beside(busy: int, threads: int) -> float:
    """Return the same beside so many busy programs."""
    loop = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(loop, start_new_session=True) for _ in range(busy)]
    try:
        return epoch(threads)
    finally:
        for other in others:
            other.kill()
            other.wait()


def main(rounds: int) -> None:
    """Print the table."""
    seconds = defaultdict(list)
    ways = [(busy, threads) for busy in (0, CORES // 2, CORES) for threads in (1, CORES)]
    for _ in range(rounds):
        for busy, threads in ways:
            seconds[busy, threads].append(beside(busy, threads))
            told = f"{busy} busy, {threads} threads: {seconds[busy, threads][-1]:.1f} s"
            print(told, file=sys.stderr, flush=True)
    print(f"| busy cores of {CORES} | 1 thread, s | {CORES} threads, s |\n| --- | --- | --- |")
    for busy in sorted({busy for busy, _ in ways}):
        cells = []
        for threads in (1, CORES):
            found = seconds[busy, threads]
            low, high = min(found), max(found)
            cells.append(f"{statistics.median(found):.1f} ({low:.1f} to {high:.1f})")
        print(f"| {busy} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(asked_rounds(__doc__ or ""))
