"""Other programs on the same cores are noticed, and one's own work is not taken for theirs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import medduet
from medduet.config import RunConfig
from medduet.training import load
from medduet.training.load import Others
from medduet.training.reporter import Reporter


@pytest.mark.skipif(sys.platform != "linux", reason="others are seen on Linux alone")
def test_a_busy_machine_is_noticed() -> None:
    cores = os.cpu_count() or 1
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        time.sleep(0.5)
        others = Others()
        assert others.cores() is None  # so soon
        time.sleep(1)
        found = others.cores()
        assert found is not None
        assert 0.5 < found < 1.2 * cores
        if cores > 1 and len(os.sched_getaffinity(0)) == cores:
            assert "before the command may be many times as fast" in (others.advice(cores) or "")
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("own", "total", "threads", "advice"),
    [
        (3.0, 3.0, 2, None),  # all of it is this process's
        (0.5, 2.6, 1, None),
        (0.0, 0.8, 2, None),
        (1.0, 4.8, 2, "1.9 of 2 cores busy, and 2 threads .* OMP_NUM_THREADS=1 "),
    ],
)
def test_own_work_is_not_others(
    monkeypatch: pytest.MonkeyPatch, own: float, total: float, threads: int, advice: str | None
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    seconds = iter((0.0, 2.0))
    monkeypatch.setattr("time.monotonic", lambda: next(seconds))
    readings, mine = iter((10.0, 10.0 + total)), iter((5.0, 5.0 + own))
    monkeypatch.setattr(load, "_busy_seconds", lambda: next(readings))
    monkeypatch.setattr(load, "_own_seconds", lambda: next(mine))
    told = Others().advice(threads)
    if advice is None:
        assert told is None
    else:
        assert re.search(advice, told or "")


def test_another_system_is_not_guessed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(load, "_STAT", tmp_path / "none")
    others = Others()
    assert others.cores() is None
    assert others.advice(8) is None


def test_training_says_so(
    make_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Messages(Reporter):
        def message(self, text: str) -> None:
            told.append(text)

    told: list[str] = []
    monkeypatch.setattr(Others, "advice", lambda self, threads: f"busy, {threads} threads")
    medduet.train(make_config(tmp_path / "run", train={"epochs": 1}), reporter=Messages())
    assert sum(each.startswith("busy, ") for each in told) == 1
