"""Small files that say they are huge are refused in one line, before they take any memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fuzz_bombs import BOMBS

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def said() -> dict[str, dict[str, Any]]:
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(HERE / "fuzz_bombs.py")],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused(name: str, said: dict[str, dict[str, Any]]) -> None:
    found = said[name]
    assert found["said"].partition(": ")[0].endswith("Error")
    assert found["said"].isprintable()
    assert found["mb"] < 200
    assert found["s"] < 20
