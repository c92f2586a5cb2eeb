"""Losses of each task, and how they become one step."""
