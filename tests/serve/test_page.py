"""What people see: the page in a real browser, with a real server behind it."""

import base64
import io
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from medduet import Predictor, create_model
from medduet.runs.bundle import save_bundle

sync_api = pytest.importorskip("playwright.sync_api", reason="the page needs playwright")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the page needs Chromium")
EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for volumes of 2 x 1 x 1 mm."""
    network = create_model(
        "unet_var", in_channels=1, num_classes=2, dense_channels=3, dims=3, width=2
    )
    noise = torch.randint(0, 255, (1, 1, 16, 24, 32), dtype=torch.uint8)
    with torch.no_grad():  # each class is the most likely one somewhere
        network.dense_head.bias -= network.eval()(noise).dense.mean((0, 2, 3, 4))
    about = {
        "class_names": ["normal", "ill"],
        "mask_names": ["background", "lesion", "vessel"],
        "layout": {"mask_classes": 3, "image_channels": 0},
        "preprocessing": {"size": [16, 24, 32], "channels": 1, "fit": "pad", "spacing": [2, 1, 1]},
    }
    save_bundle(folder := tmp_path_factory.mktemp("deep") / "deep", network, about)
    return folder


@pytest.fixture(scope="module")
def address(own: Path, deep: Path, medduet_command: list[str]) -> Iterator[str]:
    command = [*medduet_command, "serve", str(own), f"other={own}", str(deep)]
    options = ["--port", "0", "--max-mb", "0.5"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        yield service.stdout.readline().split(" at ")[1].split()[0]
        service.terminate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Page:
    """A page, and what must not happen on it."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.page.set_default_timeout(60_000)
        self.asked, self.wrong = list[str](), list[str]()
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.wrong.append("a dialog"), dialog.dismiss()))
        self.page.on("console", self._note)
        self.page.goto(address)
        self.page.wait_for_selector("#model option", state="attached")

    def _note(self, message: Any) -> None:
        # Refused uploads are noted by the browser itself.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.wrong.append(message.text)

    def drop(self, name: str, content: bytes) -> None:
        script = """([name, content]) => {
            const data = new DataTransfer();
            const bytes = Uint8Array.from(atob(content), (each) => each.charCodeAt(0));
            data.items.add(new File([bytes], name));
            document.getElementById("drop").dispatchEvent(
                new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }"""
        self.page.evaluate(script, [name, base64.b64encode(content).decode()])


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Callable[..., Page]]:
    """A function that opens the page; nothing may be wrong on it at the end."""
    visited = []

    def open_page(**options: Any) -> Page:
        visited.append(Page(browser, address, **options))
        return visited[-1]

    yield open_page
    for each in visited:
        assert each.wrong == []
        local = (address + "/", "data:", "blob:")
        assert [url for url in each.asked if not (url + "/").startswith(local)] == []
        each.page.close()


Visit = Callable[..., Page]
Pixels = Callable[[int], np.ndarray]
Encode = Callable[..., bytes]


def test_a_dropped_image_shows_its_classes_and_the_mask(
    visit: Visit, picture: Pixels, encoded: Encode
) -> None:
    visited = visit()
    page = visited.page
    assert page.is_visible("text=Not for clinical use.")
    visited.drop("a.png", encoded(picture(1)))
    page.wait_for_selector("#result:visible")
    bars = page.locator("#bars li")
    names = [bars.nth(place).locator(".name span").first.inner_text() for place in range(3)]
    assert sorted(names) == sorted(["benign", "malignant", EVIL])
    widths = page.eval_on_selector_all(".fill", "all => all.map((each) => each.offsetWidth)")
    assert widths == sorted(widths, reverse=True)
    assert page.inner_text("#label") == names[0]
    assert names[0] in page.inner_text("#set")
    assert page.locator("#ood").is_hidden()
    assert names[0] in page.inner_text("[role=status]")
    for image in ("#image", "#mask"):
        size = page.eval_on_selector(
            image, "async (e) => (await e.decode(), [e.naturalWidth, e.naturalHeight])"
        )
        assert size == [75, 50]
    boxes = [page.locator(image).bounding_box() for image in ("#image", "#mask")]
    assert boxes[0] == boxes[1]
    page.fill("#opacity", "25")
    assert page.eval_on_selector("#mask", "e => getComputedStyle(e).opacity") == "0.25"
    page.check("[value=heat]")
    assert page.is_visible("#heat")
    assert not page.is_visible("#mask")
    assert EVIL in page.inner_text("#areas")
    page.click("summary")
    assert EVIL in page.inner_text("#card")
    assert page.locator("[src=x]").count() == 0
    volume = np.stack([picture(number).T for number in range(3)], axis=-1)
    visited.drop("a.nii", nibabel.Nifti1Image(volume, np.diag([-1, -1, 1, 1])).to_bytes())
    page.wait_for_selector("#frame-choice:visible")
    for number in (2, 3):
        assert page.inner_text("#frame-number") == f"{number} of 3"
        page.locator("#frame").press("ArrowRight")
    noise = np.random.default_rng(0).integers(0, 255, (50, 75), np.uint8)
    visited.drop("noise.png", encoded(noise))
    page.wait_for_selector("#ood:visible")
    assert page.locator("#frame-choice").is_hidden()


def test_a_volume_is_shown_slice_by_slice(visit: Visit, deep: Path, tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 255, (30, 20, 12), np.uint8)  # x, y, z
    image = nibabel.Nifti1Image(voxels, np.diag([-1, -1, 2, 1]))
    nibabel.save(image, tmp_path / "scan.nii")
    expected = Predictor(deep)(tmp_path / "scan.nii")
    assert expected.mask is not None
    shares = [(expected.mask[8] == number).mean() for number in (1, 2)]
    assert min(shares) > 0
    visited = visit()
    page = visited.page
    page.select_option("#model", "deep")
    assert page.locator("#explain-choice").is_hidden()
    with page.expect_response("**/predict?*") as answered:
        visited.drop("scan.nii", image.to_bytes())
    page.wait_for_selector("#frame-choice:visible")
    assert page.inner_text("#frame-choice").split() == ["Slice", "6", "of", "12"]
    for _ in range(3):
        page.locator("#frame").press("ArrowRight")
    assert page.inner_text("#label") == expected.label
    ml = [round((expected.mask == number).sum() * 2 / 1000, 3) for number in (1, 2)]
    parts = zip(("lesion", "vessel"), ml, shares, strict=True)
    told = [f"{name}: {volume:g} ml; {100 * x:.1f} % of the slice" for name, volume, x in parts]
    assert page.locator("#areas li").all_inner_texts() == told
    frames = answered.value.json()["frames"]
    assert frames[0]["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
    for k, frame in enumerate(frames):
        drawn = [
            np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
            for content in (frame["image"], frame["mask"]["png"])
        ]
        assert np.array_equal(drawn, [expected.image[k], expected.mask[k]])
    visited.drop("one.nii", nibabel.Nifti1Image(voxels[..., :1], np.eye(4)).to_bytes())
    page.wait_for_selector("#error:visible")
    assert "expected a volume of several slices" in page.inner_text("[role=alert]")


def test_each_wrong_file_has_a_message_and_the_api_a_page(
    visit: Visit, picture: Pixels, encoded: Encode, address: str
) -> None:
    visited = visit()
    page = visited.page
    files = {
        "notes.txt": (b"some words", "not an image that can be read"),
        "scan.png": (b"%PDF-1.7 and so on", "PNG, JPEG, TIFF, BMP, GIF, WebP, DICOM or NIfTI"),
        "huge.png": (bytes(600_000), "expected at most 0.5 MB, given 0.572 MB"),
        "dot.png": (encoded(np.zeros((1, 1), np.uint8)), "at least 8 x 8 pixels, given 1 x 1"),
        "half.png": (encoded(picture(1))[:300], "can't be used"),
    }
    for name, (content, reason) in files.items():
        visited.drop(name, encoded(picture(1)))
        page.wait_for_selector("#result:visible")
        visited.drop(name, content)
        page.wait_for_selector("#error:visible")
        assert reason in page.inner_text("[role=alert]"), name
        assert not page.is_visible("#result")
    page.goto(address + "/docs")  # without internet
    page.wait_for_selector("text=/predict")
