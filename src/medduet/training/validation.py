"""Evaluating a network on a split, image by image, on any number of processes."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from medduet import metrics
from medduet.data.batches import evaluation_batch_size, evaluation_batches
from medduet.data.imageset import ImageSet, Split
from medduet.losses.objective import Objective, segmentation_weight
from medduet.models.base import DuetNetwork
from medduet.models.inference import (
    DECLARED,
    NetworkPrediction,
    Precision,
    class_probability,
    predict_batch,
)
from medduet.runs.predictions import PER_MASK, Predictions
from medduet.training.fabric import load_batches
from medduet.types import UNKNOWN_LABEL, Batch, DenseLayout, Outputs
from medduet.uncertainty.calibration import Calibration, calibration_summary
from medduet.utils.devices import free_memory, is_out_of_memory


def predict_split(
    fabric: Fabric,
    network: DuetNetwork,
    split: Split,
    layout: DenseLayout,
    *,
    data: ImageSet,
    objective: Objective | None = None,
    thorough: bool = True,
    precision: Precision = DECLARED,
    temperature: float | None = None,
) -> Predictions:
    """Return the predictions for all images of a `split`, of which each process makes a share.

    With an `objective` the losses are recorded, if `thorough` HD95, PSNR and SSIM, with a
    `temperature` the calibrated probabilities.
    """

    def predict(batch: Batch) -> dict[str, Tensor]:
        predicted = predict_batch(
            network,
            batch.image,
            layout,
            multi_label=data.multi_label,
            temperature=temperature or 1.0,
            precision=precision,
        )
        spacing = data.info.get("spacing")
        values = _dense_scores(network, predicted, batch, layout.mask_classes, thorough, spacing)
        if predicted.class_logits is not None and predicted.probability is not None:
            values["probability"] = class_probability(predicted.class_logits, data.multi_label)
            if temperature is not None:
                values["calibrated"] = predicted.probability
        if objective is not None:
            outputs = Outputs(predicted.class_logits, predicted.dense)
            terms = objective(outputs, batch, network.normalize(batch.image))
            values |= {f"loss_{task}": term.loss for task, term in terms.items()}
            values |= {f"weight_{task}": term.weight for task, term in terms.items()}
        return {name: value.double().cpu() for name, value in values.items()}

    was_training, processes = network.training, fabric.world_size
    network.eval()
    size = evaluation_batch_size(fabric.device.type, *data.size)
    share = evaluation_batches(len(split), size, rank=fabric.global_rank, world_size=processes)
    with torch.inference_mode():
        batches = load_batches(fabric, split, share)
        pieces = [piece for batch in batches for piece in _in_pieces(predict, batch)]
    network.train(was_training)
    shares: list[Any] = [pieces]
    if processes > 1:
        shares = [None] * processes
        torch.distributed.all_gather_object(shares, pieces)
    # Each process has a stretch of the split, the first one its beginning.
    pieces = list(chain.from_iterable(shares))
    scores = {name: torch.cat([piece[name] for piece in pieces]).numpy() for name in pieces[0]}
    return _predictions(split, scores, data)


def _in_pieces(
    predict: Callable[[Batch], dict[str, Tensor]], batch: Batch
) -> list[dict[str, Tensor]]:
    """Return what `predict` returns for `batch`; for its halves, or theirs, if memory is short."""
    try:
        return [predict(batch)]
    except (MemoryError, RuntimeError) as error:
        if len(batch.indices) == 1 or not is_out_of_memory(error):
            raise
    free_memory(batch.image.device)
    half = len(batch.indices) // 2
    halves = [batch.apply(itemgetter(rows)) for rows in (slice(half), slice(half, None))]
    return [piece for part in halves for piece in _in_pieces(predict, part)]


def _predictions(
    split: Split, scores: dict[str, NDArray[np.float64]], data: ImageSet
) -> Predictions:
    """Return the `scores` of each image, by name, with the truth."""
    arrays: dict[str, Any] = {"losses": {}}
    has_mask = scores.pop("has_mask", split.known_masks) > 0
    for name, values in scores.items():
        kind, _, task = name.partition("_")
        if kind == "loss":
            weight = scores[f"weight_{task}"]
            total = float(weight.sum())
            arrays["losses"][task] = float((values * weight).sum()) / total if total else math.nan
        elif name in PER_MASK and has_mask.any():
            if name.endswith("pixels"):
                arrays[name] = np.where(has_mask[:, None], values, 0).astype(np.int64)
            else:
                arrays[name] = np.where(has_mask[:, None], values, np.nan)
            arrays |= {"has_mask": has_mask, "mask_names": data.mask_names[1:]}
        elif name not in PER_MASK and kind != "weight":
            arrays[name] = values
    if "probability" in arrays:
        arrays |= {"label": split.labels, "class_names": data.class_names}
    return Predictions(np.arange(len(split)), ids=split.ids, **arrays)


def _dense_scores(
    network: DuetNetwork,
    predicted: NetworkPrediction,
    batch: Batch,
    classes: int,
    thorough: bool,
    spacing: Sequence[float] | None,
) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}
    if predicted.mask is not None and batch.mask is not None:
        values["has_mask"] = segmentation_weight(batch.mask, batch.has_mask)
        values |= metrics.overlap_scores(predicted.mask, batch.mask, classes)
        if thorough:
            values |= metrics.surface_distances(predicted.mask, batch.mask, classes, spacing)
    if predicted.reconstruction is not None:
        # Whatever the network normalises with, errors are on the paper's scale of -1 to 1.
        target = 2 * network.normalize.invert(network.normalize(batch.image)) - 1
        image = 2 * predicted.reconstruction - 1
        if thorough:
            values |= metrics.reconstruction_errors(image, target)
        else:
            values["mse"] = (image - target).square().mean(dim=tuple(range(1, image.ndim)))
    return values


def quick_metrics(predictions: Predictions) -> dict[str, float]:
    """Return the metrics of an epoch, and under the name of each task its mean loss."""
    quick = dict(predictions.losses)
    label, probability = predictions.label, predictions.probability
    if label is not None and probability is not None and (label != UNKNOWN_LABEL).any():
        for metric in (metrics.accuracy, metrics.auc, metrics.balanced_accuracy):
            quick[metric.__name__] = metric(label, probability, predictions.multi_label)
    if predictions.dice is not None:
        quick["dice"] = metrics.mean_over_classes(predictions.dice)
    if predictions.mse is not None:
        quick["mse"] = float(predictions.mse.mean())
    return quick


def selection_score(quick: Mapping[str, float], select: str) -> float:
    """Return the number by which epochs are compared, of `quick_metrics`; larger is better.

    ``"auto"`` is the mean of AUC and Dice, of those that there are; else the negative error, or the
    accuracy. NaN if there is none.
    """
    if select == "auto":
        both = [quick.get(name, math.nan) for name in ("auc", "dice")]
        if not np.isnan(both).all():
            return float(np.nanmean(both))
        select = "mse" if "mse" in quick else "accuracy"
    score = quick.get(select, math.nan)
    return -score if select == "mse" else score


def summarize(
    predictions: Predictions,
    calibration: Calibration | None = None,
    ordinal: bool = False,
) -> dict[str, Any]:
    """Return the metrics of thorough `predictions` with their intervals, for ``metrics.json``.

    ``n`` are the images with a known label, else those with a known mask (``dice_n``), else all.
    """
    summary: dict[str, Any] = {"n": len(predictions)}
    # Each has an n of its own; the last one stays.
    if predictions.mse is not None:
        errors = {name: getattr(predictions, name) for name in ("mse", "psnr", "ssim")}
        summary |= metrics.reconstruction_summary(errors)
    if predictions.has_mask is not None:
        summary |= mask_summary(predictions)
        summary["dice_n"] = summary["n"]
    label, probability, names = predictions.label, predictions.probability, predictions.class_names
    if label is not None and probability is not None:
        summary |= metrics.classification_metrics(
            label,
            probability,
            multi_label=predictions.multi_label,
            class_names=names,
            ordinal=ordinal,
        )
        if calibration is not None:
            summary["calibration"] = calibration_summary(calibration, label, probability, names)
    return summary


def mask_summary(predictions: Predictions) -> dict[str, Any]:
    """Return the metrics of the masks of images with a true mask."""
    rows: Any = predictions.has_mask
    known = {name: getattr(predictions, name) for name in ("dice", "iou", "hd95", "assd")}
    scores = {name: values[rows] for name, values in known.items() if values is not None}
    present: Any = predictions.mask_present
    return metrics.segmentation_summary(scores, present[rows], predictions.mask_names)
