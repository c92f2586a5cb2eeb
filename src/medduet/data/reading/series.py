"""A DICOM series in a folder of its own: a file for each slice, which are sorted by position."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medduet.data.reading.core import PICTURE, Frame, Source, errors_of, kind_of, refusal
from medduet.data.reading.dicom import open_dicom, plane_of, read_dataset
from medduet.errors import DataError
from medduet.utils.files import unpacked

_ENDINGS = ("", ".dcm", ".dicom", ".ima")
_NO_IMAGES = ("SEG", "SR", "RTDOSE", "RTSTRUCT", "RTPLAN", "PR", "KO", "REG")
_MOST_UNEVEN, _TILTED = 0.05, 0.5  # of the distance of slices; degrees
_SAMPLED = 8  # files by which folders of slices are told
_TAGS = ["SeriesInstanceUID", "SeriesDescription", "Modality", "Rows", "Columns"]
_TAGS += ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "NumberOfFrames"]


def open_series(folder: Path) -> Source:
    """Return the volume that the slices in a folder make, from the first along their normal on.

    Raises:
        DataError: they are of several series, have no place or size in common, or some are missing.
    """
    headers = {path: header for path in sorted(folder.iterdir()) if (header := _header(path))}
    named = (path for path in sorted(folder.iterdir()) if path.suffix.lower() in _ENDINGS[1:])
    if broken := next((x.name for x in named if x not in headers and x.name[0] != "."), ""):
        raise refusal(folder, "slices that can be read", f"{broken}, which can't")
    headers = {path: x for path, x in headers.items() if x.get("Modality") not in _NO_IMAGES}
    series = Counter(str(x.get("SeriesInstanceUID")) for x in headers.values())
    if len(series) != 1:
        several = ", ".join(f"{uid} ({count} files)" for uid, count in series.most_common(3))
        raise refusal(folder, "one DICOM series", f"{several or 'none'}: give a folder for each")
    placed = {path: plane for path, x in headers.items() if (plane := plane_of(x, 0))}
    if len(placed) < len(headers) or len(headers) < 2:
        lacking = next((path.name for path in headers if path not in placed), "one slice alone")
        raise refusal(folder, "slices with position, orientation and spacing", lacking)
    axes, spacing, _ = next(iter(placed.values()))
    grids = [np.column_stack([turns, pixel]) for turns, pixel, _ in placed.values()]
    alike = all(np.allclose(grid, grids[0], atol=1e-3) for grid in grids)
    if not alike or len({(x.get("Rows"), x.get("Columns")) for x in headers.values()}) > 1:
        raise refusal(folder, "slices of one size in parallel", "several: a folder for each")
    normal = np.cross(*axes)
    paths = sorted(placed, key=lambda path: float(normal @ placed[path][2]))
    places = np.stack([placed[path][2] for path in paths])
    gaps = np.diff(places @ normal)
    step = (places[-1] - places[0]) / (len(paths) - 1)
    if np.median(gaps) < 1e-3:
        raise refusal(folder, "slices at different places", "several at one, as over time")
    if (uneven := np.abs(gaps - np.median(gaps)) > _MOST_UNEVEN * np.median(gaps)).any():
        k = int(np.flatnonzero(uneven)[0])
        between = f"{gaps[k]:.3g} mm between {paths[k].name} and {paths[k + 1].name}"
        raise refusal(folder, f"slices {np.median(gaps):.3g} mm apart, none missing", between)
    affine = np.eye(4)
    columns = [axes[0] * spacing[1], axes[1] * spacing[0], step, places[0]]
    affine[:3] = np.stack(columns, axis=1)
    tilt = np.degrees(np.arccos(min(1.0, float(normal @ step / np.linalg.norm(step)))))
    remark = f"have slices that are tilted by {tilt:.1f} degrees, which is left as it is"

    def frames(window: tuple[float, float] | None) -> Iterator[Frame]:
        for path in paths:
            with path.open("rb") as stored:
                yield from open_dicom(path, unpacked(stored)).frames(window)

    with paths[0].open("rb") as stored:
        first = open_dicom(paths[0], unpacked(stored))
    facts = first.facts._replace(frames=len(paths))
    remarks = (remark,) if tilt > _TILTED else ()
    place: dict[str, Any] = {"affine": PICTURE @ affine, "are_slices": True, "paths": tuple(paths)}
    return first._replace(facts=facts, frames=frames, remarks=remarks, **place)


def beside_series(paths: Sequence[Path]) -> list[Path] | None:
    """Return the files beside the slices of a series, by their endings; None without a series.

    It is recognised by a few of the files: two of one series at different places.
    """
    places: dict[Any, Any] = {}
    for path in paths[:: len(paths) // _SAMPLED + 1]:
        if (header := _header(path)) is None or not header.get("ImagePositionPatient"):
            continue
        uid, place = header.get("SeriesInstanceUID"), header.ImagePositionPatient
        if places.setdefault(uid, place) != place:
            return [path for path in paths if path.suffix.lower() not in _ENDINGS]
    return None


def is_slice(path: Path) -> bool:
    """Return whether a file is DICOM with a place."""
    return bool((header := _header(path)) and header.get("ImagePositionPatient"))


def _header(path: Path) -> Any:
    """Return what tells the place of a DICOM file; None for other files, and damaged ones."""
    if not path.is_file():
        return None
    try:
        with errors_of(path), path.open("rb") as stored:
            if kind_of(stored) != "DICOM":
                return None
            file = unpacked(stored)
            return read_dataset(path, file, specific_tags=_TAGS, stop_before_pixels=True)
    except DataError:
        return None
