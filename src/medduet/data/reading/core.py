"""What all readers share: options, results, limits and errors.

What a header says is checked before anything is decoded: a frame has at most 2**26 pixels
(8192 x 8192), and a file at most 2**28 (1000 x 512 x 512 is less) in at most 4096 frames. What a
decoder does beyond that, `medduet.data.workers` limits: files of strangers are read in workers.
"""

import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from gzip import BadGzipFile
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medduet.errors import DataError, MedDuetError, one_line
from medduet.types import Fit, Modality
from medduet.utils.files import unpacked

MAX_FRAME_PIXELS = 1 << 26
MAX_FILE_PIXELS = 1 << 28
MAX_FRAMES = 1 << 12
_FIRST = re.compile(r"(.+)_0000((\.[a-z]+)*)", re.IGNORECASE)  # of several channels
_HEAD = 540  # bytes by which the kind of a file is recognised: the header of NIfTI-2
VOLUMES = ("DICOM", "NIfTI")  # files that may have frames, and may be packed by gzip
_SIGNATURES = (
    (rb".{128}DICM", "DICOM"),  # first: its preamble may be that of a TIFF
    (rb"\x89PNG\r\n\x1a\n", "PNG"),
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"BM", "BMP"),
    (rb"GIF8[79]a", "GIF"),
    (rb"II[*+]\0|MM\0[*+]", "TIFF"),
    (rb".{8}WEBP", "WEBP"),
    (rb".{344}n\+1\0|.{4}n\+2\0", "NIfTI"),
    (rb"NRRD\d{4}", "NRRD"),
    (rb"(ObjectType|NDims|Comment)\s*=", "MetaImage"),
    (rb"[\x02\x08]\x00|\x00\x08", "DICOM"),  # without preamble: group 0002 or 0008, the first
)
Affine = NDArray[np.float64]
_SHEARED = 0.9999  # below which a cell of the grid is smaller than the product of its edges
PICTURE: Affine = np.diag((-1.0, -1.0, 1.0, 1.0))
"""Affine of files without one: columns go to the left, rows to posterior, frames to the head."""


class ReadOptions(NamedTuple):
    """What a file is to become.

    Attributes:
        sides: height and width of the result in pixels; three are those of a volume that all
            slices of a file make.
        fit: ``"pad"`` centres the image on black, ``"crop"`` takes the largest centre of that
            aspect, ``"stretch"`` changes the aspect.
        channels: 1 for grey, 3 for colour; of volumes how many, see `channel_paths`.
        window: centre and width of the values shown from black to white, instead of the file's
            own; for CT in Hounsfield units. ``"zscore"``: from 4 standard deviations below the mean
            of a file's foreground to 4 above. 8 bits of PNG and the like heed only that.
        spacing: of (slices,) rows and columns in mm, by which sides become these or more;
            ``None`` to fit them into `sides`.
    """

    sides: tuple[int, ...]
    fit: Fit = "pad"
    channels: int = 1
    window: tuple[float, float] | Literal["zscore"] | None = None
    spacing: tuple[float, ...] | None = None


class Facts(NamedTuple):
    """What the header of a file says: `channels` is 1 or 3, height and width are in pixels."""

    frames: int
    channels: int
    height: int
    width: int


class Frame(NamedTuple):
    """One frame: ``(H, W)`` of any real type or ``(H, W, 3)`` uint8.

    Values outside of `window`, a centre and a width, are black or white. Without, uint8 is shown as
    it is, all else over the range of the file; `inverted`, the smallest is white. NaN is black.
    `classes` are the values that are stored, if they are others, for masks.
    """

    values: NDArray[Any]
    window: tuple[float, float] | None = None
    inverted: bool = False
    classes: NDArray[Any] | None = None


class Source(NamedTuple):
    """An open file: facts, and what yields its frames for a `ReadOptions.window`.

    If it is lossy, neighbouring values may have been the same before compression. `remarks` are
    sentences without subject, such as "are turned". `affine` leads from column, row and frame to mm
    right, anterior, superior. `encode` makes a file with the same geometry of masks
    ``(D, H, W)``, or of ``(K, D, H, W)``; None where PNG will do. Frames `are_slices` if they make
    a volume. `paths` are the files of a series, in the order of the frames. `modality`, `patient`
    (an ID) and, in mm without an affine, `pixel`, the distance of rows and columns, are of DICOM.
    """

    facts: Facts
    frames: Callable[[tuple[float, float] | None], Iterator[Frame]]
    lossy: bool = False
    remarks: tuple[str, ...] = ()
    kind: str = ""
    affine: Affine = PICTURE
    encode: Callable[[NDArray[Any]], bytes] | None = None
    are_slices: bool = False
    paths: tuple[Path, ...] = ()
    modality: Modality = "auto"
    pixel: tuple[float, ...] = ()
    patient: str = ""

    def spacing(self, dims: int) -> tuple[float, ...]:
        """Return the distance of rows and columns in mm, if it is known.

        With 3 `dims`, that of slices, rows and columns, as they are `turned`.
        """
        if self.affine is PICTURE:
            return self.pixel if dims == 2 else ()
        axes = self.affine[:3, 2::-1]  # frames first
        lengths = np.linalg.norm(axes, axis=0)
        upright = abs(np.linalg.det(axes)) / lengths.prod()
        if upright < _SHEARED:  # slices, to which the other axes are at right angles, or nearly
            cosines = np.abs((axes / lengths).T @ (axes / lengths))
            lengths[np.argmin([cosines[1, 2], cosines[0, 2], cosines[0, 1]])] *= upright
        of_axes = tuple(lengths.tolist())
        return of_axes[1:] if dims == 2 else turned_sides(of_axes, self.affine)


def kind_of(file: BinaryIO) -> str | None:
    """Return which kind of picture an open file is: if gzip has packed it, DICOM or NIfTI.

    It is None for others, and for what can't be unpacked.
    """
    with suppress(BadGzipFile, EOFError, zlib.error):
        content = unpacked(file)
        head = content.read(_HEAD)
        kind = next((kind for mark, kind in _SIGNATURES if re.match(mark, head, re.DOTALL)), None)
        return kind if content is file or kind in VOLUMES else None
    return None


def turned(volume: NDArray[Any], affine: Affine, back: bool = False) -> NDArray[Any]:
    """Return a volume ``(D, H, W)`` with its columns to the left, rows to posterior, slices up.

    These are its axes that are nearest to those; `back`, it has the axes of the `affine` again.
    """
    if affine is PICTURE:
        return volume
    turns, orientation = _orientation(affine)
    if back:
        orientation = turns.ornt_transform([[0, 1], [1, 1], [2, 1]], orientation)
    return np.asarray(turns.apply_orientation(volume.T, orientation).T)


def turned_sides(sides: tuple[float, ...], affine: Affine) -> tuple[float, ...]:
    """Return numbers for slices, rows and columns in the order that `turned` gives them.

    Example:
        >>> sagittal = PICTURE[:, [1, 2, 0, 3]]
        >>> turned_sides((3.0, 1.0, 0.5), sagittal)
        (1.0, 0.5, 3.0)
    """
    if affine is PICTURE:
        return sides
    places = _orientation(affine)[1][::-1, 0].astype(int)
    return tuple(side for _, side in sorted(zip(places, sides, strict=True), reverse=True))


def _orientation(affine: Affine) -> tuple[Any, NDArray[np.float64]]:
    turns = needed("nibabel", Path("a volume")).orientations
    return turns, turns.io_orientation(np.linalg.inv(PICTURE) @ affine)


def channel_paths(path: Path, count: int) -> list[Path]:
    """Return the files of all channels of an image, as nnU-Net calls them, of that of the first.

    Example:
        >>> [path.name for path in channel_paths(Path("case_7_0000.nii.gz"), 2)]
        ['case_7_0000.nii.gz', 'case_7_0001.nii.gz']
    """
    if count == 1:
        return [path]
    first = _FIRST.fullmatch(path.name)
    if first is None:
        raise refusal(path, f"a volume of {count} channels, NAME_0000, NAME_0001, ...", "another")
    return [path.with_name(f"{first[1]}_{number:04}{first[2]}") for number in range(count)]


def refusal(path: Path, expected: str, given: str) -> DataError:
    """Return the error of a file, in one line without codes for the terminal of what it says."""
    return DataError(f"{path}: expected {expected}, given {one_line(given, 500)}")


def checked(path: Path, facts: Facts) -> Facts:
    """Return `facts` if a file may be as large as they say."""
    frames, _, height, width = facts
    most = min(MAX_FRAMES, MAX_FILE_PIXELS // max(1, height * width))
    if min(facts) < 1 or height * width > MAX_FRAME_PIXELS or frames > most:
        expected = f"at most {MAX_FRAME_PIXELS} pixels, in at most {max(1, most)} frames"
        raise refusal(path, expected, f"{frames} frames of {height} x {width}")
    return facts


def needed(module: str, path: Path) -> Any:
    """Return `module`, which only some files need; a DataError says how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        expected = f'{module.partition(".")[0]} to be installed (pip install "medduet[medical]")'
        raise refusal(path, expected, str(error)) from error


@contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong in the body into a DataError that names the file.

    Warnings are dropped: what they tell of is either refused or harmless.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (MedDuetError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    # Decoders fail on broken files with errors of any kind, IndexError and RecursionError included;
    # those in Rust panic, which is a BaseException.
    except BaseException as error:
        reason = str(error) or type(error).__name__
        if "missing dependencies" in reason:
            reason += '; pip install "medduet[medical]"'
        if "imagecodecs" in reason:
            reason += "; pip install imagecodecs"
        raise refusal(path, "a complete image file", f"one that can't be read: {reason}") from error
