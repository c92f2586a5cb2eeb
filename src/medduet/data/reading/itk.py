"""MetaImage (``.mha``, ``.mhd``) and NRRD, by SimpleITK."""

import re
from io import BytesIO
from pathlib import Path

import numpy as np

from medduet.data.reading.core import PICTURE, Facts, checked, needed, refusal

_DATA_FILE = re.compile(rb"^(?:ElementDataFile\s*=|data ?file:)\s*(\S.*?)\s*$", re.M | re.I)


def as_nifti(path: Path) -> BytesIO:
    """Return the volume in a file as NIfTI, with the same voxels at the same places."""
    if not path.is_file():
        raise refusal(path, "MetaImage or NRRD as a file", "an upload: send it as NIfTI")
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
