"""The model card of a bundle: what was trained, on what, how good it is, and for whom."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from medduet.metrics.names import METRICS
from medduet.uncertainty.calibration import Calibration
from medduet.uncertainty.ood import OODDetector

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
    config: Mapping[str, Any], where: str = "path/of/this/folder", licence: str | None = None
) -> str:
    r"""Return the Markdown model card of a bundle, in the form that the Hugging Face hub reads.

    Args:
        config: the content of ``config.json``, see `ModelBundle`; its names may be a stranger's.
        where: what `medduet.load` is to be given.
        licence: of the weights, in the hub's terms, such as ``"cc-by-nc-4.0"``.

    Example:
        >>> card = model_card({"network": {"name": "unet", "in_channels": 1},
        ...     "class_names": ["<b>benign</b>"], "data": {"name": "a_b"}}, licence="mit")
        >>> "license: mit" in card.split("---")[1]
        True
        >>> print(next(line for line in card.splitlines() if "benign" in line))
        Classes: \<b\>benign\</b\>.
    """
    network, data = config["network"], config.get("data", {})
    lines = ["---", *_front_matter(config, licence).splitlines(), "---", ""]
    lines += [f"# {escape(network['name'])} trained on {escape(data.get('name', 'unknown data'))}"]
    lines += ["", "**For research. Not a medical device, not for clinical use or diagnosis.**", ""]
    if names := config.get("class_names"):
        lines += [f"Classes: {', '.join(map(escape, names))}.", ""]
    if names := config.get("mask_names"):
        lines += [f"Mask: {', '.join(map(escape, names))}.", ""]
    lines += [
        "## Use",
        "",
        "```python",
        "import medduet",
        f'network = medduet.load("{where}")',
        f"# image: (N, {network['in_channels']}, H, W), uint8 or float in [0, 1]",
        "class_logits, dense = network(image)",
        "```",
        "",
        *_data(data),
        *_training(config),
        *_metrics(config),
        *_calibrated(config),
        *_ood(config),
        *_limits(data),
    ]
    return "\n".join(lines)


def escape(text: object) -> str:
    r"""Return any text as one line of Markdown that shows it as it is.

    Example:
        >>> print(escape("a|b *c* [d](https://e)\n# f"))
        a\|b \*c\* \[d\](https\://e) \# f
    """
    line = re.sub(r"([\\`*_\[\]<>&|~$#:@!])", r"\\\1", " ".join(str(text).split()))
    return re.sub(r"(?i)\b(www)\.", r"\1\\.", line)


def _front_matter(config: Mapping[str, Any], licence: str | None) -> str:
    data, name = config.get("data", {}), " ".join(str(config["network"]["name"]).split())
    tags = ["medical-imaging", "multi-task"]
    tasks = {"image-classification": "class_names", "image-segmentation": "mask_names"}
    tags += [task for task, names in tasks.items() if config.get(names)]
    dataset = re.sub(r"[^\w.-]+", "-", data.get("name", ""), flags=re.ASCII).strip("-.")
    results = [
        EvalResult(
            task_type=_METRICS[metric][0],
            dataset_type=dataset,
            dataset_name=" ".join(data["name"].split()),
            dataset_split=split,
            metric_type=_METRICS[metric][1],
            metric_name=f"{METRICS[metric].name}, n = {count}",
            metric_value=row[metric],
        )
        for split, metric, count, row in _measured(config)
        if dataset
    ]
    return ModelCardData(
        license=licence,
        library_name="medduet",
        tags=tags,
        datasets=[dataset] if dataset else None,
        model_name=name if results else None,
        eval_results=results or None,
        ignore_metadata_errors=False,
    ).to_yaml(line_break="\n")


def _measured(config: Mapping[str, Any]) -> Iterator[tuple[str, str, int, dict[str, Any]]]:
    """Give split, metric, number of images, and the metrics of the split."""
    for split in ("val", "test"):
        row = config.get("metrics", {}).get(split, {})
        for name in _METRICS:
            if isinstance(row.get(name), float):
                # Masks may be known of other images than labels.
                masks = name.startswith(("dice", "iou"))
                count = row.get(f"{name}_n", row.get("dice_n", row["n"])) if masks else row["n"]
                yield split, name, count, row


def _data(data: Mapping[str, Any]) -> list[str]:
    if "splits" not in data:
        return []
    splits = ", ".join(f"{name} {count}" for name, count in data["splits"].items())
    licence = escape(data.get("info", {}).get("licence") or "not recorded")
    height, width = data["size"]
    return [
        "## Data",
        "",
        f"{escape(data['name'])} ({splits}; {height} x {width} pixels; licence: {licence}; "
        f"SHA-256 of images and split: {escape(data['fingerprint'])}). What the licence of the "
        "data asks of you holds for this network, too.",
        "",
    ]


def _training(config: Mapping[str, Any]) -> list[str]:
    lines, network = [], config["network"]
    if members := network.get("ensemble"):
        lines.append(
            f"Mean of the probabilities of {len(members)} network(s); views of each image: "
            f"{escape(network['test_time'])}."
        )
    if "selected_epoch" in (metrics := config.get("metrics", {})):
        lines.append(
            f"Epoch {_listed(metrics['selected_epoch'])}, {escape(metrics['selection'])}, "
            f"seed {_listed(metrics['seed'])}."
        )
    if versions := config.get("versions"):
        lines.append(", ".join(f"{escape(name)} {escape(of)}" for name, of in versions.items()))
    return ["## Training", "", *(x for line in lines for x in (line, ""))] if lines else []


def _listed(value: object) -> str:
    return ", ".join(map(escape, value)) if isinstance(value, list) else escape(value)


def _metrics(config: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| {split} | {count} | {name} | {row[name]:.4f} | {_interval(row, name)} |"
        for split, name, count, row in _measured(config)
    ]
    if not rows:
        return []
    head = ["| split | n | metric | value | 95% interval |", "| --- | --- | --- | --- | --- |"]
    return ["## Metrics", "", *head, *rows, ""]


def _calibrated(config: Mapping[str, Any]) -> list[str]:
    """Return what the card says of the calibration, and of how it does on the test split."""
    calibration, source = Calibration.of_bundle(config), config.get("calibrated_on")
    if calibration is None:
        return []
    images = "validation images" if source is None else f"images of {escape(source['name'])}"
    told = f"Calibrated on {calibration.n} {images}: temperature {calibration.temperature:.3g}."
    if (row := config.get("metrics", {}).get("test", {}).get("calibration")) and row["n"]:
        held = row["sets"]["0.90"]
        interval = _interval(held, "coverage")
        told += (
            f" Expected calibration error on test {row['ece_before']:.3f} before and "
            f"{row['ece_after']:.3f} after. Sets that promise to hold the true class in 90% hold "
            f"it in {held['coverage']:.1%} of {held['n']}{f' ({interval})' if interval else ''}, "
            f"with {held['size']:.2f} classes on average."
        )
    return [told, ""]


def _ood(config: Mapping[str, Any]) -> list[str]:
    known = OODDetector.of_bundle(config)
    if known is None:
        return []
    count = len(known.plain.val_distances)
    what = "plain statistics" if known.features is None else "features and plain statistics"
    return [
        "Images unlike those of the training are flagged by `medduet predict` and `medduet serve` "
        f"({what}; at most 5% of images like the validation images are, {count} of which "
        "set the threshold). What is not flagged may still be of another kind.",
        "",
    ]


def _interval(row: Mapping[str, Any], name: str) -> str:
    interval = row.get(f"{name}_interval")
    return f"{interval[0]:.4f} to {interval[1]:.4f}" if interval and None not in interval else ""


def _limits(data: Mapping[str, Any]) -> list[str]:
    name = escape(data.get("name", "the data that it was trained on"))
    return [
        "## Intended use and limits",
        "",
        f"For research on images like those of {name}. The intervals cover the sampling of the "
        "test images of this one set and nothing else: neither other seeds nor other devices, "
        "hospitals, patients or ways of preparing images, with which such networks are known to "
        "get worse. It answers for any image, also for one that shows none of its classes. Its "
        "probabilities are no substitute for a diagnosis.",
        "",
    ]
