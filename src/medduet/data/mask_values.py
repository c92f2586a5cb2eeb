"""Decides what the values of masks mean, over all masks of a set.

What is stated counts (``--data.mask-values``). Else:

- Palettes stand for their indices if all files have the same one, else for their colours.
- One value beside 0, whatever it is, is the lesion.
- 255 beside values of up to 63 in one file marks pixels to ignore, as in Pascal VOC.
- Other values of up to 63 are classes; greater ones, as 128 and 255, too if they are few.
- Where compression or resizing left levels in between, the upper half is the lesion.

What can be read in two ways is a DataError that asks: masks without background, objects numbered
one by one, black and white that look swapped.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from medduet.data.reading.masks import COLOURED, MaskClasses, MaskValues
from medduet.errors import DataError
from medduet.types import IGNORED_MASK

BACKGROUND, IGNORE, OTHERS = "background", "ignore", "*"
_MOST_CLASSES = 63
_MOST_CODES, _LEAST_GAP = 16, 16  # beyond 63: how many, and how far apart
_MOST_BETWEEN = 0.25  # share of the foreground with levels in between, if they are its edges
_AROUND = 0.5, 0.9  # shares of all and of the outermost pixels that a lesion has in few masks
_NUMBERED = 5  # classes from which on 1; 1, 2; 1, 2, 3; ... in the files are objects


class Meaning(NamedTuple):
    """What the values of masks mean: to the reader of files, and in words, value by value."""

    classes: MaskClasses
    words: dict[str, str]

    @property
    def mask_names(self) -> list[str]:
        """Names of the mask classes, background first."""
        named = {BACKGROUND: None, **dict.fromkeys(self.words.values())}
        return [name for name in named if name != IGNORE]


def meaning_of(name: str, files: Mapping[Path, MaskValues], stated: str | None = None) -> Meaning:
    """Decide what the values of the mask files of the set called `name` mean.

    Args:
        name: of the set, for messages.
        files: their values.
        stated: as `medduet.DataConfig.mask_values`.

    Raises:
        DataError: they can be read in two ways, or are not what is stated.

    Example:
        >>> values, counts = np.array([0, 128]), np.array([9, 1])
        >>> file = MaskValues(values, COLOURED + 0x010101 * values, counts, counts, lossy=False)
        >>> meaning_of("scans", {Path("a.png"): file}).words
        {'0': 'background', '128': 'lesion'}
    """
    if stated:
        return _stated(name, files, dict(part.rsplit(":", 1) for part in stated.split(",")))
    by_colour = _palettes_differ(files)
    masks = _Masks(name, files, by_colour)
    values = masks.values.tolist()
    if by_colour:
        if values[0] != COLOURED or masks.lossy or len(values) > _MOST_CODES:
            masks.ask("colours are classes if they are few, and one of them is black")
        return _named(masks, values)
    ignored = values[-1] == IGNORED_MASK and len(values) > 2 and values[-2] <= _MOST_CLASSES
    has_edges = masks.lossy or (_is_soft(values) and not ignored)
    if values[0] > has_edges * values[-1] / 4:
        masks.ask("none of them is 0, the background")
    if has_edges:
        return _halved(masks)
    if ignored:
        if not any(IGNORED_MASK in each and len(each - {0, IGNORED_MASK}) for each in masks.parts):
            masks.ask(f"{values[-2]} and {IGNORED_MASK} may be one class; no file has both")
        return _named(masks, values[:-1], ignored=[IGNORED_MASK])
    return _named(masks, values)


class _Masks:
    """The values of all masks of a set, and how many pixels have each."""

    def __init__(self, name: str, files: Mapping[Path, MaskValues], by_colour: bool) -> None:
        self.name, self.by_colour, self.files = name, by_colour, files
        every = list(files.values())
        parts = [file.colours if by_colour else file.values for file in every]
        self.parts = [set(part.tolist()) for part in parts]
        self.lossy = any(file.lossy for file in every)
        self.values, inverse = np.unique(np.concatenate(parts), return_inverse=True)
        self.pixels = np.bincount(inverse, np.concatenate([file.pixels for file in every]))
        self.outermost = np.bincount(inverse, np.concatenate([file.outermost for file in every]))

    def ask(self, reason: str) -> NoReturn:
        """Raise a DataError that says how to state what the most frequent values mean."""
        texts = [_text(value) for value in self.values.tolist()]
        shades, most = self.values[:, None] >> (16, 8, 0) & 255, [int(self.outermost.argmax())]
        apart = 4 * _LEAST_GAP if len(texts) > _MOST_CODES else 1  # of many, most are edges
        for k in np.argsort(-self.pixels, kind="stable").tolist():
            if len(most) < 4 and np.abs(shades[most] - shades[k]).max(axis=1).min() >= apart:
                most.append(k)
        names = [BACKGROUND, *(["lesion"] if len(most) == 2 else ["NAME1", "NAME2", "NAME3"])]
        codes = zip((texts[k] for k in [most[0], *sorted(most[1:])]), names, strict=False)
        named, others = ",".join(map(":".join, codes)), f"{texts[most[0]]}:{BACKGROUND},*:lesion"
        few = len(texts) <= 4 or _is_soft(self.values.tolist())
        example = f"{named} (or {others})" if few else others
        example = named if len(texts) == 2 or self.lossy else example
        shown = ", ".join(texts if len(texts) <= 8 else [*texts[:5], "...", *texts[-2:]])
        raise DataError(
            f"{self.name}: expected masks that can be read in one way, given the values {shown}: "
            f"{reason}; say what they mean, as in --data.mask-values {example}"
        )


def _palettes_differ(files: Mapping[Path, MaskValues]) -> bool:
    """Return whether values don't tell classes apart, but the colours that they stand for do."""
    colour_of: dict[int, int] = {}
    for file in files.values():
        for value, colour in zip(file.values.tolist(), file.colours.tolist(), strict=True):
            if value >= COLOURED or colour_of.setdefault(value, colour) != colour:
                return True
    twice = len(set(colour_of.values())) < len(colour_of)
    return twice or (COLOURED in colour_of.values() and colour_of.get(0, COLOURED) != COLOURED)


def _is_soft(values: list[int]) -> bool:
    """Return whether values are rather levels between black and white than codes of classes."""
    near = min(np.diff(values), default=_LEAST_GAP) < _LEAST_GAP
    return values[-1] > 2 * _MOST_CLASSES and (len(values) > _MOST_CODES or bool(near))


def _halved(masks: _Masks) -> Meaning:
    """Take the upper half for the lesion; ask where much lies in between."""
    values, top = masks.values, int(masks.values[-1])
    if top <= _MOST_CLASSES:
        masks.ask("lossy compression, as in JPEG, changed them; save masks as PNG")
    foreground, sure = values >= top / 4, values >= 3 * top / 4
    low = values[~foreground & (values > 0)]
    if len(low) and foreground.sum() == 1 and not masks.lossy:
        masks.ask(f"{', '.join(map(str, low[-3:]))} and {top} may be classes, or edges of one")
    if masks.pixels[foreground & ~sure].sum() > _MOST_BETWEEN * masks.pixels[foreground].sum():
        masks.ask(f"too many pixels lie between 0 and {top} for edges")
    half = (top + 1) // 2
    words = {f"0 to {half - 1}": BACKGROUND, f"{half} to {top}": "lesion"}
    return _named(masks, [0, top])._replace(words=words)


def _named(masks: _Masks, values: list[int], ignored: list[int] | None = None) -> Meaning:
    """Take each value for a class, the first for the background; ask if that is not likely."""
    numbers, count = values[1:], len(masks.files)
    objects = "they look like numbers of objects"
    each = [part - {0, IGNORED_MASK} for part in masks.parts]
    in_order = all(part == {*range(1, len(part) + 1)} for part in each)
    if 2 < count < len(numbers) or len(numbers) > _MOST_CLASSES:
        masks.ask(f"{len(numbers)} classes in {count} masks are many, {objects}")
    if len(numbers) >= _NUMBERED and in_order and len(set(map(len, each))) > 2:
        masks.ask(f"1, 2, 3, ... in each file: {objects}")
    several = len(numbers) > 1
    names = {value: f"mask {_text(value)}" if several else "lesion" for value in numbers or [1]}
    words = {values[0]: BACKGROUND, **names, **dict.fromkeys(ignored or [], IGNORE)}
    meaning = _meaning(words, masks.by_colour)
    for value in [*words][1:]:
        around = [path for path, file in masks.files.items() if _is_around(file, value, meaning)]
        if len(around) > count / 10:
            masks.ask(
                f"in {len(around)} of {count} masks, such as {around[0].name}, most pixels, and "
                f"nearly all at the border, are {_text(value)}, as if it were the background; if "
                "it is not in other masks, invert these"
            )
    return meaning


def _is_around(file: MaskValues, value: int, meaning: Meaning) -> bool:
    """Return whether a mask has the class of `value` where the background is, but not all over."""
    classes = meaning.classes.of(file.colours if meaning.classes.by_colour else file.values)
    chosen = classes == meaning.classes.of(np.array([value]))
    inside, outside = (of[chosen].sum() / of.sum() for of in (file.pixels, file.outermost))
    return bool(_AROUND[0] < inside < 1 and outside > _AROUND[1])


def _stated(name: str, files: Mapping[Path, MaskValues], words: dict[str, str]) -> Meaning:
    named = {_value(text): word for text, word in words.items() if text != OTHERS}
    by_colour = any(value >= COLOURED for value in named)
    masks = _Masks(name, files, by_colour)
    if not by_colour and _palettes_differ(files):
        _Masks(name, files, by_colour=True).ask("palettes differ or are colours, so name colours")
    missing = [value for value in masks.values.tolist() if value not in named]
    if OTHERS in words and masks.lossy:
        masks.ask(f"{OTHERS} would be what lossy compression made of others, too")
    if OTHERS in words:
        named |= dict.fromkeys(missing, words[OTHERS])
    elif missing and not masks.lossy and not _is_soft(masks.values.tolist()):
        parts = zip(masks.files, masks.parts, strict=True)
        file = next(file for file, part in parts if missing[0] in part)
        raise DataError(
            f"{file}: expected the values {', '.join(words)}, given {_text(missing[0])}: add it to "
            f"--data.mask-values, or {OTHERS}:NAME for all others"
        )
    return _meaning(named, by_colour)


def _meaning(named: dict[int, str], by_colour: bool) -> Meaning:
    names = [name for name in {BACKGROUND: 0, **dict.fromkeys(named.values())} if name != IGNORE]
    numbers = {name: number for number, name in enumerate(names)} | {IGNORE: IGNORED_MASK}
    values = np.array(sorted(named), np.int64)
    classes = np.array([numbers[named[value]] for value in values.tolist()], np.uint8)
    words = {_text(value): name for value, name in named.items()}
    return Meaning(MaskClasses(values, classes, by_colour), words)


def _text(value: int) -> str:
    return f"#{value - COLOURED:06x}" if value >= COLOURED else str(value)


def _value(text: str) -> int:
    return int(text[1:], 16) | COLOURED if text.startswith("#") else int(text)
