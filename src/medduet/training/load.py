"""What other programs take of the processor."""

from __future__ import annotations

import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")
_LEAST_SECONDS = 0.2  # the system counts in hundredths
_SPARE = 0.5  # cores that others may take before it matters


class Others:
    """Other programs, watched from when this object is made.

    Threads that compute together wait for the last of them, many thousand times a second. One that
    shares its core with another program is late every time: two threads on two cores of which one
    is busy took 2 to 55 times as long as one thread, see docs/performance.md.

    Example:
        >>> others = Others()
        >>> others.advice(threads=1) is None  # one waits for nobody
        True
    """

    def __init__(self) -> None:
        self._started, self._busy, self._own = time.monotonic(), _busy_seconds(), _own_seconds()

    def cores(self) -> float | None:
        """Return how many cores others kept busy since; ``None`` if that can't be told."""
        seconds, busy = time.monotonic() - self._started, _busy_seconds()
        if busy is None or self._busy is None or seconds < _LEAST_SECONDS:
            return None
        return max(0.0, (busy - self._busy - (_own_seconds() - self._own)) / seconds)

    def advice(self, threads: int) -> str | None:
        """Return what to do if so many threads of this process find no core each, in one line."""
        total, busy = os.cpu_count() or 1, self.cores()
        if threads < 2 or busy is None or total - busy > threads - _SPARE:
            return None
        if len(os.sched_getaffinity(0)) < total:  # others may be busy on other cores than these
            return None
        fewer = max(1, round(total - busy))
        return (
            f"other programs keep {busy:.1f} of {total} cores busy, and {threads} threads wait for "
            f"the last of them: OMP_NUM_THREADS={fewer} before the command may be many times "
            "as fast"
        )


def _busy_seconds() -> float | None:
    """Return the seconds that all cores together were busy since the system started."""
    try:
        user, nice, system, _, _, irq, softirq = map(int, _STAT.read_text().split()[1:8])
    except (OSError, ValueError):  # another system than Linux
        return None
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    return sum(os.times()[:4])
