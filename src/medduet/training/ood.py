"""What a trained network is used to: one look at some training and the validation images."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from medduet.data.imageset import Split
from medduet.models.base import Features
from medduet.training.experiment import Experiment
from medduet.training.loader import Feed
from medduet.training.speed import judged_together
from medduet.uncertainty.ood import MOST, Familiarity, statistics

Numbers = NDArray[np.float64]


def fit_familiarity(experiment: Experiment) -> Familiarity | None:
    """Return what the network and the images say of what is familiar; ``None`` for too few images.

    One process does it alone. Of large splits `MOST` images are looked at, at equal distances; of
    shards the first ones, so that no others have to be fetched.
    """
    data = experiment.data
    (train, train_features), (val, val_features) = (
        _looked_at(experiment, split) for split in (data.train, data.val)
    )
    stretched = data.info.get("fit", "stretch") == "stretch"
    return Familiarity.fit(
        *(train, val, train_features, val_features), channels=data.in_channels, stretched=stretched
    )


def _looked_at(experiment: Experiment, split: Split) -> tuple[Numbers, Numbers | None]:
    """Return statistics ``(N, S)`` and features ``(N, F)`` of images of a split."""
    fabric, network, count = experiment.fabric, experiment.network, min(len(split), MOST)
    index = np.arange(count)
    if split.shard_sizes is None and count:
        index = np.linspace(0, len(split) - 1, count).round().astype(np.int64)
    together = judged_together(fabric.device.type, *experiment.data.size)
    shares = [index[start : start + together] for start in range(0, count, together)]
    has_classes, plain, features = network.classifier is not None, [np.empty((0, 0))], []
    network.eval()
    seen = Features(network)
    try:
        with torch.inference_mode():
            for batch in Feed(fabric, split).batches(shares):
                plain.append(statistics(batch.image.cpu().numpy()))
                if has_classes:  # in float32, as predictors compute
                    network.classify(batch.image)
                    found = seen.last()
                    assert found is not None
                    features.append(found)
    finally:
        seen.remove()
    return np.concatenate(plain[1:] or plain), np.concatenate(features) if features else None
