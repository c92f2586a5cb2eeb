"""Calibration, conformal sets and out-of-distribution detection."""
