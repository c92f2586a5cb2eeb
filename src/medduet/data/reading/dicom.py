"""DICOM, by pydicom and its plugins.

Values are those after the modality's rescale. The first window or table of values of interest is
applied, MONOCHROME1 is turned so that bright is white, and colours of any kind become RGB. Without
a window, up to 8 bits that are not rescaled stay as they are; others are stretched over the file.
Padding is no part of the range of a file, and black, as PixelMed shows it.

Source: DICOM PS3.3, C.7.5.1.1.2 (padding), C.7.6.3 (pixels), C.11.1 and 2 (modality, interest).
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from medduet.data.reading.core import PICTURE, Facts, Frame, Source, checked, needed, refusal
from medduet.types import Modality

logging.getLogger("pydicom").disabled = True  # it tells what it mends itself
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")
_GREYS = ("MONOCHROME1", "MONOCHROME2")
_REGIONS, _DELTAS, _CM = "SequenceOfUltrasoundRegions", ("DeltaY", "DeltaX"), 3
_MODALITIES: dict[str, Modality] = {"CT": "ct", "MR": "mri", "OPT": "oct", "SM": "microscopy"}
_MODALITIES |= {"US": "ultrasound", "CR": "xray", "DX": "xray", "MG": "xray"}


def open_dicom(path: Path, file: BinaryIO) -> Source:
    """Return an open DICOM file, with a preamble or without."""
    pixels = needed("pydicom.pixels", path)
    header = read_dataset(path, file, stop_before_pixels=True)
    facts = _facts(path, header)
    by_palette = header.PhotometricInterpretation == "PALETTE COLOR"
    shape = (facts.height, facts.width, *(3,) * (facts.channels == 3 and not by_palette))

    def frames(window: tuple[float, float] | None) -> Iterator[Frame]:
        for number, values in enumerate(pixels.iter_pixels(read_dataset(path, file))):
            if values.shape != shape:
                raise refusal(path, f"frames of {shape}", str(values.shape))
            if facts.channels == 1:
                shown = _grey(pixels, header, number, values, window)
                yield _without_padding(header, values, shown)._replace(classes=values)
                continue
            colours = values
            if by_palette:
                colours = pixels.apply_color_lut(values, header)[..., :3]
                if colours.dtype == np.uint16:
                    colours = (colours >> 8).astype(np.uint8)
            if colours.dtype != np.uint8:
                raise refusal(path, "8 bits per colour", str(colours.dtype))
            yield Frame(colours, classes=values)

    affine = _affine(header, facts.frames)
    are_slices = facts.frames > 1 and affine is not PICTURE  # else it may be a film
    modality, pixel = _MODALITIES.get(header.get("Modality", ""), "auto"), _pixel(header)
    about: dict[str, Any] = {"pixel": pixel, "patient": str(header.get("PatientID") or "").strip()}
    return Source(facts, frames, affine=affine, are_slices=are_slices, modality=modality, **about)


def read_dataset(path: Path, file: BinaryIO, **options: Any) -> Any:
    """Return the data set of an open file; `options` are those of `pydicom.dcmread`."""
    pydicom = needed("pydicom", path)
    file.seek(0)
    data = pydicom.dcmread(file, force=True, **options)
    if "TransferSyntaxUID" not in data.file_meta:
        implicit, little = data.original_encoding
        uid = pydicom.uid
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        data.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
    return data


def _facts(path: Path, header: Any) -> Facts:
    rows, columns, frames = (header.get(x) for x in ("Rows", "Columns", "NumberOfFrames"))
    photometric = header.get("PhotometricInterpretation")
    if not rows or not columns:
        raise refusal(path, "a DICOM image", f"{header.get('Modality')} without rows and columns")
    if photometric not in _COLOURS + _GREYS:
        raise refusal(path, f"one of {', '.join(_GREYS + _COLOURS)}", str(photometric))
    channels = 3 if photometric in _COLOURS else 1
    return checked(path, Facts(int(frames or 1), channels, int(rows), int(columns)))


def _pixel(header: Any) -> tuple[float, ...]:
    """Return the distance of rows and columns in mm, empty if the header doesn't tell it.

    It is that in the patient, else of the detector divided by the magnification, else of
    ultrasound, where all regions have the same.
    """
    try:
        if spacing := of_frame(header, 0, "PixelMeasuresSequence").get("PixelSpacing"):
            values = np.array(spacing, float)
        elif spacing := header.get("ImagerPixelSpacing"):
            enlarged = float(header.get("EstimatedRadiographicMagnificationFactor") or 1)
            values = np.array(spacing, float) / enlarged
        else:
            names = [f"Physical{x}" for x in ("UnitsXDirection", "UnitsYDirection", *_DELTAS)]
            regions = {tuple(x[name].value for name in names) for x in header[_REGIONS]}
            ((*units, rows, columns),) = regions
            values = 10 * np.abs([rows, columns]) if units == [_CM, _CM] else np.zeros(2)
    except (KeyError, TypeError, ValueError):  # none, several, or no numbers
        return ()
    return tuple(values.tolist()) if values.size == 2 and values.min() > 0 else ()


def _affine(header: Any, frames: int) -> NDArray[np.float64]:
    """Return where pixels are, if that is told and frames lie at equal distances."""
    planes = [plane for n in range(frames) if (plane := plane_of(header, n))]
    if len(planes) < frames:
        return PICTURE
    place, ((right, down), (height, width), _) = np.stack([x for *_, x in planes]), planes[0]
    step = (place[-1] - place[0]) / (frames - 1) if frames > 1 else np.cross(right, down)
    affine = np.eye(4)
    affine[:3] = np.stack([right * width, down * height, step, place[0]], axis=1)
    is_even = np.allclose(place, place[0] + np.outer(np.arange(frames), step), atol=0.01)
    return PICTURE @ affine if is_even and abs(np.linalg.det(affine)) > 1e-6 else PICTURE


def plane_of(header: Any, number: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None:
    """Return axes ``(2, 3)``, spacing ``(2,)`` and position ``(3,)`` of a frame, if it has them."""
    try:
        axes = of_frame(header, number, "PlaneOrientationSequence").ImageOrientationPatient
        spacing = of_frame(header, number, "PixelMeasuresSequence").PixelSpacing
        position = of_frame(header, number, "PlanePositionSequence").ImagePositionPatient
        axes, spacing, position = (np.array(x, float) for x in (axes, spacing, position))
        return axes.reshape(2, 3), spacing.reshape(2), position.reshape(3)
    except (AttributeError, TypeError, ValueError):  # none, or not such numbers
        return None


def _grey(
    pixels: Any, header: Any, number: int, values: NDArray[Any], window: tuple[float, float] | None
) -> Frame:
    """Return a grey frame as it is to be shown."""
    inverted = header.PhotometricInterpretation == "MONOCHROME1"
    bits = int(header.get("BitsStored") or header.get("BitsAllocated") or 8)
    unchanged = values.dtype.kind == "u" and bits <= 8
    if unchanged:
        values = (values & ((1 << bits) - 1)).astype(np.uint8)
    rescale = of_frame(header, number, "PixelValueTransformationSequence")
    slope = float(rescale.get("RescaleSlope") or 1)
    intercept = float(rescale.get("RescaleIntercept") or 0)
    if "ModalityLUTSequence" in header:
        values, unchanged = pixels.apply_modality_lut(values, header), False
    elif (slope, intercept) != (1, 0):
        values, unchanged = values * np.float32(slope) + np.float32(intercept), False
    if window is not None:
        return Frame(values, window, inverted)
    if frame := _of_interest(pixels, header, number, values):
        return frame._replace(inverted=inverted)
    if unchanged:
        return Frame((1 << bits) - 1 - values if inverted else values)
    # Of 8 bits that are rescaled, uint8 is left where a table of the modality gives it.
    return Frame(values.astype(np.float32) if values.itemsize == 1 else values, None, inverted)


def _without_padding(header: Any, stored: NDArray[Any], frame: Frame) -> Frame:
    """Return a frame whose padding, which is a stored value or a range of them, is black."""
    ends = [header.get(f"PixelPadding{name}") for name in ("Value", "RangeLimit")]
    half = 1 << (8 * stored.itemsize - 1)
    ends = [end for end in ends if end is not None and -half <= end < 2 * half]
    if header.get("PixelPaddingValue") not in ends:
        return frame
    wrapped = np.array(ends).astype(stored.dtype)  # signed values may be written as unsigned
    padding = (stored >= wrapped.min()) & (stored <= wrapped.max())
    if padding.all() or (frame.window is None and frame.values.dtype == np.uint8):
        return Frame(np.where(padding, 0, frame.values).astype(np.uint8))
    return frame._replace(values=np.where(padding, np.float32(np.nan), frame.values))


def _of_interest(pixels: Any, header: Any, number: int, values: NDArray[Any]) -> Frame | None:
    """Return the values with the first table or window applied, if there is one."""
    if "VOILUTSequence" in header:
        # Not uint8, in which pydicom would look up places beyond 255, too.
        whole = np.rint(values).astype(np.int32)
        highest = (1 << int(header.VOILUTSequence[0].LUTDescriptor[2])) - 1
        return Frame(pixels.apply_voi(whole, header, index=0), (highest / 2, highest))
    voi = of_frame(header, number, "FrameVOILUTSequence")
    if voi.get("WindowCenter") is None or not voi.get("WindowWidth"):
        return None
    # Not by pydicom's apply_windowing, which gives the same and takes as long as all else together.
    centre, width = (float(np.ravel(voi[f"Window{x}"].value)[0]) for x in ("Center", "Width"))
    function = voi.get("VOILUTFunction") or "LINEAR"
    if width < (1 if function == "LINEAR" else 1e-6):
        return None
    if function == "SIGMOID":
        exponent = np.clip(-4 * (values.astype(np.float32) - centre) / width, -80, 80)
        return Frame(1 / (1 + np.exp(exponent)), (0.5, 1))
    if function == "LINEAR":
        centre, width = centre - 0.5, max(width - 1, 1e-6)  # a width of 1 is a threshold
    return Frame(values, (centre, width))


def of_frame(header: Any, number: int, name: str) -> Any:
    """Return the item that holds what belongs to a frame: its own, the shared one or the file."""
    frames = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    for group in [*frames[number : number + 1], *shared[:1]]:
        if sequence := group.get(name):
            return sequence[0]
    return header
