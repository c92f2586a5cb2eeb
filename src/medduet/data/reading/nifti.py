"""NIfTI-1 and NIfTI-2, ``.nii`` and ``.nii.gz``, by nibabel.

A volume is turned to the axes closest to right, anterior, superior; its frames are the slices from
feet to head. They are seen as a radiologist sees them: anterior is up, and the right side of the
patient is on the left of the image. So frame ``k`` is ``volume[::-1, ::-1, k].T``.
"""

from __future__ import annotations

import gzip
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from medduet.data.reading.core import Facts, Frame, Source, checked, needed, refusal

HEADER_SIZE = 540  # of NIfTI-2; that of NIfTI-1 is 348
_MAX_OFFSET = 1 << 24  # bytes of extensions before the voxels
_PIECE = 1 << 22
_DEFLATE_RATIO = 1032  # more than this can't be packed into a byte


def is_nifti(head: bytes) -> bool:
    """Return whether a file that starts with `head` is NIfTI in one file."""
    return head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0"


def open_nifti(path: Path, file: BinaryIO, packed: bool) -> Source:
    """Return an open NIfTI file; `packed` says that it is gzipped."""
    file.seek(0)
    stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file
    head = stream.read(HEADER_SIZE)
    needed("nibabel.imageglobals", path).logger.setLevel(logging.CRITICAL)  # what it mends itself
    if head[344:348] == b"n+1\0":
        header = needed("nibabel.nifti1", path).Nifti1Header(head[:348])
    else:
        header = needed("nibabel.nifti2", path).Nifti2Header(head)
    dtype, offset = header.get_data_dtype(), int(header.get_data_offset())
    shape = tuple(int(length) for length in header.get_data_shape())
    if len(shape) > 3 and set(shape[3:]) == {1}:
        shape = shape[:3]
    if not 2 <= len(shape) <= 3:
        raise refusal(path, "a volume of 3 axes", f"one of {' x '.join(map(str, shape))}")
    shape = (*shape, 1)[:3]
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise refusal(path, "one real number per voxel", str(dtype))
    turned = _orientation(path, header)
    right, anterior, superior = (shape[list(turned[:, 0]).index(axis)] for axis in range(3))
    facts = checked(path, Facts(superior, 1, anterior, right))
    place = file.tell()
    room = file.seek(0, os.SEEK_END) * (_DEFLATE_RATIO if packed else 1)
    file.seek(place)
    size = offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if not 0 <= offset <= _MAX_OFFSET or size > room:
        raise refusal(path, f"{size} bytes", f"no room for them, of which {offset} before voxels")
    slope, intercept = header.get_slope_inter()
    scale = None if (slope or 1, intercept or 0) == (1, 0) else (slope or 1, intercept or 0)

    def stored() -> Iterator[NDArray[Any]]:
        # Unpacked, it may be a thousand times as large: that is for the disk, not for the memory.
        volumes = needed("nibabel.volumeutils", path)
        with _unpacked(stream, size) if packed else nullcontext(stream) as source:
            volume = volumes.array_from_file(shape, dtype, source, offset, mmap="r")
        volume = needed("nibabel.orientations", path).apply_orientation(volume, turned)
        for k in range(facts.frames):
            values = np.ascontiguousarray(volume[::-1, ::-1, k].T)
            if scale is None:
                yield values
            else:
                yield (values * np.float64(scale[0]) + np.float64(scale[1])).astype(np.float32)

    def frames(window: tuple[float, float] | None) -> Iterator[Frame]:
        shown = (window[0] - window[1] / 2, window[0] + window[1] / 2) if window else None
        return (Frame(values, shown) for values in stored())

    return Source(facts, frames, stored)


def _unpacked(stream: BinaryIO, size: int) -> BinaryIO:
    """Return a file without name that has the first `size` bytes of `stream`."""
    file = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115  (it is mapped, and then gone)
    stream.seek(0)
    while size > 0:
        piece = stream.read(min(size, _PIECE))
        if not piece:
            raise EOFError(f"it ends {size} bytes too early")
        file.write(piece)
        size -= len(piece)
    stream.read(1)  # at the end, where its checksum is compared
    file.flush()
    return file


def _orientation(path: Path, header: Any) -> NDArray[Any]:
    """Return which of right, anterior, superior each axis is closest to, and its sign."""
    affine = header.get_best_affine()
    turned: NDArray[Any] = needed("nibabel.orientations", path).io_orientation(affine)
    if not np.isfinite(affine).all() or sorted(turned[:, 0]) != [0, 1, 2]:
        raise refusal(path, "axes that point somewhere", "an affine that is flat or not finite")
    return turned
