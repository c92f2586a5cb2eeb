"""Take a picture of the page of `medduet serve` with a phantom on it.

    medduet demo --epochs 5 --out RUN
    python -m benchmarks.page phantoms=RUN docs/images/serve.png [--width 390] [--dark]

Needs Chromium (`--chromium` says where) and the package playwright.
"""

import argparse
import io
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from medduet import open_images


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", nargs="+", help="a run or bundle that knows phantoms")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1080, help="of the window in pixels")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--layer", choices=("mask", "heat", "none"), default="mask")
    parser.add_argument("--size", type=int, default=48, help="of the phantom in pixels")
    parser.add_argument("--which", type=int, default=0, help="phantom of the test split")
    parser.add_argument("--whole", action="store_true", help="the page with its model card open")
    parser.add_argument("--upload", type=Path, help="a file instead of a phantom")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    given = parser.parse_args()
    command = [sys.executable, "-m", "medduet", "serve", *given.network, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            address = service.stdout.readline().split(" at ")[1].split()[0]
            take(address, given)
        finally:
            service.terminate()


def take(address: str, given: argparse.Namespace) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=given.chromium, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": given.width, "height": 820},
            color_scheme="dark" if given.dark else "light",
        )
        page.goto(address)
        page.wait_for_selector("#card-part:not([hidden])")
        upload = given.upload or {
            "name": "phantom.png",
            "mimeType": "image/png",
            "buffer": phantom(given.size, given.which),
        }
        page.set_input_files("#file", upload)
        page.wait_for_selector("#result:visible, #error:visible", timeout=60_000)
        if page.is_visible("#result"):
            page.check(f"[name=layer][value={given.layer}]")
        if given.whole:
            page.click("summary")
        page.screenshot(path=given.picture, full_page=True)
        browser.close()


def phantom(size: int, which: int) -> bytes:
    pixels = open_images("phantom", size=size).test.images[which]
    Image.fromarray(pixels).save(file := io.BytesIO(), "png")
    return file.getvalue()


if __name__ == "__main__":
    main()
