"""Finished networks on any images: metrics, calibration, ensembles, corruptions."""
