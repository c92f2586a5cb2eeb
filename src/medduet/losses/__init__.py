"""The losses of a run, of each image and task."""
