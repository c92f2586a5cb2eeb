"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Two test processes share two cores; torch's own threads would only wait for each other. Set
# before torch is imported, and inherited by the commands that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep tests out of the user's cache."""
    os.environ["MEDDUET_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images; a test that wants it is skipped where it is missing."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MEDDUET_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}")
    return folder
