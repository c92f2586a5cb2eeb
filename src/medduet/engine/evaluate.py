"""Judging a network on a split, image by image, on any number of processes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from medduet.config import EvaluateConfig
from medduet.data.batches import evaluation_batches
from medduet.data.imageset import ImageSet, Split
from medduet.metrics import (
    accuracy,
    auc,
    balanced_accuracy,
    classification_metrics,
    dice_per_class,
    hd95_per_class,
    iou_per_class,
    reconstruction_errors,
    reconstruction_summary,
    segmentation_summary,
)
from medduet.models import DuetNetwork, Normalize
from medduet.objectives import Objective
from medduet.types import Batch, DenseLayout, Outputs


@dataclass
class Predictions:
    """What a network said of each image of a split, in the order of the split.

    Attributes:
        label: ``(N,)`` or ``(N, K)`` int64 truth, -1 unknown.
        has_mask: ``(N,)`` bool, whether the true mask is known.
        values: per-image arrays ``(N, ...)`` float by name: ``probability`` ``(N, K)``; ``dice``,
            ``iou``, ``hd95``, ``truth_pixels``, ``predicted_pixels`` ``(N, M)`` for the M
            foreground classes; ``mse``, ``psnr``, ``ssim`` ``(N,)``; ``loss_TASK`` and
            ``weight_TASK`` ``(N,)``.
    """

    label: NDArray[np.int64]
    has_mask: NDArray[np.bool_]
    values: dict[str, NDArray[np.float64]] = field(default_factory=dict)


def predict_split(
    fabric: Fabric,
    network: DuetNetwork,
    split: Split,
    layout: DenseLayout,
    *,
    multi_label: bool,
    batch_size: int,
    objective: Objective | None = None,
    thorough: bool = True,
) -> Predictions:
    """Run `network` once over every image of `split` and return what it said of each.

    Every process judges its own share and gets the predictions for all images. The network is in
    evaluation mode meanwhile and afterwards in the mode in which it was.

    Args:
        fabric: device, precision and processes.
        network: takes images, gives `Outputs`; not the wrapper of DistributedDataParallel.
        split: the images.
        layout: which dense channels belong to which task.
        multi_label: sigmoid instead of softmax.
        batch_size: images per step, over all processes together.
        objective: if given, the losses are recorded too.
        thorough: also the slow metrics (HD95, PSNR, SSIM).
    """
    was_training = network.training
    network.eval()
    parts: list[dict[str, Tensor]] = []
    order: list[NDArray[np.int64]] = []
    shares = evaluation_batches(
        len(split), batch_size, rank=fabric.global_rank, world_size=fabric.world_size
    )
    # A process without a share judges the first image too, and its answer is thrown away below.
    spare = not shares
    with torch.inference_mode():
        for index in shares or [np.zeros(1, dtype=np.int64)]:
            batch = fabric.to_device(split.batch(index))
            with fabric.autocast():
                outputs: Outputs = network(batch.image)
            outputs = Outputs(*(None if head is None else head.float() for head in outputs))
            normalized = network.normalize(batch.image)
            values = _judge(outputs, batch, network.normalize, layout, multi_label, thorough)
            if objective is not None:
                for task, term in objective(outputs, batch, normalized).items():
                    values[f"loss_{task}"], values[f"weight_{task}"] = term.loss, term.weight
            parts.append({name: value.double().cpu() for name, value in values.items()})
            order.append(np.full(1, len(split)) if spare else index)
    network.train(was_training)
    has_mask = split.has_mask
    if has_mask is None:
        has_mask = np.full(len(split), split.masks is not None)
    return Predictions(
        np.asarray(split.labels), has_mask, _gather(fabric, parts, order, len(split))
    )


def _judge(
    outputs: Outputs,
    batch: Batch,
    normalize: Normalize,
    layout: DenseLayout,
    multi_label: bool,
    thorough: bool,
) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}
    if outputs.class_logits is not None:
        logits = outputs.class_logits.double()
        values["probability"] = logits.sigmoid() if multi_label else logits.softmax(dim=1)
    if outputs.dense is None:
        return values
    if layout.mask_classes and batch.mask is not None:
        classes = layout.mask_classes
        predicted, truth = layout.mask(outputs.dense), batch.mask
        values["dice"] = dice_per_class(predicted, truth, classes)
        values["iou"] = iou_per_class(predicted, truth, classes)
        if thorough:
            values["hd95"] = hd95_per_class(predicted, truth, classes)
        for name, mask in (("truth_pixels", truth), ("predicted_pixels", predicted)):
            counts = [(mask == label).sum(dim=(1, 2)) for label in range(1, classes)]
            values[name] = torch.stack(counts, dim=1)
    if layout.image_channels:
        # Whatever the network normalises with, errors are told on the paper's scale of -1 to 1.
        image, target = (
            2 * normalize.invert(x) - 1
            for x in (layout.image(outputs.dense), normalize(batch.image))
        )
        if thorough:
            values |= reconstruction_errors(image, target)
        else:
            values["mse"] = (image - target).square().mean(dim=(1, 2, 3))
    return values


def _gather(
    fabric: Fabric, parts: list[dict[str, Tensor]], order: list[NDArray[np.int64]], count: int
) -> dict[str, NDArray[np.float64]]:
    """Put the shares of all processes back into the order of the split."""
    mine = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    index = torch.from_numpy(np.concatenate(order))
    if fabric.world_size > 1:
        # Shares differ by one image at most; a dummy row, whose position is `count`, evens them.
        room = -(-count // fabric.world_size) - len(index)
        index = _all_gather(fabric, torch.cat([index, torch.full((room,), count)]))
        for name, value in mine.items():
            filler = value[:1].repeat_interleave(room, dim=0)
            mine[name] = _all_gather(fabric, torch.cat([value, filler]))
    gathered = {}
    for name, value in mine.items():
        whole = torch.zeros((count + 1, *value.shape[1:]), dtype=torch.float64)
        whole[index] = value
        gathered[name] = whole[:count].numpy()
    return gathered


def _all_gather(fabric: Fabric, value: Tensor) -> Tensor:
    gathered = fabric.all_gather(value.to(fabric.device))
    assert isinstance(gathered, Tensor)
    return gathered.flatten(0, 1).cpu()


def quick_metrics(predictions: Predictions, multi_label: bool) -> dict[str, float]:
    """Return the few numbers that are followed from epoch to epoch, without intervals.

    The mean loss of a task stands under the task's name.
    """
    values = predictions.values
    metrics: dict[str, float] = {}
    for name in values:
        if name.startswith("loss_"):
            weight = values[name.replace("loss_", "weight_")]
            total = float(weight.sum())
            mean = float((values[name] * weight).sum()) / total if total else float("nan")
            metrics[name.removeprefix("loss_")] = mean
    if "probability" in values and (predictions.label >= 0).any():
        for metric in (accuracy, auc, balanced_accuracy):
            metrics[metric.__name__] = metric(
                predictions.label, values["probability"], multi_label=multi_label
            )
    if "dice" in values and predictions.has_mask.any():
        metrics["dice"] = float(values["dice"][predictions.has_mask].mean())
    if "mse" in values:
        metrics["mse"] = float(values["mse"].mean())
    return metrics


def selection_score(metrics: Mapping[str, float], select: str) -> float:
    """Return the number by which epochs are compared; larger is better.

    Args:
        metrics: of the validation split, see `quick_metrics`.
        select: a metric, or ``"auto"``: the mean of AUC and Dice, of those that are known; where
            there is neither, the negative reconstruction error. NaN if it is not known.

    Example:
        >>> selection_score({"auc": 0.9, "dice": 0.7}, "auto")
        0.8
    """
    if select == "mse":
        return -metrics.get("mse", math.nan)
    if select != "auto":
        return metrics.get(select, math.nan)
    known = [metrics[name] for name in ("auc", "dice") if not np.isnan(metrics.get(name, np.nan))]
    if known:
        return float(np.mean(known))
    return -metrics["mse"] if "mse" in metrics else metrics.get("accuracy", float("nan"))


def summarize(
    predictions: Predictions, data: ImageSet, config: EvaluateConfig, seed: int = 0
) -> dict[str, Any]:
    """Return the metrics of a split with their intervals, ready for ``metrics.json``.

    Args:
        predictions: thorough ones of `predict_split`.
        data: gives the names of classes and mask classes.
        config: number of bootstrap resamples.
        seed: of the bootstrap.
    """
    values = predictions.values
    summary: dict[str, Any] = {"n": len(predictions.label)}
    if "probability" in values:
        # Under `n` stands the number of images with a known label, the n of the accuracy.
        summary |= classification_metrics(
            predictions.label,
            values["probability"],
            multi_label=data.multi_label,
            class_names=data.class_names,
            bootstrap=config.bootstrap,
            seed=seed,
        )
    if "dice" in values:
        known = predictions.has_mask
        summary |= segmentation_summary(
            values["dice"][known],
            values["iou"][known],
            values["hd95"][known],
            values["truth_pixels"][known] > 0,
            data.mask_names[1:],
            bootstrap=config.bootstrap,
            seed=seed,
        )
    if "mse" in values:
        summary |= reconstruction_summary({name: values[name] for name in ("mse", "psnr", "ssim")})
    return summary
