"""Gives a set the masks of the pictures it was made from, which are found by their content.

MedMNIST's sets have labels and official splits, but no masks; some were made from sets that have
them, such as BreastMNIST from BUSI. Thumbnails of both sets are compared each with each, without
what all pictures have in common, and the most similar again at the size of the target. Each picture
goes to the image that is most like it. The view (centre square or whole picture) and the filter by
which the target was made are those that give the most similar images.
"""

import shutil
from collections import defaultdict
from collections.abc import Sequence
from hashlib import sha256
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from medduet.config import DataConfig
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
from medduet.data.sources import is_files, open_images
from medduet.errors import ConfigError, DataError
from medduet.types import IGNORED_MASK
from medduet.utils.files import atomic_path, write_text
from medduet.utils.parsing import csv_text, read_csv

_FILTERS: tuple[dict[str, Any], ...] = (
    {"mode": "bilinear", "antialias": True},
    {"mode": "bicubic", "antialias": True},
    {"mode": "area"},
    {"mode": "bilinear"},
    {"mode": "nearest-exact"},
)
_MIN_SCORE = 0.95  # correlation, the mean of the source removed; less is another picture
_MIN_MARGIN = 0.3  # share by which 1 - score is less than that of the next with another mask
_CANDIDATES, _BLOCK = 8, 2048
_SAMPLE, _SOURCE_SAMPLE = 100, 1000
_QUANTILE = 0.9  # of the sample, since most of it may not be in the source


def attach_masks(
    target: Path,
    out: Path,
    *,
    data: DataConfig,
    map: Path | None = None,  # noqa: A002  (as it is typed)
    progress: Progress = None,
) -> pd.DataFrame:
    """Add the masks of the data set that another one was made from: BUSI's to BreastMNIST.

    Images are matched by their content. Those without a certain match get no mask, and are listed
    in a table (.csv) beside OUT.

    Args:
        target: The .npz without masks; its images, labels and splits are kept.
        out: The .npz to write.
        data: The data set with masks.
        map: Table (.csv) that names the picture of each image: split, index, image_id.
        progress: draws the progress.

    Returns:
        The matches, a row per image: ``split``, ``index`` in it, ``state`` (matched, ambiguous,
        unmatched or no mask), ``source``, the picture that it was given, ``score``, their
        correlation, ``margin``, by what share 1 - score is less than that of the ``rival``, the
        next picture with another mask. Only ``matched`` ones get a mask. Its attribute ``view`` is
        ``"crop"`` (the target shows centre squares) or ``"stretch"`` (whole pictures).

    Raises:
        ConfigError: `out` is no ``.npz``, or it or the table exists.
        MissingFileError: there is no file `target`.
        DataError: `target` is no set, or has masks; or the data has none.
    """
    if out.suffix != ".npz":
        raise ConfigError(f"expected the path of an .npz to write, given {out}: --out {out}.npz")
    if existing := next((path for path in (out, out.with_suffix(".csv")) if path.exists()), None):
        raise ConfigError(f"{existing} exists: delete it, or choose another --out")
    # No split is needed, so no duplicates are searched.
    fits = ("crop", "stretch") if is_files(data) else (data.fit,)  # others are squares already
    views = [data.model_copy(update={"fit": fit, "group_by": "none"}) for fit in fits]
    sources = [open_images(view, progress=progress) for view in views]
    return attach(target, sources, out, listing=map, cache=data.cache, progress=progress)


def attach(
    target: Path,
    sources: Sequence[ImageSet],
    out: Path,
    *,
    listing: Path | None = None,
    cache: Path | None = None,
    progress: Progress = None,
) -> pd.DataFrame:
    """Write the set in `target` with the masks of `sources`, views of the same pictures."""
    pools = [source.pool() for source in sources]
    ids = pools[0].ids
    if pools[0].masks is None or ids is None:
        raise DataError(f"expected a source with masks, given {sources[0].name}, which has none")
    images = open_npz(target, cache=cache, progress=progress)
    for image_set in (images, *sources):
        image_set.expect_images("medduet attach-masks")
    if images.train.masks is not None:
        raise DataError(f"expected a set without masks, but {target} has masks")
    counts = [len(images.split(name)) for name in SPLITS]
    places = pd.DataFrame({"split": np.repeat(SPLITS, counts)})
    places["index"] = places.groupby("split").cumcount()
    listed = None if listing is None else _listed(listing, places, ids)
    table, pool = _match(images.pool().images, pools, listed, progress)
    table = places.join(table)
    with atomic_path(out) as path:
        shutil.copyfile(target, path)
        masks = pools[pool].masks
        assert masks is not None
        height, width = images.size
        _add_masks(path, table, masks, (height, width), sources[0].mask_names)
    for column in ("source", "rival"):
        table[column] = np.where(table[column] < 0, "", ids[table[column]])
    table = table[["split", "index", "state", "source", "score", "margin", "rival"]]
    write_text(out.with_suffix(".csv"), csv_text(table, float_format="%.6f"))
    table.attrs["view"] = str(sources[pool].info.get("fit", "stretch"))
    return table


def _listed(path: Path, places: pd.DataFrame, ids: NDArray[np.str_]) -> NDArray[np.int64]:
    """Return the picture of each place that a table names, by its name with or without ending."""
    try:
        table = read_csv(path).rename(columns=str.lower)
        keys = zip(table["split"].str.lower(), table["index"].astype(int), strict=True)
        names = dict(zip(keys, table["image_id"].str.strip(), strict=True))
    except (OSError, KeyError, ValueError) as error:
        columns = "expected a table with the columns split, index, image_id"
        raise DataError(f"{columns} in {path}: {error!r}") from error
    rows = defaultdict[str, list[int]](list)
    for row, whole in enumerate(map(PurePosixPath, ids)):
        for key in {whole.name, whole.stem}:
            rows[key].append(row)
    rows |= {name: [row] for row, name in enumerate(ids)}
    listed = [names.get(key, "") for key in places.itertuples(index=False, name=None)]
    if several := next((name for name in listed if len(rows.get(name, ())) > 1), None):
        given = " or ".join(ids[rows[several][:2]])
        raise DataError(f"{path}: expected one picture called {several}, given {given}")
    pictures = np.array([rows.get(name, [-1])[0] for name in listed])
    if (pictures < 0).all():
        raise DataError(f"{path}: expected names of pictures of the data, such as {ids[0]}")
    return pictures


def _match(
    target: Images,
    pools: Sequence[Split],
    listed: NDArray[np.int64] | None,
    progress: Progress,
) -> tuple[pd.DataFrame, int]:
    """Return ``source``, ``score``, ``margin``, ``rival`` (-1 without) and ``state`` of each.

    With them comes which of the pools is most like the target.
    """
    size = int(target.shape[1]), int(target.shape[2])
    small = min(SIDE, size[0]), min(SIDE, size[1])
    thumbnails, sample = _vectors(target, small, progress), _spread(len(target), _SAMPLE)
    shown = unit_vectors(target[sample], size)
    tried, least = [], _MIN_SCORE
    for number, pool in enumerate(pools):
        if listed is not None:
            candidates = np.maximum(listed, 0)[:, None]
        else:
            vectors = _vectors(pool.images, small, progress)
            mean = mean_vector(vectors)
            pairs = len(target) * len(pool)
            least = max(least, chance_bound(thumbnails, vectors, mean, pairs))
            one, two = normalize(thumbnails - mean), normalize(vectors - mean)
            count = min(_CANDIDATES, len(pool))
            blocks = [(block @ two.T).topk(count).indices for block in torch.split(one, _BLOCK)]
            candidates = torch.cat(blocks).numpy()
        pictures = pool.images[candidates[sample, 0]]
        for resize in _FILTERS:
            made = unit_vectors(pictures, size, **resize)
            similarity = float((made * shown).sum(dim=1).quantile(_QUANTILE))
            tried.append((similarity, number, resize, candidates))
    _, number, resize, candidates = max(tried, key=itemgetter(0))
    pool = pools[number]
    score = _scores(target, pool, resize, candidates, progress)
    if listed is None:
        table = _assign(candidates, score, _mask_ids(pool, size), least)
        missing = table["score"] < least
    else:
        table = pd.DataFrame({"source": listed, "score": score[:, 0], "margin": 1.0, "rival": -1})
        missing = table["source"] < 0
    unknown = ~pool.known_masks[table["source"]]
    cases = [missing, unknown, table["margin"] < _MIN_MARGIN]
    table["state"] = np.select(cases, ["unmatched", "no mask", "ambiguous"], "matched")
    return table, number


def _spread(count: int, most: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, count - 1, most).astype(np.int64))


def _vectors(images: Images, size: tuple[int, int], progress: Progress) -> Tensor:
    chunks = iterate_chunks(images, progress, "read images")
    return torch.cat([unit_vectors(chunk, size) for _, chunk in chunks])


def _scores(
    target: Images,
    source: Split,
    resize: dict[str, Any],
    candidates: NDArray[np.int64],
    progress: Progress,
) -> NDArray[np.float64]:
    """Return the correlation of each image with each of its candidates, ``(N, k)``."""
    size = int(target.shape[1]), int(target.shape[2])
    sample = source.images[_spread(len(source), _SOURCE_SAMPLE)]
    mean = mean_vector(unit_vectors(sample, size, **resize))
    step, blocks = max(1, rows_per_chunk(source.images.shape) // candidates.shape[1]), []
    with counted(progress, "compare images", len(target)) as advance:
        for start in range(0, len(target), step):
            rows = candidates[start : start + step]
            one = unit_vectors(target[start : start + step], size)[:, None] - mean
            two = unit_vectors(source.images[rows.ravel()], size, **resize)
            blocks.append(cosine_similarity(one, two.reshape(*rows.shape, -1) - mean, dim=2))
            advance(len(rows))
    return torch.cat(blocks).double().numpy()


def _mask_ids(source: Split, size: tuple[int, int]) -> NDArray[np.int64]:
    """Return a number for each picture: that of the mask it has at that size, -1 if unknown."""
    assert source.masks is not None
    mask_ids: dict[bytes, int] = {}
    numbers: list[int] = []
    for _, chunk in iterate_chunks(source.masks):
        digests = [sha256(mask.tobytes()).digest() for mask in resize_mask(chunk, *size)]
        numbers += [mask_ids.setdefault(digest, len(mask_ids)) for digest in digests]
    return np.where(source.known_masks, numbers, -1)


def _assign(
    candidates: NDArray[np.int64],
    score: NDArray[np.float64],
    mask_ids: NDArray[np.int64],
    least: float,
) -> pd.DataFrame:
    """Give each picture to one image, so that all are as alike as possible, and say how certainly.

    The margin is the share by which 1 - score is less than if the image had its rival: the picture
    with another mask that is nearest, which its owner, if it has one, gives for the image's own.
    """
    count, width = candidates.shape
    nothing = len(mask_ids) + np.arange(count)[:, None]
    distance = np.maximum(1 - score, 1e-6)
    # A score below the least is no match, however far below.
    cost = np.minimum(np.column_stack([distance, np.ones(count)]), 1 - least)
    columns = np.column_stack([candidates, nothing])
    places = np.repeat(np.arange(count), width + 1), columns.ravel()
    _, picture_of = min_weight_full_bipartite_matching(csr_array((cost.ravel(), places)))
    taken = columns == picture_of[:, None]
    chosen = np.where(taken[:, :width].any(axis=1), taken.argmax(axis=1), -1)
    owner = np.full(len(mask_ids) + count, -1)
    owner[picture_of] = np.arange(count)

    def other_way(image: int, place: int) -> float:
        """Return the share by which the distances are less than with that candidate."""
        picture, rival = candidates[image, [chosen[image], place]]
        before, after = distance[image, [chosen[image], place]]
        if (holder := owner[rival]) >= 0:
            swapped = distance[holder, candidates[holder] == picture]
            before += distance[holder, chosen[holder]]
            after += swapped[0] if len(swapped) else distance[holder].max()
        return float(1 - before / after)

    rows = []
    for image in range(count):
        picture = candidates[image, max(chosen[image], 0)]
        different = (mask_ids[candidates[image]] != mask_ids[picture]) | (mask_ids[picture] < 0)
        rivals = np.flatnonzero(different & (candidates[image] != picture)).tolist()
        margin, rival = min(
            ((other_way(image, q), candidates[image, q]) for q in rivals), default=(1.0, -1)
        )
        margin *= chosen[image] >= 0  # else others are more like all its candidates
        rows.append((picture, score[image, max(chosen[image], 0)], margin, rival))
    return pd.DataFrame(rows, columns=["source", "score", "margin", "rival"])


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
        if (resized == IGNORED_MASK).any():
            arrays["ignored_mask"] = np.array([IGNORED_MASK])
        arrays[f"{name}_has_mask"] = (rows["state"] == "matched").to_numpy()
    with ZipFile(path, "a") as archive:
        for key, array in arrays.items():
            member = ZipInfo(f"{key}.npy")  # without the time, so that equal masks are equal files
            member.compress_type = ZIP_DEFLATED
            with archive.open(member, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
