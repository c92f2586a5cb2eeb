"""The page of an audit: what it shows, and that it opens anywhere."""

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
from medduet.utils.palette import MASK_RGB
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
    text, tables = page.read_text(), page.parent / "tables"
    assert "1 leak, 2 warnings, 3 notes" in text
    assert "Exact duplicates across splits: 28 images (14 train, 14 test); also in" in text
    assert "14 of 14 pairs, the worst first" in text
    assert "20 (25.0%)" in text  # of a class of train
    pairs = pd.read_csv(tables / "duplicates.csv")
    assert (len(pairs), pairs["across_splits"].sum(), pairs["exact"].sum()) == (14, 14, 14)
    assert pairs["image_a"][0].startswith(HOSTILE)
    findings = pd.read_csv(tables / "findings.csv")
    drawn = {path.stem for path in (page.parent / "figures").glob("*.png")}
    assert drawn == {*findings["kind"][findings["images"] > 0], "duplicates"}
    assert text.count("data:image/svg") == len(drawn)
    # Lesions of train are outlined, and no others are there: those of test are ignored.
    pixels = np.asarray(Image.open(page.parent / "figures" / "duplicates.png").convert("RGB"))
    assert (pixels == [*MASK_RGB[1]]).all(axis=2).any()
    assert not (pixels == [*MASK_RGB[2]]).all(axis=2).any()
    (copies, *_) = read_json(page.with_name("audit.json"))["findings"]
    assert (copies["severity"], len(copies["images"])) == ("leak", 28)


def test_names_are_escaped_and_shortened_and_nothing_outside_is_named(page: Path) -> None:
    text = page.read_text()
    for markup in ("<script>alert", "<u>", "<em>", "y" * 80):
        assert markup not in text
    assert "a &amp; b" in text
    assert "http" not in text
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
