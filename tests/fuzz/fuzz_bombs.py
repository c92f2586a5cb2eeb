"""Small files that say they are huge, and what one process that reads them all takes.

Run as a program it prints one JSON line for each: the reason, megabytes, seconds.
"""

from __future__ import annotations

import io
import json
import resource
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_samples as samples
import numpy as np
from fuzz_parsers import PARSERS, warm

DEEP = b"[" * 100_000
ADDRESSES = 4 << 30  # bytes beside what the libraries take
_TEN_GB = 10**10
_LABELS = 125 * 10**7


def npy_head(descr: str, shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def zeros(head: bytes, count: int) -> bytes:
    """Deflate a head and `count` zeros, without ever holding them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    whole, rest = divmod(count, 1 << 24)
    return start + piece * whole + packer.compress(bytes(rest)) + packer.flush()


def zip_of(members: dict[str, tuple[bytes, int, int]]) -> bytes:
    """A zip archive of deflated members and their sizes and checksums when unpacked."""
    body, contents = bytearray(), bytearray()
    for name, (packed, size, crc) in members.items():
        extra = struct.pack("<HHQQ", 1, 16, size, len(packed))
        most = 0xFFFFFFFF
        common = struct.pack("<HHHHHLLLHH", 45, 0, 8, 0, 0, crc, most, most, len(name), len(extra))
        where = len(body)
        body += b"PK\3\4" + common + name.encode() + extra + packed
        contents += b"PK\1\2\x2d\0" + common + struct.pack("<HHHLL", 0, 0, 0, 0, where)
        contents += name.encode() + extra
    count, size = min(len(members), 0xFFFF), len(contents)
    end = struct.pack("<HHHHLLH", 0, 0, count, count, size, len(body), 0)
    return bytes(body + contents) + b"PK\5\6" + end


def bomb_set(**changes: tuple[bytes, int]) -> bytes:
    """A valid set with some members changed: to a head, and so many zeros behind it."""
    members: dict[str, tuple[bytes, int, int]] = {}
    for key, array in samples.arrays().items():
        content = samples.npy(array)
        head, count = changes.get(key, (content, 0))
        members[f"{key}.npy"] = (zeros(head, count), len(head) + count, zlib.crc32(head))
    return zip_of(members)


def many_members() -> bytes:
    return zip_of({f"{k:06}.npy": (b"\3\0", 0, 0) for k in range(100_000)})


def safetensors_of(header: bytes, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header + bytes(64)


def tensors(**offsets: tuple[int, int]) -> bytes:
    about = {
        name: {"dtype": "F32", "shape": [(end - start) // 4], "data_offsets": [start, end]}
        for name, (start, end) in offsets.items()
    }
    return safetensors_of(json.dumps(about).encode())


def config_of(**changes: Any) -> bytes:
    tree = json.loads(samples.bundle()["config.json"])
    return json.dumps(tree | changes).encode()


def _network(**changes: Any) -> bytes:
    return config_of(network=json.loads(samples.bundle()["config.json"])["network"] | changes)


def _preprocessing(side: int) -> bytes:
    return config_of(preprocessing={"size": [side, side], "channels": 1, "fit": "pad"})


_IMAGE = (npy_head("|u1", (1, 100_000, 100_000)), _TEN_GB)
_MANY = (npy_head("|u1", (_LABELS, 1, 1)), _LABELS)
_LABEL = (npy_head("<i8", (_LABELS,)), 8 * _LABELS)
_NAMES = (npy_head("<U100000000", (2,)), 8 * 10**8)
_HEADER = (b"\x93NUMPY\2\0" + struct.pack("<I", 2 << 30), 2 << 30)


def zeros_by_blosc() -> bytes:
    from numcodecs import Blosc

    return bytes(Blosc("zstd").encode(bytes(1 << 30)))


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "npz: an image of 10 GB of zeros": ("npz", lambda: bomb_set(train_images=_IMAGE)),
    "npz: labels of 10 GB of zeros": (
        "npz",
        lambda: bomb_set(train_images=_MANY, train_labels=_LABEL),
    ),
    "npz: a name of 400 MB": ("npz", lambda: bomb_set(class_names=_NAMES)),
    "npz: a header of 2 GB": ("npz", lambda: bomb_set(train_images=_HEADER)),
    "npz: 100,000 members": ("npz", many_members),
    "safetensors: a header of 2 GB": ("safetensors", lambda: safetensors_of(b"{}", 2 << 30)),
    "safetensors: a header of 2**63": ("safetensors", lambda: safetensors_of(b"{}", 1 << 63)),
    "safetensors: offsets that overlap": ("safetensors", lambda: tensors(a=(0, 64), b=(32, 96))),
    "safetensors: offsets of 2**60": ("safetensors", lambda: tensors(a=(0, 1 << 60))),
    "bundle: deep": ("bundle config.json", lambda: DEEP),
    "bundle: deep inside": ("bundle config.json", lambda: b'{"network": ' + DEEP),
    "bundle: a billion channels": ("bundle config.json", lambda: _network(in_channels=10**9)),
    "bundle: a billion wide": ("bundle config.json", lambda: _network(width=10**9)),
    "bundle: a name of a megabyte": ("bundle config.json", lambda: _network(name="a" * (1 << 20))),
    "bundle: images of 10**5": ("bundle config.json", lambda: _preprocessing(10**5)),
    "zarr metadata: deep": ("zarr metadata", lambda: DEEP),
    "export: deep": ("exported config.json", lambda: DEEP),
    "zarr masks: 1 GB of zeros": ("zarr masks", zeros_by_blosc),
}


def _kilobytes(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))


def main() -> None:
    """Read all bombs in this process, with a limit of addresses."""
    for name in {parser for parser, _ in BOMBS.values()}:  # the libraries come first
        warm(PARSERS[name])
    limit = (_kilobytes("VmSize") << 10) + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for name, (parser, make) in BOMBS.items():
        content = make()
        before, start = _kilobytes("VmRSS"), time.monotonic()
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        with tempfile.TemporaryDirectory() as folder:
            try:
                PARSERS[parser].read(Path(folder), content)
                reason = "read"
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
        line = {
            "name": name,
            "reason": reason,
            "mb": (_kilobytes("VmHWM") - before) / 2**10,
            "s": time.monotonic() - start,
        }
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
