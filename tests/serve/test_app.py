"""What programs ask the service, and what it refuses."""

import asyncio
import base64
import gzip
import io
import os
import queue
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email import message_from_bytes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from starlette.exceptions import HTTPException

from medduet import Predictor
from medduet.serve.app import create_app
from medduet.serve.schemas import PredictionResponse
from medduet.serve.service import CLIENT_GONE, Batcher, Served
from medduet.serve.uploads import LARGEST, Limits, Room
from medduet.utils.palette import MASK_RGB

Pixels = Callable[[int], np.ndarray]
Encode = Callable[..., bytes]


@pytest.fixture(scope="module")
def plain(own: Path) -> Predictor:
    return Predictor(own, explain=True)


@pytest.fixture(scope="module")
def client(plain: Predictor) -> Iterator[TestClient]:
    served = {"busi": Served(plain, True, "a card"), "other": Served(plain)}
    with TestClient(create_app(served)) as client:
        yield client


def limited(plain: Predictor, **limits: Any) -> TestClient:
    return TestClient(create_app({"busi": Served(plain)}, Limits(**limits)))


def values_of(base64_png: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(base64_png))))


def test_the_answer_is_the_predictors(
    client: TestClient, plain: Predictor, picture: Pixels, encoded: Encode
) -> None:
    own = plain(picture(1))
    assert own.mask is not None
    assert len(np.unique(own.mask)) > 1
    files = {"file": ("name of a patient.png", encoded(picture(1)), "image/png")}
    response = client.post("/predict?explain=true&image=true", files=files)
    assert response.status_code == 200, response.text
    said = response.json()
    assert said["probabilities"] == pytest.approx(own.probabilities, abs=1e-6)
    assert (said["model"], said["label"]) == ("busi", own.label)
    assert own.prediction_set
    assert said["prediction_set"] == list(own.prediction_set)
    assert (said["coverage"], said["abstained"]) == (0.9, False)
    assert (said["height"], said["width"], said["is_ood"]) == (50, 75, False)
    noise = np.random.default_rng(0).integers(0, 255, (50, 75), np.uint8)
    odd = client.post("/predict", content=encoded(noise)).json()
    assert (odd["ood_p"], odd["is_ood"]) == (pytest.approx(plain(noise).ood_p), True)
    np.testing.assert_array_equal(values_of(said["mask"]["png"]), own.mask)
    file = io.BytesIO(base64.b64decode(said["mask"]["png"]))
    drawn = np.asarray(Image.open(file).convert("RGBA"))
    for index, colour in enumerate(MASK_RGB[:3]):
        assert (drawn[own.mask == index] == [*colour, 255 if index else 0]).all()
    np.testing.assert_allclose(values_of(said["heat"]) / 255, own.heatmap, atol=1 / 255)
    np.testing.assert_array_equal(values_of(said["image"]), picture(1))
    pixels = {each["index"]: each["pixels"] for each in said["mask"]["classes"]}
    assert pixels == {index: int((own.mask == index).sum()) for index in (1, 2)}
    PredictionResponse.model_validate(said)
    # The file itself, of another kind of content: the same.
    for kind in ("image/x", "application/x-www-form-urlencoded"):  # the second by curl
        raw = client.post("/predict", content=encoded(picture(1)), headers={"content-type": kind})
        assert raw.json()["probabilities"] == said["probabilities"]
    assert raw.json()["heat"] is raw.json()["image"] is None
    assert client.post("/predict?mask=false", content=encoded(picture(1))).json()["mask"] is None
    for kind in ("jpeg", "tiff", "webp"):
        files = {"file": ("a.exe", encoded(picture(2), kind), "text/plain")}
        assert client.post("/predict", files=files).status_code == 200


def header_of(width: int, height: int) -> bytes:
    """A PNG that says to be large and has no pixels."""
    image = bytearray(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    image += width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\0\0\0\0"
    return bytes(
        image + zlib.crc32(image[12:]).to_bytes(4, "big") + b"\0\0\0\0IDAT\x35\xaf\x06\x1e"
    )


def bmp_of(width: int, height: int) -> bytes:
    """A BMP that says to be large and has no pixels."""
    Image.new("RGB", (1, 1)).save(file := io.BytesIO(), "bmp")
    content = bytearray(file.getvalue())
    content[18:26] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    return bytes(content)


def test_each_refusal_has_its_status_and_reason(
    client: TestClient, picture: Pixels, encoded: Encode
) -> None:
    good = encoded(picture(1))
    refusals: list[tuple[dict[str, Any], int, str]] = [
        ({"content": b"%PDF-1.7 renamed to png"}, 415, "starts with b'%PDF-1.7'"),
        ({"content": b""}, 415, "given one that starts with b''"),
        ({"content": good[: len(good) // 2]}, 422, "image: expected a complete image file"),
        ({"content": encoded(np.zeros((7, 90), np.uint8))}, 422, "given 7 x 90"),
        ({"content": header_of(60_000, 50_000)}, 422, "exceeds limit"),
        ({"content": bmp_of(8000, 5001)}, 413, "at most 40 megapixels, given 5001 x 8000"),
        ({"files": {"image": ("a", good)}}, 422, "the field 'file'"),
        ({"files": [("file", ("a", good)), ("file", ("b", good))]}, 422, "one file"),
        ({"content": good, "params": {"mask": "rle"}}, 422, "mask: "),
        ({"content": good, "params": {"msk": "png"}}, 422, "msk: "),
        ({"content": good, "params": {"model": "bus"}}, 404, "did you mean busi?"),
        ({"content": good, "params": {"model": "other", "explain": True}}, 422, "has no heat maps"),
    ]
    for given, status, reason in refusals:
        response = client.post("/predict", **given)
        assert response.status_code == status, response.text
        assert reason in response.json()["detail"]
    for path in ("/nothing", "/%2e%2e/app.py"):
        assert client.get(path).status_code == 404
    response = client.get("/predict")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("kind", ["png", "gif", "webp", "tiff"])
def test_pictures_that_are_several_are_refused(
    client: TestClient, picture: Pixels, encoded: Encode, kind: str
) -> None:
    others = [Image.fromarray(picture(2)), Image.fromarray(picture(3))]
    for more, status in (([], 200), (others, 422)):
        content = encoded(picture(1), kind, save_all=True, append_images=more)
        response = client.post("/predict", content=content)
        assert response.status_code == status
    assert "expected one image, given a" in response.json()["detail"]


@pytest.mark.parametrize("kind", ["dcm", "nii", "nii.gz"])
def test_frames_have_an_answer_each(
    client: TestClient, plain: Predictor, picture: Pixels, kind: str
) -> None:
    volume = np.stack([picture(number) for number in range(3)])
    if kind == "dcm":
        content = dicom_of(volume)
    else:
        nibabel = pytest.importorskip("nibabel")
        content = nibabel.Nifti1Image(volume[:, ::-1, ::-1].T, np.eye(4)).to_bytes()
        content = gzip.compress(content) if kind == "nii.gz" else content
    answer = client.post("/predict?image=true", content=content).json()
    for image, frame in zip(volume, answer["frames"], strict=True):
        np.testing.assert_array_equal(values_of(frame["image"]), image)
        assert frame["probabilities"] == pytest.approx(plain(image).probabilities, abs=1e-4)
    with limited(plain, max_pixels=volume.size - 1) as small:
        response = small.post("/predict", content=content)
        assert response.status_code == 413
        assert "given 3 frames of 50 x 75 pixels" in response.json()["detail"]


def dicom_of(frames: np.ndarray) -> bytes:
    """An ultrasound film as pydicom writes it."""
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.SOPClassUID, data.Modality = "1.2.840.10008.5.1.4.1.1.3.1", "US"
    data.PatientID = data.StudyID = "1"
    for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(data, name, pydicom.uid.generate_uid())
    data.NumberOfFrames = len(frames)
    syntax = pydicom.uid.ExplicitVRLittleEndian
    data.set_pixel_data(frames, "MONOCHROME2", 8, generate_instance_uid=False)
    data.file_meta.TransferSyntaxUID = syntax
    data.save_as(file := io.BytesIO(), enforce_file_format=True)
    return file.getvalue()


@pytest.mark.parametrize("count", [1, 3])
def test_dicom_is_answered_in_dicom_if_asked(
    client: TestClient, plain: Predictor, picture: Pixels, encoded: Encode, count: int
) -> None:
    highdicom = pytest.importorskip("highdicom")
    frames = np.stack([picture(number) for number in range(count)])
    header = {"Accept": 'multipart/related; type="application/dicom", */*;q=0.1'}
    answer = client.post("/predict", content=dicom_of(frames), headers=header)
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    parts = message_from_bytes(head + answer.content).get_payload()
    assert [part.get_content_type() for part in parts] == ["application/dicom"] * 2
    files = [io.BytesIO(part.get_payload(decode=True)) for part in parts]
    segmentation = highdicom.seg.segread(files[0])
    drawn = np.zeros(len(plain.mask_names), int)
    groups = segmentation.PerFrameFunctionalGroupsSequence
    for group, frame in zip(groups, segmentation.pixel_array.reshape(-1, 50, 75), strict=True):
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        name = segmentation.get_segment_description(number).segment_label
        drawn[plain.mask_names.index(name)] += frame.sum()
    expected = np.bincount(np.ravel([plain(image).mask for image in frames]), minlength=len(drawn))
    np.testing.assert_array_equal(drawn[1:], expected[1:])
    report = highdicom.sr.srread(files[1])
    assert len(report.content.get_image_measurement_groups()) == count
    refused = client.post("/predict", content=encoded(frames[0]), headers=header)
    assert refused.status_code == 406
    header = {"Accept": "application/dicom+json, application/json"}
    assert client.post("/predict", content=dicom_of(frames), headers=header).json()


def test_a_part_of_a_form_needs_no_file_name(
    client: TestClient, picture: Pixels, encoded: Encode
) -> None:
    content = encoded(picture(1), "bmp")  # has every kind of byte
    files = {"file": (None, content)}
    answer = client.post("/predict", files=files).json()
    assert answer == client.post("/predict", content=content).json()


def test_every_address_answers_head(client: TestClient) -> None:
    for path in ("/", "/page.js", "/models", "/healthz", "/metrics", "/docs", "/openapi.json"):
        answer, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == answer.headers["content-type"]
        options = client.options(path)
        assert (options.status_code, "GET" in options.headers["allow"]) == (405, True)
    paths = client.get("/openapi.json").json()["paths"]
    (kind,) = paths["/metrics"]["get"]["responses"]["200"]["content"]
    assert client.get("/metrics").headers["content-type"].startswith(kind)
    responses = paths["/predict"]["post"]["responses"]
    assert {*["400", "404", "408", "413", "415", "422", "429", "500", "504"]} <= {*responses}
    assert responses["422"]["content"] == responses["404"]["content"]
    assert client.get("/predict").headers["allow"] == "POST"
    assert client.options("/nothing").status_code == 404


def test_behind_a_proxy_links_stay_below_its_prefix(client: TestClient) -> None:
    header = {"X-Forwarded-Prefix": "/p"}
    assert client.get("/openapi.json", headers=header).json()["servers"] == [{"url": "/p"}]
    assert "'/p/openapi.json'" in client.get("/docs", headers=header).text
    assert client.get("/docs/", headers=header).status_code == 404
    evil = {"X-Forwarded-Prefix": "//evil.org"}
    assert "evil" not in client.get("/docs", headers=evil).text


def test_only_known_hosts_and_origins_are_served(plain: Predictor) -> None:
    app = create_app({"busi": Served(plain)}, None, ["Imaging.org"], ["https://a.org"])
    names = {"imaging.org:8000": 200, "LOCALHOST": 200, "[::1]:80": 200, "10.0.0.7:80": 200}
    names |= {"evil.org": 400, "localhost.evil.org": 400, "10.0.0.7.evil.org": 400, "a_b": 400}
    with TestClient(app) as client:
        for name, status in names.items():
            answer = client.get("/models", headers={"Host": name, "Origin": "https://a.org"})
            assert answer.status_code == status, name
            assert answer.headers["access-control-allow-origin"] == "https://a.org"
        headers = {"Host": "localhost", "Origin": "https://evil.org"}
        assert "access-control-allow-origin" not in client.get("/models", headers=headers).headers


def test_a_file_has_at_most_so_many_bytes(
    plain: Predictor, picture: Pixels, encoded: Encode
) -> None:
    content = encoded(picture(1))
    with limited(plain, max_bytes=len(content)) as client:
        assert client.post("/predict", content=content).status_code == 200
        assert client.post("/predict", files={"file": content}).status_code == 200
        assert 'medduet_batch_images_sum{model="busi"} 2.0' in client.get("/metrics").text
    in_pieces = (content[place : place + 100] for place in range(0, len(content), 100))
    tries: list[dict[str, Any]] = [
        {"content": content},
        {"content": in_pieces},  # says nothing of its length before
        {"files": {"file": content}},
        {"files": {"file": content + bytes(1 << 18)}},
        {"content": content, "headers": {"expect": "100-continue"}},
    ]
    with limited(plain, max_bytes=len(content) - 1) as client:
        for given in tries:
            assert client.post("/predict", **given).status_code == 413, given
        lines = client.get("/metrics").text.splitlines()
        assert 'medduet_requests_total{status="413"} 5.0' in lines
        assert "medduet_request_seconds_count 5.0" in lines


class Stuck:
    """Batchers whose pictures wait until they are let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arrived = queue.Queue[bool]()
        self.go, self.cancelled = threading.Event(), threading.Event()
        predict = Batcher.predict

        async def wait(batcher: Batcher, *arguments: Any) -> Any:
            self.arrived.put(True)
            try:
                while not self.go.is_set():
                    await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
            return await predict(batcher, *arguments)

        monkeypatch.setattr(Batcher, "predict", wait)


def test_who_finds_no_room_is_told_to_come_again(
    plain: Predictor, picture: Pixels, encoded: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = Stuck(monkeypatch)
    with limited(plain, queue=2) as client, ThreadPoolExecutor(2) as threads:
        posts = [
            threads.submit(client.post, "/predict", content=encoded(picture(number)))
            for number in range(2)
        ]
        for _ in posts:
            stuck.arrived.get(timeout=20)
        response = client.post("/predict", content=encoded(picture(3)))
        assert (response.status_code, response.headers["retry-after"]) == (429, "1")
        assert "2 requests are waiting" in response.json()["detail"]
        assert "medduet_requests_in_progress 2.0" in client.get("/metrics").text
        stuck.go.set()
        assert [post.result(20).status_code for post in posts] == [200, 200]
        assert client.post("/predict", content=encoded(picture(3))).status_code == 200


def test_large_images_together_have_a_bound() -> None:
    room, largest = Room(Limits()), LARGEST * Limits().max_pixels
    for _ in range(2):
        with room.seat() as seat:
            seat.hold(pixels=largest)
            with room.seat() as other, pytest.raises(HTTPException, match="images are waiting"):
                other.hold(pixels=1)


def test_time_has_an_end(
    plain: Predictor, picture: Pixels, encoded: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = Stuck(monkeypatch)
    with limited(plain, timeout_s=1.0) as client:
        assert client.post("/predict", content=encoded(picture(1))).status_code == 504
        assert stuck.cancelled.is_set()


async def ask(app: Any, messages: list[dict[str, Any]], pause: asyncio.Event) -> int:
    """Talk to the application itself; return the status of its answer."""
    status = 0

    async def receive() -> dict[str, Any]:
        if len(messages) == 1:
            await pause.wait()
        return messages.pop(0) if messages else await asyncio.Event().wait()  # type: ignore[return-value]

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)

    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b""}
    await app(scope | {"headers": [(b"content-type", b"image/png")]}, receive, send)
    return status


def test_nothing_is_computed_for_a_client_that_has_gone(
    plain: Predictor, picture: Pixels, encoded: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = Stuck(monkeypatch)
    app = create_app({"busi": Served(plain)})

    async def leave() -> int:
        async with app.router.lifespan_context(app):
            body = {"type": "http.request", "body": encoded(picture(1)), "more_body": False}
            pause = asyncio.Event()
            task = asyncio.create_task(ask(app, [body, {"type": "http.disconnect"}], pause))
            await asyncio.to_thread(stuck.arrived.get, timeout=20)
            pause.set()
            status = await task
            await asyncio.sleep(0)
            assert stuck.cancelled.is_set()
            return status

    assert asyncio.run(leave()) == CLIENT_GONE


def test_a_body_that_never_ends_is_given_up(plain: Predictor) -> None:
    app = create_app({"busi": Served(plain)}, Limits(timeout_s=0.2))

    async def stall() -> int:
        async with app.router.lifespan_context(app):
            body = {"type": "http.request", "body": b"x", "more_body": True}
            return await ask(app, [body, body], asyncio.Event())

    assert asyncio.run(stall()) == 408


def test_each_of_many_gets_its_own_answer(
    client: TestClient, plain: Predictor, picture: Pixels, encoded: Encode
) -> None:
    expected = [plain(picture(number)) for number in range(24)]

    def post(number: int) -> dict[str, Any]:
        path = f"/predict?model={['busi', 'other'][number % 2]}"
        answer: dict[str, Any] = client.post(path, content=encoded(picture(number))).json()
        return answer

    with ThreadPoolExecutor(8) as threads:
        for number, said in enumerate(threads.map(post, range(24))):
            assert said["model"] == ["busi", "other"][number % 2]
            assert said["probabilities"] == pytest.approx(expected[number].probabilities, abs=1e-4)
            assert (values_of(said["mask"]["png"]) != expected[number].mask).mean() < 0.01


WATCHED: list[str] | None = None


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Note files that are written and addresses that are asked, while it is asked to."""
    if WATCHED is None:
        return
    if event == "open":
        path, mode, flags = arguments
        if (mode and set(mode) & set("wax+")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR):
            WATCHED.append(f"wrote {path}")
    elif event in ("socket.connect", "socket.getaddrinfo", "os.mkdir", "subprocess.Popen"):
        WATCHED.append(f"{event} {arguments[1:]}")


sys.addaudithook(watch)


def test_no_file_is_written_and_nobody_is_asked(
    client: TestClient, encoded: Encode, tmp_path: Path
) -> None:
    global WATCHED
    noise = np.random.default_rng(0).integers(0, 255, (1500, 1500), dtype=np.uint8)
    uploads = [encoded(noise), encoded(noise, "tiff"), encoded(noise, "tiff", compression="jpeg")]
    assert min(len(each) for each in uploads) > 1 << 20  # from which forms go to the disk
    paths = ("/", "/docs", "/page.js", "/openapi.json", "/models", "/metrics", "/healthz")
    WATCHED = seen = []
    try:
        for upload in uploads:
            assert client.post("/predict", files={"file": upload}).status_code == 200
            sent = client.post("/predict?explain=true&image=true", content=upload)
            assert sent.status_code == 200
        assert {client.get(path).status_code for path in paths} == {200}
        assert seen == []
        (tmp_path / "a").write_text("the watch is awake")
        assert len(seen) == 1
    finally:
        WATCHED = None


def test_a_network_that_fails_says_so(
    plain: Predictor, picture: Pixels, encoded: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, predict = threading.Event(), plain.predict_pictures

    def fail(*pictures: Any, **options: Any) -> Any:
        if broken.is_set():
            raise RuntimeError("secret")
        return predict(*pictures, **options)

    monkeypatch.setattr(plain, "predict_pictures", fail)
    app = create_app({"busi": Served(plain)})
    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.get("/healthz").json() == {"status": "ok", "models": ["busi"], "failed": []}
        broken.set()
        response = client.post("/predict", content=encoded(picture(1)))
        assert response.status_code == 500
        assert response.json() == {"detail": "the service failed; see its log"}
        assert client.get("/healthz").json() == {
            "status": "failed",
            "models": ["busi"],
            "failed": ["busi"],
        }
        broken.clear()
        assert client.get("/healthz").status_code == 200
        assert client.portal is not None
        client.portal.call(app.state.service.batchers["busi"].close)
        assert client.get("/healthz").status_code == 503


def test_pages_load_nothing_else_and_models_are_described(client: TestClient) -> None:
    for path in ("/", "/predict", "/nothing"):
        headers = client.get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    first, second = client.get("/models").json()["models"]
    assert (first["name"], first["explains"], second["explains"]) == ("busi", True, False)
    assert [each["name"] for each in first["masks"]][:2] == ["background", "lesion"]
