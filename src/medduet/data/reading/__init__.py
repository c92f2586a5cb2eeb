"""Reads one image file, whatever it is: safely, and into arrays of a fixed size.

`probe` looks at the header, `read_images` and `read_mask` read. What is in a file decides how it
is read, not its name. No module here imports torch, so worker processes start fast.
"""

from __future__ import annotations

from medduet.data.reading.core import Facts, ReadOptions
from medduet.data.reading.images import (
    Picture,
    ReadJob,
    picture_of,
    probe,
    read_images,
    read_job,
    read_pictures,
)
from medduet.data.reading.masks import read_mask
from medduet.data.reading.names import is_image, stem_of

__all__ = [
    "Facts",
    "Picture",
    "ReadJob",
    "ReadOptions",
    "is_image",
    "picture_of",
    "probe",
    "read_images",
    "read_job",
    "read_mask",
    "read_pictures",
    "stem_of",
]
