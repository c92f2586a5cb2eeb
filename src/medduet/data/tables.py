"""Which images a table has, and what is known of each.

A table (CSV) has one row per image, and names of columns in its first line: ``path``, and where
known ``label`` (or ``labels``: several, separated by ``|``), ``mask`` (one or more, separated by
``|``), ``group`` and ``split``; or other usual names of these, or a column of 0 and 1 per class.
"""

import csv
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache, partial
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from medduet.data.folders import CHANNEL, MASK_FOLDER, further_channels, groups_by_name, stem_of
from medduet.data.imageset import SPLITS
from medduet.data.listing import DATASET, SPLIT_OF, Item, Listing
from medduet.errors import DataError, MissingFileError

_COLUMNS = {  # in lower case, letters and digits alone, the best first
    "path": "path filepath imagepath imagefilepath image img filename imagefile imagename imageid "
    "imgid imageindex isicid dicomid file idcode id",
    "label": "label class diagnosis diagnostic dx target category pathology",
    "labels": "labels findinglabels",
    "mask": "mask masks maskpath maskfile maskname segmentation roimaskfilepath",
    "split": "split subset partition",
}
_WIDEST_FIRST = "group|patient|pat|subject|participant|person|case|study|exam|slide|lesion"
_GROUP = re.compile(rf"({_WIDEST_FIRST})(id|no|nr|num|number|name|code|(instance)?uid)?")
_NO_CLASS = {"sex", "gender", "male", "female", "fold", "train", "val", "valid", "test"}  # of 0, 1
_MAY_BE_CLASS = re.compile(
    r"(?i)(benign_)?malignan(t|cy)|diagnosis(_\d)?|birads|(\w+_)?grade|histology"
)
_BIT = {"0": False, "1": True, "false": False, "true": True, "falsch": False, "wahr": True}
_MISSING = re.compile(r"-?nan|#?n/?a|<na>|null|(?-i:None)", re.IGNORECASE)  # as in pandas
_WHOLE = re.compile(r"(-?\d+)(\.0*|,00?)")  # pandas writes 1 as 1.0 where another is missing
_DECIMAL = re.compile(r"[-+]?\d*[.,]\d+(e[-+]?\d+)?", re.IGNORECASE)
_DEEPEST = 4  # levels of folders that are searched for a name

Labels = list[tuple[str, ...] | None]
Roles = dict[str, list[int]]  # columns by what they say


class _Table(NamedTuple):
    """Cells by column, and the line of each row; what is missing is ``?``, or empty."""

    path: Path
    header: list[str]
    cells: list[tuple[str, ...]]
    lines: list[int]
    notes: list[str]

    def error(self, expected: str, row: int | None = None) -> DataError:
        where = "" if row is None else f", line {self.lines[row]}"
        return DataError(f"{self.path}{where}: expected {expected}")

    def names(self, places: Sequence[int]) -> str:
        return ", ".join(self.header[i] for i in places)

    def known(self, places: Sequence[int]) -> list[str]:
        """Return a cell of each row, from the first of these columns that has one, or ``""``."""
        rows = zip(*(self.cells[i] for i in places), [""] * len(self.lines), strict=True)
        return [next((cell for cell in row if cell not in ("", "?")), "") for row in rows]


def list_table(path: Path) -> Listing:
    """List the images of a CSV; see the module for its columns.

    A cell is unknown if it is empty, ``?``, ``nan`` or ``NA``; but empty ``labels`` are none of the
    classes. Paths are relative to the table; a name is enough, even without its ending, if only one
    file below the table has it. Files that are not there are faults.

    Raises:
        MissingFileError: there is no such table.
        DataError: it is none, or can be read in two ways.
    """
    table = _read(path)
    roles = _roles(table)
    labels, multi_label = _labels(table, roles)
    _add_notes(table, roles, labels, multi_label)
    names = [name.replace("\\", "/") for name in table.known(roles["path"])]
    masks = [_several(cell.replace("\\", "/")) for cell in table.known(roles["mask"])]
    groups, splits = [*map(_whole, table.known(roles["group"]))], table.known(roles["split"])
    if not roles["group"] and any(groups := groups_by_name([*map(Path, names)])):
        table.notes.append(f"names tell patients apart, such as {next(filter(None, groups))}")
    images, drawn = _find(table, names, [*chain(*masks)])
    items, faults = dict[Path, Item](), list[tuple[str, str]]()
    for row, (name, split) in enumerate(zip(names, map(str.lower, splits), strict=True)):
        if split and split not in SPLIT_OF:
            raise table.error(f"split {', '.join(SPLITS)}, given '{splits[row]}'", row)
        if not name:
            raise table.error("the path of an image, given none", row)
        files = [images.get(name), *map(drawn.get, masks[row])]
        if None in files:
            absent = [name, *masks[row]][files.index(None)]
            faults.append((name, f"line {table.lines[row]}: there is no file {absent}"))
            continue
        image, *of_image = filter(None, files)
        if image in of_image:
            raise table.error(f"an image and its mask, given one file for both, {image.name}", row)
        if image in items:
            remedy = "write one row per image, and | between several masks or labels"
            raise table.error(f"another image, given {name} again: {remedy}", row)
        split = SPLIT_OF.get(split, "")
        items[image] = Item(name, image, tuple(of_image), labels[row], groups[row], split)
    if not items:
        absent = f"there is no file {names[0]}: put the table into the folder above its images"
        raise table.error(f"paths relative to the table, but {absent}", 0)
    if len({bool(item.split) for item in items.values()}) > 1:
        raise table.error("a split for every image or for none, given it for some")
    folders = {image.parent for image in items if CHANNEL.fullmatch(stem_of(image))}
    beside = [file for folder in folders for file in folder.iterdir()]
    stems = {stem_of(mask) for item in items.values() for mask in item.masks}
    further = further_channels(beside, None if (path.parent / DATASET).is_file() else stems)
    if both := items.keys() & further:
        raise table.error(f"first channels, NAME_0000, alone, given {min(both).name}, too")
    more, notes = Counter(further.values()), tuple(table.notes)
    listed = tuple(item._replace(channels=1 + more[image]) for image, item in items.items())
    return Listing(path.stem, listed, multi_label, tuple(faults), notes)


def _read(path: Path) -> _Table:
    """Return the cells of a table, whose rows are all as long as its first line."""
    if not path.is_file():
        raise MissingFileError(f"expected a table at {path}, but there is no such file")
    content, rows, table = path.read_bytes(), list[list[str]](), _Table(path, [], [], [], [])
    try:
        utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except ValueError:
        text = content.decode("cp1252", "replace")
        table.notes.append("not in UTF-8, so read as Windows-1252: check letters with accents")
    if "\0" in text:
        raise table.error("text (save a spreadsheet as CSV UTF-8), given other bytes")
    first, end = next((line for line in text.splitlines() if line.strip()), ""), 0
    separator, lines = max(",;\t|", key=first.count), StringIO(normalize("NFC", text), newline="")
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    try:
        for row in reader:
            cells, line, end = [cell.strip() for cell in row], end + 1, reader.line_num
            while len(cells) > len(table.header) and not cells[-1]:
                cells.pop()
            if not table.header:
                table.header.extend(re.sub(r"^Unnamed: \d+$", "", cell) for cell in cells)
            elif any(cells):
                table.lines.append(line)
                rows.append(["?" if _MISSING.fullmatch(cell) else cell for cell in cells])
                if len(cells) != (columns := len(table.header)):
                    remedy = f"one with '{separator}' in it needs quotes, an empty one its place"
                    raise table.error(f"{columns} cells, given {len(cells)}: {remedy}", -1)
    except csv.Error as error:
        reason = f"line {end + 1}: expected quotes around a whole cell or none ({error})"
        raise DataError(f"{path}, {reason}") from error
    if not rows:
        raise table.error("one row per image under a line of names, given none")
    table.cells.extend(zip(*rows, strict=True))
    return table


def _roles(table: _Table) -> Roles:
    """Return the columns that are used, by what they say."""
    keys = [re.sub(r"[\W_]+", "", name).lower() for name in table.header]
    roles = {
        role: [i for name in names.split() for i, key in enumerate(keys) if key == name]
        for role, names in _COLUMNS.items()
    }
    classes = roles["label"] + roles["labels"]
    classes = [i for i in classes if keys[i] in ("label", "labels")] or classes
    if len(classes) > 1:
        remedy = "keep one, called label (or labels, if an image can have several)"
        raise table.error(f"one column of classes, given {table.names(classes)}: {remedy}")
    if not roles["path"]:
        given = table.names(range(len(keys)))
        raise table.error(f"a column path, named in the first line, given {given}: rename one")
    for role, places in roles.items():
        places[:] = [i for i in places if i in classes or not role.startswith("label")][:1]
    groups = {i: match[1] for i, key in enumerate(keys) if (match := _GROUP.fullmatch(key))}
    roles["group"] = []
    for i in sorted(groups, key=lambda i: _WIDEST_FIRST.index(groups[i])):
        roles["group"].append(i)  # a narrower one tells where a wider one is missing
        if all(table.known([i])):
            break
    return roles


def _labels(table: _Table, roles: Roles) -> tuple[Labels, bool]:
    """Return the classes of each row, and whether an image can have several."""
    several, labels = bool(roles["labels"]), Labels()
    if not (places := roles["label"] + roles["labels"]):
        return _one_hot(table, roles)
    cells = table.cells[places[0]]
    other_marks = several and not any("|" in cell for cell in cells)
    for row, cell in enumerate(cells):
        names = tuple(_whole(name) for name in _several(cell))
        if len(names) > 1 and not several:
            remedy = "call the column labels if an image can have several"
            raise table.error(f"one class, given '{cell}': {remedy}", row)
        if other_marks and re.search("[;,[]", cell):
            raise table.error(f"| between classes, given '{cell}'", row)
        if any(map(_DECIMAL.fullmatch, names)):
            remedy = "give ranges of numbers names, such as low and high"
            raise table.error(f"a class, given the number {cell}: {remedy}", row)
        if any(stem_of(Path(name)) != Path(name).name for name in names):
            raise table.error(f"a class, given the file {cell}: call the column mask", row)
        labels.append(names if cell != "?" and (names or several) else None)
    return labels, several


def _one_hot(table: _Table, roles: Roles) -> tuple[Labels, bool]:
    """Return the classes of each row from columns of 0 and 1, if there are several."""
    bits = [[_BIT.get(x := _whole(cell).lower(), x) for cell in cells] for cells in table.cells]
    named = {i for i, name in enumerate(table.header) if name and name.lower() not in _NO_CLASS}
    rest = sorted(named - {*chain(*roles.values())})
    places = [i for i in rest if {True, False} <= {*bits[i]} <= {True, False, "", "?", "-1"}]
    if len(places) < 2:
        return [None] * len(table.lines), False
    if others := [i for i in rest if i not in places and _MAY_BE_CLASS.fullmatch(table.header[i])]:
        given = f"0 and 1 in {table.names(places)}, and {table.names(others)}"
        raise table.error(
            f"classes that can be told apart, given {given}: call one column label, or remove it"
        )
    roles["class"], labels = places, Labels()
    for row, values in enumerate(zip(*(bits[i] for i in places), strict=True)):
        unknown = [value for value in values if isinstance(value, str)]
        if unknown and {*values} - {"", "?"}:
            remedy = "write one of them, or remove columns that are no classes"
            given = f"0 or 1 in columns {table.names(places)}, given '{unknown[0]}'"
            raise table.error(f"{given}: {remedy}", row)
        classes = tuple(table.header[i] for i, bit in zip(places, values, strict=True) if bit)
        labels.append(None if unknown else classes)
    several = any(len(names or ()) > 1 for names in labels)
    if () in labels and not several:
        remedy = "add a column for images of no class, or write labels instead, where it is empty"
        given = f"a 1 in one of the columns {table.names(places)}, given none"
        raise table.error(f"{given}: {remedy}", labels.index(()))
    return labels, several


def _add_notes(table: _Table, roles: Roles, labels: Labels, multi_label: bool) -> None:
    """Note how columns are read, and what may be wrong with the classes."""
    used = {*chain(*roles.values())}
    rest = [i for i, name in enumerate(table.header) if i not in used and name]
    said = [
        f"{table.names(places)} read as {role}"
        for role, places in roles.items()
        if [table.header[i].lower() for i in places] not in ([], [role])
    ]
    if said := said + [f"not used: {table.names(rest)}"] * bool(rest):
        table.notes.append(f"columns: {'; '.join(said)}")
    if multi_label:
        several = sum(len(names or ()) > 1 for names in labels)
        table.notes.append(f"images of several classes: {several}, of none: {labels.count(())}")
    alike: dict[str, Counter[str]] = defaultdict(Counter)
    for name in chain(*filter(None, labels)):
        alike[re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", name).casefold()][name] += 1
    for counts in (counts for counts in alike.values() if len(counts) > 1):
        names = ", ".join(f"{name} ({count})" for name, count in counts.items())
        table.notes.append(f"classes that differ only in case or spacing: {names}")


def _whole(cell: str) -> str:
    return match[1] if (match := _WHOLE.fullmatch(cell)) else cell


def _several(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split("|") if part.strip()))


def _find(table: _Table, images: list[str], masks: list[str]) -> list[dict[str, Path]]:
    """Return the file of each image, and of each mask, that is there; DataError if there are two.

    Folders that all paths begin with are left out if nothing is there.
    """
    root, below = table.path.parent, cache(partial(_files_below, table.path.parent))

    def candidates(path: Path, of_masks: bool, anywhere: bool) -> list[Path]:
        for file in (root / normalize(form, str(path)) for form in ("NFC", "NFD")):
            if os.path.isfile(file):  # noqa: PTH113 - no error if no file can be called so
                return [file]
        hits = sorted(below().get(path.as_posix().casefold(), ()))
        folders = [hit.relative_to(root).parts[:-1] for hit in hits]
        drawn = [any(map(MASK_FOLDER.fullmatch, names)) for names in folders]
        alike = [hit for hit, is_mask in zip(hits, drawn, strict=True) if is_mask == of_masks]
        is_series = not of_masks and os.path.isdir(root / path)  # noqa: PTH112 - likewise
        if is_series and not alike:
            return [root / path]
        return alike or hits * anywhere

    result = []
    for names, of_masks in ((images, False), (masks, True)):
        parts, files = {name: Path(name).parts for name in names if name}, dict[str, list[Path]]()
        for skipped in range(max(map(len, parts.values()), default=0)):
            if len({each[:skipped] for each in parts.values()}) > 1 or any(files.values()):
                break
            below_here = {name: Path(*each[skipped:]) for name, each in parts.items()}
            # A missing image is not the mask of its name, unless all lie in a folder of masks.
            for anywhere in (of_masks, True):
                if not any(files.values()):
                    files = {x: candidates(y, of_masks, anywhere) for x, y in below_here.items()}
            if skipped and any(files.values()):
                start = Path(*next(iter(parts.values()))[:skipped])
                table.notes.append(f"{start} is left out of all paths, as it is not here")
        for name, hits in files.items():
            if len(hits) > 1:
                shown = " or ".join(str(hit.relative_to(root)) for hit in hits[:2])
                raise table.error(f"one file called {name}, given {shown}: write its folder")
        result.append({name: hits[0] for name, hits in files.items() if hits})
    return result


def _files_below(root: Path) -> dict[str, set[Path]]:
    """Return files by path and by name, each with and without its ending, in lower case."""
    files: dict[str, set[Path]] = defaultdict(set)
    for folder, folders, names in os.walk(root, followlinks=True):
        place = Path(folder).relative_to(root)
        deeper = len(place.parts) < _DEEPEST
        folders[:] = [name for name in folders if deeper and not name.startswith(".")]
        for path in (place / name for name in names):
            stem = path.with_name(stem_of(path))
            for key in (path.name, stem.name, path.as_posix(), stem.as_posix()):
                files[normalize("NFC", key.replace("\\", "/")).casefold()].add(root / path)
    return files
