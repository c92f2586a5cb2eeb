"""Workers: order, faults, deaths, limits, and that nothing is left behind."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from medduet.data.workers import Transient, WorkerPool

FUNCTIONS = """
import ctypes, errno, os, time

def act(item):
    if item == "killed":
        os.kill(os.getpid(), 9)
    if item == "disk":
        raise OSError(errno.EIO, "Input/output error")
    if item == "segfault":
        ctypes.string_at(0)
    if item == "exit":
        os._exit(3)
    if item == "sleep":
        time.sleep(60)
    if item == "memory":
        return len(bytes(8 << 30))
    if item == "fault":
        raise ValueError("of two\\nlines")
    if isinstance(item, int):
        time.sleep(item % 3 / 100)
        return item * 2
    return item

def once(path):
    if not path.exists():
        path.touch()
        os._exit(1)
    return "second time"
"""
REASONS = {
    "segfault": "not read: its reader ended with code -11",
    "exit": "not read: its reader ended with code 3",
    "sleep": "not read within 1 s",
    "memory": "not read: it needs more memory than a reader may take",
    "fault": "ValueError: of two lines",
    "killed": "not read: its reader ended with code -9",
    "disk": "OSError: [Errno 5] Input/output error",
}


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module that workers can import."""
    (tmp_path / "worker_functions.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    import worker_functions

    yield worker_functions
    del sys.modules["worker_functions"]


def test_each_fault_costs_its_item(functions: Any) -> None:
    items: list[Any] = list(range(30))
    for place, item in enumerate(REASONS):
        items.insert(4 * place, item)
    with WorkerPool(2, seconds=1) as pool:
        results = list(pool.map(functions.act, items))
        assert list(pool.map(functions.act, [])) == []
    assert len(results) == len(items)
    for item, result in zip(items, results, strict=True):
        assert result == (2 * item if isinstance(item, int) else REASONS[item])
        assert isinstance(result, Transient) == (item in ("sleep", "memory", "killed", "disk"))


def test_an_item_whose_worker_died_is_tried_again(functions: Any, tmp_path: Path) -> None:
    with WorkerPool(1) as pool:
        assert list(pool.map(functions.once, [tmp_path / "a"])) == ["second time"]


def test_threads_share_a_pool_that_outlives_its_workers(functions: Any) -> None:
    items = ["exit" if number % 5 == 0 else number for number in range(10)]
    with WorkerPool(2) as pool, ThreadPoolExecutor(10) as threads:
        results = list(threads.map(lambda item: pool.call(functions.act, item), items))
        assert pool.call(functions.act, 4) == 8
    assert results == [REASONS["exit"] if item == "exit" else 2 * item for item in items]


SCRIPT = """
import sys
from worker_functions import act
from medduet.data.workers import WorkerPool
with WorkerPool(2) as pool:
    print(list(pool.map(act, sys.argv[1:])), flush=True)
"""


def start(tmp_path: Path, *items: str) -> subprocess.Popen[str]:
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [sys.executable, str(tmp_path / "script.py"), *items]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_program_leaves_no_worker(
    functions: Any, tmp_path: Path, number: signal.Signals
) -> None:
    process = start(tmp_path, "sleep", "sleep")
    deadline, workers = time.monotonic() + 20, []
    while len(workers) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
        children = psutil.Process(process.pid).children()
        workers = [each for each in children if "spawn_main" in " ".join(each.cmdline())]
    assert len(workers) == 2
    time.sleep(1.5)  # they sleep
    process.send_signal(number)
    with process:
        process.communicate(timeout=60)
    assert psutil.wait_procs(workers, timeout=8)[1] == []
