"""Writes what was predicted of a file: masks, overlays and heat maps, and its rows of the table."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion

from medduet.data.reading.images import opened
from medduet.inference.predictor import Prediction
from medduet.inference.volumes import measures, nifti_of
from medduet.utils.files import atomic_path
from medduet.utils.palette import HEAT, MASK_RGB

Row = dict[str, Any]
_FILL, _HEAT = 0.35, 0.6


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
            np.save(content := BytesIO(), maps.astype(np.float16))
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
