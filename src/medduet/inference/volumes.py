"""What is written of predicted volumes: their masks as NIfTI, volumes in ml, largest diameters."""

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import pdist

from medduet.data.reading.core import Affine, needed, turned
from medduet.data.reading.images import opened
from medduet.data.reading.series import beside_series

_MM3_PER_ML, _FEW_POINTS = 1000, 1000


def joined(paths: Sequence[Path]) -> list[Path]:
    """Return files, and of folders with the slices of a DICOM series only the folder."""
    folders: dict[Path, list[Path]] = {}
    for path in paths:
        folders.setdefault(path.parent, []).append(path)
    result: list[Path] = []
    for folder, files in folders.items():
        beside = beside_series(files)
        result += files if beside is None else [folder, *beside]
    return result


def measures(
    mask: NDArray[np.uint8], spacing: Sequence[float], names: Sequence[str]
) -> dict[str, Any]:
    """Return the volume of each mask class in ml, and the largest diameter of its largest part.

    Args:
        mask: ``(D, H, W)`` classes.
        spacing: of slices, rows and columns in mm.
        names: of the mask classes, background first.

    Returns:
        ``ml_NAME`` and ``mm_NAME``, 0 without such voxels; and ``mm_error``, by how much a diameter
        between the centres of voxels may be too short, the diagonal of a voxel.

    Example:
        >>> mask = np.zeros((4, 8, 8), np.uint8)
        >>> mask[1:3, 2:5, 2:5] = 1
        >>> measures(mask, (3.0, 1.0, 1.0), ["background", "lesion"])
        {'ml_lesion': 0.054, 'mm_lesion': 4.12, 'mm_error': 3.32}
    """
    row: dict[str, Any] = {}
    for number, name in enumerate(names[1:], start=1):
        inside = mask == number
        volume = float(np.count_nonzero(inside) * np.prod(spacing)) / _MM3_PER_ML
        row |= {f"ml_{name}": round(volume, 3), f"mm_{name}": round(_diameter(inside, spacing), 2)}
    return row | {"mm_error": round(float(np.linalg.norm(spacing)), 2)}


def _diameter(inside: NDArray[np.bool_], spacing: Sequence[float]) -> float:
    """Return the largest distance in mm between voxels of the largest part that hangs together."""
    parts, count = label(inside)
    if not count:
        return 0.0
    sizes = np.zeros(count + 1, np.int64)
    for each in parts:  # of all at once, bincount would take eight bytes of each voxel
        sizes += np.bincount(each.ravel(), minlength=count + 1)
    largest = parts == sizes[1:].argmax() + 1
    # The first and last voxel of each line along the columns hold all corners of the hull.
    lines = np.nonzero(largest.any(axis=2))
    first, last = largest.argmax(axis=2), largest.shape[2] - 1 - largest[..., ::-1].argmax(axis=2)
    ends = np.concatenate([np.stack([*lines, end[lines]], axis=1) for end in (first, last)])
    points = ends * np.asarray(spacing)
    if len(points) > _FEW_POINTS:
        try:
            points = points[ConvexHull(points).vertices]
        except QhullError:  # all in one plane
            points = points[:: len(points) // _FEW_POINTS + 1]
    return float(pdist(points).max(initial=0.0))


def nifti_of(values: NDArray[Any], affine: Affine) -> bytes:
    """Return a mask ``(D, H, W)``, as its volume is `turned`, as NIfTI with the axes of the file.

    Of ``(K, D, H, W)``, such as probabilities, the K are its fourth axis.
    """
    nibabel = needed("nibabel", Path("a mask"))
    content: bytes = nibabel.Nifti1Image(turned(values, affine, back=True).T, affine).to_bytes()
    return gzip.compress(content, mtime=0)


def files_of(
    source_path: Path, stem: str, rows: list[dict[str, Any]], out: Path, names: Sequence[str]
) -> list[tuple[Path, str, list[dict[str, Any]]]]:
    """Return DICOM files, their stem, and a row for each frame, for `DicomWriter`.

    `rows` are those in the table, of a volume one; its mask is in the folder `out`.
    """
    row = rows[0]
    if "slices" not in row:
        return [(source_path, stem, rows)]
    with opened(source_path) as source:
        paths, frames = source.paths, source.facts.frames
    rows = [row] * frames
    if "mask" in row:
        masks = np.asarray(needed("nibabel", source_path).load(out / row["mask"]).dataobj).T
        rows = []
        for drawn in masks:
            counts = {f"pixels_{x}": int((drawn == n).sum()) for n, x in enumerate(names) if n}
            rows.append(row | counts | {"mask": drawn})
    if not paths:
        return [(source_path, stem, rows)]
    return [(path, stem, [of_it]) for path, of_it in zip(paths, rows, strict=True)]
