"""DICOM, by pydicom and its plugins.

Values are those after the modality's rescale. The first window or table of values of interest is
applied, MONOCHROME1 is turned so that bright is white, and colours of any kind become RGB. Without
a window, up to 8 bits that are not rescaled stay as they are; others are stretched over the file.

Source: DICOM PS3.3, C.7.6.3 (pixels), C.11.1 (modality), C.11.2 (values of interest).
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from medduet.data.reading.codestream import check_scans, stream_size
from medduet.data.reading.core import (
    MAX_READS,
    MAX_UNPACKED_BYTES,
    Facts,
    Frame,
    Source,
    checked,
    needed,
    refusal,
)

_PREAMBLE = 132  # bytes before what a file says of itself
_DEFLATED = "1.2.840.10008.1.2.1.99"
_LOSSY = {
    "1.2.840.10008.1.2.4.50": "JPEG baseline",
    "1.2.840.10008.1.2.4.51": "JPEG extended",
    "1.2.840.10008.1.2.4.81": "JPEG-LS near lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.4.203": "HTJ2K",
}
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")
_GREYS = ("MONOCHROME1", "MONOCHROME2")


def open_dicom(path: Path, file: BinaryIO, has_preamble: bool) -> Source:
    """Return an open DICOM file; one without preamble has to have pixels."""
    pydicom = needed("pydicom", path)
    header = _read(pydicom, path, file, has_preamble, pixels=False)
    facts = _facts(path, header)
    syntax = str(header.file_meta.TransferSyntaxUID)

    def frames(window: tuple[float, float] | None) -> Iterator[Frame]:
        data = _read(pydicom, path, file, has_preamble, pixels=True)
        for number, values in enumerate(_pixels(path, data, facts)):
            if facts.channels == 3:
                yield Frame(_colours(path, data, values))
            else:
                yield _grey(path, data, number, values, window)

    def stored() -> Iterator[NDArray[Any]]:
        data = _read(pydicom, path, file, has_preamble, pixels=True)
        yield from _pixels(path, data, facts)

    return Source(facts, frames, stored, syntax in _LOSSY)


def _read(pydicom: Any, path: Path, file: BinaryIO, has_preamble: bool, *, pixels: bool) -> Any:
    """Return the data set of a file."""
    reader = needed("pydicom.filereader", path)
    file.seek(0)
    if has_preamble:
        file.seek(_PREAMBLE)
        meta = reader.read_dataset(
            _Counted(file), False, True, stop_when=lambda tag, *_: tag.group != 2
        )
        if meta.get("TransferSyntaxUID") == _DEFLATED:
            # pydicom would unpack it whatever its size.
            unpacked = _inflated(path, file.read())
            data = reader.read_dataset(_Counted(io.BytesIO(unpacked)), False, True)
            meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
            data.file_meta = pydicom.dataset.FileMetaDataset(meta)
            return data
        file.seek(0)
    data = pydicom.dcmread(_Counted(file), stop_before_pixels=not pixels, force=not has_preamble)
    if "TransferSyntaxUID" not in data.file_meta:
        implicit, little = data.original_encoding
        uid = pydicom.uid
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        data.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
    return data


class _Counted:
    """A file from which so much can be read only: each element takes a read at least."""

    def __init__(self, file: BinaryIO) -> None:
        self.tell, self.seek, self._file, self._reads = file.tell, file.seek, file, 0

    def read(self, size: int = -1) -> bytes:
        """Read `size` bytes."""
        self._reads += 1
        if self._reads > MAX_READS:
            raise ValueError("too many elements")
        return self._file.read(size)


def _inflated(path: Path, packed: bytes) -> bytes:
    unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, MAX_UNPACKED_BYTES + 1)
    if len(unpacked) > MAX_UNPACKED_BYTES:
        raise refusal(path, f"at most {MAX_UNPACKED_BYTES} bytes when unpacked", "more")
    return unpacked


def _facts(path: Path, header: Any) -> Facts:
    rows, columns = header.get("Rows"), header.get("Columns")
    photometric, samples = header.get("PhotometricInterpretation"), header.get("SamplesPerPixel")
    if not rows or not columns:
        what = header.get("Modality") or "data"
        raise refusal(path, "a DICOM image", f"{what} without rows and columns")
    colour = photometric in _COLOURS
    if not colour and photometric not in _GREYS:
        raise refusal(path, f"one of {', '.join(_GREYS + _COLOURS)}", str(photometric))
    if int(samples or 1) != (3 if colour and photometric != "PALETTE COLOR" else 1):
        raise refusal(path, f"another number of channels for {photometric}", str(samples))
    frames = int(header.get("NumberOfFrames") or 1)
    return checked(path, Facts(frames, 3 if colour else 1, int(rows), int(columns)))


def _pixels(path: Path, data: Any, facts: Facts) -> Iterator[NDArray[Any]]:
    """Decode the frames one by one: ``(H, W)`` or ``(H, W, 3)``."""
    pixels = needed("pydicom.pixels", path)
    samples = int(data.get("SamplesPerPixel") or 1)
    if data.file_meta.TransferSyntaxUID.is_encapsulated:
        _check_streams(path, data, facts, samples)
    expected = (facts.height, facts.width, *((samples,) * (samples > 1)))
    count = 0
    for count, values in enumerate(pixels.iter_pixels(data), start=1):
        if count > facts.frames or values.shape != expected:
            raise refusal(path, f"{facts.frames} frames of {expected}", f"one of {values.shape}")
        yield values
    if count != facts.frames:
        raise refusal(path, f"{facts.frames} frames", str(count))


def _check_streams(path: Path, data: Any, facts: Facts, samples: int) -> None:
    """Refuse compressed frames that claim another size than the header does."""
    offsets = data.get("ExtendedOffsetTable"), data.get("ExtendedOffsetTableLengths")
    streams = needed("pydicom.encaps", path).generate_frames(
        data.PixelData,
        number_of_frames=facts.frames,
        extended_offsets=offsets if all(offsets) else None,
    )
    expected = facts.height, facts.width, samples
    for stream in streams:
        check_scans(stream, facts.height * facts.width)
        if (size := stream_size(stream)) is not None and size != expected:
            given = f"a compressed one of {size.height} x {size.width} x {size.channels}"
            raise refusal(path, f"a frame of {' x '.join(map(str, expected))}", given)


def _colours(path: Path, data: Any, values: NDArray[Any]) -> NDArray[np.uint8]:
    if data.PhotometricInterpretation == "PALETTE COLOR":
        values = needed("pydicom.pixels", path).apply_color_lut(values, data)[..., :3]
        if values.dtype == np.uint16:
            values = (values >> 8).astype(np.uint8)
    if values.dtype != np.uint8:
        raise refusal(path, "8 bits per colour", str(values.dtype))
    return values


def _grey(
    path: Path, data: Any, number: int, values: NDArray[Any], window: tuple[float, float] | None
) -> Frame:
    """Return a grey frame as it is to be shown."""
    inverted = data.PhotometricInterpretation == "MONOCHROME1"
    bits = int(data.get("BitsStored") or data.get("BitsAllocated") or 8)
    as_it_is = values.dtype.kind == "u" and bits <= 8
    if as_it_is:
        values = (values & ((1 << bits) - 1)).astype(np.uint8)
    if "ModalityLUTSequence" in data:
        values = needed("pydicom.pixels", path).apply_modality_lut(values, data)
        as_it_is = False
    else:
        transform = _group(data, number, "PixelValueTransformationSequence")
        slope = float(transform.get("RescaleSlope") or 1)
        intercept = float(transform.get("RescaleIntercept") or 0)
        if (slope, intercept) != (1, 0):
            values = values * np.float32(slope) + np.float32(intercept)
            as_it_is = False
    if window is not None:
        centre, width = window
        return Frame(values, (centre - width / 2, centre + width / 2), inverted)
    if frame := _of_interest(path, data, number, values):
        return frame._replace(inverted=inverted)
    if as_it_is:
        return Frame((1 << bits) - 1 - values if inverted else values)
    # Of 8 bits that are rescaled, uint8 is left where a table of the modality gives it.
    return Frame(values.astype(np.float32) if values.itemsize == 1 else values, None, inverted)


def _of_interest(path: Path, data: Any, number: int, values: NDArray[Any]) -> Frame | None:
    """Return the values with the first table or window applied, if there is one."""
    if "VOILUTSequence" in data:
        # Not uint8, in which pydicom would look up places beyond 255, too.
        whole = np.rint(values).astype(np.int32)
        bits = int(data.VOILUTSequence[0].LUTDescriptor[2])
        looked_up = needed("pydicom.pixels", path).apply_voi(whole, data, index=0)
        return Frame(looked_up, (0, (1 << bits) - 1))
    group = _group(data, number, "FrameVOILUTSequence")
    centre, width = (_first(group.get(name)) for name in ("WindowCenter", "WindowWidth"))
    function = group.get("VOILUTFunction") or "LINEAR"
    if centre is None or width is None or width < (1 if function == "LINEAR" else 1e-6):
        return None
    if function == "SIGMOID":
        exponent = np.clip(-4 * (values.astype(np.float32) - centre) / width, -80, 80)
        return Frame(1 / (1 + np.exp(exponent)), (0, 1))
    if function == "LINEAR":
        centre, width = centre - 0.5, max(width - 1, 1e-6)  # a width of 1 is a threshold
    return Frame(values, (centre - width / 2, centre + width / 2))


def _group(data: Any, number: int, name: str) -> Any:
    """Return the item that holds what belongs to a frame: its own, the shared one or the file."""
    own = data.get("PerFrameFunctionalGroupsSequence") or []
    shared = data.get("SharedFunctionalGroupsSequence") or []
    for groups in (own[number : number + 1], shared[:1]):
        for group in groups:
            if found := group.get(name):
                return found[0]
    return data


def _first(value: Any) -> float | None:
    """Return the first of one or several numbers."""
    if value is None or value == "":
        return None
    values = [value] if isinstance(value, (int, float)) else list(value)
    return float(values[0]) if values else None
