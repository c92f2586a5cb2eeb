"""Writes what was predicted of a file: masks, overlays and heat maps, and its rows of the table.

Of volumes masks are NIfTI, and the table has their millilitres and largest diameters.
"""

import gzip
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion, label
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from medduet.data.reading.core import Affine, needed, turned
from medduet.data.reading.images import opened
from medduet.data.reading.series import beside_series
from medduet.inference.predictor import Prediction
from medduet.utils.files import atomic_path
from medduet.utils.palette import HEAT, MASK_RGB

Row = dict[str, Any]
_FILL, _HEAT = 0.35, 0.6
_MM3_PER_ML, _FEW_POINTS = 1000, 1000


class InputFile(NamedTuple):
    """A file to predict, or a folder: its name in the table, and the stem of its outputs."""

    path: Path
    name: str
    stem: str


@dataclass(frozen=True)
class ResultWriter:
    """Writes the predictions of files to the folder `out`."""

    out: Path
    mask_names: Sequence[str]
    abstains: bool
    overlays: bool

    def write(self, file: InputFile, predictions: list[Prediction] | str) -> list[Row]:
        """Write the pictures of a file, and return its rows; of a text, which is an error, one."""
        if isinstance(predictions, str):
            return [{"file": file.name, "error": predictions.removeprefix(f"{file.path}: ")}]
        rows, volume = [], self._volume(file, predictions)
        for number, prediction in enumerate(predictions, start=1):
            # No other image has this stem: no folder has the name of a file.
            stem = file.stem if len(predictions) == 1 else f"{file.name}/{number:04}"
            rows.append({"file": file.name, "frame": number} | self._row(prediction, stem, volume))
        return rows

    def _volume(self, file: InputFile, predictions: list[Prediction]) -> str | None:
        """Write the masks of a volume or NIfTI file as one, and return its name; else None."""
        masks = [prediction.mask for prediction in predictions if prediction.mask is not None]
        with opened(file.path) as source:
            if not masks or (source.encode is None and masks[0].ndim == 2):
                return None
            frames = masks[0] if masks[0].ndim == 3 else np.stack(masks)
            encode = source.encode or partial(nifti_of, affine=source.affine)
            content = encode(frames)
            if frames is masks[0] and (maps := predictions[0].mask_probability) is not None:
                self._save("probabilities", f"{file.stem}.nii.gz", encode(maps))
        return self._save("masks", f"{file.stem}.nii.gz", content)

    def _row(self, prediction: Prediction, stem: str, volume: str | None) -> Row:
        image, mask, heatmap = prediction.image, prediction.mask, prediction.heatmap
        row: Row = {"height": image.shape[0], "width": image.shape[1]}
        if (spacing := prediction.spacing) is not None:
            row = dict(zip(("slices", "height", "width"), image.shape, strict=True))
            row["spacing"] = " ".join(f"{x:.6g}" for x in spacing)
        if prediction.label is not None:
            row["label"] = prediction.label
            row |= {f"p_{name}": round(p, 6) for name, p in prediction.probabilities.items()}
            if prediction.prediction_set is not None:
                row["set"] = ";".join(prediction.prediction_set)
            if self.abstains:
                row["abstained"] = "yes" if prediction.abstained else "no"
        if prediction.ood_p is not None:
            row["ood_p"] = round(prediction.ood_p, 6)
            row["warning"] = "out of distribution" if prediction.is_ood else ""
        if mask is not None:
            for number, name in enumerate(self.mask_names[1:], start=1):
                row[f"pixels_{name}"] = int((mask == number).sum())
            if spacing is not None:
                row |= measures(mask, spacing, self.mask_names) if spacing else {}
                most = (mask > 0).sum(axis=(1, 2)).argmax()
                image, mask = image[most], mask[most]
            row["mask"] = volume or self._save("masks", f"{stem}.png", mask_png(mask))
            if self.overlays:
                row["overlay"] = self._save("overlays", f"{stem}.png", overlay_png(image, mask))
        if (maps := prediction.mask_probability) is not None and spacing is None:
            np.save(content := io.BytesIO(), maps.astype(np.float16))
            self._save("probabilities", f"{stem}.npy", content.getvalue())
        if heatmap is not None:
            row["heatmap"] = self._save("heatmaps", f"{stem}.png", heatmap_png(image, heatmap))
        return row

    def _save(self, kind: str, file_name: str, content: bytes) -> str:
        name = f"{kind}/{file_name}"
        with atomic_path(self.out / name) as temporary:
            temporary.write_bytes(content)
        return name


def mask_png(mask: NDArray[np.uint8], **options: int | bytes) -> bytes:
    """Return a mask ``(H, W)`` as PNG whose values are the classes and whose palette shows them."""
    image = Image.fromarray(mask).convert("P")
    image.putpalette(b"".join(MASK_RGB))
    return png(image, **options)


def overlay_png(image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> bytes:
    """Return an image ``(H, W)`` or ``(H, W, 3)`` with its mask ``(H, W)`` over it, as PNG."""
    pixels = _rgb(image)
    for number in np.unique(mask[mask > 0]).tolist():
        region, colour = mask == number, np.array([*MASK_RGB[number]], np.float32)
        edge = region & ~binary_erosion(region, iterations=max(1, min(mask.shape) // 256))
        pixels[region] += _FILL * (colour - pixels[region])
        pixels[edge] = colour
    return png(Image.fromarray(np.rint(pixels).astype(np.uint8)))


def heatmap_png(image: NDArray[np.uint8], heatmap: NDArray[np.float32]) -> bytes:
    """Return an image ``(H, W)`` or ``(H, W, 3)`` with its heat map ``(H, W)``, 0 to 1, as PNG."""
    pixels = _rgb(image)
    colour = colormaps[HEAT](heatmap)[..., :3].astype(np.float32) * 255
    pixels += _HEAT * heatmap[..., None] * (colour - pixels)
    return png(Image.fromarray(np.rint(pixels.clip(0, 255)).astype(np.uint8)))


def _rgb(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    pixels = image.astype(np.float32)
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels


def png(image: Image.Image, **options: int | bytes) -> bytes:
    """Return an image as a PNG file, with Pillow's `options`."""
    image.save(file := io.BytesIO(), "png", compress_level=3, **options)
    return file.getvalue()


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
    """Return the largest distance in mm between voxels of the largest connected part."""
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
    if len(points) > _FEW_POINTS:  # joggled, since all may lie in one plane, or in line
        points = points[ConvexHull(points, qhull_options="QJ").vertices]
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
