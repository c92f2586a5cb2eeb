"""Each format: the pixels that were written, and its traps."""

from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from fuzz_samples import probe, read_images
from PIL import Image, ImageOps
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate

from medduet.data.reading.core import Facts, ReadOptions
from medduet.data.reading.masks import MaskClasses, mask_values, probe_pair, read_pair
from medduet.errors import DataError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (48, 48), np.uint8)
COLOUR = RNG.integers(0, 256, (48, 48, 3), np.uint8)
DEEP = RNG.integers(100, 4000, (48, 48)).astype(np.uint16)
SMOOTH = np.add.outer(np.arange(48), np.arange(48)).astype(np.uint8)
SAME, SAME_COLOUR = ReadOptions((48, 48)), ReadOptions((48, 48), channels=3)


def stretched(
    values: np.ndarray, low: float | None = None, high: float | None = None
) -> np.ndarray:
    values = values.astype(np.float64)
    low, high = values.min() if low is None else low, values.max() if high is None else high
    return np.rint(255 * (np.clip(values, low, high) - low) / (high - low)).astype(np.uint8)


def near(given: np.ndarray, expected: np.ndarray, by: int = 1) -> bool:
    return int(np.abs(given.astype(int) - expected.astype(int)).max()) <= by


def exact(path: Path, values: np.ndarray) -> bool:
    """Whether a file is shown as it is, or stretched if it has 16 bits."""
    expected = stretched(values) if values.itemsize == 2 else values
    options = SAME_COLOUR if values.shape[-1] == 3 else SAME
    return bool((read_images(path, options).reshape(values.shape) == expected).all())


# Pillow


@pytest.mark.parametrize("ending", ["png", "tif", "bmp", "webp"])
def test_lossless_files_are_exact(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    Image.fromarray(COLOUR).save(path, lossless=True)
    assert probe(path) == Facts(1, 3, 48, 48)
    assert exact(path, COLOUR)
    grey = np.asarray(Image.fromarray(COLOUR).convert("L"))
    assert (read_images(path, SAME)[0] == grey).all()
    Image.fromarray(grey).save(path, lossless=True)
    assert (read_images(path, SAME_COLOUR)[0] == grey[:, :, None]).all()


@pytest.mark.parametrize("values", [DEEP, DEEP - np.float32(2000), DEEP.astype(np.int32) - 2000])
def test_more_than_8_bits_are_stretched_or_seen_through_a_window(
    tmp_path: Path, values: np.ndarray
) -> None:
    Image.fromarray(values).save(path := tmp_path / "a.tif")
    assert near(read_images(path, SAME)[0], stretched(values), by=0)
    low = float(values.min()) + 700
    window = ReadOptions((48, 48), window=(low + 200, 400))
    assert near(read_images(path, window)[0], stretched(values, low, low + 400))


BODY = RNG.integers(1000, 2000, (64, 64)).astype(np.uint16)


@pytest.mark.parametrize(
    ("body", "spot", "clipped"),
    [
        (BODY, [65535] * 4, True),  # 0.1% are hot
        (BODY + 40000, [0] * 4, True),  # and dead
        (BODY * (BODY < 1170), [65535] * 4, True),  # 17% are no background
        (BODY, [2500, 3000, 3500, 3900], False),  # small and bright, but no outlier
        (BODY * 0, [100, 999, 65535], False),
        (BODY * 0, range(100, 4000, 100), False),
        (BODY * 0, [300] * 2000, False),
    ],
)
def test_outliers_are_clipped_and_what_is_rare_is_not(
    tmp_path: Path, body: np.ndarray, spot: list[int], clipped: bool
) -> None:
    values = body.copy()
    values.flat[2080 : 2080 + len(spot)] = spot
    Image.fromarray(values).save(path := tmp_path / "a.png")
    limits = (body.min(), body.max()) if clipped else ()
    assert (read_images(path, ReadOptions((64, 64)))[0] == stretched(values, *limits)).all()


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    values = np.full((4, 4), np.nan, np.float32)
    Image.fromarray(values).save(path := tmp_path / "a.tif")
    with pytest.raises(DataError, match="none of its values is a finite number"):
        read_images(path, ReadOptions((4, 4)))
    values[0] = (0, 1, np.inf, 2)
    Image.fromarray(values).save(path)
    assert read_images(path, ReadOptions((4, 4)))[0][0].tolist() == [0, 128, 255, 255]
    Image.new("F", (4, 4), 7).save(path)
    assert not read_images(path, ReadOptions((4, 4))).any()


def _palette(*colours: int) -> Image.Image:
    image = Image.fromarray(np.array([[0, 1], [1, 2]], np.uint8), "P")
    image.putpalette(colours)
    return image


_ALPHA = Image.fromarray(
    np.dstack([np.full((2, 2, 3), 200), [[0, 255], [255, 0]]]).astype(np.uint8)
)


@pytest.mark.parametrize(
    ("image", "channels", "expected"),
    [
        (_ALPHA, 3, [[0, 200], [200, 0]]),  # what is transparent lies on black
        (_ALPHA.convert("LA"), 1, [[0, 200], [200, 0]]),
        (_palette(0, 0, 0, 90, 90, 90, 255, 255, 255), 1, [[0, 90], [90, 255]]),
        (_palette(0, 0, 0, 255, 0, 0, 0, 0, 255), 3, [[0, 76], [76, 29]]),
        (Image.fromarray(np.array([[True, False], [False, True]])), 1, [[255, 0], [0, 255]]),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), 3, [[76, 76], [76, 76]]),
    ],
)
def test_modes_of_pillow(
    tmp_path: Path, image: Image.Image, channels: int, expected: list[list[int]]
) -> None:
    image.save(path := tmp_path / "a", "TIFF" if image.mode == "CMYK" else "PNG")
    assert probe(path).channels == channels
    assert read_images(path, ReadOptions((2, 2)))[0].tolist() == expected


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_exif_turns_the_image(tmp_path: Path, orientation: int, ending: str) -> None:
    upright = np.zeros((4, 6), np.uint8)
    upright[0] = 250
    upright[:, 0] = 120
    back = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    exif = Image.Exif()
    turned = Image.fromarray(upright)
    turned.getexif()[274] = back
    stored = ImageOps.exif_transpose(turned)
    exif[274] = orientation
    stored.save(path := tmp_path / f"a.{ending}", exif=exif, lossless=True)
    assert probe(path)[2:] == (4, 6)
    assert (read_images(path, ReadOptions((6, 6)))[0][1:5] == upright).all()


def test_pages_are_frames(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.roll(DEEP, k)) for k in range(3)]
    pages[0].save(path := tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert probe(path) == Facts(3, 1, 48, 48)
    expected = [stretched(np.roll(DEEP, k)) for k in range(3)]
    assert (read_images(path, SAME) == expected).all()
    pages[0].save(path, save_all=True, append_images=[Image.new("I;16", (3, 4))])
    with pytest.raises(DataError, match="expected pages of one size and kind, given 48 x 48"):
        probe(path)
    animation = [Image.fromarray(GREY), Image.fromarray(GREY.T)]
    animation[0].save(path := tmp_path / "a.gif", save_all=True, append_images=animation[1:])
    assert exact(path, GREY)  # its first frame


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("black", "packed"), [(0, None), (0, "zlib"), (255, None)])
@pytest.mark.parametrize("dtype", ["i1", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"])
def test_tiff_of_any_real_numbers(
    tmp_path: Path, dtype: str, black: int, packed: str | None, order: str
) -> None:
    tifffile, path = pytest.importorskip("tifffile"), tmp_path / "a.tif"
    values = np.stack([GREY, GREY // 2]).astype(f"u{dtype[1]}") << 8 * (int(dtype[1]) - 1)
    values = values.view(dtype) if dtype[0] in "ui" else (values / 7).astype(dtype)
    options = {"photometric": int(black == 0), "compression": packed, "byteorder": order}
    tifffile.imwrite(path, values, **options)
    assert near(read_images(path, SAME), abs(black - stretched(values).astype(int)))
    tifffile.imwrite(path, values * 0 + 7, **options)
    assert mask_values(path, probe(path)).values.tolist() == [7]


@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_colours_of_16_bits_are_refused(tmp_path: Path, planes: str) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = COLOUR.astype(np.uint16) if planes == "contig" else COLOUR.T.astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", planarconfig=planes)
    with pytest.raises(DataError, match="given 16 bits per colour"):
        probe(tmp_path / "a.tif")


# DICOM

EXPLICIT, IMPLICIT, BIG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"


def dataset(values: np.ndarray, syntax: str = EXPLICIT, **changes: Any) -> pydicom.Dataset:
    """One grey frame (H, W), several (K, H, W), or one of colours (H, W, 3)."""
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    kind = "RGB" if values.shape[-1] == 3 else "MONOCHROME2"
    data.set_pixel_data(values, kind, values.itemsize * 8, generate_instance_uid=False)
    data.file_meta.TransferSyntaxUID = syntax
    if syntax == BIG:
        data.PixelData = values.byteswap().tobytes()
    for name, value in changes.items():
        setattr(data, name, value)
    return data


def saved(data: pydicom.Dataset, path: Path) -> Path:
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return path


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG, "1.2.840.10008.1.2.1.99"])
def test_plain_syntaxes(tmp_path: Path, syntax: str) -> None:
    path = saved(dataset(DEEP, syntax), tmp_path / "a")
    assert probe(path) == Facts(1, 1, 48, 48)
    assert exact(path, DEEP)


RLE, JPEG_LS, JPEG_2000 = (f"1.2.840.10008.1.2.{each}" for each in ("5", "4.80", "4.90"))


@pytest.mark.parametrize("syntax", [RLE, JPEG_LS, JPEG_2000])
@pytest.mark.parametrize("values", [GREY, DEEP, COLOUR, np.stack([GREY, GREY.T])])
def test_lossless_compression_is_exact(tmp_path: Path, syntax: str, values: np.ndarray) -> None:
    data = dataset(values)
    if syntax == JPEG_2000 and values.shape[-1] == 3:
        data.PhotometricInterpretation = "YBR_RCT"
    data.compress(syntax)
    assert exact(saved(data, tmp_path / "a.dcm"), values)


def test_lossless_jpeg_is_exact() -> None:
    names = ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm")
    packed, plain = (get_testdata_file(name, download=False) for name in names)
    options = ReadOptions((100, 100), channels=3)
    assert (read_images(Path(packed), options) == read_images(Path(plain), options)).all()


@pytest.mark.parametrize("values", [SMOOTH, np.dstack([SMOOTH, SMOOTH[::-1], SMOOTH.T])])
def test_jpeg_is_near(tmp_path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(path := tmp_path / "a.jpg", quality=95, subsampling=0)
    options = SAME_COLOUR if values.ndim == 3 else SAME
    assert near(read_images(path, options)[0], values, by=8)
    stream = encapsulate([path.read_bytes()])
    data = dataset(values, "1.2.840.10008.1.2.4.50", PixelData=stream)
    data["PixelData"].is_undefined_length = True
    if values.ndim == 3:
        data.PhotometricInterpretation = "YBR_FULL"
    path = saved(data, tmp_path / "a.dcm")
    assert near(read_images(path, options)[0], values, by=8)


def test_without_preamble(tmp_path: Path) -> None:
    del (data := dataset(DEEP, IMPLICIT)).file_meta
    pydicom.dcmwrite(path := tmp_path / "a.dcm", data, implicit_vr=True, little_endian=True)
    assert path.read_bytes()[128:132] != b"DICM"
    assert exact(path, DEEP)
    path.write_bytes(b"\x08\x00" + bytes(500))
    with pytest.raises(DataError, match=r"a\.dcm: expected"):
        probe(path)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        # PS3.3 C.11.2.1.2: LINEAR goes from c - 0.5 - (w - 1) / 2 = 0 to c - 0.5 + (w - 1) / 2 = 7.
        ("LINEAR", [0, 36, 73, 109, 146, 182, 219, 255, 255]),
        ("LINEAR_EXACT", [0, 32, 64, 96, 128, 159, 191, 223, 255]),
        ("SIGMOID", [30, 47, 69, 96, 128, 159, 186, 208, 225]),
    ],
)
def test_windows_are_those_of_the_standard(
    tmp_path: Path, function: str, expected: list[int]
) -> None:
    values = np.arange(9, dtype=np.int16).reshape(1, 9)
    changes = {"WindowCenter": ["4", "5"], "WindowWidth": ["8", "7"], "VOILUTFunction": function}
    path = saved(dataset(values, **changes), tmp_path / "a.dcm")
    assert read_images(path, ReadOptions((1, 9)))[0, 0].tolist() == expected
    rescale = {"RescaleSlope": "2", "RescaleIntercept": "-10"}
    stored = dataset((values + 5).astype(np.int16), **rescale)  # 0 to 16 when rescaled
    windowed = read_images(saved(stored, path), ReadOptions((1, 9), window=(8, 8)))[0, 0]
    assert windowed.tolist() == [0, 0, 0, 64, 128, 191, 255, 255, 255]


def test_tables_of_interest(tmp_path: Path) -> None:
    item = pydicom.Dataset()
    item.LUTDescriptor, item.LUTData = [256, 0, 8], list(range(255, -1, -1))
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    path = saved(dataset(GREY, VOILUTSequence=[item]), tmp_path / "a.dcm")
    assert exact(path, 255 - GREY)


@pytest.mark.parametrize("values", [GREY, DEEP, DEEP.astype(np.int16) - 2000])
def test_bright_is_white(tmp_path: Path, values: np.ndarray) -> None:
    path = saved(dataset(values), tmp_path / "a.dcm")
    assert exact(path, values)
    expected = 255 - read_images(path, SAME)
    saved(dataset(values, PhotometricInterpretation="MONOCHROME1"), path)
    assert near(read_images(path, SAME), expected)


SIGNED, AIR = (DEEP - 2000.0).astype(np.int16), np.hypot(*np.mgrid[-24:24, -24:24]) > 22
INVERTED = {"PhotometricInterpretation": "MONOCHROME1"}


@pytest.mark.parametrize(
    ("values", "air", "padding", "changes"),
    [
        (SIGNED, -3000, {"Value": (1 << 16) - 3000}, {}),  # as if it were unsigned
        (SIGNED, -3000, {"Value": -3000}, {"RescaleSlope": "2", "RescaleIntercept": "-9"}),
        (SIGNED, -3000, {"Value": -4000, "RangeLimit": -2900}, {}),
        (SIGNED, 3000, {"Value": 3000, "RangeLimit": 2900}, INVERTED),
        (DEEP, 63000, {"Value": 63000}, {"WindowCenter": "0", "WindowWidth": "800"}),
        (GREY // 2, 255, {"Value": 255}, {}),
        (GREY // 2 + 1, 0, {"Value": 0}, INVERTED),
    ],
)
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_padding_is_black_and_not_in_the_range(
    tmp_path: Path, values: np.ndarray, air: int, padding: Any, changes: Any, syntax: str
) -> None:
    path = saved(dataset(np.where(AIR, values[24, 24], values), **changes), tmp_path / "a.dcm")
    expected = np.where(AIR, 0, read_images(path, SAME)[0])
    data = dataset(np.where(AIR, air, values).astype(values.dtype), syntax, **changes)
    for name, value in padding.items():
        data.add_new(f"PixelPadding{name}", "US" if value > 1 << 15 else "SS", value)
    assert (read_images(saved(data, path), SAME)[0] == expected).all()
    assert exact(saved(dataset(GREY, PixelPaddingValue=63000), path), GREY)  # no pixel can have it


def test_ways_to_store_colours(tmp_path: Path) -> None:
    planes = np.ascontiguousarray(COLOUR.transpose(2, 0, 1)).tobytes()
    data = dataset(COLOUR, PlanarConfiguration=1, PixelData=planes)
    assert exact(saved(data, tmp_path / "a.dcm"), COLOUR)
    ybr = np.asarray(Image.fromarray(COLOUR).convert("YCbCr"))
    data = dataset(ybr, PhotometricInterpretation="YBR_FULL")
    assert near(read_images(saved(data, tmp_path / "a.dcm"), SAME_COLOUR)[0], COLOUR, by=3)
    data = dataset(GREY, PhotometricInterpretation="PALETTE COLOR")
    for place, name in enumerate(("Red", "Green", "Blue")):
        setattr(data, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        table = np.roll(np.arange(256), place).astype("<u2") * 257
        setattr(data, f"{name}PaletteColorLookupTableData", table.tobytes())
    path = saved(data, tmp_path / "a.dcm")
    assert probe(path).channels == 3
    assert exact(path, np.dstack([GREY - np.uint8(place) for place in range(3)]))


def test_windows_of_frames(tmp_path: Path) -> None:
    groups = []
    for centre in ("500", "2000"):
        window, transform, group = (pydicom.Dataset() for _ in range(3))
        window.WindowCenter, window.WindowWidth = centre, "400"
        window.VOILUTFunction = "LINEAR_EXACT"
        transform.RescaleSlope, transform.RescaleIntercept = "1", "-100"
        group.FrameVOILUTSequence, group.PixelValueTransformationSequence = [window], [transform]
        groups.append(group)
    data = dataset(np.stack([DEEP, DEEP]), PerFrameFunctionalGroupsSequence=groups)
    first, second = read_images(saved(data, tmp_path / "a.dcm"), SAME)
    assert near(first, stretched(DEEP - 100.0, 300, 700))
    assert near(second, stretched(DEEP - 100.0, 1800, 2200))


# NIfTI


def saved_nifti(values: np.ndarray, path: Path, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
@pytest.mark.parametrize("order", ["RAS", "LPS", "PIR", "SLA"])
def test_volumes_are_seen_as_by_a_radiologist(tmp_path: Path, ending: str, order: str) -> None:
    right, anterior, superior = np.indices((5, 6, 4))
    canonical = (right + 10 * anterior + 70 * (superior == 3)).astype(np.uint8)
    image = nib.Nifti1Image(canonical, np.eye(4))
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(order)
    )
    nib.save(image.as_reoriented(turn), path := tmp_path / f"a.{ending}")
    assert probe(path) == Facts(4, 1, 6, 5)
    result = read_images(path, ReadOptions((6, 6)))
    assert result.shape == (4, 6, 6)
    assert result[3][0, 0] == 4 + 50 + 70  # top left: anterior, and the patient's right
    assert result[0][5, 4] == 0  # bottom right: posterior, left
    assert result[0][5, 0] == 4


def test_nifti_values(tmp_path: Path) -> None:
    values = RNG.integers(-1000, 1000, (8, 8, 3)).astype(np.int16)
    expected = np.stack([stretched(values)[::-1, ::-1, k].T for k in range(3)])
    path = saved_nifti(values, tmp_path / "a.nii.gz")
    assert (read_images(path, ReadOptions((8, 8))) == expected).all()
    windowed = stretched(values, -100, 300)[::-1, ::-1, 1].T
    assert (read_images(path, ReadOptions((8, 8), window=(100, 400)))[1] == windowed).all()
    assert probe(saved_nifti(values[..., None], path)).frames == 3
    assert probe(saved_nifti(values[..., 0], path)) == Facts(1, 1, 8, 8)
    with pytest.raises(DataError, match="expected a volume of 3 axes, given one of 8 x 8 x 3 x 2"):
        probe(saved_nifti(np.stack([values, values], axis=3), path))
    image = nib.Nifti1Image(values.astype(np.float32) * 0.5 + 3, np.eye(4))
    image.set_data_dtype(np.int16)
    nib.save(image, path)
    assert near(read_images(path, ReadOptions((8, 8))), expected)


place, turn = nib.affines.from_matvec, nib.eulerangles.euler2mat
PLACED = place(turn(0.3, -0.2, np.pi / 4) @ np.diag((0.7, 0.8, 2.5)), (-3, 5, 9))
SHIFTED, NEAR = (place(np.eye(3), (shift, 0, 0)) @ PLACED for shift in (0.2, 0.001))
TURNED, THICKER = (PLACED @ place(x) for x in (turn(0.1), np.diag((1, 1, 1.1))))
VOLUME = RNG.integers(0, 2, (6, 7, 5)).astype(np.uint8)
BASE = nib.Nifti1Image(VOLUME, None).header.get_base_affine()  # what is assumed without one
LPS = np.diag((-0.3, -0.3, 1, 1))
SAGITTAL = np.array([[0, 0, 2, -9], [0, -0.4, 0, -5], [-0.5, 0, 0, 3], [0, 0, 0, 1]])


def sagittal(path: Path, frames: int) -> None:
    """Write planes from left to right; their rows go to feet, columns to posterior."""
    planes = [pydicom.Dataset() for _ in range(frames)]
    for number, plane in enumerate(planes):
        plane.PlanePositionSequence = [pydicom.Dataset()]
        plane.PlanePositionSequence[0].ImagePositionPatient = [9 - 2 * number, 5, 3]
    data = dataset(VOLUME[:frames].squeeze() * 255, PerFrameFunctionalGroupsSequence=planes)
    data.ImageOrientationPatient, data.PixelSpacing = [0, 1, 0, 0, 0, -1], [0.5, 0.4]
    saved(data, path)


def masked(path: Path, values: np.ndarray, affine: Any, turn: Any = None) -> Any:
    """Return the frames of an image and of its mask, whose axes are turned."""
    mask = nib.Nifti1Image(values, affine)
    nib.save(mask if turn is None else mask.as_reoriented(turn), of_mask := path.with_name("m.nii"))
    facts, *_, (found,) = probe_pair((path, [of_mask]))
    meaning = MaskClasses(found.values, found.values.astype(np.uint8))
    return read_pair((path, [of_mask]), ReadOptions((facts.height, facts.width)), meaning)


@pytest.mark.parametrize(
    ("save", "values", "affine"),
    [
        (lambda path: saved_nifti(VOLUME * 255, path), VOLUME, np.eye(4)),
        (lambda path: saved_nifti(VOLUME * 255, path, PLACED), VOLUME, NEAR),
        (lambda path: nib.save(nib.Nifti1Image(VOLUME * 255, None), path), VOLUME, BASE),
        # As ITK-SNAP writes masks of pictures.
        (lambda path: Image.fromarray(VOLUME[0] * 255).save(path, "PNG"), VOLUME[:1].T, LPS),
        (lambda path: sagittal(path, 1), VOLUME[:1].transpose(1, 2, 0), SAGITTAL),
        (lambda path: sagittal(path, 6), VOLUME.transpose(1, 2, 0), SAGITTAL),
    ],
)
def test_masks_are_turned_to_their_image(
    tmp_path: Path, save: Callable[[Path], Any], values: np.ndarray, affine: np.ndarray
) -> None:
    save(path := tmp_path / "image.nii")
    for each in product(permutations(range(3)), product((1, -1), repeat=3)):
        pair = masked(path, values, affine, np.stack(each, axis=1))
        assert 0 < pair.masks.mean() < 1
        assert (pair.images == pair.masks * 255).all()


@pytest.mark.parametrize("affine", [None, np.eye(4), SHIFTED, TURNED, THICKER])
def test_masks_on_another_grid_are_refused(tmp_path: Path, affine: np.ndarray | None) -> None:
    path = saved_nifti(VOLUME, tmp_path / "image.nii", PLACED)
    with pytest.raises(DataError, match=r"affine of its image, .*resample_from_to"):
        masked(path, VOLUME, affine)
    Image.fromarray(VOLUME[0]).save(path, "PNG")
    with pytest.raises(DataError, match="save it as PNG"):
        masked(path, VOLUME[:1].T, affine)
