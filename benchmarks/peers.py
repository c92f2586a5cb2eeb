"""What a competent user would take instead of MedDuet for class and mask: smp's U-Nets, tuned.

    OMP_NUM_THREADS=1 taskset -c 1 python -m benchmarks.peers smp-resnet34 smp-mobilenetv2 \\
        --data busi_seg_64.npz --out peers.jsonl --trials 20 --seeds 5

A U-Net of segmentation_models_pytorch with a class head (`aux_params`) and the loop that its users
write: grey images three times over, ImageNet's mean, mirrored, moved a little, brightness and
contrast; AdamW, a cosine, cross-entropy + weight * (Dice loss + BCE), and the epoch with the best
mean of AUC and Dice (non-empty masks) on val. It computes as MedDuet does: bfloat16 where the CPU
has it, channels last, memory kept. A run sees as many images as in MedDuet's preset `fast`.

Random trials, the first one with customary settings, are compared by that score on val; the best
settings get several seeds, and only these runs see the test images. Where the encoder's weights
can't be had it starts from scratch, which its rows say. Data: an .npz in MedMNIST's layout, with
grey images and masks of 0 and 1. Each run is a line of JSON in `--out`, and isn't repeated if it is
there already. HD95 is in pixels, of images where truth and prediction have a mask.
"""

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import kornia.augmentation as K
import numpy as np
import segmentation_models_pytorch as smp
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from medduet.metrics import reliability, surface_distances
from medduet.metrics.intervals import nan_mean
from medduet.utils.devices import best_precision, keep_freed_memory

PEERS = {"smp-resnet34": "resnet34", "smp-mobilenetv2": "tu-mobilenetv2_100"}
BATCH = 16
CUSTOMARY = {"learning_rate": 1e-3, "weight_decay": 1e-2, "mask_weight": 1.0}
RANGES = {"learning_rate": (1e-4, 3e-3), "weight_decay": (1e-4, 1e-1), "mask_weight": (0.3, 3.0)}
METRICS = ("accuracy", "auc", "dice", "false_positive_rate", "hd95", "ece", "minutes")
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
TRIAL_SEED = 100
"""Seeds of trials start here, so that no trial is one of the final runs."""
Row = dict[str, Any]


def read(file: Path, split: str) -> TensorDataset:
    """Return images ``(N, 1, H, W)`` in [0, 1], classes ``(N,)`` and masks ``(N, 1, H, W)``."""
    with np.load(file, allow_pickle=False) as arrays:
        image, label, mask = (arrays[f"{split}_{name}"] for name in ("images", "labels", "masks"))
    image, mask = (torch.from_numpy(array[:, None]).float() for array in (image, mask))
    return TensorDataset(image / 255, torch.from_numpy(label[:, 0]).long(), mask)


def build(peer: str, classes: int, pretrained: bool) -> torch.nn.Module:
    """Return a U-Net that maps images ``(N, 3, H, W)`` to logits of the mask and of the classes."""
    encoder = PEERS[peer]
    weights = True if encoder.startswith("tu-") else "imagenet"  # smp wants a bool for timm's
    head = {"classes": classes}
    return smp.Unet(encoder, encoder_weights=weights if pretrained else None, aux_params=head)


def can_be_pretrained(peer: str) -> bool:
    """Return whether the encoder's weights are cached, or can be downloaded."""
    try:
        build(peer, 2, pretrained=True)
    except OSError as error:  # as the hub's errors are
        print(f"{peer}: {error}")
        return False
    return True


def forward(network: torch.nn.Module, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of mask and class, float32."""
    normalised = ((image - MEAN) / STD).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=best_precision("cpu") == "bf16-mixed"):
        mask_logits, class_logits = network(normalised)
    return mask_logits.float(), class_logits.float()


def evaluate(network: torch.nn.Module, images: TensorDataset, thorough: bool) -> dict[str, float]:
    """Return the metrics of a split, HD95 and ECE if `thorough`."""
    network.eval()
    with torch.inference_mode():
        outputs = [forward(network, image) for image, _, _ in DataLoader(images, 64)]
    mask_logits, class_logits = map(torch.cat, zip(*outputs, strict=True))
    label, truth = images.tensors[1].numpy(), images.tensors[2][:, 0].long()
    predicted, probability = (mask_logits[:, 0] > 0).long(), class_logits.softmax(dim=1).numpy()
    lesion, drawn = truth.sum(dim=(1, 2)).numpy(), predicted.sum(dim=(1, 2)).numpy()
    dice = 2 * (truth * predicted).sum(dim=(1, 2)).numpy() / (lesion + drawn).clip(1)
    score = probability[:, 1] if probability.shape[1] == 2 else probability
    metrics = {
        "accuracy": float((probability.argmax(axis=1) == label).mean()),
        "auc": float(roc_auc_score(label, score, multi_class="ovr")),
        "dice": nan_mean(dice[lesion > 0]),
        "false_positive_rate": nan_mean(drawn[lesion == 0] > 0),
    }
    if thorough:
        metrics["hd95"] = nan_mean(surface_distances(predicted, truth, num_classes=2)["hd95"])
        metrics["ece"] = reliability(label, probability, bins=15).error
    return metrics


def train(
    network: torch.nn.Module, images: TensorDataset, val: TensorDataset, job: Row
) -> list[float]:
    """Train, leave the network as after its best epoch on val; return the score of each epoch."""
    loader = DataLoader(images, BATCH, shuffle=True, drop_last=True)
    epochs = max(1, round(job["images"] / len(images)))
    rate, decay = job["learning_rate"], job["weight_decay"]
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=decay, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    augment = K.AugmentationSequential(
        K.RandomHorizontalFlip(p=0.5),
        K.RandomAffine(15.0, (0.1, 0.1), scale=(0.85, 1.15), p=0.8),
        K.RandomBrightness((0.8, 1.2), p=0.5),
        K.RandomContrast((0.8, 1.2), p=0.5),
        data_keys=["input", "mask"],
    )
    dice_loss = smp.losses.DiceLoss("binary")
    scores, best_weights = list[float](), copy.deepcopy(network.state_dict())
    for _ in range(epochs):
        network.train()
        for image, label, mask in loader:
            image, mask = augment(image, mask)
            mask_logits, class_logits = forward(network, image)
            mask_loss = F.binary_cross_entropy_with_logits(mask_logits, mask)
            mask_loss = mask_loss + dice_loss(mask_logits, mask)
            loss = F.cross_entropy(class_logits, label) + job["mask_weight"] * mask_loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        metrics = evaluate(network, val, thorough=False)
        scores.append((metrics["auc"] + metrics["dice"]) / 2)
        if scores[-1] == max(scores):
            best_weights = copy.deepcopy(network.state_dict())
    network.load_state_dict(best_weights)
    return scores


def run(job: Row, options: argparse.Namespace) -> Row:
    """Return the row of a run, from `--out` if it is there, else train and add it."""
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    for row in map(json.loads, lines):
        if job.items() <= row.items():
            return dict(row)
    images, val, test = (read(options.data, split) for split in ("train", "val", "test"))
    torch.manual_seed(job["seed"])
    classes = int(images.tensors[1].max()) + 1
    network = build(job["peer"], classes, job["weights"] == "ImageNet")
    network = network.to(memory_format=torch.channels_last)
    started, started_cpu = time.perf_counter(), time.process_time()
    scores = train(network, images, val, job)
    row = job | {"val_score": max(scores), "val_scores": scores}
    row["minutes"] = (time.perf_counter() - started) / 60
    row["cpu_minutes"] = (time.process_time() - started_cpu) / 60
    row["parameters"] = sum(weight.numel() for weight in network.parameters())
    if job["kind"] == "test":
        row |= evaluate(network, test, thorough=True)
    with options.out.open("a") as file:
        print(json.dumps(row), file=file)
    print(json.dumps(row), flush=True)
    return row


def tune(peer: str, options: argparse.Namespace) -> list[Row]:
    """Return the rows of the final runs."""
    pretrained = options.weights == "imagenet" and can_be_pretrained(peer)
    common = {"peer": peer, "weights": "ImageNet" if pretrained else "from scratch"}
    print(f"{peer}: {common['weights']}", flush=True)
    common |= {"data": options.data.name, "images": options.images}
    trials = []
    for number in range(options.trials):
        rng = np.random.default_rng(number)
        drawn = {name: np.exp(rng.uniform(*np.log(ends))) for name, ends in RANGES.items()}
        settings = {name: float(f"{value:.3g}") for name, value in drawn.items()}
        job = common | {"kind": "trial", "seed": TRIAL_SEED + number}
        trials.append(run(job | (settings if number else CUSTOMARY), options))
    best = max(trials, key=lambda row: row["val_score"])
    common |= {"kind": "test"} | {name: best[name] for name in RANGES}
    return [run(common | {"seed": seed}, options) for seed in range(options.seeds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peers", nargs="+", choices=PEERS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", choices=("imagenet", "none"), default="imagenet")
    parser.add_argument("--images", type=int, default=10_000, help="that each run sees in all")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    finished = [tune(peer, options) for peer in options.peers]
    print(f"\n| peer | weights | settings | {' | '.join(METRICS)} | parameters / 10⁶ |")
    print("| --- " * (len(METRICS) + 4) + "|")
    for rows in finished:
        first = rows[0]
        cells = [first["peer"], first["weights"], ", ".join(f"{first[name]:g}" for name in RANGES)]
        for name in METRICS:
            values = [row[name] for row in rows]
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}")
        print(f"| {' | '.join(cells)} | {first['parameters'] / 1e6:.1f} |")


if __name__ == "__main__":
    main()
