"""Valid files of every kind that MedDuet reads from strangers, made here from nothing."""

import io
import struct
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from medduet.data.reading.core import Facts, ReadOptions
from medduet.data.reading.images import opened, read_pictures

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (40, 36), np.uint8)
COLOUR = RNG.integers(0, 256, (40, 36, 3), np.uint8)


def probe(path: Path, file: io.BytesIO | None = None) -> Facts:
    """Return what the header of a file says."""
    with opened(path, file) as source:
        return source.facts


def read_images(path: Path, options: ReadOptions) -> np.ndarray:
    """Return the frames of a file as a network takes them."""
    return np.stack([picture.fitted for picture in read_pictures(path, options)])


def by_pillow(array: np.ndarray, kind: str, **options: Any) -> bytes:
    Image.fromarray(array).save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    np.save(file := io.BytesIO(), array)
    return file.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    np.savez_compressed(file := io.BytesIO(), **arrays)
    return file.getvalue()


@cache
def arrays() -> dict[str, np.ndarray]:
    """A set of four images per split, with all that a set can have."""
    found = {
        "class_names": np.array(["benign", "malignant"]),
        "mask_names": np.array(["background", "lesion"]),
    }
    for split in ("train", "val", "test"):
        found[f"{split}_images"] = RNG.integers(0, 256, (4, 8, 8), np.uint8)
        found[f"{split}_labels"] = np.array([[0], [1], [0], [1]], np.uint8)
        found[f"{split}_masks"] = RNG.integers(0, 2, (4, 8, 8), np.uint8)
        found[f"{split}_has_mask"] = np.array([True, True, True, False])
        found[f"{split}_ids"] = np.array([f"{split}{k}" for k in range(4)])
        found[f"{split}_groups"] = np.arange(4)
    return found


@cache
def dicom(syntax: str = "1.2.840.10008.1.2.1", compress: bool = False, **changes: object) -> bytes:
    import pydicom
    from pydicom.dataset import FileMetaDataset

    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1" if compress else syntax
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    data.Rows, data.Columns, data.SamplesPerPixel = *GREY.shape, 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.WindowCenter, data.WindowWidth = "100", "50"
    data.PixelData = GREY.astype("<u2").tobytes()
    if compress:
        data.compress(pydicom.uid.UID(syntax))
    for name, value in changes.items():
        setattr(data, name, value)
    pydicom.dcmwrite(file := io.BytesIO(), data, enforce_file_format=True)
    return file.getvalue()


@cache
def nifti() -> bytes:
    import nibabel as nib

    values = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    content: bytes = nib.Nifti1Image(values, np.eye(4)).to_bytes()
    return content


def _files(folder: Path) -> dict[str, bytes]:
    files = [each for each in folder.rglob("*") if each.is_file()]
    return {str(each.relative_to(folder)): each.read_bytes() for each in files}


@cache
def bundle() -> dict[str, bytes]:
    """The files of a bundle: two classes, a mask, and a calibration."""
    import torch

    import medduet
    from medduet.runs.bundle import save_bundle
    from medduet.uncertainty.calibration import Calibration

    torch.manual_seed(0)
    layout = medduet.DenseLayout(2, 0)
    network = medduet.create_model(
        "vovunet_var", in_channels=1, num_classes=2, dense_channels=layout.channels, width=2
    )
    share = np.random.default_rng(0).dirichlet(np.ones(2), 60)
    config = {
        "class_names": ["benign", "malignant"],
        "mask_names": ["background", "lesion"],
        "multi_label": False,
        "calibration": Calibration.fit(np.arange(60) % 2, share).model_dump(mode="json"),
        "layout": layout._asdict(),
        "preprocessing": {"size": [16, 16], "channels": 1, "fit": "pad", "window": None},
        "data": {"name": "phantom", "fingerprint": "0", "info": {}},
    }
    with TemporaryDirectory() as folder:
        save_bundle(Path(folder) / "bundle", network.eval(), config)
        return _files(Path(folder) / "bundle")


@cache
def exported() -> dict[str, bytes]:
    """The files of that network for ONNX Runtime, without its decoder."""
    import medduet

    with TemporaryDirectory() as folder:
        for name, content in bundle().items():
            (Path(folder) / name).write_bytes(content)
        medduet.export_bundle(folder, Path(folder) / "out", classify_only=True, count=1)
        return _files(Path(folder) / "out")


@cache
def zarr_store() -> dict[str, bytes]:
    """The files of a set in a zarr store, by their places in it."""
    from medduet.data.npz import open_npz
    from medduet.data.zarr_store import write_zarr

    with TemporaryDirectory() as folder:
        (Path(folder) / "set.npz").write_bytes(npz(**arrays()))
        images = open_npz(Path(folder) / "set.npz", cache=Path(folder) / "cache")
        return _files(write_zarr(images, Path(folder) / "set.zarr", shard_mb=0.002))


def zarr_chunk() -> bytes:
    """The packed masks of the store, which has one chunk in each shard."""
    shard = zarr_store()["train/masks/c/0/0/0"]
    offset, length = struct.unpack("<QQ", shard[-20:-4])
    return shard[offset : offset + length - 4]


def zarr_shard(chunk: bytes) -> bytes:
    """A shard of one packed chunk, with checksums that are right."""
    from google_crc32c import value

    index = struct.pack("<QQ", 0, len(chunk) + 4)
    checksums = [value(content).to_bytes(4, "little") for content in (chunk, index)]
    return chunk + checksums[0] + index + checksums[1]
