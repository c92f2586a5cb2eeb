"""The index of the MedMNIST sets, from the `medmnist` package, without importing it.

Importing `medmnist` takes seconds (torchvision, pandas, scikit-learn) and creates a folder in the
home directory, so its ``info.py`` is parsed and only the literal ``INFO`` is read.
Imports no torch.

Source: Yang et al., MedMNIST v2, Scientific Data 10, 41 (2023), doi:10.1038/s41597-022-01721-8.
"""

import ast
from collections.abc import Mapping
from functools import cache as remember
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

from medduet.config import DataConfig
from medduet.data.cache import Progress, cache_folder, file_digests
from medduet.data.download import download
from medduet.errors import DownloadError

DEFAULT_SIZE = 28


class RemoteFile(NamedTuple):
    """A file that can be downloaded and recognised."""

    name: str
    url: str
    md5: str


class MedMNISTInfo(NamedTuple):
    """What the index says of one set."""

    task: str  # such as "multi-class" or "multi-label, binary-class"
    class_names: tuple[str, ...]
    in_channels: int
    samples: tuple[int, ...]  # images in train, val and test
    licence: str
    files: dict[int, RemoteFile]  # by published size in pixels, ascending


@remember
def medmnist_sets() -> Mapping[str, MedMNISTInfo]:
    """Return the MedMNIST sets by flag.

    Example:
        >>> sorted(medmnist_sets())[:3], len(medmnist_sets())
        (['adrenalmnist3d', 'bloodmnist', 'breastmnist'], 18)
    """
    text = Path(str(distribution("medmnist").locate_file("medmnist/info.py"))).read_text("utf-8")
    entries = next(
        ast.literal_eval(node.value)
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "INFO"
    )
    endings = {28: "", 64: "_64", 128: "_128", 224: "_224"}
    return {
        flag: MedMNISTInfo(
            task=entry["task"],
            class_names=tuple(entry["label"][str(index)] for index in range(len(entry["label"]))),
            in_channels=entry["n_channels"],
            samples=tuple(entry["n_samples"][split] for split in ("train", "val", "test")),
            licence=entry["license"],
            files={  # volumes are published at 28 and 64 only
                size: RemoteFile(f"{flag}{end}.npz", entry[f"url{end}"], entry[f"MD5{end}"])
                for size, end in endings.items()
                if f"url{end}" in entry
            },
        )
        for flag, entry in entries.items()
    }


def fetch_medmnist(data: DataConfig, size: int, progress: Progress = None) -> Path:
    """Return the path of a set's file at a published size, downloaded if it isn't cached."""
    file, root = medmnist_sets()[data.name].files[size], cache_folder(data.cache)
    path = root / "medmnist" / file.name
    if path.is_file() and file_digests(path, root, progress)[0] == file.md5:
        return path
    damaged = f"{file.name} in the cache has the wrong MD5, and " if path.is_file() else ""
    url = f"{data.mirror.rstrip('/')}/{file.name}" if data.mirror else file.url
    try:
        return download(url, path, file.md5, progress)
    except DownloadError as error:
        raise DownloadError(
            f"{damaged}{error}: try again, use --data.mirror, or put the file (MD5 {file.md5}) "
            f"into {path.parent} by hand"
        ) from error
