"""Codes of classes and mask classes: those of a file, DICOM's own, or else private ones.

Source: DICOM PS3.16, CID 7150 (categories of segments) and the groups with their types.
"""

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from medduet.errors import ConfigError, DataError
from medduet.utils.parsing import read_csv

PRIVATE = "99MEDDUET"
_TYPES = {
    "Tissue": 7191,
    "AnatomicalStructure": 7192,
    "PhysicalObject": 7193,
    "BodySubstance": 7197,
}
_TYPES |= {"MorphologicallyAbnormalStructure": 7194, "SpatialAndRelationalConcept": 7196}
_SYNONYMS = dict.fromkeys(("tumor", "tumour", "cancer"), "neoplasm")
_SYNONYMS |= {"vessel": "bloodvessel", "fat": "adiposetissue", "muscle": "muscletissue"}
_SYNONYMS |= {"bone": "bonetissue", "oedema": "edema", "polyp": "lesion", "ulcer": "lesion"}
_NOT_SO = {"no", "non", "not", "normal", "background"}


def read_codes(path: Path, names: Collection[str]) -> dict[str, list[str]]:
    """Return value, scheme, meaning and category ("" if not said) of `names` from a CSV."""
    try:
        rows = read_csv(path, header=None).map(str.strip).to_numpy().tolist()
    except ValueError as error:
        raise DataError(f"{path} can't be read as a table: {error}") from error
    columns = ["name", "value", "scheme", "meaning", "category"]
    for number, row in enumerate(rows):
        expected = f"expected {','.join(columns[:4])}[,category]"
        fits = row in (columns, columns[:4])
        if number:
            category = f"of segments one of {', '.join(_TYPES)}"
            expected = f"expected one of {', '.join(names)}, value, scheme, meaning, and {category}"
            fits = len(row) == len(rows[0]) and row[0] in names and all(row[1:4])
            fits = fits and row[4:] in ([], [""], *([x] for x in _TYPES)) and len(row[2]) <= 16
        if not fits:
            raise ConfigError(f"{path}: {expected}; given {','.join(row)}")
    return {name: [*code, ""][:4] for name, *code in rows[1:]}


def class_code(name: str, codes: Mapping[str, Sequence[str]]) -> Any:
    """Return the code of a class."""
    from highdicom.sr import CodedConcept

    return CodedConcept(*codes[name][:3]) if name in codes else private(name)


def segment_codes(name: str, codes: Mapping[str, Sequence[str]]) -> tuple[Any, Any]:
    """Return category and type of a mask class, of `codes` or by the last words of its name."""
    from pydicom.sr.codedict import codes as standard

    groups = {x: getattr(standard, f"cid{number}").concepts for x, number in _TYPES.items()}
    pairs = reversed(groups.items())  # where several have a type, the first counts
    types = {key.lower(): (x, code) for x, group in pairs for key, code in group.items()}
    words = re.findall("[a-z]+", name.lower())
    ends = ["".join(words[n:]) for n in range(len(words)) if not _NOT_SO & {*words}]
    keys = [_SYNONYMS.get(key, key) for end in ends for key in (end, end.removesuffix("s"))]
    category, kind = next((types[x] for x in keys if x in types), (next(reversed(_TYPES)), None))
    own = codes.get(name, ["", "", "", ""])
    kind = class_code(name, codes) if own[0] or kind is None else kind
    return getattr(standard.cid7150, own[3] or category), kind


def private(meaning: str, value: str = "") -> Any:
    """Return a code of MedDuet's own; without `value` one that no other meaning has."""
    from highdicom.sr import CodedConcept

    value = value or f"M{hashlib.sha256(meaning.encode()).hexdigest()[:12]}"
    return CodedConcept(value, PRIVATE, meaning[:64])
