"""Reads images: a file is opened by what is in it; its ending may say something else."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from medduet.data.reading.core import (
    MAX_FILE_PIXELS,
    MAX_FRAME_PIXELS,
    PICTURE,
    Affine,
    Facts,
    Frame,
    ReadOptions,
    Source,
    channel_paths,
    checked,
    errors_of,
    kind_of,
    refusal,
    turned,
    turned_sides,
)
from medduet.data.reading.dicom import open_dicom
from medduet.data.reading.nifti import as_nifti, open_nifti
from medduet.data.reading.raster import open_raster, values_of
from medduet.data.reading.series import open_series
from medduet.data.reading.shape import fitted, inner_sides, levels, standardised
from medduet.errors import MissingFileError
from medduet.utils.files import unpacked

_SPACING = re.compile(rb"^(ElementS(pacing|ize)|spacings|space directions)\s*[=:]", re.M | re.I)
_HEADER = 1 << 14  # bytes in which MetaImage and NRRD tell the spacing
_UNKNOWN = 1.0, 1.0, 1.0  # the spacing of sets of volumes without one
_ANY = 0.0, 1.0  # a window, so that that of the file is not applied
_SAMPLED_SIDE, _GREY_SPREAD = 256, 40
"""Pixels of each side, and a difference of red, green and blue, that tell colour from grey."""


@contextmanager
def opened(
    path: Path, file: BinaryIO | None = None, like: NDArray[np.float64] | None = None
) -> Iterator[Source]:
    """Open the image file at `path`, or the open `file` that is called so; its header is checked.

    A folder is one DICOM series. NIfTI, MetaImage and NRRD have the columns, rows and frames that
    are nearest to those of the affine `like`, if given.
    Whatever goes wrong with it in the body becomes a DataError.
    """
    with errors_of(path):
        if file is None and path.is_dir():
            yield open_series(path)._replace(kind="DICOM")
            return
        if file is None and not path.is_file():
            if path.exists():
                raise refusal(path, "an image file", "a device")
            raise MissingFileError(f"{path}: expected an image file, but there is none")
        with path.open("rb") if file is None else nullcontext(file) as stored:
            kind, content = kind_of(stored), unpacked(stored)
            match kind:
                case "DICOM":
                    source = open_dicom(path, content)
                case "NIfTI":
                    source = open_nifti(path, content, like)
                case "MetaImage" | "NRRD":
                    if file is not None:  # ITK would read the file of this name on the disk
                        raise refusal(path, f"{kind} as a file", "an upload: send it as NIfTI")
                    source = open_nifti(path, as_nifti(path), like)
                    content.seek(0)
                    if not _SPACING.search(content.read(_HEADER)):  # ITK takes it as 1 mm
                        source = source._replace(affine=PICTURE)
                case None:
                    expected = "PNG, JPEG, TIFF, BMP, GIF, WebP, DICOM, NIfTI, MetaImage or NRRD"
                    raise refusal(path, expected, f"a file that starts with {content.read(8)!r}")
                case _:
                    source = open_raster(path, content, kind)
            yield source._replace(kind=kind)


class Picture(NamedTuple):
    """One frame of a file: as a network takes it and, `whole`, at its own size; both uint8.

    `coloured` is the share of pixels that are clearly no grey in the file, even if here they are.
    `remarks` say how it is shown, as "have outliers, ..." does. `spacing` is that of its axes in
    mm, of a volume as it is `turned`; empty if it is not known.
    """

    fitted: NDArray[np.uint8]
    whole: NDArray[np.uint8]
    coloured: float = 0.0
    remarks: Sequence[str] = ()
    spacing: tuple[float, ...] = ()


def read_pictures(path: Path, options: ReadOptions, file: BinaryIO | None = None) -> list[Picture]:
    """Read the frames, or the one volume, of a file, or of an open one, of any kind as `opened`.

    8 bits per value stay as they are. More are shown through the window of `options` or of the
    file, or from the smallest to the largest value of the file that is no outlier. An image of the
    size asked for is not changed; others are resized as `medduet.data.pixels` does.

    Raises:
        DataError: names the file, what was expected and what was given.
        MissingFileError: there is no such file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.png"
        >>> Image.new("L", (4, 2), 9).save(path)
        >>> read_pictures(path, ReadOptions((4, 4)))[0].fitted.tolist()
        [[0, 0, 0, 0], [9, 9, 9, 9], [9, 9, 9, 9], [0, 0, 0, 0]]
    """
    if len(options.sides) == 3 and options.channels > 1:
        if file is not None:
            raise refusal(path, f"a folder with {options.channels} channels of it", "one open file")
        return [_channels(path, options)]
    with opened(path, file) as source:
        frames = list(source.frames(_ANY if options.window == "zscore" else options.window))
        if len(frames) != source.facts.frames:
            raise refusal(path, f"{source.facts.frames} frames", str(len(frames)))
        if len(options.sides) == 3 and not source.are_slices:
            raise refusal(path, "a volume of several slices", "one image, or a film")
        spacing = source.spacing(len(options.sides))
        if options.spacing and not spacing and options.spacing != _UNKNOWN:
            what = "pixels" if len(options.sides) == 2 else "voxels"
            raise refusal(path, f"the distance of its {what} in mm, as of DICOM", "none")
        if options.spacing:
            _check_resampled(path, source, options, spacing)
        return _pictures(frames, options, source.remarks, source.affine, spacing)


def _check_resampled(
    path: Path, source: Source, options: ReadOptions, spacing: tuple[float, ...]
) -> None:
    """Raise a DataError if an image is too large at the spacing that is asked for."""
    sides: tuple[float, ...] = source.facts[2:]
    if len(options.sides) == 3:
        sides = turned_sides((source.facts.frames, *sides), source.affine)
    sides = inner_sides(tuple(map(int, sides)), options, spacing)
    if prod(sides) > (most := MAX_FRAME_PIXELS if len(sides) == 2 else MAX_FILE_PIXELS):
        given = " x ".join(map(str, sides))
        told = " x ".join(f"{x:g}" for x in spacing)
        raise refusal(path, f"at most {most} pixels", f"{given}, as its header says {told} mm")


def _channels(path: Path, options: ReadOptions) -> Picture:
    """Return a volume of several channels, which are in a file each; `whole` is the first."""
    with opened(path) as source:
        facts, affine = source.facts, source.affine
    pictures = []
    for channel in channel_paths(path, options.channels):
        with opened(channel, like=affine) as source:
            if source.facts != facts:
                raise refusal(channel, f"the shape of {path.name}", "another: resample it first")
            check_grid(channel, source, affine)
        pictures += read_pictures(channel, options._replace(channels=1))
    remarks = dict.fromkeys(remark for picture in pictures for remark in picture.remarks)
    fitted = np.stack([picture.fitted for picture in pictures], axis=-1)
    return pictures[0]._replace(fitted=fitted, remarks=[*remarks])


def check_grid(path: Path, source: Source, image: Affine) -> None:
    """Raise a DataError if the pixels of a mask, or channel, lie elsewhere than its image.

    ITK, and so ITK-SNAP and 3D Slicer, give masks of pictures the affine `PICTURE`.
    """
    mask, (frames, _, height, width) = source.affine, source.facts
    if mask is PICTURE and frames > 1 and image is not PICTURE:
        given = f"{source.kind or 'one'} without: save it as NIfTI with the affine of its image"
        raise refusal(path, "a mask with a place, as its image has one", given)
    if mask is PICTURE or (image is PICTURE and source.kind != "NIfTI"):
        return
    hint = "if its affine was lost, save nibabel.Nifti1Image(mask.dataobj, image.affine), else "
    hint += "nibabel.processing.resample_from_to(mask, image, order=0)"
    if image is PICTURE:
        image = PICTURE * [*np.linalg.norm(mask[:3, :3], axis=0), 1]
        hint = "save it as PNG, or the image as NIfTI, too"
    corners = np.array([*product((0, width - 1), (0, height - 1), (0, frames - 1), (1,))])
    if np.abs((np.linalg.inv(image) @ mask - np.eye(4)) @ corners.T).max() <= 0.1:
        return  # headers are rounded to less than 0.1 voxel
    expected, given = (affine[:3].round(3).tolist() for affine in (image, mask))
    raise refusal(path, f"the affine of its image, {expected}", f"{given}: {hint}")


def picture_of(image: NDArray[Any] | Image.Image, options: ReadOptions) -> Picture:
    """Return an array ``(H, W)`` or ``(H, W, 3)`` of uint8, or an image of Pillow, as a picture.

    A volume is an array ``(D, H, W)``. The spacing is that in `options`.
    """
    spacing = options.spacing or ()
    with errors_of(path := Path("image")):
        if len(options.sides) == 3:
            volume = np.asarray(image)
            if volume.ndim != 3 or volume.dtype.kind not in "buif":
                raise refusal(path, "a volume (D, H, W)", f"{volume.shape} of {volume.dtype}")
            checked(path, Facts(len(volume), 1, *volume.shape[1:]))
            frames = [Frame(each) for each in volume]
            return _pictures(frames, options, spacing=spacing or (1.0, 1.0, 1.0))[0]
        if isinstance(image, Image.Image):
            image.load()  # a TIFF is turned by that
            image = values_of(ImageOps.exif_transpose(image))
        grey = image.ndim == 2 and image.dtype.kind in "buif"
        if not grey and (image.shape[2:] != (3,) or image.dtype != np.uint8):
            shape = f"{image.shape} of {image.dtype}"
            raise refusal(path, "(H, W), or (H, W, 3) of uint8", shape)
        checked(path, Facts(1, 1 if grey else 3, *image.shape[:2]))
        values = image.astype(np.uint8) * 255 if image.dtype == np.bool_ else image
        return _pictures([Frame(values)], options, spacing=spacing)[0]


def _pictures(
    frames: Sequence[Frame],
    options: ReadOptions,
    remarks: Sequence[str] = (),
    affine: Affine = PICTURE,
    spacing: tuple[float, ...] = (),
) -> list[Picture]:
    frames = standardised(frames) if options.window == "zscore" else frames
    if len(options.sides) == 3:
        windows = [frame.window for frame in frames if frame.window is not None]
        if len({*windows}) > 1:
            centre, width = np.median(windows, axis=0).tolist()
            frames = [frame._replace(window=(centre, width)) for frame in frames]
            remarks = [*remarks, "have slices with windows of their own: the median is used"]
        images, more = levels(frames, 1)
        volume = turned(np.stack(images), affine)
        return [Picture(fitted(volume, options, spacing), volume, 0, [*remarks, *more], spacing)]
    images, more = levels(frames, options.channels)
    remarks, small = [*remarks, *more], [fitted(whole, options, spacing) for whole in images]
    return [
        Picture(each, whole, _coloured(frame.values), remarks, spacing)
        for frame, whole, each in zip(frames, images, small, strict=True)
    ]


def _coloured(values: NDArray[Any]) -> float:
    if values.ndim == 2:
        return 0.0
    rows, columns = (max(1, side // _SAMPLED_SIDE) for side in values.shape[:2])
    return float((np.ptp(values[::rows, ::columns], axis=2) > _GREY_SPREAD).mean())
