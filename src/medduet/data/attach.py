"""Gives a set the masks of the pictures it was made from.

MedMNIST's sets have labels and official splits, but no masks; some were made from sets that have
them, such as BreastMNIST from BUSI. See `medduet.data.matching` for how the pictures are found.
"""

from __future__ import annotations

import csv
import io
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from medduet.data.archive import Archive, rows_per_chunk
from medduet.data.cache import ProgressFactory, counted
from medduet.data.imageset import SPLITS, ImageSet
from medduet.data.layout import SplitLayout, find_layout
from medduet.data.matching import MATCHED, STATES, Matches, View, match_images
from medduet.errors import ConfigError, DataError, MissingFileError
from medduet.utils.files import atomic_path, write_text

_COLUMNS = ("split", "index", "state", "source", "score", "margin", "rival")


@dataclass(frozen=True)
class Attached:
    """What was found for each image of the target, in the order of its splits.

    Attributes:
        split: ``(N,)`` text.
        index: ``(N,)`` int64, place in the split.
        source: ``(N,)`` text, id of the most alike image of the source, matched or not.
        score: ``(N,)`` float32, their correlation, see `medduet.data.matching.Matches`.
        margin: ``(N,)`` float32, how much less unlike it is than the next that has another mask.
        rival: ``(N,)`` text, id of that next one; empty if there is none.
        state: ``(N,)`` text: ``matched``; ``ambiguous`` (the margin is small), ``unmatched``, or
            ``no mask`` (the source image has none), which all get no mask.
        view: how the target was made from the source.
    """

    split: NDArray[np.str_]
    index: NDArray[np.int64]
    source: NDArray[np.str_]
    score: NDArray[np.float32]
    margin: NDArray[np.float32]
    rival: NDArray[np.str_]
    state: NDArray[np.str_]
    view: View

    def counts(self, split: str | None = None) -> dict[str, int]:
        """Return how many images, of one `split` or of all, are in each state."""
        seen = Counter(self.state[self.split == split] if split else self.state)
        return {state: seen[state] for state in STATES}

    def csv(self) -> str:
        """Return all but the view as the text of a table."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        columns = [getattr(self, name) for name in _COLUMNS]
        for row in zip(*(column.tolist() for column in columns), strict=True):
            writer.writerow([f"{x:.6f}" if isinstance(x, float) else x for x in row])
        return text.getvalue()


def attach_masks(
    target: Path, source: ImageSet, out: Path, *, progress: ProgressFactory | None = None
) -> Attached:
    """Write the set in `target` once more, with the masks of the pictures it was made from.

    Every array of `target` is kept as it is. ``{split}_masks`` come to it, resized as the images
    were, and ``{split}_has_mask``, which is false where no picture was found for certain. Beside
    `out`, a table of the same name (``.csv``) tells what was found for every image.

    Args:
        target: ``.npz`` in the layout of MedMNIST, without masks; read in pieces.
        source: set with masks, of which the target's images are reduced copies.
        out: the ``.npz`` to write.
        progress: draws the reading and writing.

    Raises:
        ConfigError: `out` is no ``.npz``, or it or the table is there already.
        MissingFileError: there is no file `target`.
        DataError: `target` is no set, or has masks; or `source` has none.

    Example:
        >>> import tempfile, medduet
        >>> folder = Path(tempfile.mkdtemp())
        >>> images = medduet.open_images("phantom", size=64, count=20)
        >>> arrays = {f"{name}_images": images.split(name).images[:, 1::2, 1::2] for name in SPLITS}
        >>> labels = {f"{name}_labels": images.split(name).labels for name in SPLITS}
        >>> np.savez(folder / "small.npz", **arrays, **labels)
        >>> attach_masks(folder / "small.npz", images, folder / "out.npz").counts()
        {'matched': 20, 'ambiguous': 0, 'unmatched': 0, 'no mask': 0}
        >>> medduet.open_images(str(folder / "out.npz")).train.masks.shape
        (14, 32, 32)
    """
    table = out.with_suffix(".csv")
    if out.suffix != ".npz":
        raise ConfigError(f"expected the name of an .npz to write, given {out}: --out {out}.npz")
    if there := next((path for path in (out, table) if path.exists()), None):
        raise ConfigError(f"{there} is there already: delete it, or give another --out")
    if source.train.masks is None:
        raise DataError(f"expected a source with masks, given {source.name}, which has none")
    if not target.is_file():
        raise MissingFileError(f"no file {target}")
    with Archive(target) as archive:
        layouts = find_layout(archive)
        if layouts["train"].masks:
            raise DataError(f"{target} has masks already: {', '.join(layouts['train'].masks)}")
        keys = [key for name in SPLITS for key in layouts[name].images]
        count = sum(layout.shape[0] for layout in layouts.values())
        shape = (count, *layouts["train"].shape[1:])
        pool = source.pool()
        found = match_images(lambda: archive.pixels(keys), shape, pool, progress)
        with atomic_path(out) as path:
            _write(path, target, layouts, found, source, progress)
    ids = pool.ids if pool.ids is not None else np.arange(len(pool)).astype(str)
    lengths = [layouts[name].shape[0] for name in SPLITS]
    attached = Attached(
        split=np.repeat(np.array(SPLITS), lengths),
        index=np.concatenate([np.arange(length) for length in lengths]),
        source=ids[found.rows],
        score=found.score,
        margin=found.margin,
        rival=np.where(found.rivals < 0, "", ids[found.rivals]),
        state=found.state,
        view=found.view,
    )
    write_text(table, attached.csv())
    return attached


def _write(
    path: Path,
    target: Path,
    layouts: dict[str, SplitLayout],
    found: Matches,
    source: ImageSet,
    progress: ProgressFactory | None,
) -> None:
    """Write the members of `target`, then masks, into the archive at `path`."""
    total = target.stat().st_size
    with (
        ZipFile(target) as old,
        ZipFile(path, "w", ZIP_DEFLATED) as new,
        counted(progress, "write masks", total + len(found.rows)) as done,
    ):
        for info in old.infolist():
            if info.filename != "mask_names.npy":  # those of a set without masks say nothing
                kept = ZipInfo(info.filename, info.date_time)
                kept.compress_type = info.compress_type
                with old.open(info) as given, new.open(kept, "w", force_zip64=True) as copy:
                    shutil.copyfileobj(given, copy, 1 << 20)
            done(info.compress_size)
        start = 0
        for name, layout in layouts.items():
            length, size = layout.shape[0], layout.shape[1:3]
            part = slice(start, start + length)
            known = found.state[part] == MATCHED
            _add(new, f"{name}_has_mask", np.dtype(bool), (length,), iter([known]))
            masks = _masks(found.rows[part], known, source, found.view)
            _add(new, f"{name}_masks", np.dtype(np.uint8), (length, *size), masks)
            start += length
            done(length)
        names = np.array(source.mask_names)
        _add(new, "mask_names", names.dtype, names.shape, iter([names]))


def _masks(
    rows: NDArray[np.int64], known: NDArray[np.bool_], source: ImageSet, view: View
) -> Iterator[NDArray[np.uint8]]:
    """Give the masks of the source's `rows` as the view shows them; zero where not `known`."""
    masks = source.pool().masks
    if masks is None:
        return
    step = min(rows_per_chunk(masks.shape), rows_per_chunk((1, *view.size)))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        yield view.masks(masks[rows[part]]) * known[part, None, None]


def _add(
    archive: ZipFile,
    key: str,
    dtype: np.dtype[np.generic],
    shape: tuple[int, ...],
    parts: Iterator[NDArray[np.generic]],
) -> None:
    """Write the array `key`, given in parts, as one member."""
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    member = ZipInfo(f"{key}.npy")  # without the time, so that the same masks are the same file
    member.compress_type = ZIP_DEFLATED
    with archive.open(member, "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(part.tobytes())
