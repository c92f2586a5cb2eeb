"""Reads image files: whatever they are, into arrays of one size.

`images.opened` reads a header, `images.read_pictures` and `masks.read_mask` read pixels. What is in
a file decides how it is read, not its name. No module here imports torch, so that workers start
fast.
"""
