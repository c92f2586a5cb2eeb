"""The audit of a data set: data leakage, label errors, and images and masks that look wrong."""
