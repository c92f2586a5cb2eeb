"""Training, judging, checkpoints and run folders."""
