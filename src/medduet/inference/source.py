"""What DICOM results take over from their source: its patient, its frames, their place in space.

Source: DICOM PS3.3, C.7.1.1 (patient), C.7.2.1 (study), C.7.6.2 (image plane).
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medduet.data.reading.core import kind_of, needed
from medduet.data.reading.dicom import of_frame, plane_of, read_dataset
from medduet.errors import DataError
from medduet.utils.files import unpacked
from medduet.utils.parsing import misread

_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_TEXTS = ("PatientName", "PatientID", "AccessionNumber", "StudyID", "ReferringPhysicianName")
_NORMALISED = ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime")
_FURTHER = ["StudyDescription", "PatientOrientation"]
_FURTHER += [f"LossyImageCompression{x}" for x in ("", "Ratio", "Method")]
_DATES = ("%Y%m%d", "%Y.%m.%d", "%Y/%m/%d", "%Y-%m-%d")  # the second is that of ACR-NEMA
_TIME = re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?")
_SEXES = {"M": "M", "MALE": "M", "F": "F", "FEMALE": "F", "O": "O", "OTHER": "O"}
_SINGLE = {f"1.2.840.10008.5.1.4.1.1.{x}" for x in ("1", "2", "4", "6.1", "7", "128")}
"""Classes of single images, to whose frames, if there are some, nothing may refer."""


class Frame(NamedTuple):
    """A frame of a file; `number` counts from 1, and is 0 if nothing may refer to it."""

    source: Any  # the header, as far as results take it over
    number: int
    row: dict[str, Any]  # what was predicted
    plane: tuple[Any, ...] = ()  # frame of reference, orientation, spacing, thickness; if known
    position: tuple[float, ...] = (0.0,)  # in mm, the last along the normal of the plane

    @property
    def order(self) -> tuple[Any, ...]:
        """By what frames of a series are sorted, whatever their files are called."""
        source = self.source
        return self.position[-1], source.InstanceNumber, source.SOPInstanceUID, self.number

    @property
    def kind(self) -> tuple[Any, ...]:
        """What is equal in all frames of a segmentation: size, and planes in space."""
        reference, orientation, spacing = self.plane[:3] or ("", (), ())
        axes = tuple(np.round(orientation, 3) + 0.0)
        return self.source.Rows, self.source.Columns, reference, axes, spacing


def series_of(paths: Iterable[Path]) -> Iterator[tuple[Path, tuple[str, int] | DataError]]:
    """Yield the series of those files that are DICOM, or why results can't refer to them.

    That is a UID, and a number from 1 on for other images with the SOPInstanceUID of a former one.
    """
    firsts: dict[str, Path] = {}
    copies: dict[str, dict[str, int]] = defaultdict(dict)  # by SOPInstanceUID and content
    for path in paths:
        try:
            with path.open("rb") as stored, misread(path):
                if kind_of(stored) != "DICOM":
                    continue
                needed("highdicom", path)
                file, tags = unpacked(stored), [*_UIDS]
                header = read_dataset(path, file, specific_tags=tags, stop_before_pixels=True)
            if absent := [name for name in _UIDS if not header.get(name)]:
                raise DataError(f"{path}: expected {absent[0]}, to which DICOM results refer")
            first, number = firsts.setdefault(header.SOPInstanceUID, path), 0
            if first != path:
                same = copies[header.SOPInstanceUID]
                same.setdefault(digest_of(first), 0)
                number = same.setdefault(digest_of(path), len(same))
            yield path, (str(header.SeriesInstanceUID), number)
        except DataError as error:
            yield path, error


def digest_of(path: Path) -> str:
    """Return the SHA-256 of what is in a file, unpacked."""
    with path.open("rb") as stored:
        file: Any = unpacked(stored)
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_frames(path: Path, rows: Sequence[dict[str, Any]]) -> list[Frame]:
    """Return the frames of a file, one for each row."""
    with path.open("rb") as stored, misread(path):
        header = read_dataset(path, unpacked(stored), stop_before_pixels=True)
        source, several = _source(header), len(rows) > 1
        numbered = several and header.SOPClassUID not in _SINGLE
        located = not several or "PerFrameFunctionalGroupsSequence" in header
        return [
            Frame(source, (n + 1) * numbered, row, *(_place(header, n) if located else ()))
            for n, row in enumerate(rows)
        ]


def _place(header: Any, number: int) -> tuple[tuple[Any, ...], ...]:
    """Return plane and position of a frame; nothing if the header doesn't tell all of it."""
    reference, plane = header.get("FrameOfReferenceUID"), plane_of(header, number)
    if not reference or plane is None:
        return ()
    axes, spacing, position = plane
    distance = np.cross(*axes) @ position
    measures = of_frame(header, number, "PixelMeasuresSequence")
    thickness = max(0.0, float(measures.get("SliceThickness") or 0))
    square = np.allclose(axes @ axes.T, np.eye(2), atol=1e-3)
    if not (square and np.isfinite(distance) and spacing.min() > 0):
        return ()
    return (reference, (*axes.ravel(),), (*spacing,), thickness), (*position, distance)


def _source(header: Any) -> Any:
    """Return patient, study and size of an image, with text as UTF-8.

    What must be there, if only empty, is empty where it is missing or nonsense.
    """
    from pydicom import Dataset, config
    from pydicom.valuerep import validate_value

    source, text = Dataset(), {name: str(header.get(name) or "") for name in _NORMALISED}
    elements = [header[name] for name in (*_UIDS, *_TEXTS, *_FURTHER) if name in header]
    for element in [*header.group_dataset(0x0010), *header.group_dataset(0x0012), *elements]:
        if element.VR == "PN":
            element.value = str(element.value)  # its bytes would be written as they are
        with suppress(TypeError, ValueError):
            if element.keyword not in (*_UIDS, *_TEXTS):
                validate_value(element.VR, element.value, config.RAISE)
            source.add(element)
    for name in _TEXTS:
        source.setdefault(name, "")
    for name in _NORMALISED:
        setattr(source, name, _normal(name, text[name]))
    source.ContentDate, source.ContentTime = "19000101", "000000"
    for kind in ("Study", "Series", "Acquisition", "Content"):
        date, time = (_normal(x, str(header.get(kind + x) or "")) for x in ("Date", "Time"))
        if date:
            source.ContentDate, source.ContentTime = date, time or "000000"
    methods = [source.get(f"DeidentificationMethod{x}") for x in ("", "CodeSequence")]
    if source.get("PatientIdentityRemoved") == "YES" and not any(methods):
        source.DeidentificationMethod = "not stated"
    number = str(header.get("InstanceNumber"))
    source.InstanceNumber = int(number) if number.isdecimal() else 0
    source.Rows, source.Columns = int(header.Rows), int(header.Columns)
    source.SpecificCharacterSet = "ISO_IR 192"
    return source


def _normal(name: str, text: str) -> str:
    """Return a sex, a time or a date as DICOM writes it, or nothing if it can't be told."""
    if name.endswith("Sex"):
        return _SEXES.get(text.upper(), "")
    if name.endswith("Time"):
        text = text.replace(":", "")
        return text if _TIME.fullmatch(text) else ""
    for pattern in _DATES:
        with suppress(ValueError):
            return datetime.strptime(text, pattern).strftime("%Y%m%d") if len(text) > 7 else ""
    return ""
