"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from medduet import RunConfig, RunRecord

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


@pytest.fixture(scope="session")
def lossless_jpeg() -> Callable[[np.ndarray], bytes]:
    """Encode grey pixels (H, W), uint8 or uint16, as lossless JPEG: process 14, first predictor.

    Source: ITU-T T.81, annex H. All 17 categories of differences get codes of five bits.
    """

    def segment(marker: int, content: bytes) -> bytes:
        return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content

    def encode(values: np.ndarray) -> bytes:
        bits, (height, width) = 8 * values.itemsize, values.shape
        wide = values.astype(np.int64)
        predicted = np.roll(wide, 1, axis=1)  # the pixel to the left; in the first column above
        predicted[:, 0] = np.roll(wide[:, 0], 1)
        predicted[0, 0] = 1 << (bits - 1)
        scan = ""
        for difference in ((wide - predicted + 2**15) % 2**16 - 2**15).ravel().tolist():
            category = abs(difference).bit_length()
            scan += f"{category:05b}"
            if 0 < category < 16:  # the only one of category 16 is -32768
                low = difference if difference > 0 else difference + (1 << category) - 1
                scan += f"{low:0{category}b}"
        scan += "1" * (-len(scan) % 8)
        content = int(scan, 2).to_bytes(len(scan) // 8, "big").replace(b"\xff", b"\xff\0")
        table = bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)])
        size = height.to_bytes(2, "big") + width.to_bytes(2, "big")
        frame = bytes([bits]) + size + bytes([1, 1, 0x11, 0])
        start = segment(0xC4, table) + segment(0xC3, frame)
        return (
            b"\xff\xd8" + start + segment(0xDA, bytes([1, 1, 0, 1, 0, 0])) + content + b"\xff\xd9"
        )

    return encode


@pytest.fixture(scope="session")
def make_config() -> Callable[..., RunConfig]:
    """Settings of a run of about a second: small phantoms, all three tasks, a network of width 2.

    Each section is changed by keyword: ``make_config(out, train={"epochs": 1})``.
    """
    from medduet.config import parse_config

    def make(out: Path, **changes: dict[str, Any]) -> RunConfig:
        sections: dict[str, dict[str, Any]] = {
            "data": {"name": "phantom", "size": 16, "count": 40},
            "model": {"width": 2},
            "objective": {"tasks": ["classify", "segment", "reconstruct"]},
            "train": {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3},
            "evaluate": {"bootstrap": 100},
        }
        values = {name: section | changes.pop(name, {}) for name, section in sections.items()}
        assert not changes, f"no such section: {list(changes)}"
        return parse_config(values | {"out": out}, "a test")

    return make


@pytest.fixture(scope="session")
def finished_run(
    make_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> RunRecord:
    """A run of the paper's protocol with all three tasks; look, don't touch."""
    import medduet

    out = tmp_path_factory.mktemp("finished") / "run"
    # At this rate the best epochs of validation and test differ.
    train = {"epochs": 4, "augment": "flip", "learning_rate": 0.02}
    changes = {"train": train, "evaluate": {"protocol": "paper"}}
    return medduet.train(make_config(out, **changes))
