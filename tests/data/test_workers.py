"""Workers: order, faults, deaths, limits, and that nothing is left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from medduet.data.workers import Passing, map_files
from medduet.errors import DataError

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

def large(path):
    path.touch()
    time.sleep(4 if path.name == "0" else 0)
    return bytes(32 << 20)

def once(path):
    if not path.exists():
        path.touch()
        if path.name == "slow":
            time.sleep(60)
        os._exit(1)
    return "second time"
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A module that workers can import."""
    (tmp_path / "worker_functions.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    import worker_functions

    yield worker_functions
    del sys.modules["worker_functions"]


def children() -> set[int]:
    return {int(pid) for pid in Path("/proc/thread-self/children").read_text().split()}


def test_results_come_in_order(functions: object) -> None:
    items = list(range(100))
    assert list(map_files(functions.act, items, processes=3)) == [(k, 2 * k) for k in items]


def test_nothing_to_do(functions: object) -> None:
    assert list(map_files(functions.act, [])) == []


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ("segfault", "expected to be read, given a reader that died of SIGSEGV"),
        ("exit", "expected to be read, given a reader that ended with code 3"),
        ("sleep", "expected to take at most 1 s, given more"),
        ("memory", "expected to fit into the memory given, given more"),
        ("fault", "ValueError: of two lines"),
        ("killed", "expected to be read, given a reader that died of SIGKILL"),
        ("disk", "OSError: [Errno 5] Input/output error"),
    ],
)
def test_a_fault_costs_its_item(functions: object, item: str, reason: str) -> None:
    items = [*range(40), item, *range(40)]
    found = dict(map_files(functions.act, items, processes=2, seconds=1))
    assert isinstance(found[40], Passing) == (item in ("sleep", "memory", "killed", "disk"))
    assert found.pop(40) == reason
    assert found == {k: 2 * items[k] for k in found}
    assert len(found) == 80


@pytest.mark.parametrize("name", ["mark", "slow"])
def test_an_item_that_cost_its_worker_is_tried_again(
    functions: object, tmp_path: Path, name: str
) -> None:
    found = list(map_files(functions.once, [tmp_path / name], seconds=1))
    assert found == [(0, "second time")]


def test_results_that_wait_are_bounded(functions: object, tmp_path: Path) -> None:
    marks = [tmp_path / str(number) for number in range(20)]
    answers = map_files(functions.large, marks, processes=2)
    assert len(next(answers)[1]) == 32 << 20
    # 256 MiB are eight of them; more may be under way in a chunk.
    assert 8 <= sum(mark.exists() for mark in marks) <= 14
    assert [number for number, _ in answers] == list(range(1, 20))


def test_workers_end_with_the_loop(functions: object) -> None:
    before = children()
    for number, _ in map_files(functions.act, range(100), processes=2):
        if number == 3:
            break
    assert children() == before


def test_a_function_that_workers_cannot_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_nothing_to_do, "__module__", "no_such_module")
    monkeypatch.setitem(sys.modules, "no_such_module", sys.modules[__name__])
    with pytest.raises(DataError, match=r"expected workers to start, given .*no_such_module"):
        list(map_files(test_nothing_to_do, [1]))


def test_many_small_items_are_fast(functions: object) -> None:
    start = time.monotonic()
    assert sum(1 for _ in map_files(functions.act, ["a"] * 20_000, processes=2)) == 20_000
    assert time.monotonic() - start < 10


SCRIPT = """
import sys
from worker_functions import act
from medduet.data.workers import Passing, map_files
print("main runs once")
print([result for _, result in map_files(act, sys.argv[1:], processes=2)], flush=True)
"""


def start(tmp_path: Path, *items: str) -> subprocess.Popen[str]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, str(script), *items],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell lets programs in its background ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_a_script_needs_no_guard(functions: object, tmp_path: Path) -> None:
    out, errors = start(tmp_path, "a", "exit", "b").communicate(timeout=60)
    reason = "expected to be read, given a reader that ended with code 3"
    assert out.splitlines() == ["main runs once", str(["a", reason, "b"])]
    assert errors == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_program_leaves_no_worker(
    functions: object, tmp_path: Path, number: signal.Signals
) -> None:
    process = start(tmp_path, "sleep", "sleep")
    tasks = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 20
    while len(workers := tasks.read_text().split()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(workers) == 2
    time.sleep(1.5)  # they sleep
    process.send_signal(number)
    process.communicate(timeout=20)
    deadline = time.monotonic() + 5
    while (left := [pid for pid in workers if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
