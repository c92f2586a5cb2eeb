from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Arrays = dict[str, np.ndarray]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def arrays() -> Arrays:
    """A small MedMNIST-like set with masks: 12 / 4 / 6 grey images of 20 x 24, three classes."""
    rng = np.random.default_rng(0)
    result: Arrays = {}
    for split, length in (("train", 12), ("val", 4), ("test", 6)):
        result[f"{split}_images"] = rng.integers(0, 256, (length, 20, 24), dtype=np.uint8)
        result[f"{split}_labels"] = (np.arange(length, dtype=np.uint8) % 3)[:, None]
        result[f"{split}_masks"] = rng.integers(0, 2, (length, 20, 24), dtype=np.uint8)
    return result


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write arrays to an ``.npz`` in the test's folder."""

    def write(arrays: Arrays, name: str = "set.npz") -> Path:
        path = tmp_path / name
        np.savez_compressed(path, **arrays)
        return path

    return write


@pytest.fixture
def left_in() -> Callable[[Path], list[str]]:
    """List the stores in a cache, half-made ones included."""

    def names(cache: Path) -> list[str]:
        folder = cache / "store"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    return names


@pytest.fixture
def waiting() -> Callable[[Callable[[], object]], Any]:
    """Make a progress bar that lets others act in the middle of unpacking."""

    class Waiting:
        def __init__(self, act: Callable[[], object]) -> None:
            self.act = act

        def __call__(self, description: str, total: int) -> Any:
            self.unpacks = description.startswith("unpack")
            return self

        def update(self, amount: int) -> None:
            if self.unpacks:
                self.unpacks = False
                self.act()

        def close(self) -> None: ...

    return Waiting
