"""Small files that say they are huge are refused in one line, before they take any memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_bombs import BOMBS

HERE = Path(__file__).parent


@pytest.mark.slow
def test_bombs_are_refused() -> None:
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
    lines = {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert lines.keys() == BOMBS.keys()
    for line in lines.values():
        kind, _, reason = line["reason"].partition(": ")
        assert kind in ("DataError", "ModelError", "ConfigError", "MissingFileError"), line
        assert reason.isprintable(), line
        assert line["mb"] < 200, line
        assert line["s"] < 20, line
