"""How files and folders are named: which are images, which are masks, and which belong together.

A mask is called after its image, as ``X_mask``, ``X-Segmentation``, ``X_gt_2`` or ``mask_X``, or it
lies in a folder for masks. At any level there may be ``images`` and ``masks`` (or ``labels``,
``gt``, ...), or ``X`` (or ``X_images``) and ``X_masks``, or nnU-Net's ``imagesTr`` and
``labelsTr``. These words are left out of a path, and the folders that remain are the place of a
file: ``ill/masks/a.png`` is at ``ill``. A mask belongs to the image of its name at its place, or
else below it.
"""

import re
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from gzip import BadGzipFile
from pathlib import Path

from medduet.errors import DataError, MissingFileError
from medduet.utils.files import unpacked
from medduet.utils.parsing import as_text

_ENDING = re.compile(
    r"(?<=.)\.(png|jp(e?g|e)|jfif|tiff?|bmp|gif|webp|mh[ad]|n(rrd|hdr)"
    r"|(nii|(?P<dicom>dcm|dicom|ima))(\.gz)?)$",
    re.IGNORECASE,
)
_UNREAD = re.compile(  # images that can't be read, but are named
    r"(?i)\.(p[bgnp]m|jp2|jxl|hei[cf]|avif|psd|svs|ndpi|mrxs|czi|hdr|img|mgz|mnc|npy|mat|mp4|avi)$"
)
_SOP_CLASS = re.compile(  # of the file, or of a data set: explicit, implicit or big-endian
    rb"(?:\x02\0\x02\0UI..|\x08\0\x16\0(?:UI..|..\0\0)|\0\x08\0\x16UI..)([\d.]+)", re.DOTALL
)
_MASK = (
    r"masks?|masken?|msks?|segs?|segm|segmentations?|gts?|ground[ _-]?truths?|labels?|annots?"
    r"|annos?|annotations?|ann(?=[ _-]dir)|manual|掩膜|掩码|标注|标签"
)
_IMAGE = r"images?|imgs?|inputs?|data|originals?|bild(er)?|图像|图片|原图"
_SPLIT = r"tr|train([ _-]?val|ing)?|val(id(ation)?)?|va|eval(uation)?|ts|test(ing)?"
_MASK_FILES = (
    re.compile(rf"(?P<of>.+)[ _.-]({_MASK})([ _.-]*(\(?\d+\)?|left|right|l|r))?", re.IGNORECASE),
    re.compile(rf"({_MASK})[ _.-](?P<of>.+)", re.IGNORECASE),
    re.compile(rf"(?P<of>)({_MASK})", re.IGNORECASE),
)
_START, _END = r"(?<![^\W\d_])", r"(?![^\W\d_])"  # no letter before, and after
MASK_FOLDER, _IMAGE_FOLDER = (
    re.compile(rf"(?P<of>.*{_START}|{_SPLIT})({words}){_END}(?P<more>.*)", re.IGNORECASE)
    for words in (_MASK, _IMAGE)
)
_INNER = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]{2})")  # JPEG|Images
_SPLIT_WORD = re.compile(rf"{_START}({_SPLIT}){_END}", re.IGNORECASE)
CHANNEL = re.compile(r"(?P<of>.+)_(?P<number>\d{4})")
"""Of nnU-Net: the image ``X_0000`` is the first channel of X, whose mask is called X."""
_PERSON = (
    r"(tcga|video|slide|patient|pat|subject|subj|sub|participant|person|case|subset)"
    r"[\W_]*([a-z]{0,3}[\W_]+)?"
)
PATIENT = re.compile(rf"{_PERSON}\d.*", re.IGNORECASE)
"""Names of folders that are of one patient, such as ``patient0001`` and ``TCGA_CS_4941``."""

_PICTURE = r"slice|slc|frame|tile|patch|-(40|[124]00)X?-"  # of several, or a magnification
_OF_ONE = (
    (rf"(?P<of>(.*?[\W_])?{_PERSON}(?!(19|20)\d\d(?!\d))\d+)[\W_].+", 3),
    (rf"(?P<of>.*\d([^\W_]*[^\W_])?)[\W_]*({_PICTURE})[\W_]*\d+.*", 6),
    (r"(?P<of>.*\d)[\W_]+(left|right|[lr]|o[ds])([\W_].*)?", 6),
    (r"(?P<of>.*[^\W\d][-_](?!(19|20)\d\d[-_])\d{4,7})[-_]\d+", 6),  # CNV-1016042-1 of OCT2017
)
"""Names of files of which a patient has several, and of how many patients they must be at least."""

Place = tuple[str, ...]


def further_channels(
    paths: Collection[Path], of: Collection[str] | None = None
) -> dict[Path, Path]:
    """Return the files of further channels (`CHANNEL`), each with that of the first beside it.

    Only those of images called `of` are returned, or all for ``None``.
    """
    matches = {path: CHANNEL.fullmatch(stem_of(path)) for path in paths}
    named = {path: match for path, match in matches.items() if match}
    firsts = {(x.parent, m["of"]): x for x, m in named.items() if not int(m["number"])}
    return {
        path: firsts[path.parent, match["of"]]
        for path, match in named.items()
        if int(match["number"]) and (path.parent, match["of"]) in firsts
        if of is None or match["of"] in of
    }


def _kind_of(path: Path) -> str | None:
    """Return "image", what a file is instead, such as "RT Dose" or ".jp2", or None for no image.

    Endings tell, and where they don't, or say DICOM, the content.
    """
    ending, head = _ENDING.search(path.name), b""
    if ending and not ending["dicom"]:
        return "image"
    # Where the name says it is an image, reading it tells what is wrong with it.
    with suppress(EOFError, BadGzipFile, zlib.error, *[OSError] * bool(ending)):
        if path.is_file():
            with path.open("rb") as file:
                head = unpacked(file).read(1024)
    sop_class = _SOP_CLASS.search(head)
    bare = sop_class and head[:2] in (b"\x02\0", b"\x08\0", b"\0\x08")
    if not (ending or bare or head[128:132] == b"DICM"):
        return unread[0].lower() if (unread := _UNREAD.search(path.name)) else None
    with suppress(ImportError):
        from pydicom.uid import UID

        name = UID(sop_class[1].decode()).name if sop_class else ""
        if name.endswith("Storage") and not re.search("Image|Map Storage|US Volume", name):
            return None if "Directory" in name else name.removesuffix(" Storage")
    return "image"


def stem_of(path: Path) -> str:
    """Return the name of an image file without its ending, its letters composed (NFC)."""
    return unicodedata.normalize("NFC", _ENDING.sub("", path.name))


def groups_by_name(paths: Sequence[Path]) -> list[str]:
    """Return what the paths of a patient's files share, folder or name; "" where nothing tells.

    Example:
        >>> names = ["person1_virus_6", "person1_virus_7", "person2_bacteria_3", "person4_virus_8"]
        >>> groups_by_name([*map(Path, names)])
        ['person1', 'person1', 'person2', 'person4']
    """
    for level in zip(*(path.parts[:-1] for path in paths), strict=False):
        if len({*level}) > 1 and all(map(PATIENT.fullmatch, level)):
            return list(level)
    stems = [stem_of(path) for path in paths]
    for rule, fewest in _OF_ONE:
        groups = [m["of"] if (m := re.fullmatch(rule, stem, re.I)) else "" for stem in stems]
        counts = Counter(filter(None, groups))
        if len(counts) >= fewest and max(counts.values()) > 1:
            return groups
    return [""] * len(stems)


def natural(name: str) -> list[tuple[int, int | str]]:
    """Return a key that sorts ``a (2)`` before ``a (10)``."""
    return [(0, int(p)) if p.isdecimal() else (1, p) for p in re.split(r"(\d+)", name) if p]


def images_and_masks(
    root: Path, masks: Path | None = None
) -> tuple[dict[Path, Place], dict[tuple[Place, str], list[Path]], list[str]]:
    """Return the place of each image, and the masks by their place and the name of their image.

    `masks` is a folder of them, or their names, as ``*_lesion.png`` or ``lung masks/*``; no others
    are. What is hidden is left out, and, as a sentence says, what can't be read: DICOM that is no
    image, unless it is the segmentation of one by its name. Links are followed, but not in circles.
    """
    folder = masks if masks and masks.is_dir() else None
    kinds = dict(_walk(root, folder))
    files = {path: path.parent.relative_to(root).parts for path in kinds}
    candidates = dict(files)
    if folder:  # as if they were in ROOT/masks
        kinds |= (kinds_of_masks := dict(_walk(folder)))
        candidates = {x: ("masks", *x.parent.relative_to(folder).parts) for x in kinds_of_masks}
        files |= candidates
    if odd := [as_text(path) for path in files if as_text(path) != str(path)]:
        raise DataError(f"{odd[0]}: expected a name in UTF-8, given other bytes: rename it")
    every = [(path, words.fullmatch(stem_of(path))) for words in _MASK_FILES for path in candidates]
    named = {path: match["of"] for path, match in reversed(every) if match}
    stems, others = {stem_of(path) for path in kinds if kinds[path] == "image"}, Counter[str]()
    for path in [path for path in kinds if kinds[path] != "image"]:
        of = named.get(path, stem_of(path))
        is_mask = path in named or any(map(MASK_FOLDER.fullmatch, candidates.get(path, ())))
        if "Segmentation" not in kinds[path] or of not in stems or not is_mask:
            others[kinds[path]] += files.pop(path) is not None
    if masks and not folder:
        start, _, end = stem_of(masks).removesuffix(".*").partition("*")
        stem = {path: stem_of(path) for path in files if path.match(str(masks))}
        chosen = {path: stem[path].removeprefix(start).removesuffix(end) for path in stem}
        if not chosen:
            raise MissingFileError(f"expected a folder, or names of files, of masks at {masks}")
        called = named.keys() | {x for x in files if _named(MASK_FOLDER, files[x][-1:])}
        files = {x: files[x] for x in files if x in chosen or x not in called}
        files |= {x: files[x][: 1 - len(masks.parts) or None] for x in chosen}
        named = chosen if start or end else {x: named.get(x, chosen[x]) for x in chosen}
    files = {x: tuple(unicodedata.normalize("NFC", y) for y in files[x]) for x in files}
    inside: dict[Place, set[str]] = defaultdict(set)  # what has images, "" for a folder itself
    for path, parts in files.items():
        for depth, name in enumerate(parts if path in named else (*parts, "")):
            inside[parts[:depth]].add(name)
    roles = {up: _roles(root.joinpath(*up), names) for up, names in inside.items()}
    images: dict[Path, Place] = {}
    drawn: dict[tuple[Place, str], list[Path]] = defaultdict(list)
    for path, parts in files.items():
        along = [roles[parts[:depth]][name] for depth, name in enumerate(parts)]
        place = tuple(of for of, _ in along if of)
        if path in named or any(is_mask for _, is_mask in along):
            if folder or not masks or path in named:  # no others are
                drawn[place, named.get(path, stem_of(path))].append(path)
        else:
            images[path] = place
    counts = ", ".join(f"{count} {kind}" for kind, count in others.items())
    counts += " (as NIfTI they can be masks)" * ("Segmentation" in counts)
    return images, drawn, [f"not read: {counts}"] * bool(others)


def _roles(folder: Path, names: set[str]) -> dict[str, tuple[str, bool]]:
    """Return what each sub-folder adds to a place, and whether it has masks.

    One that is called images, or something_masks, may be a class: those beside it tell.
    """
    masks = _named(MASK_FOLDER, names)
    images = _named(_IMAGE_FOLDER, names - masks.keys())
    if len(masks) == len(images) == 1 and len(names) == 2:
        (of_mask,), (of_image,) = masks.values(), images.values()
        if of_mask != of_image or _SPLIT_WORD.search(of_image):  # there is nothing to tell apart
            masks, images = dict.fromkeys(masks, ""), dict.fromkeys(images, "")
    pictured = {"", *images.values(), *(names - masks.keys())}
    masks = {name: of for name, of in masks.items() if of in pictured}
    roles = {name: (masks.get(name, name), name in masks) for name in names}
    for name, of in images.items():
        others = sorted(names - masks.keys() - {name})
        if others and masks and not of:
            raise DataError(
                f"{folder / name}: expected nothing but masks beside a folder of images, given "
                f"{others[0] or 'single files'}, too: move them, or list images in a table (.csv)"
                + f"; or, if it has the masks, add --data.masks '{others[0]}/*'"
                * bool(others[0])
            )
        if masks or not (of or others):
            roles[name] = of, False
    return roles


def _named(pattern: re.Pattern[str], names: Iterable[str]) -> dict[str, str]:
    """Return the folders that a pattern fits, and what their names say beside its words.

    That is the split alone where it tells them apart: ISIC calls them otherwise for each task.
    """
    matches = {name: pattern.fullmatch(_INNER.sub("_", name)) for name in names}
    of = {x: (match["of"] + match["more"]).strip(" _-") for x, match in matches.items() if match}
    short = {name: split_word(text) for name, text in of.items()}
    return short if len({*short.values()}) == len(short) else of


def split_word(name: str) -> str:
    """Return the word in the name of a folder that says train, val or test, or else the name."""
    match = None if MASK_FOLDER.fullmatch(name) else _SPLIT_WORD.search(_INNER.sub("_", name))
    return match[0] if match else name


def _walk(folder: Path, *above: Path | None) -> Iterator[tuple[Path, str]]:
    """Yield images, and DICOM, in and under `folder` in order, but not in those `above`."""
    if any(each is not None and each.samefile(folder) for each in above):
        return
    for path in sorted(folder.iterdir(), key=lambda path: natural(path.name)):
        if path.name.startswith((".", "__MACOSX", "@eaDir")) or path.stem.endswith("_superpixels"):
            continue
        if path.name == "SegmentationObject" and path.with_name("SegmentationClass").is_dir():
            continue  # of VOC: objects by number
        if path.is_dir():
            yield from _walk(path, folder, *above)
        elif kind := _kind_of(path):
            yield path, kind
