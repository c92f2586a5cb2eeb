"""The page of an audit: what it shows, and that it opens anywhere."""

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import medduet
from medduet.data.phantom import phantom_images
from medduet.reports.audit_page import write_audit
from medduet.utils.palette import mask_color
from medduet.utils.parsing import read_json

HOSTILE = "<script>alert('x')</script>" + "y" * 200


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """The page of 14 copies across splits with hostile names, other masks and a black image."""
    images = phantom_images(size=32, count=(80, 24, 40))
    test, masks = np.array(images.test.images), np.array(images.test.masks)
    test[:14], test[14], masks[:14] = np.asarray(images.train.images[:14]), 0, 0
    masks[:14, :2] = 255  # ignored: also an empty mask
    ids = np.array([f"{HOSTILE} {k}" for k in range(80)])
    leaky = replace(
        images,
        name="<u>set</u>",
        class_names=("<em>", "a & b", "c", "d"),
        train=replace(images.train, ids=ids),
        test=replace(images.test, images=test, masks=masks),
        fingerprint="hostile",
    )
    return write_audit(medduet.audit(leaky, cache=tmp_path), leaky, tmp_path / "audit")


def test_it_shows_findings_and_pairs(page: Path) -> None:
    text = page.read_text()
    assert "Exact duplicates across splits: 28 images (14 train, 14 test); also in" in text
    assert "The first 12 of 28; audit.json lists all." in text
    assert "14 pairs, the worst first." in text
    assert text.count("data:image/png") == 1 + 2 * 14
    assert "20 (25.0%)" in text  # of a class of train
    pairs = pd.read_csv(page.with_name("duplicates.csv"))
    assert (len(pairs), pairs["across_splits"].sum(), pairs["exact"].sum()) == (14, 14, 14)
    assert pairs["image_a"][0].startswith(HOSTILE)
    conflicts = pairs["masks_differ"].sum()  # lesions of train, all of them without mask in test
    assert conflicts == text.count("· empty mask") > 5
    pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
        for data in re.findall(r'image/png;base64,([^"]+)"', text)
    ]
    assert sum((each == mask_color(1)).all(axis=2).any() for each in pictures) == conflicts
    (copies, *_) = read_json(page.with_name("audit.json"))["findings"]
    assert (copies["severity"], len(copies["images"])) == ("leak", 28)


def test_names_are_escaped_and_shortened_and_nothing_outside_is_named(page: Path) -> None:
    text = page.read_text()
    for markup in ("<script>alert", "<u>", "<em>", "y" * 80):
        assert markup not in text
    assert "a &amp; b" in text
    assert "http" not in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)
