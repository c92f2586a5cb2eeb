"""Opens any set by its name: the one way in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from medduet.data.cache import ProgressFactory
from medduet.data.imageset import ImageSet
from medduet.data.medmnist import DEFAULT_SIZE, fetch_medmnist, lookup, medmnist_sets
from medduet.data.npz import open_npz
from medduet.data.phantom import phantom_images
from medduet.errors import ConfigError, closest


def open_images(
    name: str,
    *,
    size: int | None = None,
    cache: Path | None = None,
    mirror: str | None = None,
    count: int | None = None,
    channels: int | None = None,
    seed: int = 0,
    progress: ProgressFactory | None = None,
) -> ImageSet:
    """Open the set called `name`, downloading and unpacking it at the first time.

    Args:
        name: ``phantom``, a MedMNIST 2D flag such as ``bloodmnist``, or a path to an ``.npz``.
        size: height and width in pixels; by default 64 for ``phantom``, 28 (the small download)
            for MedMNIST, and that of the file for an ``.npz``. Other sizes are made from the file,
            or from the nearest larger one of MedMNIST, as in `medduet.data.store.resize_store`.
        cache: folder for downloads and unpacked sets, see `medduet.data.cache_folder`.
        mirror: address that holds the MedMNIST files, instead of Zenodo.
        count: of phantoms, see `medduet.data.phantom_images`.
        channels: likewise.
        seed: likewise.
        progress: makes a progress bar from a description and a number of bytes; silent without.

    Raises:
        ConfigError: for an unknown name or an option that doesn't belong to the set.
        DownloadError: if a file could not be downloaded.
        MissingFileError: if an ``.npz`` isn't there.
        DataError: if the content of the set contradicts itself.

    Example:
        >>> open_images("phantom", size=32, count=20).train.images.shape
        (14, 32, 32)
    """
    if name == "phantom":
        options = {"size": size, "count": count, "channels": channels, "seed": seed}
        return phantom_images(**{key: value for key, value in options.items() if value is not None})
    if (count, channels, seed) != (None, None, 0):
        raise ConfigError(f"count, channels and seed are for phantom only, given with {name!r}")
    if name in medmnist_sets():
        if size is not None and size < 1:
            raise ConfigError(f"size must be a positive number of pixels, given {size}")
        size, entry = size or DEFAULT_SIZE, lookup(name)
        published = entry.source_size(size)
        path = fetch_medmnist(name, published, cache=cache, mirror=mirror, progress=progress)
        images = open_npz(path, size=size, cache=cache, progress=progress)
        index = {"medmnist": name, "task": entry.task, "licence": entry.licence}
        info = {**images.info, **index, **entry.files[published]._asdict()}
        return replace(images, name=name, class_names=entry.class_names, info=info)
    if name.endswith(".npz") or Path(name).is_file():
        return open_npz(Path(name), size=size, cache=cache, progress=progress)
    hint = closest(name, ["phantom", *medmnist_sets()], "give the path of an .npz")
    raise ConfigError(f"unknown data set {name!r}: {hint}")
