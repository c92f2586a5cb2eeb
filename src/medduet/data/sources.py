"""Opens any set by its name: the one way in."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from medduet.config import DataConfig, validate
from medduet.data.cache import Progress
from medduet.data.imageset import ImageSet
from medduet.data.listing import list_folder
from medduet.data.medmnist import DEFAULT_SIZE, fetch_medmnist, medmnist_sets
from medduet.data.npz import open_npz
from medduet.data.phantom import phantom_images
from medduet.data.pixels import for_each_axis
from medduet.data.splits import arrange
from medduet.data.tables import list_table
from medduet.data.zarr_store import is_zarr, open_zarr, write_zarr
from medduet.errors import ConfigError, DataError, MissingFileError, closest

PHANTOMS = {"phantom": 2, "phantom3d": 3}  # with their spatial dimensions
_FILES = "a folder or table of images"
_ACCEPTED = "an .npz, a .zarr, a folder of images or a table of them (.csv)"


def open_images(
    data: DataConfig | str,
    *,
    progress: Progress = None,
    saved_split: Path | None = None,
    **options: Any,
) -> ImageSet:
    """Open a set, downloading, unpacking or converting it at the first time.

    Args:
        data: its settings; or its name alone: ``phantom``, ``phantom3d``, a MedMNIST flag such as
            ``bloodmnist``, the path of an ``.npz``, of a folder or of a table of images, or
            the folder or URL of a zarr store, which ends in ``.zarr``.
        progress: makes a progress bar from a description and a number of bytes; silent without.
        saved_split: file of a split that is used instead of making one, if it exists.
        options: further fields of `medduet.DataConfig`, if only the name was given.

    Raises:
        ConfigError: for an unknown name or an option that doesn't belong to the set.
        DownloadError: if a file could not be downloaded.
        MissingFileError: if a file or folder does not exist.
        DataError: if the content of the set contradicts itself, or can't be read.

    Example:
        >>> open_images("phantom", size=32, count=20).train.images.shape
        (14, 32, 32)
    """
    if isinstance(data, str):
        data = validate(DataConfig, {"name": data, **options}, data or "data")
    elif options:
        raise ConfigError(f"{', '.join(options)} given beside a DataConfig: set them in it")
    if not data.name:
        raise ConfigError("no data given: add --data FOLDER, FILE.npz, bloodmnist, phantom, ...")
    kind, path, split = _kind(data), Path(data.name).expanduser(), None
    _check_options(data, kind)
    if kind == "zarr":
        return open_zarr(data)
    if kind in PHANTOMS:
        settings = data.model_dump(include={"count", "channels"}, exclude_none=True)
        fewer = {"size": 32, "count": 200} if kind == "phantom3d" else {}
        if data.size is not None:
            settings["size"], *others = {*for_each_axis(data.size, PHANTOMS[kind])}
            if others:
                raise ConfigError(f"expected one --size for {data.name}, given {data.size}")
        images = phantom_images(**fewer | settings, seed=data.seed, dims=PHANTOMS[kind])
    elif kind == "MedMNIST":
        size, entry = data.size or (data.medmnist_size or DEFAULT_SIZE,), medmnist_sets()[data.name]
        nearest = next((side for side in entry.files if side >= max(size)), max(entry.files))
        published: int = data.medmnist_size or nearest
        if published not in entry.files:
            raise ConfigError(f"{data.name} is published at {', '.join(map(str, entry.files))}")
        path = fetch_medmnist(data, published, progress)
        images = open_npz(path, size=size, cache=data.cache, progress=progress)
        index = {"medmnist": data.name, "task": entry.task, "licence": entry.licence}
        index |= {"url": entry.files[published].url, "md5": entry.files[published].md5}
        info = {**images.info, **index}
        images = replace(images, name=data.name, class_names=entry.class_names, info=info)
    elif kind == "npz":
        images = open_npz(Path(data.name), size=data.size, cache=data.cache, progress=progress)
    else:
        from medduet.data.convert import open_files

        if data.masks is not None and not path.is_dir():
            raise ConfigError(f"--data.masks is for folders: give {path.name} a column mask")
        if (path / "environment.json").is_file():
            raise DataError(f"{path}: expected images, given a run, whose figures are no data")
        listing = list_folder(path, data.masks) if path.is_dir() else list_table(path)
        images, split = open_files(listing, data, progress)
    return arrange(images, split, data, progress, saved_split)


def zarr(
    data: DataConfig,
    out: Path,
    *,
    shard_mb: Annotated[float, Field(gt=0)] = 64.0,
    progress: Progress = None,
) -> Path:
    """Write a data set as a zarr store, to be read from a folder or a server.

    A call that was stopped continues when it is typed again.

    Args:
        data: Which images, and in which split; DATA comes first.
        out: Folder of the store, NAME.zarr.
        shard_mb: Size of the images of a shard in MB.
        progress: draws the progress.
    """
    images = open_images(data, progress=progress)
    return write_zarr(images, out, shard_mb=shard_mb, progress=progress)


def is_files(data: DataConfig) -> bool:
    """Return whether the set is made of image files, in a folder or listed in a table."""
    path = Path(data.name).expanduser()
    return not is_zarr(data.name) and (
        path.is_dir() or path.suffix.lower() in (".csv", ".tsv", ".txt")
    )


def _kind(data: DataConfig) -> str:
    """Return what kind of set the name is of; an error with the closest names if of none."""
    names = [*PHANTOMS, *medmnist_sets()]
    if data.name in names:
        return data.name if data.name in PHANTOMS else "MedMNIST"
    if is_zarr(data.name) or data.name.lower().endswith(".npz"):
        return "zarr" if is_zarr(data.name) else "npz"
    if is_files(data):
        return _FILES
    if Path(data.name).is_file():
        raise DataError(f"{data.name}: expected {_ACCEPTED}, given another kind of file")
    if "/" in data.name:
        raise MissingFileError(f"expected a data set at {data.name}, but there is no such path")
    hint = closest(data.name.lower(), names, f"give the path of {_ACCEPTED}")
    raise ConfigError(f"unknown data set {data.name!r}: {hint}")


def _check_options(data: DataConfig, kind: str) -> None:
    """Refuse options of one kind of set that are given for another."""
    of_files = ("masks", "mask_values", "fit", "window", "skip_broken", "dims", "spacing")
    kinds: dict[str, tuple[str, ...]] = dict.fromkeys(of_files, (_FILES,))
    kinds |= {"count": (*PHANTOMS,), "channels": ("phantom", _FILES)}
    kinds |= {"medmnist_size": ("MedMNIST",)}
    if data.folds is None and data.split != "made":
        kinds["seed"] = (*PHANTOMS, _FILES, "a split that is made")
    for name, expected in kinds.items():
        if getattr(data, name) != DataConfig.model_fields[name].default and kind not in expected:
            option = f"--data.{name.replace('_', '-')}"
            raise ConfigError(f"{option} is for {' and '.join(expected)}, not {kind}: omit it")
