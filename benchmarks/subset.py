"""Fewer training images of a set, each class as often as before; val and test stay whole.

python benchmarks/subset.py SET.npz OUT.npz 800
"""

import sys

import numpy as np
from sklearn.model_selection import train_test_split


def main(source: str, target: str, count: int, seed: int = 0) -> None:
    with np.load(source, allow_pickle=False) as file:
        arrays = dict(file)
    labels = arrays["train_labels"]
    chosen, _ = train_test_split(
        np.arange(len(labels)), train_size=count, stratify=labels, random_state=seed
    )
    for name in [name for name in arrays if name.startswith("train_")]:
        arrays[name] = arrays[name][np.sort(chosen)]
    np.savez_compressed(target, allow_pickle=False, **arrays)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
