"""Where images come from: sources, reading, storage, splits, batches and augmentation."""
