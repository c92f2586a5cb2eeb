"""A grid of runs, and where it is run."""
