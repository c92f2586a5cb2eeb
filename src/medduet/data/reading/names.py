"""Which files are images, as far as their names tell."""

from __future__ import annotations

from pathlib import Path

ENDINGS = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"),
    *(".dcm", ".dicom", ".ima", ".nii", ".nii.gz"),
)


def _ending(path: Path) -> str:
    """Return the ending of an image file as it is written, or nothing."""
    name = path.name.lower()
    ending = max((each for each in ENDINGS if name.endswith(each)), key=len, default="")
    return path.name[len(path.name) - len(ending) :] if len(ending) < len(name) else ""


def is_image(path: Path) -> bool:
    """Return whether a file is an image by its ending, or a DICOM file without one.

    Example:
        >>> [name for name in ("a.PNG", "b.nii.gz", "c.csv", ".png") if is_image(Path(name))]
        ['a.PNG', 'b.nii.gz']
    """
    if _ending(path):
        return True
    # The last component of a UID, as in 1.2.840.10008, is no ending.
    if path.suffix and not path.suffix[1:].isdigit():
        return False
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def stem_of(path: Path) -> str:
    """Return the name of an image file without its ending.

    Example:
        >>> [stem_of(Path(name)) for name in ("ct.v1.nii.gz", "scan.Tiff", "1.2.840", "a.csv")]
        ['ct.v1', 'scan', '1.2.840', 'a']
    """
    if ending := _ending(path):
        return path.name.removesuffix(ending)
    return path.name if path.suffix[1:].isdigit() else path.stem
