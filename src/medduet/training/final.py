"""What follows training: the selected epochs evaluated, the OOD detector, the sample images."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medduet.data.batches import evaluation_batch_size
from medduet.data.imageset import ImageSet, Split
from medduet.data.pixels import three_planes
from medduet.errors import DataError
from medduet.metrics.inputs import one_vs_rest
from medduet.models.base import DuetNetwork
from medduet.models.inference import predict_batch
from medduet.runs.folder import RunFolder
from medduet.runs.predictions import Predictions
from medduet.training.experiment import Experiment
from medduet.training.fabric import load_batches
from medduet.training.state import Progress, load_checkpoint
from medduet.training.validation import summarize
from medduet.types import DenseLayout
from medduet.uncertainty.calibration import Calibration
from medduet.uncertainty.ood import FEWEST, MOST, OODDetector, statistics
from medduet.utils.files import atomic_path, write_text

EVALUATED = ("val", "test")
SAMPLES = 8


def evaluate_selected(
    experiment: Experiment, progress: Progress
) -> tuple[dict[str, Any], Calibration | None]:
    """Evaluate the selected epochs, and write their predictions.

    Returns the content of ``metrics.json``, and the calibration of the validation-selected epoch,
    whose weights the network has afterwards; ``None`` for the reason in ``calibration_missing``.
    """
    protocol, best = experiment.config.evaluate.protocol, progress.best.epoch
    metrics: dict[str, Any] = {"protocol": protocol, "seed": experiment.config.train.seed}
    if protocol == "paper":
        metrics |= {"selection": "test-selected", "selected_epoch": progress.best_test.epoch}
        metrics |= _evaluate_epoch(experiment, "best-test", "-test-selected")[0]
    honest, calibration = _evaluate_epoch(experiment, "best", "")
    is_last = experiment.config.evaluate.select == "last"
    selection = "last" if is_last else "validation-selected"
    honest = {"selection": selection, "selected_epoch": best} | honest
    metrics |= {"validation_selected": honest} if protocol == "paper" else honest
    return metrics, calibration


def _evaluate_epoch(
    experiment: Experiment, checkpoint: str, suffix: str
) -> tuple[dict[str, Any], Calibration | None]:
    path = experiment.folder.checkpoint(checkpoint)
    experiment.network.load_state_dict(load_checkpoint(path))
    return evaluate_network(experiment, suffix)


def evaluate_network(
    experiment: Experiment, suffix: str = "", held_out: Predictions | None = None
) -> tuple[dict[str, Any], Calibration | None]:
    """Evaluate the network as it is, write its predictions, and calibrate it on val.

    In place of those for val may be the predictions `held_out` for images that no weight was
    fitted on. Returns metrics by split, and the calibration, see `evaluate_selected`.
    """
    folder = experiment.folder
    metrics: dict[str, Any] = {}
    calibration = None
    for split in EVALUATED:
        temperature = None if calibration is None else calibration.temperature
        if split == "val" and held_out is not None:
            predictions = held_out
        else:
            predictions = experiment.predict(split, thorough=True, temperature=temperature)
        ordinal = experiment.config.objective.ordinal
        metrics[split] = summarize(predictions, calibration, ordinal)
        label, probability = predictions.label, predictions.probability
        if split == "val":
            try:
                if label is None or probability is None:
                    raise DataError("the network has no class head")
                calibration = Calibration.fit(label, probability, predictions.multi_label, ordinal)
                predictions = replace(predictions, calibrated=calibration.calibrate(probability))
            except DataError as error:
                metrics["calibration_missing"] = str(error)
        if experiment.fabric.is_global_zero:
            predictions.to_csv(folder.path / "predictions" / f"{split}{suffix}.csv")
            if predictions is not held_out:
                _write_medmnist(experiment, split, suffix, predictions, metrics[split])
    return metrics, calibration


def _write_medmnist(
    experiment: Experiment,
    split: str,
    suffix: str,
    predictions: Predictions,
    summary: Mapping[str, Any],
) -> None:
    """Write the result file that `medmnist.Evaluator.parse_and_evaluate` reads."""
    if predictions.probability is None or summary["auc"] is None:
        return
    size = experiment.data.size[0]
    stem = f"{experiment.data.name}{'' if size == 28 else f'_{size}'}_{split}"
    scores = f"[AUC]{summary['auc']:.3f}_[ACC]{summary['accuracy']:.3f}"
    rows = enumerate(predictions.probability.tolist())
    text = "".join(f"{i},{','.join(map(repr, row))}\n" for i, row in rows)
    name = f"{stem}_{scores}@seed{experiment.config.train.seed}{suffix}.csv"
    write_text(experiment.folder.path / "predictions" / "medmnist" / name, text)


def fit_ood_detector(experiment: Experiment) -> OODDetector | None:
    """Return the out-of-distribution detector; ``None`` for too few images."""
    data = experiment.data
    if min(len(data.train), len(data.val)) < FEWEST:
        return None
    return OODDetector.fit(
        *(_statistics(experiment, split) for split in (data.train, data.val)),
        channels=data.in_channels,
        stretched=data.info.get("fit", "stretch") == "stretch",
    )


def _statistics(experiment: Experiment, split: Split) -> Any:
    """Return the statistics ``(N, S)`` of images of a split.

    Of large splits they are `MOST` images at equal distances; of shards the first ones.
    """
    fabric, count = experiment.fabric, min(len(split), MOST)
    last = (len(split) if split.shard_sizes is None else count) - 1
    index = np.linspace(0, last, count).round().astype(np.int64)
    size = evaluation_batch_size(fabric.device.type, *experiment.data.size)
    batches = [index[start : start + size] for start in range(0, count, size)]
    loaded = load_batches(fabric, split, batches)
    return np.concatenate([statistics(batch.image.cpu().numpy()) for batch in loaded])


def choose_samples(
    labels: NDArray[np.int64], num_classes: int, count: int = SAMPLES
) -> NDArray[np.int64]:
    """Return the positions of the first images of each class, `count` in all, classes in turn.

    Example:
        >>> choose_samples(np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, -1]), 2).tolist()
        [0, 1, 2, 3, 6, 7, 8, 10]
    """
    member, _ = one_vs_rest(labels, num_classes)
    member = np.column_stack([member, ~member.any(axis=1)])
    turns = zip_longest(*(np.flatnonzero(images).tolist() for images in member.T))
    places = dict.fromkeys(place for turn in turns for place in turn if place is not None)
    return np.sort(np.array(list(places)[:count], dtype=np.int64))


def write_samples(
    folder: RunFolder, network: DuetNetwork, data: ImageSet, layout: DenseLayout
) -> None:
    """Write ``samples.npz`` of the test split, from which figures redraw without the data.

    Of volumes it has `three_planes` of each.
    """
    index = choose_samples(data.test.labels, len(data.class_names))
    batch = data.test.batch(index)
    network.eval()
    device, masks, rebuilt = next(network.parameters()).device, list[Tensor](), list[Tensor]()
    for pixels in torch.split(batch.image, evaluation_batch_size(device.type, *data.size)):
        with torch.inference_mode():
            predicted = predict_batch(
                network, pixels.to(device), layout, multi_label=data.multi_label
            )
        masks += [] if predicted.mask is None else [predicted.mask.cpu()]
        rebuilt += [] if predicted.reconstruction is None else [predicted.reconstruction.cpu()]
    arrays: dict[str, NDArray[np.generic]] = {"index": index, "images": data.test.images[index]}
    if masks and batch.mask is not None:
        arrays["truth_masks"] = batch.mask.numpy().astype(np.uint8)
        arrays["predicted_masks"] = torch.cat(masks).numpy().astype(np.uint8)
        arrays["has_mask"] = batch.has_mask.numpy()
    if rebuilt:
        scaled = torch.cat(rebuilt).clamp(0, 1) * 255
        image = scaled.round().to(torch.uint8).movedim(1, -1).numpy()
        arrays["reconstructions"] = image[..., 0] if image.shape[-1] == 1 else image
    if data.dims == 3:
        volumes = {name: x for name, x in arrays.items() if x.ndim > 1}
        pictures = three_planes(arrays.get("truth_masks"), *volumes.values())
        arrays |= zip(volumes, pictures, strict=True)
    with atomic_path(folder.samples) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
