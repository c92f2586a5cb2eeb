"""Small files that say they are huge."""

import io
import json
import resource
import struct
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_samples as samples
import numpy as np
from fuzz_parsers import PARSERS, warm

DEEP = b"[" * 100_000
GB = 1 << 30


def head(descr: str, shape: tuple[int, ...]) -> bytes:
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file := io.BytesIO(), header)
    return file.getvalue()


def bomb_set(**changes: tuple[bytes, int]) -> bytes:
    """A valid set with some members changed: to a head, and so many zeros behind it."""
    with zipfile.ZipFile(file := io.BytesIO(), "w", zipfile.ZIP_DEFLATED, compresslevel=1) as zip_:
        for key, array in samples.arrays().items():
            start, count = changes.get(key, (samples.npy(array), 0))
            with zip_.open(f"{key}.npy", "w", force_zip64=True) as member:
                member.write(start)
                for done in range(0, count, 1 << 24):
                    member.write(bytes(min(count - done, 1 << 24)))
    return file.getvalue()


def tensors(size: int | None = None, **offsets: tuple[int, int]) -> bytes:
    about = {
        name: {"dtype": "F32", "shape": [(end - start) // 4], "data_offsets": [start, end]}
        for name, (start, end) in offsets.items()
    }
    header = json.dumps(about).encode()
    return struct.pack("<Q", size or len(header)) + header + bytes(64)


def config(part: str, **changes: Any) -> bytes:
    tree = json.loads(samples.bundle()["config.json"])
    return json.dumps(tree | {part: tree[part] | changes}).encode()


def zeros_by_zstd() -> bytes:
    from numcodecs.zstd import Zstd

    return Zstd().encode(bytes(GB // 16)) * 16


_IMAGE = head("|u1", (1, 1 << 15, 1 << 15)), GB
_NAMES = head("<U100000000", (2,)), 8 * 10**8
_HEADER = b"\x93NUMPY\2\0" + struct.pack("<I", GB), GB
_BUNDLE = "bundle config.json"
BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "an image of zeros": ("npz", lambda: bomb_set(train_images=_IMAGE)),
    "a name of 400 MB": ("npz", lambda: bomb_set(class_names=_NAMES)),
    "a header of zeros": ("npz", lambda: bomb_set(train_images=_HEADER)),
    "a header of 2 GB": ("safetensors", lambda: tensors(2 * GB)),
    "offsets that overlap": ("safetensors", lambda: tensors(a=(0, 64), b=(32, 96))),
    "a bundle that is deep inside": (_BUNDLE, lambda: b'{"network": ' + DEEP),
    "31 MB of brackets": (_BUNDLE, lambda: b'{"versions": [' + b"[]," * 10_000_000 + b"[]]}"),
    "200,000 tensors": (
        "safetensors",
        lambda: tensors(**{f"t{n}": (0, 0) for n in range(200_000)}),
    ),
    "a billion channels": (_BUNDLE, lambda: config("network", in_channels=10**9)),
    "images of 10**5": (_BUNDLE, lambda: config("preprocessing", size=[10**5, 10**5])),
    "1 GB of zeros": ("zarr masks", zeros_by_zstd),
}


def read_bomb(name: str) -> tuple[str, float, float]:
    """Read a bomb: the reason why it is refused, megabytes and seconds beyond a valid file."""
    parser, make = BOMBS[name]
    content = make()
    warm(PARSERS[parser])
    most, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            PARSERS[parser].read(Path(folder), content)
            reason = "read"
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most
    return reason, taken / 1024, time.monotonic() - start
