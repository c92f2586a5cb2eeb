"""Masks: what their values mean, decided over all masks of a set."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from medduet import ConfigError, open_images
from medduet.config import DataConfig, validate
from medduet.data.mask_values import Meaning, meaning_of
from medduet.data.reading.core import Facts, ReadOptions
from medduet.data.reading.images import opened
from medduet.data.reading.masks import mask_values, read_mask
from medduet.errors import DataError

SIDE = 20
OPTIONS, LIKE = ReadOptions((SIDE, SIDE)), Facts(1, 3, SIDE, SIDE)


def drawn(*values: int, background: int = 0, dtype: Any = np.uint8) -> NDArray[Any]:
    """Return a mask with a patch of 3 x 3 pixels of each value, from left to right."""
    mask = np.full((SIDE, SIDE), background, dtype)
    for number, value in enumerate(values):
        mask[3 * (number // 6) + 1 : 3 * (number // 6) + 4, 3 * (number % 6) + 1 :][:, :3] = value
    return mask


def palette(indices: NDArray[np.uint8], *colours: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(indices, "P")
    image.putpalette([level for colour in colours for level in colour])
    return image


def blurred(mask: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(mask)
    return image.resize((60, 60)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def on_transparent(mask: NDArray[np.uint8], colour: tuple[int, ...]) -> Image.Image:
    pixels = np.zeros((SIDE, SIDE, 4), np.uint8)
    pixels[mask > 0] = (*colour, 255)[:4]
    return Image.fromarray(pixels)


def united(paths: list[Path], meaning: Meaning) -> NDArray[np.uint8]:
    with opened(paths[0]) as source:
        return read_mask(paths, meaning.classes, OPTIONS, source)[0][0]


def read(
    folder: Path, masks: list[Any], stated: str | None = None, ending: str = ".png"
) -> tuple[Meaning, list[NDArray[np.uint8]]]:
    paths = [folder / f"{number}{ending}" for number in range(len(masks))]
    for path, mask in zip(paths, masks, strict=True):
        (mask if isinstance(mask, Image.Image) else Image.fromarray(mask)).save(path)
    files = {path: mask_values(path, LIKE) for path in paths}
    meaning = meaning_of("scans", files, stated)
    return meaning, [united([path], meaning) for path in paths]


BLACK, RED, GREEN, WHITE = (0, 0, 0), (255, 0, 0), (0, 255, 0), (255, 255, 255)
LESION, TWO = ["background", "lesion"], ["background", "mask 1", "mask 2"]
BIG = np.pad(np.full((12, 12), 255, np.uint8), 4)
KINDS: dict[str, tuple[list[Any], list[str], list[NDArray[Any]]]] = {
    "black and white": ([drawn(255), drawn()], LESION, [drawn(1), drawn()]),
    "0 and 37": ([drawn(37)], LESION, [drawn(1)]),
    "all empty": ([drawn(), drawn()], LESION, [drawn(), drawn()]),
    "16 bits": ([drawn(65535, dtype=np.uint16)], LESION, [drawn(1)]),
    "one bit": ([drawn(1).astype(bool)], LESION, [drawn(1)]),
    "floats": ([drawn(1, 2, dtype=np.float32)], TWO, [drawn(1, 2)]),
    "grey as RGB": ([Image.fromarray(drawn(255)).convert("RGB")], LESION, [drawn(1)]),
    "classes": ([drawn(1), drawn(2, 1)], TWO, [drawn(1), drawn(2, 1)]),
    "classes with gaps": (
        [drawn(3), drawn(7)],
        ["background", "mask 3", "mask 7"],
        [drawn(1), drawn(2)],
    ),
    "codes in different files": (
        [drawn(128), drawn(255)],
        ["background", "mask 128", "mask 255"],
        [drawn(1), drawn(2)],
    ),
    "codes in one file": (
        [drawn(85, 170, 255)],
        ["background", "mask 85", "mask 170", "mask 255"],
        [drawn(1, 2, 3)],
    ),
    "ignored": ([drawn(1, 2, 255), drawn(1)], TWO, [drawn(1, 2, 255), drawn(1)]),
    "ignored beside one": ([drawn(1, 255)], LESION, [drawn(1, 255)]),
    "soft edges": ([blurred(BIG), drawn()], LESION, [BIG // 255, drawn()]),
    "one palette": ([palette(drawn(1, 2), BLACK, RED, GREEN)] * 2, TWO, [drawn(1, 2)] * 2),
    "a palette per file": (
        [palette(drawn(1), BLACK, RED), palette(drawn(1, background=2), GREEN, RED, BLACK)],
        LESION,
        [drawn(1), drawn(1)],
    ),
    "colours of palettes": (
        [palette(drawn(1), BLACK, RED), palette(drawn(1), BLACK, GREEN)],
        ["background", "mask #00ff00", "mask #ff0000"],
        [drawn(2), drawn(1)],
    ),
    "palette of greys": ([palette(drawn(0, background=1), WHITE, BLACK)], LESION, [drawn(1)]),
    "palette, black last": ([palette(drawn(0, background=1), RED, BLACK)], LESION, [drawn(1)]),
    "colours": (
        [palette(drawn(1, 2), BLACK, RED, GREEN).convert("RGB"), drawn()],
        ["background", "mask #00ff00", "mask #ff0000"],
        [drawn(2, 1), drawn()],
    ),
    "black on transparent": (
        [on_transparent(drawn(1), BLACK), on_transparent(drawn(), BLACK)],
        LESION,
        [drawn(1), drawn()],
    ),
    "half transparent": ([on_transparent(drawn(1), (*RED, 100))] * 2, LESION, [drawn(1)] * 2),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", ["", ".gif"])
def test_values_mean_what_the_field_means(tmp_path: Path, kind: str, ending: str) -> None:
    masks, names, expected = KINDS[kind]
    exact = ".tif" if kind in ("floats", "16 bits") else ".png"
    meaning, classes = read(tmp_path, masks, ending=ending or exact)
    assert meaning.mask_names == names
    for result, truth in zip(classes, expected, strict=True):
        np.testing.assert_array_equal(result, truth)


@pytest.mark.parametrize("quality", [60, 90])
def test_lossy_masks_are_black_and_white(tmp_path: Path, quality: int) -> None:
    truth = [BIG // 255, drawn(), np.roll(BIG, 3, axis=1) // 255]
    for number, mask in enumerate(truth):
        Image.fromarray(mask * 255).save(tmp_path / f"{number}.jpg", quality=quality)
    images = [Image.open(tmp_path / f"{number}.jpg") for number in range(3)]
    assert len(np.unique(np.stack([np.asarray(image) for image in images]))) > 3
    meaning, classes = read(tmp_path, images)
    assert meaning.words == {"0 to 127": "background", "128 to 255": "lesion"}
    assert all(map(np.array_equal, classes, truth))


ASKED: dict[str, tuple[list[Any], str]] = {
    "swapped": ([255 - drawn(255), 255 - drawn(255, 255)], "255:background,0:lesion"),
    "some swapped": ([drawn(255), 255 - drawn(255)], "such as 1.png, most pixels"),
    "cup, disc and background": ([drawn(0, 128, background=255)], "255:background,0:NAME1,128"),
    "254 beside classes": ([drawn(1, 2, 254)], "1, 2 and 254 may be classes"),
    "one value or two": ([drawn(1), drawn(255), drawn(1)], "(or 0:background,*:lesion)"),
    "on white": ([palette(drawn(1, 2), WHITE, RED, GREEN).convert("RGB")], "#ffffff:background,#"),
    "more objects than masks": (
        [drawn(*range(1, 13)), drawn(1, 2), drawn(1)],
        "0:background,*:lesion",
    ),
    "objects in order": (
        [drawn(*range(1, n)) for n in (2, 3, 4, 6, 7, 2, 3, 4)],
        "numbers of objects",
    ),
    "no background": ([drawn(1, 2, background=3)], "none of them is 0"),
    "nothing is black": ([drawn(254, background=255)], "none of them is 0"),
    "a photograph": ([Image.effect_noise((20, 20), 90).convert("RGB").rotate(5)], "lie between"),
    "too many colours": (
        [Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20, 3), np.uint8))],
        "colours are classes if they are few",
    ),
}


@pytest.mark.parametrize("kind", ASKED)
def test_what_has_two_readings_is_asked(tmp_path: Path, kind: str) -> None:
    masks, part = ASKED[kind]
    with pytest.raises(DataError, match=r"scans: expected masks .*--data\.mask-values") as error:
        read(tmp_path, masks)
    assert part in str(error.value)
    assert "\n" not in str(error.value)
    for stated in re.findall(r"(?:-values|\(or) ([^ )]+)", str(error.value)) or [""]:
        assert read(tmp_path, masks, stated)  # it can be typed as it is


@pytest.mark.parametrize(
    ("masks", "stated", "names", "expected"),
    [
        (
            [drawn(128, 255, 254)],
            "0:background,128:benign,255:malignant,254:ignore",
            ["background", "benign", "malignant"],
            drawn(1, 2, 255),
        ),
        ([255 - drawn(255)], "255:background,0:lesion", LESION, drawn(1)),
        (
            [drawn(*range(1, 9))],
            "0:background,*:nucleus",
            ["background", "nucleus"],
            drawn(*[1] * 8),
        ),
        ([drawn(1, 2, 3)], "0:background, 3:a, 1:b, 2:a", ["background", "a", "b"], drawn(2, 1, 1)),
        (
            [palette(drawn(1, 2, 3), BLACK, (0, 0, 2), (2, 0, 0), GREEN).convert("RGB")],
            "#000000:background,#00ff00:green",
            ["background", "green"],
            drawn(0, 0, 1),
        ),
        (
            [palette(drawn(1, 2), BLACK, RED, GREEN)],
            "#000000:background,#FF0000:red,#00ff00:green",
            ["background", "red", "green"],
            drawn(1, 2),
        ),
    ],
)
def test_what_is_stated_counts(
    tmp_path: Path, masks: list[Any], stated: str, names: list[str], expected: NDArray[Any]
) -> None:
    config = validate(DataConfig, {"name": "scans", "mask_values": stated}, "data")
    meaning, classes = read(tmp_path, masks, config.mask_values)
    assert meaning.mask_names == names
    np.testing.assert_array_equal(classes[0], expected)


def test_codes_of_16_bits_stay_apart(tmp_path: Path) -> None:
    _, classes = read(tmp_path, [drawn(32767, 65535, dtype=np.uint16)])
    np.testing.assert_array_equal(classes[0], drawn(1, 2))


def test_what_is_stated_must_be_all(tmp_path: Path) -> None:
    Image.fromarray(BIG).save(path := tmp_path / "0.jpg")
    with pytest.raises(DataError, match=r"\* would be .*values 0:background,255:lesion"):
        meaning_of("scans", {path: mask_values(path, LIKE)}, "0:background,*:lesion")
    with pytest.raises(DataError, match=re.escape("1.png: expected the values 0, 1, given 7")):
        read(tmp_path, [drawn(1), drawn(7)], "0:background,1:lesion")


@pytest.mark.parametrize(
    "stated", ["", "0", "0:background", "1:lesion", "0:background,0:lesion", "x:background,1:a"]
)
def test_a_statement_has_values_and_names(stated: str) -> None:
    with pytest.raises(ConfigError, match="expected VALUE:NAME"):
        validate(DataConfig, {"name": "scans", "mask_values": stated}, "data")


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (
            drawn(1)[:, 1:],
            "expected a mask of 1 x 20 x 20 (frames x height x width)",
        ),
        (drawn(1, dtype=np.float32) / 2, "expected whole numbers, given 0.5"),
        (-drawn(1, dtype=np.float32), "expected classes from 0 on, given the value -1"),
    ],
)
def test_no_mask_of_the_image(tmp_path: Path, mask: NDArray[Any], expected: str) -> None:
    with pytest.raises(DataError, match=re.escape(f"0.tif: {expected}")):
        read(tmp_path, [mask], ending=".tif")


def test_several_masks_are_united(tmp_path: Path) -> None:
    meaning, _ = read(tmp_path, [drawn(0, 1), drawn(2, 0)])
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    assert (united(paths, meaning) == drawn(2, 1)).all()


def test_a_set_keeps_what_values_mean(tmp_path: Path) -> None:
    for number in range(9):
        Image.effect_noise((SIDE, SIDE), 50).save(tmp_path / f"{number}.png")
        Image.fromarray(drawn((128, 255)[number % 2])).save(tmp_path / f"{number}_mask.png")
    images = open_images(str(tmp_path), cache=tmp_path / "cache")
    assert images.info["mask_values"] == {
        "0": "background",
        "128": "mask 128",
        "255": "mask 255",
    }
    stated = "0:background,128:benign,255:malignant"
    images = open_images(str(tmp_path), cache=tmp_path / "cache", mask_values=stated)
    assert images.mask_names == ("background", "benign", "malignant")
    for path in tmp_path.glob("*_mask.png"):
        path.rename(path.with_name(path.name.replace("mask", "wound")))
    with pytest.raises(DataError, match=r"9 of 18 that have few levels.*, such as ._wound\.png"):
        open_images(str(tmp_path), cache=tmp_path / "cache")
    images = open_images(str(tmp_path), cache=tmp_path / "cache", masks="*_wound.png")
    assert images.mask_names == ("background", "mask 128", "mask 255")
