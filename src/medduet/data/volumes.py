"""Files of several slices as volumes: which belong together, and the voxels they all become."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medduet.config import DataConfig
from medduet.data.listing import Item, Listing
from medduet.data.pixels import for_each_axis
from medduet.data.reading.core import ReadOptions
from medduet.data.reading.masks import Probe
from medduet.data.reading.series import beside_series, is_slice
from medduet.errors import DataError

_ANISOTROPIC, _LOW = 3.0, 10  # times the other distances; percentile
SMALLEST = 16  # side that U-Nets take
_MOST_FLAT, _TOLERANCE = 4, 0.01  # levels that leave an axis alone; of the ratio of spacings
_SHOWN = 0.5, 99.5  # percentiles of the foreground of CT that are black and white


def with_series(listing: Listing, config: DataConfig) -> Listing:
    """Return the listing of a folder with DICOM series, one in each folder, as one item each.

    It stays as it is if there is something else, or masks, or folders without a series.
    """
    is_folder = Path(config.name).expanduser().is_dir()
    if config.dims == 2 or not is_folder or any(item.masks for item in listing.items):
        return listing  # a table lists the folder of a series itself, or means its slices
    folders = defaultdict[Path, list[Item]](list)
    for item in listing.items:
        folders[item.path.parent].append(item)
    series = {folder: beside_series([x.path for x in items]) for folder, items in folders.items()}
    if None in series.values():
        alone = next(x for x, beside in series.items() if beside is None)
        if any(x is not None for x in series.values()) and is_slice(folders[alone][0].path):
            raise DataError(
                f"{alone}: expected the slices of a DICOM series, as in other folders, given "
                f"{folders[alone][0].path.name}: move it away, or --data.dims 2 takes loose images"
            )
        return listing
    items = []
    for folder, (first, *_) in folders.items():
        name, (above, _, last) = str(Path(first.name).parent), first.group.rpartition("/")
        above = above if last == folder.name else first.group
        name = listing.name if name == "." else name
        items.append(first._replace(name=name, path=folder, group=above or first.group))
    notes = [f"{len(items)} folders of DICOM slices, each a volume (--data.dims 2: loose images)"]
    if len(items) > 2 and len({x.labels for x in items} - {None}) == len(items):
        items = [x._replace(labels=None, group="/".join(x.labels or ())) for x in items]
        notes.append("folders have one volume each, so they are no classes")
    if others := [x.name for each in series.values() for x in each or ()]:
        notes.append(f"left out beside slices: {others[0]}" + ", ..." * (len(others) > 1))
    return listing._replace(items=tuple(items), notes=(*listing.notes, *notes))


def volume_options(probes: Sequence[Probe], config: DataConfig) -> tuple[ReadOptions, list[str]]:
    """Return what volumes become, and sentences that say so.

    Without a size that is voxels of one spacing, by default the median of the set, with black
    around all that are smaller than the largest one.
    """
    shapes = np.array([probe.shape for probe in probes])
    without = [probe.kind for probe in probes if not probe.spacing]
    if 0 < len(without) < len(probes):
        raise DataError(
            f"expected the spacing of all volumes, or of none, given none in {len(without)} of "
            f"{len(probes)} files, such as {without[0]}: save them as NIfTI with their affine"
        )
    spacings = np.array([probe.spacing or (1.0, 1.0, 1.0) for probe in probes])
    if config.fit == "crop" or config.fit == "longest" or config.channels == 3:
        raise DataError("volumes are grey, padded or stretched: omit --data.fit and channels")
    sides, target = config.size and for_each_axis(config.size, 3), None
    how = "fitted into" if config.fit == "pad" else "stretched to"
    if config.spacing is not None or sides is None:
        target = config.spacing and for_each_axis(config.spacing, 3, "spacing")
        of_set = "" if target else ", the median of the set"
        target = target or common_spacing(spacings, shapes)
        largest = np.maximum(np.rint(shapes * spacings / target), 1).max(axis=0)
        sides = tuple(np.maximum(largest, sides or SMALLEST).astype(int).tolist())
        how = f"in voxels of {' x '.join(f'{x:.3g}' for x in target)} mm{of_set}, within"
        how = "of unknown spacing, within" if without else how
    notes = [f"{len(probes)} volumes (slices, rows, columns) {how} {' x '.join(map(str, sides))}"]
    if any(flat := flat_levels(target)):
        levels = " ".join(map(str, flat))
        notes.append(f"levels that leave thick axes alone in MedDuet's U-Nets: {levels}")
    return ReadOptions(sides, config.fit, spacing=target), notes


def common_window(
    samples: Sequence[NDArray[np.float32]],
) -> tuple[tuple[float, float] | None, str]:
    """Return the window, centre and width, that all volumes of CT share, and a note.

    It reaches from the percentile 0.5 to 99.5 of values of the foreground, at which nnU-Net clips;
    ``None`` where these are equal, or there are no values.

    Example:
        >>> common_window([np.arange(1001, dtype=np.float32) - 500])[0]
        (0.0, 990.0)
    """
    values = [sample for sample in samples if sample.size] or [np.zeros(1, np.float32)]
    ends = np.percentile(np.concatenate(values), _SHOWN)
    low, high = (float(f"{end:.4g}") for end in ends)
    if low == high:
        return None, "CT: each volume by its own window or range, as no values tell a common one"
    shown = "percentiles 0.5 and 99.5 of the foreground"
    note = f"CT: {low:g} is black and {high:g} white in all volumes, {shown}"
    return ((low + high) / 2, high - low), note


def flat_levels(spacing: Sequence[float] | None) -> tuple[int, ...]:
    """Return how often a network halves the other axes first, until voxels are about cubes.

    Example:
        >>> flat_levels((5.0, 1.0, 1.2))
        (2, 0, 0)
    """
    ratios = np.divide(spacing or (1.0, 1.0, 1.0), min(spacing or (1.0,)))
    return tuple(int(level) for level in np.log2(ratios + _TOLERANCE).clip(max=_MOST_FLAT))


def common_spacing(spacings: NDArray[np.float64], shapes: NDArray[np.int64]) -> tuple[float, ...]:
    """Return the spacing to which volumes are resampled, of spacings and shapes ``(N, 3)``.

    It is the median, but of an axis with thick slices the 10th percentile, as in nnU-Net: one whose
    spacing is more than 3 times that of the others, and which has less than a third of the voxels.

    Example:
        >>> spacings = np.array([(1.0, 1, 1), (1.2, 1, 1), (5.0, 1, 1)])
        >>> common_spacing(spacings, np.full((3, 3), 64))
        (1.2, 1.0, 1.0)
    """
    target = np.median(spacings, axis=0)
    worst = int(target.argmax())
    others = [axis for axis in range(3) if axis != worst]
    voxels = np.median(shapes * spacings / target, axis=0)
    thick = target[worst] > _ANISOTROPIC * target[others].max()
    if thick and voxels[worst] * _ANISOTROPIC < voxels[others].min():
        lower = float(np.percentile(spacings[:, worst], _LOW))
        target[worst] = max(lower, target[others].max())
    return tuple(target.tolist())
