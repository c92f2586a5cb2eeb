"""How the class of a large image is best read by a network that takes patches.

    OMP_NUM_THREADS=1 python -m benchmarks.pooled --size 96 --patch 48 --seeds 5

Phantoms of `--size`, and a network for `--patch`. The class comes from a view of the whole image in
the size of a patch (what MedDuet does), or from the features of all windows, which overlap by half,
by their mean, their maximum, or attention (gated, arXiv:1802.04712), over which the class head
lies; "whole" is the network on whole images, where they fit. VovUnet_Var of width 8, class alone,
AdamW with a cosine, 210 images of training, mirrored, and 2,000 others to test on. Pixels are those
that the network computes for each image. One line of JSON for each run.
"""

import argparse
import json
import time
from itertools import product

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

import medduet
from medduet.data.patches import view
from medduet.models.inference import autocast
from medduet.utils.devices import keep_freed_memory

WAYS = ("whole", "view", "mean", "max", "attention")
BATCH, RATE, WIDTH = 16, 3e-3, 8


class Attention(nn.Module):
    """The mean of features ``(N, P, F)`` over P patches, by weights that are learnt."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.gate, self.value, self.weight = (
            nn.Linear(features, size) for size in (features, features, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, F)``."""
        scores = self.weight(torch.tanh(self.value(x)) * torch.sigmoid(self.gate(x)))
        return (scores.softmax(dim=1) * x).sum(dim=1)


class Reader(nn.Module):
    """Class scores of images ``(N, 1, S, S)`` uint8, read in one of the `WAYS`."""

    def __init__(self, way: str, patch: int, classes: int) -> None:
        super().__init__()
        self.way, self.patch = way, patch
        self.network = medduet.create_model(
            "vovunet_var", in_channels=1, num_classes=classes, dense_channels=0, width=WIDTH
        )
        features = self.network.class_head.in_features
        self.head, self.network.class_head = self.network.class_head, nn.Identity()
        self.attention = Attention(features) if way == "attention" else None

    def forward(self, image: Tensor) -> Tensor:
        """Return ``(N, K)``."""
        if self.way in ("whole", "view"):
            sides = (self.patch, self.patch)
            whole = image if self.way == "whole" else view(image, sides)
            return self.head(self.network(whole).class_logits)
        starts = range(0, image.shape[-1] - self.patch + 1, self.patch // 2)
        windows = torch.stack(
            [
                image[..., y : y + self.patch, x : x + self.patch]
                for y, x in product(starts, starts)
            ],
            dim=1,
        )
        x = self.network(windows.flatten(0, 1)).class_logits.unflatten(0, windows.shape[:2])
        if self.attention is not None:
            return self.head(self.attention(x.float()))
        return self.head(x.mean(dim=1) if self.way == "mean" else x.amax(dim=1))


def run(way: str, options: argparse.Namespace, seed: int) -> dict[str, object]:
    """Train, and return the scores on test after the last epoch."""
    images = medduet.open_images("phantom", size=options.size, count=300)
    other = medduet.open_images("phantom", size=options.size, count=2_000, seed=1).pool()
    torch.manual_seed(seed)
    reader = Reader(way, options.patch, len(images.class_names))
    batches = len(images.train) // BATCH
    optimizer = torch.optim.AdamW(reader.parameters(), RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * batches)
    start = time.perf_counter()
    for _ in range(options.epochs):
        order = torch.randperm(len(images.train)).numpy()[: batches * BATCH]
        for index in order.reshape(batches, BATCH):
            batch = images.train.batch(index)
            image = torch.stack([x.flip(-1) if torch.rand(()) < 0.5 else x for x in batch.image])
            with autocast(image.device, "bfloat16"):
                loss = F.cross_entropy(reader(image).float(), batch.label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    seconds = (time.perf_counter() - start) / options.epochs
    reader.eval()
    with torch.inference_mode():
        parts = [other.batch(x) for x in np.array_split(np.arange(len(other)), len(other) // 50)]
        scores = torch.cat([reader(part.image).float() for part in parts])
    label, p = other.labels, scores.softmax(dim=1).numpy()
    return {
        "way": way,
        "size": options.size,
        "patch": options.patch,
        "seed": seed,
        "accuracy": round(float((p.argmax(axis=1) == label).mean()), 4),
        "auc": round(float(roc_auc_score(label, p, multi_class="ovr")), 4),
        "seconds an epoch": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--patch", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    for seed, way in product(range(options.seeds), options.ways):
        print(json.dumps(run(way, options, seed)), flush=True)


if __name__ == "__main__":
    main()
