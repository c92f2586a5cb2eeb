"""Gives a set the masks of the pictures it was made from, which are found by their content.

MedMNIST's sets have labels and official splits, but no masks; some were made from sets that have
them, such as BreastMNIST from BUSI. Thumbnails of both sets are compared each with each, without
what all pictures have in common, and the most similar again at the size of the target. The filter
that the target was reduced by is estimated from a sample.
"""

import shutil
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.nn.functional import cosine_similarity, normalize

from medduet.data.cache import Progress, counted
from medduet.data.duplicates import SIDE, chance_bound, mean_vector, unit_vectors
from medduet.data.imageset import (
    SPLITS,
    Images,
    ImageSet,
    Rows,
    Split,
    iterate_chunks,
    rows_per_chunk,
)
from medduet.data.npz import open_npz
from medduet.data.pixels import resize_mask
from medduet.errors import ConfigError, DataError
from medduet.utils.files import atomic_path, write_text

_FILTERS: tuple[dict[str, Any], ...] = (
    {"mode": "bilinear", "antialias": True},
    {"mode": "bicubic", "antialias": True},
    {"mode": "area"},
    {"mode": "bilinear"},
    {"mode": "nearest-exact"},
)
_MIN_SCORE = 0.95  # correlation, the mean of the source removed; less is another picture
_MIN_MARGIN = 0.5  # share by which 1 - score is less than that of the next with another mask
# Largest 1 - score of a match, as a multiple of what is typical of the set: all its images were
# made alike, so what differs more is a near-duplicate of the source's.
_MAX_DISTANCE = 6.0
_ROUNDING = 1e-4  # 1 - score that grey levels of 8 bits alone may cause
_CANDIDATES, _BLOCK = 8, 2048
_SAMPLE, _SOURCE_SAMPLE = 100, 1000
_QUANTILE = 0.9  # of the sample, since most of it may not be in the source


def attach_masks(
    target: Path,
    source: ImageSet,
    out: Path,
    *,
    cache: Path | None = None,
    progress: Progress = None,
) -> pd.DataFrame:
    """Write the set in `target` once more, with the masks of the pictures it was made from.

    Every array is kept as it is. ``{split}_masks`` are added, resized as the images were, and
    ``{split}_has_mask``, which is false where no picture was found for certain.

    Args:
        target: ``.npz`` in the layout of MedMNIST, without masks.
        source: set with masks, of which the target's images are reduced copies.
        out: the ``.npz`` to write; the matches are written as a table beside it (``.csv``).
        cache: folder of unpacked sets.
        progress: shows the progress of reading and writing.

    Returns:
        The matches, a row per image: ``split``, ``index`` in it, ``state`` (matched, ambiguous,
        unmatched or no mask), ``source``, the most similar image, ``score``, their correlation,
        ``margin``, by what share 1 - score is less than that of the ``rival``, the next image
        with another mask. Only ``matched`` ones get a mask.

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
        >>> table = attach_masks(folder / "small.npz", images, folder / "out.npz", cache=folder)
        >>> table["state"].value_counts().to_dict()
        {'matched': 20}
    """
    table_path, pool = out.with_suffix(".csv"), source.pool()
    if out.suffix != ".npz":
        raise ConfigError(f"expected the path of an .npz to write, given {out}: --out {out}.npz")
    if existing := next((path for path in (out, table_path) if path.exists()), None):
        raise ConfigError(f"{existing} exists: delete it, or choose another --out")
    if pool.masks is None or pool.ids is None:
        raise DataError(f"expected a source with masks, given {source.name}, which has none")
    images = open_npz(target, cache=cache, progress=progress)
    if images.train.masks is not None:
        raise DataError(f"expected a set without masks, but {target} has masks")
    table = _match(images.pool().images, pool, progress)
    table["split"] = np.repeat(SPLITS, [len(images.split(name)) for name in SPLITS])
    table["index"] = table.groupby("split").cumcount()
    with atomic_path(out) as path:
        shutil.copyfile(target, path)
        _add_masks(path, table, pool.masks, images.size, source.mask_names)
    table["source"] = pool.ids[table["source"]]
    table["rival"] = np.where(table["rival"] < 0, "", pool.ids[table["rival"]])
    table = table[["split", "index", "state", "source", "score", "margin", "rival"]]
    write_text(table_path, table.to_csv(index=False, float_format="%.6f"))
    return table


def _match(target: Images, source: Split, progress: Progress) -> pd.DataFrame:
    """Return ``source``, ``score``, ``margin``, ``rival`` (-1 without) and ``state`` of each."""
    size = int(target.shape[1]), int(target.shape[2])
    small = min(SIDE, size[0]), min(SIDE, size[1])
    both = [iterate_chunks(images, progress, "read images") for images in (target, source.images)]
    thumbnails, vectors = (torch.cat([unit_vectors(x, small) for _, x in each]) for each in both)
    mean = mean_vector(vectors)
    bound = chance_bound(thumbnails, vectors, mean, len(target) * len(source))
    one, two = normalize(thumbnails - mean), normalize(vectors - mean)
    blocks, count = torch.split(one, _BLOCK), min(_CANDIDATES, len(source))
    candidates = torch.cat([(block @ two.T).topk(count).indices for block in blocks]).numpy()
    sample = _spread(len(target), _SAMPLE)
    shown, pictures = unit_vectors(target[sample], size), source.images[candidates[sample, 0]]

    def similarity(resize: dict[str, Any]) -> float:
        made = unit_vectors(pictures, size, **resize)
        return float((made * shown).sum(dim=1).quantile(_QUANTILE))

    table = _rank(target, source, max(_FILTERS, key=similarity), candidates, progress)
    least = max(bound, _MIN_SCORE)
    if (table["score"] >= least).any():
        typical = max(float(1 - table["score"][table["score"] >= least].quantile(0.75)), _ROUNDING)
        least = max(least, 1 - _MAX_DISTANCE * typical)
    unknown = ~source.known_masks[table["source"]]
    cases = [table["score"] < least, unknown, table["margin"] < _MIN_MARGIN]
    table["state"] = np.select(cases, ["unmatched", "no mask", "ambiguous"], "matched")
    return table


def _spread(count: int, most: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, count - 1, most).astype(np.int64))


def _rank(
    target: Images,
    source: Split,
    resize: dict[str, Any],
    candidates: NDArray[np.int64],
    progress: Progress,
) -> pd.DataFrame:
    """Return the best of the candidates ``(N, k)``, and the next one whose mask is another."""
    assert source.masks is not None
    size = int(target.shape[1]), int(target.shape[2])
    sample = source.images[_spread(len(source), _SOURCE_SAMPLE)]
    mean = mean_vector(unit_vectors(sample, size, **resize))
    step, blocks = max(1, rows_per_chunk(source.images.shape) // candidates.shape[1]), []
    with counted(progress, "compare images", len(target)) as advance:
        for start in range(0, len(target), step):
            rows = candidates[start : start + step]
            one = unit_vectors(target[start : start + step], size)[:, None] - mean
            two = unit_vectors(source.images[rows.ravel()], size, **resize)
            two = two.reshape(*rows.shape, -1) - mean
            score = cosine_similarity(one, two, dim=2).numpy()
            order = np.argsort(-score, axis=1, kind="stable")
            rows, score = np.take_along_axis(rows, order, 1), np.take_along_axis(score, order, 1)
            masks = resize_mask(source.masks[rows.ravel()], *size).reshape(*rows.shape, -1)
            known = source.known_masks[rows]
            other = (masks != masks[:, :1]).any(axis=2) | ~known | ~known[:, :1]
            other[:, 0] = False
            each, place, exists = np.arange(len(rows)), other.argmax(axis=1), other.any(axis=1)
            distance = np.maximum(1 - score, 1e-6)
            block = pd.DataFrame({"source": rows[:, 0], "score": score[:, 0]})
            block["margin"] = np.where(exists, 1 - distance[:, 0] / distance[each, place], 1.0)
            block["rival"] = np.where(exists, rows[each, place], -1)
            blocks.append(block)
            advance(len(rows))
    return pd.concat(blocks, ignore_index=True)


def _add_masks(
    path: Path, table: pd.DataFrame, masks: Images, size: tuple[int, int], names: tuple[str, ...]
) -> None:
    arrays: dict[str, NDArray[Any]] = {"mask_names": np.array(names)}
    for name, rows in table.groupby("split"):
        matched = np.flatnonzero(rows["state"] == "matched")
        resized = np.zeros((len(rows), *size), np.uint8)
        for places, chunk in iterate_chunks(Rows([masks], rows["source"].to_numpy()[matched])):
            # Nearest neighbour keeps the area of small lesions best (benchmarks/attach_masks.py).
            resized[matched[places]] = resize_mask(chunk, *size)
        arrays[f"{name}_masks"] = resized
        arrays[f"{name}_has_mask"] = (rows["state"] == "matched").to_numpy()
    with ZipFile(path, "a") as archive:
        for key, array in arrays.items():
            member = ZipInfo(f"{key}.npy")  # without the time, so that equal masks are equal files
            member.compress_type = ZIP_DEFLATED
            with archive.open(member, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
