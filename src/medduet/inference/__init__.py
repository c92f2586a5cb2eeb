"""From a trained network to predictions for image files."""
