"""The model card of a bundle: what was trained, on what, how good it is, and for whom."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from medduet.metrics.names import METRICS
from medduet.runs.config import BundleConfig

_METRICS = {
    "accuracy": ("image-classification", "accuracy"),
    "auc": ("image-classification", "roc_auc"),
    "dice": ("image-segmentation", "dice"),
    "dice_nonempty": ("image-segmentation", "dice"),
    "iou": ("image-segmentation", "mean_iou"),
    "mse": ("image-to-image", "mse"),
}
"""What the card shows, and the names of task and metric on the hub."""


def model_card(
    config: BundleConfig, address: str = "path/of/this/folder", licence: str | None = None
) -> str:
    r"""Return the Markdown model card of a bundle, in the form that the Hugging Face hub reads.

    Args:
        config: of the bundle; its names may be a stranger's.
        address: the argument for `medduet.load`.
        licence: of the weights, in the hub's terms, such as ``"cc-by-nc-4.0"``.

    Example:
        >>> network = {"name": "unet", "in_channels": 1, "num_classes": 1}
        >>> card = model_card(BundleConfig.model_validate({"network": network,
        ...     "class_names": ["<b>benign</b>"], "data": {"name": "a_b"}}), licence="mit")
        >>> "license: mit" in card.split("---")[1]
        True
        >>> print(next(line for line in card.splitlines() if "benign" in line))
        Classes: \<b\>benign\</b\>.
    """
    data, network = config.data, config.network
    fields: dict[str, Any] = {
        "network": escape(network.name),
        "in_channels": network.in_channels,
        "address": address,
        "classes": [escape(name) for name in config.class_names],
        "masks": [escape(name) for name in config.mask_names],
        "data_name": escape(data.name) if data else "",
        "training": list(_training(config)),
        "metrics": list(_rows(config)),
        "calibration": _calibration(config),
        "ood": _ood(config),
    }
    if data and data.splits and len(data.size) == 2:
        fields |= {
            "splits": ", ".join(f"{name} {count}" for name, count in data.splits.items()),
            "size": f"{data.size[0]} x {data.size[1]}",
            "data_licence": escape(data.info.get("licence") or "not recorded"),
            "fingerprint": escape(data.fingerprint),
        }
    template = resources.files("medduet") / "runs" / "templates" / "card.md"
    card = ModelCard.from_template(
        _card_data(config, licence), template_str=template.read_text("utf-8"), **fields
    )
    return f"{str(card).strip()}\n"


def escape(text: object) -> str:
    r"""Return any text as one line of Markdown that shows it as it is.

    Example:
        >>> print(escape("a|b *c* [d](https://e)\n# f"))
        a\|b \*c\* \[d\](https\://e) \# f
    """
    line = re.sub(r"([\\`*_\[\]<>&|~$#:@!])", r"\\\1", " ".join(str(text).split()))
    return re.sub(r"(?i)\b(www)\.", r"\1\\.", line)


def _card_data(config: BundleConfig, licence: str | None) -> ModelCardData:
    tags = ["medical-imaging", "multi-task"]
    tags += ["image-classification"] if config.class_names else []
    tags += ["image-segmentation"] if config.mask_names else []
    name = " ".join(config.data.name.split()) if config.data else ""
    dataset = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.")
    results = [
        EvalResult(
            task_type=_METRICS[row["key"]][0],
            dataset_type=dataset,
            dataset_name=name,
            dataset_split=row["split"],
            metric_type=_METRICS[row["key"]][1],
            metric_name=f"{row['name']}, n = {row['n']}",
            metric_value=row["value"],
        )
        for row in _rows(config)
        if dataset
    ]
    return ModelCardData(
        license=licence,
        library_name="medduet",
        tags=tags,
        datasets=[dataset] if dataset else None,
        model_name=" ".join(config.network.name.split()) if results else None,
        eval_results=results or None,
        ignore_metadata_errors=False,
    )


def _rows(config: BundleConfig) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table of metrics."""
    for split in ("val", "test"):
        summary = config.metrics.get(split, {})
        for key in _METRICS:
            if isinstance(value := summary.get(key), float):
                # Masks may be known of other images than labels.
                masks = key.startswith(("dice", "iou"))
                n = summary.get(f"{key}_n", summary.get("dice_n")) if masks else None
                row = {"key": key, "split": split, "n": n or summary["n"], "value": value}
                yield row | {"name": METRICS[key].name, "interval": _interval(summary, key)}


def _interval(row: Mapping[str, Any], name: str) -> str:
    interval = row.get(f"{name}_interval")
    return f"{interval[0]:.4f} to {interval[1]:.4f}" if interval and None not in interval else ""


def _training(config: BundleConfig) -> Iterator[str]:
    network, metrics = config.network.model_dump(), config.metrics
    if members := network.get("ensemble"):
        yield (
            f"Mean of the probabilities of {len(members)} network(s); views of each image: "
            f"{escape(network['test_time'])}."
        )
    if "selected_epoch" in metrics:
        epochs, seeds = (_listed(metrics.get(key)) for key in ("selected_epoch", "seed"))
        yield f"Epoch {epochs}, {escape(metrics.get('selection'))}, seed {seeds}."
    if config.versions:
        yield ", ".join(f"{escape(name)} {escape(of)}" for name, of in config.versions.items())


def _listed(value: object) -> str:
    return ", ".join(map(escape, value)) if isinstance(value, list) else escape(value)


def _calibration(config: BundleConfig) -> str:
    """Return how the network was calibrated, and what the calibration gives on the test split."""
    calibration, source = config.calibration, config.calibrated_on
    if calibration is None:
        return ""
    images = "validation images" if source is None else f"images of {escape(source.get('name'))}"
    text = f"Calibrated on {calibration.n} {images}: temperature {calibration.temperature:.3g}."
    if (row := config.metrics.get("test", {}).get("calibration")) and row["n"]:
        sets = row["sets"]["0.90"]
        interval = _interval(sets, "coverage")
        text += (
            f" Expected calibration error on test {row['ece_before']:.3f} before and "
            f"{row['ece_after']:.3f} after. 90% prediction sets cover {sets['coverage']:.1%} of "
            f"{sets['n']}{f' ({interval})' if interval else ''}, with {sets['size']:.2f} classes "
            "on average."
        )
    return text


def _ood(config: BundleConfig) -> str:
    detector = config.ood
    if detector is None:
        return ""
    count = len(detector.plain.val_distances)
    inputs = "plain statistics" if detector.features is None else "features and plain statistics"
    return (
        "Out-of-distribution images are flagged by `medduet predict` and `medduet serve` "
        f"({inputs}; at most 5% of images like the {count} validation images "
        "that set the threshold). What is not flagged may still be of another kind."
    )
