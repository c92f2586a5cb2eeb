"""Setup, loop, step, state and validation of one training run."""
