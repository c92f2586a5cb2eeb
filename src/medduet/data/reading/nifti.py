"""NIfTI-1 and NIfTI-2, ``.nii`` and ``.nii.gz``, by nibabel; MetaImage and NRRD, by SimpleITK.

A volume is turned to the axes closest to right, anterior, superior; its frames are the slices from
feet to head. They are seen as a radiologist sees them: anterior is up, and the right side of the
patient is on the left of the image. So frame ``k`` is ``volume[::-1, ::-1, k].T``. A mask is turned
to the axes of its image instead.
"""

import gzip
import logging
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from medduet.data.reading.core import PICTURE, Facts, Frame, Source, checked, needed, refusal

_MM = {"meter": 1e3, "micron": 1e-3}
_DATA_FILE = re.compile(rb"^(?:ElementDataFile\s*=|data ?file:)\s*(\S.*?)\s*$", re.M | re.I)
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # it tells what it mends itself


def open_nifti(path: Path, file: BinaryIO, like: NDArray[np.float64] | None) -> Source:
    """Return an open NIfTI file, which may be unpacked as it is read, with axes `like` these."""
    nibabel = needed("nibabel", path)
    head = file.read(540)
    kind = nibabel.Nifti1Image if head[:348].endswith(b"n+1\0") else nibabel.Nifti2Image
    file.seek(0)
    image = kind.from_stream(file)
    stored = kind.header_class(head[: len(image.header.binaryblock)], check=False)
    # Of 0 mm, nibabel makes 1 mm.
    is_placed = any(stored[code] for code in ("qform_code", "sform_code"))
    is_placed = is_placed or bool(((stored["pixdim"] != 0) | (stored["dim"] < 2))[1:4].all())
    shape = tuple(map(int, image.shape))
    if not 2 <= len(shape) <= 3 and set(shape[3:]) != {1}:
        raise refusal(path, "a volume of 3 axes", f"one of {' x '.join(map(str, shape))}")
    shape = (*shape, 1)[:3]
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise refusal(path, "one real number per voxel", str(dtype))
    affine, turns = image.affine, nibabel.orientations
    affine = np.diag([*[_MM.get(image.header.get_xyzt_units()[0], 1)] * 3, 1]) @ affine
    orientation = turns.io_orientation(np.linalg.inv(PICTURE if like is None else like) @ affine)
    if not np.isfinite(affine).all() or sorted(orientation[:, 0]) != [0, 1, 2]:
        raise refusal(path, "axes that point somewhere", "an affine that is flat or not finite")
    width, height, frames = (shape[list(orientation[:, 0]).index(axis)] for axis in range(3))
    facts = checked(path, Facts(frames, 1, height, width))
    slope, intercept = image.dataobj.slope, image.dataobj.inter

    def decoded(window: tuple[float, float] | None) -> Iterator[Frame]:
        # As stored, not scaled to float64: eight times the memory, of a whole volume.
        volume = image.dataobj.get_unscaled().reshape(shape)
        volume = turns.apply_orientation(volume, orientation)
        for k in range(frames):
            values = volume[:, :, k].T
            if (slope, intercept) != (1, 0):
                values = (values * np.float64(slope) + np.float64(intercept)).astype(np.float32)
            yield Frame(values, window)

    def encode(values: NDArray[Any]) -> bytes:
        back = turns.ornt_transform([[0, 1], [1, 1], [2, 1]], orientation)
        volume = turns.apply_orientation(values.T, back)
        volume = volume.reshape(*image.shape, *values.shape[:-3])
        header = image.header.copy()
        header.set_data_dtype(values.dtype)
        header["cal_min"] = header["cal_max"] = 0  # the window of the image
        header.extensions.clear()  # which may name the patient
        return gzip.compress(type(image)(volume, None, header).to_bytes(), mtime=0)

    aligned = affine @ turns.inv_ornt_aff(orientation, shape) if is_placed else PICTURE
    if frames > 1 and min(height, width) == 1:
        raise refusal(path, "several slices, or one that is the last axis", f"{shape}")
    return Source(facts, decoded, affine=aligned, encode=encode, are_slices=frames > 1)


def as_nifti(path: Path) -> BytesIO:
    """Return the volume in a file as NIfTI, with the same voxels at the same places."""
    with path.open("rb") as file:
        names = [name.decode(errors="replace") for name in _DATA_FILE.findall(file.read(1 << 16))]
    for name in names:  # which could be any file of this machine
        if name != "LOCAL" and (Path(name).name != name or not path.with_name(name).is_file()):
            raise refusal(path, "its voxels in it, or in a file beside it", f"{name}")
    sitk, nibabel = needed("SimpleITK", path), needed("nibabel", path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    if reader.GetDimension() not in (2, 3) or reader.GetNumberOfComponents() != 1:
        given = f"{reader.GetDimension()} axes, {reader.GetNumberOfComponents()} values per voxel"
        raise refusal(path, "a volume of 3 axes with one value per voxel", given)
    width, height, frames = (*reader.GetSize(), 1)[:3]
    checked(path, Facts(frames, 1, height, width))
    image = reader.Execute()
    dims, affine = image.GetDimension(), np.eye(4)
    direction = np.reshape(image.GetDirection(), (dims, dims))
    affine[:dims, :dims] = direction * image.GetSpacing()
    affine[:dims, 3] = image.GetOrigin()
    voxels = sitk.GetArrayViewFromImage(image).T
    header = nibabel.Nifti1Image(voxels, PICTURE @ affine, dtype=voxels.dtype)
    return BytesIO(header.to_bytes())
