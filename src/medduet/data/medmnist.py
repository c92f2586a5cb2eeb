"""The index of the twelve MedMNIST 2D sets, from the `medmnist` package, without importing it.

Importing `medmnist` takes seconds (torchvision, pandas, scikit-learn) and creates a folder in the
home directory, so its ``info.py`` is parsed and only the literal ``INFO`` is read.
Imports no torch.

Source: Yang et al., MedMNIST v2, Scientific Data 10, 41 (2023), doi:10.1038/s41597-022-01721-8.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache as remember
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from medduet.data.cache import ProgressFactory, cache_folder
from medduet.data.download import fetch
from medduet.errors import ConfigError, closest

SIZES = (28, 64, 128, 224)
DEFAULT_SIZE = 28


class RemoteFile(NamedTuple):
    """A file that can be downloaded and recognised."""

    url: str
    md5: str

    @property
    def name(self) -> str:
        """File name without folder and query, such as ``bloodmnist_64.npz``."""
        return Path(urlsplit(self.url).path).name


@dataclass(frozen=True)
class MedMNISTInfo:
    """What the index says of one set.

    Attributes:
        flag: name by which the set is opened, such as ``bloodmnist``.
        title: name in print, such as ``BloodMNIST``.
        description: where the images come from, in a few sentences.
        task: ``multi-class``, ``binary-class``, ``multi-label, binary-class`` or
            ``ordinal-regression``.
        class_names: one name per class, by index.
        in_channels: 1 for grey, 3 for RGB.
        samples: number of images in train, val and test.
        licence: licence of the images, such as ``CC BY 4.0``.
        files: the published file for each size in pixels.
    """

    flag: str
    title: str
    description: str
    task: str
    class_names: tuple[str, ...]
    in_channels: int
    samples: tuple[int, int, int]
    licence: str
    files: Mapping[int, RemoteFile]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Published sizes in pixels, ascending."""
        return tuple(sorted(self.files))

    def source_size(self, size: int) -> int:
        """Return the published size to start from for `size`: the nearest that is not smaller.

        Example:
            >>> [lookup("bloodmnist").source_size(size) for size in (20, 64, 96, 300)]
            [28, 64, 128, 224]
        """
        return next((known for known in self.sizes if known >= size), self.sizes[-1])


@remember
def medmnist_sets() -> Mapping[str, MedMNISTInfo]:
    """Return the MedMNIST 2D sets by flag.

    Example:
        >>> sorted(medmnist_sets())[:3], len(medmnist_sets())
        (['bloodmnist', 'breastmnist', 'chestmnist'], 12)
    """
    spec = find_spec("medmnist")
    if spec is None or spec.origin is None:
        raise ConfigError("MedMNIST sets need the package medmnist; type: pip install medmnist")
    text = Path(spec.origin).with_name("info.py").read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "INFO":
            known = ast.literal_eval(node.value)
            return {flag: _read(flag, entry) for flag, entry in known.items() if _is_flat(entry)}
    raise ConfigError(f"{spec.origin} holds no INFO; type: pip install 'medmnist>=3.0.2'")


def lookup(flag: str) -> MedMNISTInfo:
    """Return what the index says of `flag`; ConfigError with the closest flags if unknown.

    Example:
        >>> lookup("breastmnist").class_names
        ('malignant', 'normal, benign')
    """
    known = medmnist_sets()
    if flag not in known:
        raise ConfigError(f"no MedMNIST 2D set {flag!r}: {closest(flag, known)}")
    return known[flag]


def cached_sizes(flag: str, cache: Path | None = None) -> tuple[int, ...]:
    """Return the sizes of `flag` whose files lie in the cache folder, unchecked."""
    folder = medmnist_folder(cache)
    files = lookup(flag).files
    return tuple(size for size in sorted(files) if (folder / files[size].name).is_file())


def medmnist_folder(cache: Path | None = None) -> Path:
    """Return the folder that holds the downloaded MedMNIST files."""
    return cache_folder(cache) / "medmnist"


def fetch_medmnist(
    flag: str,
    size: int,
    *,
    cache: Path | None = None,
    mirror: str | None = None,
    progress: ProgressFactory | None = None,
) -> Path:
    """Return the path of the file of `flag` at the published `size`, downloaded if need be.

    Args:
        flag: a flag of the index.
        size: one of the published sizes.
        cache: see `cache_folder`.
        mirror: base address to which the file name is appended, instead of Zenodo.
        progress: makes the progress bars.

    Raises:
        DownloadError: see `medduet.data.download.fetch`.
    """
    file = lookup(flag).files[size]
    url = f"{mirror.rstrip('/')}/{file.name}" if mirror else file.url
    target = medmnist_folder(cache) / file.name
    return fetch(url, target, md5=file.md5, cache=cache_folder(cache), progress=progress)


def _is_flat(entry: Mapping[str, Any]) -> bool:
    return "url_224" in entry  # the 3D sets are published at 28 and 64 only


def _read(flag: str, entry: Mapping[str, Any]) -> MedMNISTInfo:
    endings = {size: "" if size == 28 else f"_{size}" for size in SIZES}
    samples = entry["n_samples"]
    return MedMNISTInfo(
        flag=flag,
        title=entry["python_class"],
        description=entry["description"],
        task=entry["task"],
        class_names=tuple(entry["label"][str(index)] for index in range(len(entry["label"]))),
        in_channels=entry["n_channels"],
        samples=(samples["train"], samples["val"], samples["test"]),
        licence=entry["license"],
        files={
            size: RemoteFile(entry[f"url{ending}"], entry[f"MD5{ending}"])
            for size, ending in endings.items()
        },
    )
