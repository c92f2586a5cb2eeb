"""Small files that say they are huge are refused in one line, before they take any memory."""

from __future__ import annotations

import pytest
from fuzz_bombs import BOMBS, GB, read_bomb

from medduet.data.workers import WorkerPool


@pytest.mark.slow
def test_bombs_are_refused() -> None:
    with WorkerPool(1, memory=16 * GB) as pool:
        for name, result in zip(BOMBS, pool.map(read_bomb, BOMBS), strict=True):
            assert not isinstance(result, str), (name, result)
            reason, megabytes, seconds = result
            kind = reason.partition(": ")[0]
            assert kind in ("DataError", "ModelError", "ConfigError", "MissingFileError"), result
            assert reason.isprintable(), result
            assert megabytes < 200, (name, result)
            assert seconds < 20, (name, result)
