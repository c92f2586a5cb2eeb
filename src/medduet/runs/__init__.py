"""The run folder, predictions of a split, and the bundle of a trained network."""
