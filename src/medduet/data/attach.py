"""Gives a set the masks of the pictures it was made from.

MedMNIST's sets have labels and official splits, but no masks; some were made from sets that have
them, such as BreastMNIST from BUSI. See `medduet.data.matching` for how the pictures are found.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medduet.data.cache import ProgressFactory, counted
from medduet.data.chunks import rows_per_chunk
from medduet.data.imageset import SPLITS, ImageSet
from medduet.data.matching import MATCHED, STATES, View, match_images
from medduet.data.sources import open_images
from medduet.errors import ConfigError, DataError, MissingFileError
from medduet.utils.files import atomic_path, write_text


@dataclass(frozen=True)
class Attached:
    """The match of each image of the target.

    Attributes:
        table: one row per image, in the order of the splits: ``split``, ``index`` in it, and the
            columns of `medduet.data.matching.match_images`, ``source`` and ``rival`` by id. Images
            that are ``ambiguous``, ``unmatched`` or have ``no mask`` in the source get none.
        view: how the target was made from the source.
    """

    table: pd.DataFrame
    view: View

    def counts(self) -> pd.DataFrame:
        """Return the number of images in each state (columns) for each split and all (rows)."""
        counts = pd.crosstab(self.table["split"], self.table["state"])
        counts = counts.reindex(index=list(SPLITS), columns=list(STATES), fill_value=0)
        counts.loc["all"] = counts.sum()
        return counts


def attach_masks(
    target: Path,
    source: ImageSet,
    out: Path,
    *,
    cache: Path | None = None,
    progress: ProgressFactory | None = None,
) -> Attached:
    """Write the set in `target` once more, with the masks of the pictures it was made from.

    Every array of `target` is kept as it is. ``{split}_masks`` are added, resized as the images
    were, and ``{split}_has_mask``, which is false where no picture was found for certain. The
    matches are written as a table beside `out` (``.csv``).

    Args:
        target: ``.npz`` in the layout of MedMNIST, without masks.
        source: set with masks, of which the target's images are reduced copies.
        out: the ``.npz`` to write.
        cache: folder of unpacked sets.
        progress: shows the progress of reading and writing.

    Raises:
        ConfigError: `out` is no ``.npz``, or it or the table exists.
        MissingFileError: there is no file `target`.
        DataError: `target` is no set, or has masks; or `source` has none.

    Example:
        >>> import tempfile, medduet
        >>> folder = Path(tempfile.mkdtemp())
        >>> images = medduet.open_images("phantom", size=64, count=20)
        >>> arrays = {f"{name}_images": images.split(name).images[:, 1::2, 1::2] for name in SPLITS}
        >>> labels = {f"{name}_labels": images.split(name).labels for name in SPLITS}
        >>> np.savez(folder / "small.npz", **arrays, **labels)
        >>> attached = attach_masks(folder / "small.npz", images, folder / "out.npz", cache=folder)
        >>> int(attached.counts().loc["all", "matched"])
        20
    """
    table_path = out.with_suffix(".csv")
    if out.suffix != ".npz":
        raise ConfigError(f"expected the path of an .npz to write, given {out}: --out {out}.npz")
    if existing := next((path for path in (out, table_path) if path.exists()), None):
        raise ConfigError(f"{existing} exists: delete it, or choose another --out")
    if source.train.masks is None:
        raise DataError(f"expected a source with masks, given {source.name}, which has none")
    if not target.is_file():
        raise MissingFileError(f"no file {target}")
    images, pool = open_images(str(target), cache=cache, progress=progress), source.pool()
    if images.train.masks is not None:
        raise DataError(f"expected a set without masks, but {target} has masks")
    table, view = match_images(images.pool().images, pool, progress)
    assert pool.ids is not None
    lengths = [len(images.split(name)) for name in SPLITS]
    table.insert(0, "split", np.repeat(SPLITS, lengths))
    table.insert(1, "index", np.concatenate([np.arange(length) for length in lengths]))
    with atomic_path(out) as path:
        _write(path, target, table, source, view, progress)
    table["source"] = pool.ids[table.pop("row")]
    table["rival"] = np.where(table["rival"] < 0, "", pool.ids[table["rival"]])
    table = table[["split", "index", "state", "source", "score", "margin", "rival"]]
    write_text(table_path, table.to_csv(index=False, float_format="%.6f"))
    return Attached(table, view)


def _write(
    path: Path,
    target: Path,
    table: pd.DataFrame,
    source: ImageSet,
    view: View,
    progress: ProgressFactory | None,
) -> None:
    """Write the members of `target`, then masks, into the archive at `path`."""
    masks = source.pool().masks
    assert masks is not None
    step = rows_per_chunk(masks.shape)
    with (
        ZipFile(target) as old,
        ZipFile(path, "w", ZIP_DEFLATED) as new,
        counted(progress, "write masks", len(table)) as advance,
    ):
        for info in old.infolist():
            if info.filename == "mask_names.npy":
                continue
            copy = ZipInfo(info.filename, info.date_time)
            copy.compress_type = info.compress_type
            with old.open(info) as reader, new.open(copy, "w", force_zip64=True) as writer:
                shutil.copyfileobj(reader, writer, 1 << 20)
        for name in SPLITS:
            rows = table[table["split"] == name]
            matched = (rows["state"] == MATCHED).to_numpy()
            resized = np.zeros((len(rows), *view.size), np.uint8)
            for places in np.split(np.flatnonzero(matched), range(step, matched.sum(), step)):
                resized[places] = view.masks(masks[rows["row"].to_numpy()[places]])
            _add(new, f"{name}_has_mask", matched)
            _add(new, f"{name}_masks", resized)
            advance(len(rows))
        _add(new, "mask_names", np.array(source.mask_names))


def _add(archive: ZipFile, key: str, array: NDArray[np.generic]) -> None:
    member = ZipInfo(f"{key}.npy")  # without the time, so that equal masks make equal files
    member.compress_type = ZIP_DEFLATED
    with archive.open(member, "w", force_zip64=True) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)
