"""Opens any set by its name: the one way in."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path
from typing import Any

from medduet.config import DataConfig, validate
from medduet.data.arrange import arrange
from medduet.data.cache import ProgressFactory
from medduet.data.imageset import ImageSet
from medduet.data.listing import TABLES, list_folder, list_table
from medduet.data.medmnist import DEFAULT_SIZE, fetch_medmnist, lookup, medmnist_sets
from medduet.data.npz import open_npz
from medduet.data.phantom import phantom_images
from medduet.data.zarr_reader import is_zarr, open_zarr
from medduet.errors import ConfigError, DataError, closest
from medduet.utils.parsing import as_text


def open_images(
    data: DataConfig | str,
    *,
    progress: ProgressFactory | None = None,
    saved_split: Path | None = None,
    **options: Any,
) -> ImageSet:
    """Open a set, downloading, unpacking or converting it at the first time.

    Args:
        data: its settings; or its name alone: ``phantom``, a MedMNIST 2D flag such as
            ``bloodmnist``, the path of an ``.npz``, of a folder or of a table of images, or
            the folder or URL of a zarr store, which ends in ``.zarr``.
        progress: makes a progress bar from a description and a number of bytes; silent without.
        saved_split: file of a split, see `medduet.data.splits.write_split`, that is used instead of
            making one, if it is there.
        options: further fields of `medduet.DataConfig`, if only the name was given.

    Raises:
        ConfigError: for an unknown name or an option that doesn't belong to the set.
        DownloadError: if a file could not be downloaded.
        MissingFileError: if a file or folder isn't there.
        DataError: if the content of the set contradicts itself, or can't be read.

    Example:
        >>> open_images("phantom", size=32, count=20).train.images.shape
        (14, 32, 32)
        >>> len(open_images("phantom", size=16, count=20, folds=4, fold=1).test)
        5
    """
    if isinstance(data, str):
        data = validate(DataConfig, {"name": data, **options}, data or "data")
    elif options:
        raise ConfigError(f"{', '.join(options)} given beside settings: put them into these")
    if not data.name:
        raise ConfigError(
            "no data given: add --data bloodmnist (or another of 'medduet datasets'), "
            "--data FILE.npz, a folder of images, or phantom"
        )
    _check(data)
    if is_zarr(data.name):
        return open_zarr(data)
    if data.name == "phantom":
        images = phantom_images(**_phantom_options(data))
    elif data.name in medmnist_sets():
        images = _open_medmnist(data, progress)
    elif is_files(data):
        from medduet.data.convert import open_files

        path = Path(data.name).expanduser()
        listing = list_folder(path, data.masks) if path.is_dir() else list_table(path)
        images, given = open_files(listing, data, progress)
        return arrange(images, given, data, progress, saved_split)
    elif data.name.lower().endswith(".npz"):
        images = open_npz(Path(data.name), size=data.size, cache=data.cache, progress=progress)
    else:
        accepted = f"an .npz, a folder of images or a table of them ({', '.join(TABLES)})"
        if Path(data.name).is_file():
            kind = f"a {Path(data.name).suffix} file".replace("  ", " ")
            raise DataError(f"{data.name}: expected {accepted}, given {kind}")
        here = [each.name for each in Path().iterdir() if is_files(DataConfig(name=each.name))]
        names = ["phantom", *medmnist_sets()]
        if near := difflib.get_close_matches(data.name, here, n=1):
            raise ConfigError(f"there is no {data.name}: did you mean {near[0]}?")
        hint = closest(data.name, names, f"give the path of {accepted}")
        raise ConfigError(f"unknown data set {data.name!r}: {hint}")
    return arrange(images, None, data, progress, saved_split)


def is_files(data: DataConfig) -> bool:
    """Return whether the set is made of image files, in a folder or listed in a table."""
    if is_zarr(data.name):
        return False
    path = Path(data.name).expanduser()
    return path.is_dir() or path.suffix.lower() in TABLES


def _check(data: DataConfig) -> None:
    """Refuse options of one kind of set that are given for another, and paths that are no text."""
    for given in (data.name, str(data.masks or "")):
        if as_text(given) != given:  # no record of a run could name it
            raise ConfigError(f"{as_text(given)}: expected a path in UTF-8: rename it")
    phantom, files = data.name == "phantom", is_files(data)
    if data.count is not None and not phantom:
        raise ConfigError(f"count is for phantom only, given with {data.name!r}")
    if data.channels is not None and not (phantom or files):
        raise ConfigError(
            f"channels is for phantom only and for image files, given with {data.name!r}"
        )
    made = data.folds is not None or data.split == "made"
    if data.seed and not (phantom or files or made):
        raise ConfigError(
            f"seed is for phantom only and for splits that are made, given with {data.name!r}: "
            "add --data.split made"
        )
    for name in ("masks", "window", "skip_broken"):
        if getattr(data, name) and not files:
            raise ConfigError(
                f"{name} is for a folder or table of images, given with {data.name!r}"
            )


def _phantom_options(data: DataConfig) -> dict[str, Any]:
    options = {"size": data.size, "count": data.count, "channels": data.channels}
    return {k: v for k, v in options.items() if v is not None} | {"seed": data.seed}


def _open_medmnist(data: DataConfig, progress: ProgressFactory | None) -> ImageSet:
    size, entry = data.size or DEFAULT_SIZE, lookup(data.name)
    published = entry.source_size(size)
    path = fetch_medmnist(
        data.name, published, cache=data.cache, mirror=data.mirror, progress=progress
    )
    images = open_npz(path, size=size, cache=data.cache, progress=progress)
    index = {"medmnist": data.name, "task": entry.task, "licence": entry.licence}
    info = {**images.info, **index, **entry.files[published]._asdict()}
    return replace(images, name=data.name, class_names=entry.class_names, info=info)
