"""Every parser of files from strangers: valid inputs, how they are changed, and what must hold.

A file is read, or refused by one `MedDuetError` in one line that names the file or what it stands
for; within `SECONDS`, and without any other error or warning.
"""

import asyncio
import gzip
import hashlib
import json
import signal
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import fuzz_samples as samples
import numpy as np
from hypothesis import strategies as st

from medduet.errors import MedDuetError

SECONDS = 10
REGRESSIONS = Path(__file__).parent / "regressions"


class Crash(AssertionError):  # noqa: N818  (what a parser does)
    """A file that was neither read nor refused as it should be."""


class Parser(NamedTuple):
    """One parser.

    Attributes:
        read: reads a content, given an empty folder to put it in.
        seeds: gives valid contents.
        is_json: whether these are JSON, to be changed by their structure, too.
    """

    read: Callable[[Path, bytes], None]
    seeds: Callable[[], list[bytes]]
    is_json: bool = False


def attempt(parser: Parser, folder: Path, content: bytes) -> str:
    """Return whether a content is ``accepted`` or ``refused``; a `Crash` says what was wrong."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} seconds")

    old = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            parser.read(folder, content)
    except MedDuetError as error:
        text = str(error)
        if not text.isprintable() or len(text) > 5000:
            raise Crash(f"not one line: {text!r}") from error
        return "refused"
    except Exception as error:
        raise Crash(f"{type(error).__name__}: {error}") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    return "accepted"


def warm(parser: Parser) -> None:
    """Read what is valid, so that libraries are there and what they take is not counted later."""
    for content in parser.seeds():
        with TemporaryDirectory() as folder:
            parser.read(Path(folder), content)


# How contents are changed.

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 1 << 31, (1 << 31) - 1, (1 << 32) - 1, 1 << 62)
_NUMBER = st.builds(
    lambda number, size, order: (number % (1 << 8 * size)).to_bytes(size, order),
    *(st.sampled_from(each) for each in (_NUMBERS, (1, 2, 4, 8), ("little", "big"))),
)


@st.composite
def mutations(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Replace some of a valid content by numbers, bytes or a repetition."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, min(len(data), draw(st.sampled_from((400, len(data)))))))
        repeated = bytes(data[place : place + draw(st.integers(1, 40))])
        new = draw(_NUMBER | st.binary(min_size=1, max_size=9) | st.just(repeated))
        over = draw(st.sampled_from((len(new), len(new), len(new), 0, 40)))  # most in place
        data[place : place + over] = new
    if draw(st.integers(0, 4)) == 0:
        del data[draw(st.integers(0, len(data))) :]
    return bytes(data)


ODD: list[Any] = [None, True, -1, 0, 10**18, 1e308, float("nan"), "", "../../x", "a\nb\x1b"]
ODD += ["a" * 5000, [], {}]


@st.composite
def json_like(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Change one value of valid JSON for another, at any depth, or leave it out."""
    tree = inner = json.loads(draw(st.sampled_from(seeds)))
    while True:
        key = draw(st.sampled_from(list(inner) if isinstance(inner, dict) else range(len(inner))))
        if not isinstance(inner[key], dict | list) or not inner[key] or draw(st.booleans()):
            break
        inner = inner[key]
    if draw(st.integers(0, 4)):
        inner[key] = draw(st.sampled_from(ODD))
    else:
        del inner[key]
    return json.dumps(tree).encode()


def contents(parser: Parser) -> st.SearchStrategy[bytes]:
    """What a parser is tried with: changed files, and made ones."""
    seeds = parser.seeds()
    return mutations(seeds) | (json_like(seeds) if parser.is_json else st.binary(max_size=400))


# How contents are read.


def _put(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def _config(files: dict[str, bytes], **changes: Any) -> bytes:
    return json.dumps(json.loads(files["config.json"]) | changes).encode()


def read_bundle(folder: Path, content: bytes) -> None:
    import medduet

    _put(folder, samples.bundle() | {"config.json": content})
    assert medduet.load(folder).arguments
    medduet.Predictor(folder)(samples.GREY)


def read_weights(folder: Path, content: bytes) -> None:
    import medduet
    from medduet.models.weights import load_weights

    config = _config(samples.bundle(), weights_sha256=hashlib.sha256(content).hexdigest())
    _put(folder, samples.bundle() | {"config.json": config, "model.safetensors": content})
    network = medduet.create_model("unet_var", in_channels=1, num_classes=2, width=2)
    try:
        load_weights(network, folder / "model.safetensors")
    finally:
        medduet.Predictor(folder)(samples.GREY)


def read_exported(folder: Path, content: bytes, name: str = "config.json") -> None:
    import medduet

    files = samples.exported() | {name: content}
    if name != "config.json":
        export = json.loads(files["config.json"])["export"]
        export["sha256"] = hashlib.sha256(content).hexdigest()
        files["config.json"] = _config(files, export=export)
    _put(folder, files)
    medduet.Predictor(folder)(samples.GREY)


def _read_splits(images: Any) -> None:
    for split in (images.train, images.val, images.test):
        split.batch(np.arange(len(split)))
        assert split.ids is None or [str(each) for each in split.ids]


def read_npz(folder: Path, content: bytes) -> None:
    from medduet.data.npz import open_npz

    _put(folder, {"set.npz": content})
    _read_splits(open_npz(folder / "set.npz", size=(8,), cache=folder / "cache"))


def read_zarr(folder: Path, content: bytes, name: str = "zarr.json") -> None:
    from medduet.config import DataConfig
    from medduet.data.zarr_store import open_zarr

    if name == "train/masks/c/0/0/0":  # its checksums are right: it is the codec that meets it
        content = samples.zarr_shard(content)
    _put(folder / "set.zarr", samples.zarr_store() | {name: content})
    _read_splits(open_zarr(DataConfig(name=str(folder / "set.zarr"))))


def read_picture(folder: Path, content: bytes) -> None:
    from medduet.data.mask_values import meaning_of
    from medduet.data.reading.core import ReadOptions
    from medduet.data.reading.masks import probe_pair, read_pair

    _put(folder, {"a.img": content})
    path, options = folder / "a.img", ReadOptions((16, 16), "pad", 3)
    facts = samples.probe(path)
    assert samples.read_images(path, options).shape == (facts.frames, 16, 16, 3)
    with suppress(MedDuetError):  # most images are no masks
        meaning = meaning_of("fuzzed", {path: probe_pair((path, [path])).masks[0]})
        read_pair((path, [path]), options, meaning.classes)


def read_upload(folder: Path, content: bytes) -> None:
    """Send a form, with the content as its body, to what reads uploads."""
    from starlette.exceptions import HTTPException
    from starlette.requests import Request

    from medduet.serve.uploads import Limits, Room
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


def _pillow(kind: str, *options: dict[str, Any]) -> Parser:
    seeds = partial(samples.by_pillow, samples.COLOUR, kind)
    return Parser(read_picture, lambda: [seeds(**each) for each in options or ({},)])


def _dicom() -> list[bytes]:
    syntaxes = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99")
    packed = ("1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90")
    return [samples.dicom(each) for each in syntaxes] + [samples.dicom(x, True) for x in packed]


def _of(files: Callable[[], dict[str, bytes]], name: str) -> Callable[[], list[bytes]]:
    return lambda: [files()[name]]


def _zarr(name: str) -> Parser:
    return Parser(partial(read_zarr, name=name), _of(samples.zarr_store, name))


_COMPRESSIONS = ("tiff_lzw", "jpeg", "tiff_adobe_deflate")
PARSERS: dict[str, Parser] = {
    "bundle config.json": Parser(read_bundle, _of(samples.bundle, "config.json"), True),
    "safetensors": Parser(read_weights, _of(samples.bundle, "model.safetensors")),
    "npz": Parser(read_npz, lambda: [samples.npz(**samples.arrays())]),
    "png": _pillow("PNG"),
    "png of 16 bits": Parser(
        read_picture, lambda: [samples.by_pillow(samples.GREY.astype("u2") * 200, "PNG")]
    ),
    "jpeg": _pillow("JPEG", {}, {"progressive": True}),
    "tiff": _pillow("TIFF", {"save_all": True}, *({"compression": x} for x in _COMPRESSIONS)),
    "bmp": _pillow("BMP"),
    "gif": _pillow("GIF"),
    "webp": _pillow("WEBP"),
    "dicom": Parser(read_picture, _dicom),
    "nifti": Parser(
        read_picture, lambda: [samples.nifti(), gzip.compress(samples.nifti(), mtime=0)]
    ),
    "zarr metadata": Parser(read_zarr, _of(samples.zarr_store, "zarr.json"), True),
    "zarr images": _zarr("train/images/c/0/0/0"),
    "zarr masks": Parser(
        partial(read_zarr, name="train/masks/c/0/0/0"), lambda: [samples.zarr_chunk()]
    ),
    "zarr labels": _zarr("val/labels/c/0"),
    "exported config.json": Parser(read_exported, _of(samples.exported, "config.json"), True),
    "onnx": Parser(partial(read_exported, name="model.onnx"), _of(samples.exported, "model.onnx")),
    "upload": Parser(read_upload, lambda: [FORM]),
}
