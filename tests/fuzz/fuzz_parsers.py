"""Every parser of files from strangers: valid inputs, how they are changed, and what must hold.

A file is read, or refused by one `MedDuetError` in one line that names the file or what it stands
for; within `SECONDS`, and without any other error or warning.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fuzz_samples as samples
import numpy as np
from hypothesis import strategies as st

from medduet.errors import MedDuetError

SECONDS = 10.0
REGRESSIONS = Path(__file__).parent / "regressions"
Read = Callable[[Path, bytes], None]


class Crash(AssertionError):  # noqa: N818  (what a parser does)
    """A file that was neither read nor refused as it should be."""


@dataclass(frozen=True)
class Parser:
    """One parser.

    Attributes:
        read: reads a content, given an empty folder to put it in.
        seeds: gives valid contents.
        made: a strategy of contents that are made by their structure.
    """

    read: Read
    seeds: Callable[[], list[bytes]]
    made: Callable[[], st.SearchStrategy[bytes]] = field(default=lambda: st.binary(max_size=400))


def attempt(parser: Parser, folder: Path, content: bytes) -> str:
    """Read a content: return ``accepted`` or ``refused``.

    Raises:
        Crash: with what was wrong.
    """
    try:
        with _alarm(), warnings.catch_warnings():
            warnings.simplefilter("error")
            parser.read(folder, content)
    except MedDuetError as error:
        text = str(error)
        if not text.isprintable() or len(text) > 5000:
            raise Crash(f"not one line: {text!r}") from error
        return "refused"
    except Exception as error:
        raise Crash(f"{type(error).__name__}: {error}") from error
    return "accepted"


@contextmanager
def _alarm() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} seconds")

    old = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


# How contents are changed.

_NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 1 << 31, (1 << 31) - 1, (1 << 32) - 1, 1 << 62]


@st.composite
def mutations(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Change a valid content: flip, overwrite, insert, repeat or cut off some of it."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        reach = len(data) if draw(st.booleans()) else min(len(data), 400)
        place = draw(st.integers(0, max(reach - 1, 0)))
        match draw(st.integers(0, 6)):
            case 0:
                del data[place:]
            case 1 if data:
                data[place] ^= 1 << draw(st.integers(0, 7))
            case 2 if data:
                data[place] = draw(st.integers(0, 255))
            case 3:
                data[place:place] = draw(st.binary(max_size=9))
            case 4:
                size, order = draw(st.sampled_from([2, 4, 8])), draw(st.sampled_from(_ORDERS))
                number = draw(st.sampled_from(_NUMBERS)) % (1 << 8 * size)
                data[place : place + size] = number.to_bytes(size, order)
            case 5:
                end = place + draw(st.integers(1, 40))
                data[place:place] = data[place:end] * draw(st.integers(1, 3))
            case _:
                del data[place : place + draw(st.integers(1, 40))]
    return bytes(data)


_ORDERS: list[Any] = ["little", "big"]
ODD = [
    None,
    True,
    -1,
    0,
    10**18,
    1e308,
    float("nan"),
    "",
    "../../x",
    "a\nb\x1b",
    "a" * 5000,
    [],
    {},
]


@st.composite
def json_like(draw: st.DrawFn, seed: bytes) -> bytes:
    """Change one value of valid JSON for another, at any depth, or leave it out."""
    tree = json.loads(seed)
    inner = tree
    while True:
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        key = draw(st.sampled_from(keys))
        if not isinstance(inner[key], dict | list) or not inner[key] or draw(st.booleans()):
            break
        inner = inner[key]
    if draw(st.integers(0, 4)):
        inner[key] = draw(st.sampled_from(ODD))
    else:
        del inner[key]
    return json.dumps(tree).encode()


# How contents are read.


def _put(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def read_bundle(folder: Path, content: bytes) -> None:
    import medduet

    _put(folder, samples.bundle() | {"config.json": content})
    network = medduet.load(folder)
    predictor = medduet.Predictor(folder)
    predictor(samples.GREY)
    assert network.arguments


def read_weights(folder: Path, content: bytes) -> None:
    import medduet
    from medduet.models.weights import load_weights

    config = json.loads(samples.bundle()["config.json"])
    config["weights_sha256"] = hashlib.sha256(content).hexdigest()
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": content}
    _put(folder, samples.bundle() | files)
    network = medduet.create_model("unet_var", in_channels=1, num_classes=2, width=2)
    try:
        load_weights(network, folder / "model.safetensors")
    finally:
        medduet.Predictor(folder)(samples.GREY)


def read_npz(folder: Path, content: bytes) -> None:
    from medduet.data.npz import open_npz

    _put(folder, {"set.npz": content})
    images = open_npz(folder / "set.npz", size=8, cache=folder / "cache")
    for split in (images.train, images.val, images.test):
        split.batch(np.arange(len(split)))
        assert split.ids is None or [str(each) for each in split.ids]


def read_picture(folder: Path, content: bytes) -> None:
    from medduet.data.reading.core import ReadOptions
    from medduet.data.reading.images import probe, read_images
    from medduet.data.reading.masks import read_mask

    _put(folder, {"a.img": content})
    path, options = folder / "a.img", ReadOptions(16, "pad", 3)
    facts = probe(path)
    assert read_images(path, options).shape == (facts.frames, 16, 16, 3)
    with suppress(MedDuetError):  # most images are no masks
        read_mask([path], facts, options)


def read_zarr(folder: Path, content: bytes, name: str = "zarr.json") -> None:
    from medduet.config import DataConfig
    from medduet.data.zarr_store import open_zarr

    _put(folder / "set.zarr", samples.zarr_store() | {name: content})
    images = open_zarr(DataConfig(name=str(folder / "set.zarr")))
    for split in (images.train, images.val, images.test):
        assert split.images[:1].shape
        assert split.masks is None or split.masks[:1].shape
        assert split.ids is None or [str(each) for each in split.ids]


def read_zarr_chunk(folder: Path, content: bytes) -> None:
    """Read packed masks whose checksums are right, so that it is the codec that meets them."""
    read_zarr(folder, samples.zarr_shard(content), "train/masks/c/0/0/0")


def read_exported(folder: Path, content: bytes, name: str = "config.json") -> None:
    import medduet

    files = samples.exported() | {name: content}
    if name != "config.json":
        config = json.loads(files["config.json"])
        config["export"]["sha256"] = hashlib.sha256(content).hexdigest()
        files["config.json"] = json.dumps(config).encode()
    _put(folder, files)
    medduet.Predictor(folder)(samples.GREY)


def read_upload(folder: Path, content: bytes) -> None:
    """Send a form, with the content as its body, to what reads uploads."""
    from starlette.exceptions import HTTPException
    from starlette.requests import Request

    from medduet.serve.limits import Limits, Room
    from medduet.serve.uploads import read_upload as read

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content, "more_body": False}

    kind = b"multipart/form-data; boundary=edge"
    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", kind)]}
    try:
        with Room(Limits()).seat() as seat:
            asyncio.run(read(Request(scope, receive), seat))
    except HTTPException as error:
        raise MedDuetError(error.detail) from error


FORM = (
    b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n'
    b"Content-Type: image/png\r\n\r\n" + b"pixels" + b"\r\n--edge--\r\n"
)


def _png() -> list[bytes]:
    grey, colour = samples.GREY, samples.COLOUR
    return [samples.by_pillow(colour, "PNG"), samples.by_pillow(grey.astype("u2") * 200, "PNG")]


def _jpeg() -> list[bytes]:
    return [samples.by_pillow(samples.COLOUR, "JPEG", progressive=each) for each in (False, True)]


def _tiff() -> list[bytes]:
    kinds: list[dict[str, Any]] = [{}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}]
    kinds += [{"compression": "tiff_adobe_deflate"}, {"save_all": True}]
    return [samples.by_pillow(samples.COLOUR, "TIFF", **each) for each in kinds]


def _dicom() -> list[bytes]:
    syntaxes = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99")
    packed = ("1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90")
    return [samples.dicom(each) for each in syntaxes] + [samples.dicom(x, True) for x in packed]


def _of(files: Callable[[], dict[str, bytes]], name: str) -> Callable[[], list[bytes]]:
    return lambda: [files()[name]]


def _json(files: Callable[[], dict[str, bytes]], name: str) -> Any:
    return lambda: json_like(files()[name])


PARSERS: dict[str, Parser] = {
    "bundle config.json": Parser(
        read_bundle, _of(samples.bundle, "config.json"), _json(samples.bundle, "config.json")
    ),
    "safetensors": Parser(read_weights, _of(samples.bundle, "model.safetensors")),
    "npz": Parser(read_npz, lambda: [samples.npz(**samples.arrays())]),
    "png": Parser(read_picture, _png),
    "jpeg": Parser(read_picture, _jpeg),
    "tiff": Parser(read_picture, _tiff),
    "bmp": Parser(read_picture, lambda: [samples.by_pillow(samples.COLOUR, "BMP")]),
    "webp": Parser(read_picture, lambda: [samples.by_pillow(samples.COLOUR, "WEBP")]),
    "dicom": Parser(read_picture, _dicom),
    "nifti": Parser(read_picture, lambda: [samples.nifti(), samples.packed(samples.nifti())]),
    "zarr metadata": Parser(
        read_zarr, _of(samples.zarr_store, "zarr.json"), _json(samples.zarr_store, "zarr.json")
    ),
    "zarr images": Parser(
        partial(read_zarr, name="train/images/c/0/0/0"),
        _of(samples.zarr_store, "train/images/c/0/0/0"),
    ),
    "zarr masks": Parser(read_zarr_chunk, lambda: [samples.zarr_chunk()]),
    "zarr labels": Parser(
        partial(read_zarr, name="val/labels/c/0"), _of(samples.zarr_store, "val/labels/c/0")
    ),
    "exported config.json": Parser(
        read_exported, _of(samples.exported, "config.json"), _json(samples.exported, "config.json")
    ),
    "onnx": Parser(partial(read_exported, name="model.onnx"), _of(samples.exported, "model.onnx")),
    "upload": Parser(read_upload, lambda: [FORM]),
}


def warm(parser: Parser) -> None:
    """Read what is valid, so that libraries are there and what they take is not counted later."""
    for content in parser.seeds():
        with TemporaryDirectory() as folder:
            parser.read(Path(folder), content)


def contents(parser: Parser) -> st.SearchStrategy[bytes]:
    """What a parser is tried with: changed files, and made ones."""
    return mutations(parser.seeds()) | parser.made()
