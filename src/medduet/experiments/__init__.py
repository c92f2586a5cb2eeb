"""Grids of runs and searches, on this machine or on a Ray cluster."""
