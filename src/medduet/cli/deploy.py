"""The commands that bring a trained network to its use."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any, Literal

import tyro

from medduet.cli.parse import parse, quiet_libraries, starting, stopping_on_signals
from medduet.config import DataConfig, Device, Modality, TestTime
from medduet.errors import ConfigError

SHOWN = 5


def export(words: list[str]) -> int:
    """Write a network for another runtime."""

    def arguments(
        path: tyro.conf.Positional[Path],
        out: Path | None = None,
        format: Literal["onnx", "openvino", "torch"] = "onnx",  # noqa: A002
        classify_only: bool = False,
        precision: Literal["float32", "float16", "int8"] = "float32",
        fixed_size: bool = False,
        data: str | None = None,
        size: int | None = None,
        cache: Path | None = None,
        count: int = 64,
        tolerance: float | None = None,
    ) -> dict[str, Any]:
        """Write a network for ONNX Runtime, OpenVINO or torch, and compare the two.

        Images go in as uint8; probabilities, mask and reconstruction come out.

        Args:
            path: The folder of the run, or of the bundle.
            out: Folder to write.
            format: onnx and openvino predict without torch, see medduet.ExportedModel.
            classify_only: Leave decoder, mask and reconstruction out.
            precision: Of the weights; int8 also computes in INT8 and needs images.
            fixed_size: Take images of the size of the training alone.
            data: Images to compare on, as in training; default: the run's own, else phantoms.
            size: Side of these images in pixels; default: what the network was trained on.
            cache: Where downloads and unpacked arrays live.
            count: Number of test images to compare on; 0: all.
            tolerance: Largest difference allowed; default: 0.001, float16 0.01, int8 0.05.
        """
        return dict(locals())

    given = parse(arguments, words, "medduet export")
    if given["out"] is None:
        raise ConfigError("expected a folder to write: medduet export BUNDLE --out DIR")
    source = {name: given.pop(name) for name in ("size", "cache")}
    name = given.pop("data")
    data = None if name is None else DataConfig(name=name, **source)
    with quiet_libraries():
        with starting():
            from medduet.cli.display.progress import draw_progress
            from medduet.inference.export_bundle import export_bundle

        record = export_bundle(**given, data=data, progress=draw_progress)
    for computed_in, agreement in record.agreement.items():
        sys.stdout.write(f"compared with torch on {record.images}, {computed_in}: {agreement}\n")
    sys.stdout.write(f"written: {record.path}\n")
    return 0


def predict(words: list[str]) -> int:
    """Predict images."""

    def arguments(
        path: tyro.conf.Positional[Path],
        images: tyro.conf.Positional[tuple[Path, ...]],
        out: Path | None = None,
        classify_only: bool = False,
        explain: bool = False,
        coverage: float | None = None,
        abstain_below: float | None = None,
        accuracy: float | None = None,
        overlays: bool = True,
        dicom: bool = True,
        device: Device = "auto",
        batch_size: int | None = None,
    ) -> dict[str, Any]:
        """Predict image files, and the images in folders.

        Writes a table, masks at the size of the image, and overlays; of DICOM files also DICOM-SEG
        and a structured report. The same command again goes on where it was stopped.

        Args:
            path: The folder of the run, of the bundle, or of an exported network.
            images: Files (PNG, JPEG, TIFF, BMP, WebP, DICOM, NIfTI) and folders.
            out: Folder to write.
            classify_only: Ask for classes alone; the decoder is not run.
            explain: Also write what spoke for the class (Grad-CAM).
            coverage: Share of images whose true class is to be in the set; default: 0.9, if it is
                calibrated.
            abstain_below: Confidence below which the network abstains.
            accuracy: Instead, the accuracy of answers without abstention, as it was in calibration.
            overlays: Whether to write the image with its mask over it.
            dicom: Whether to write results in DICOM for DICOM files.
            device: auto, cpu, cuda, cuda:1 or mps.
            batch_size: Images that are computed together; default: as many as are worth it.
        """
        return dict(locals())

    given = parse(arguments, words, "medduet predict")
    if given["out"] is None:
        raise ConfigError("expected a folder to write: medduet predict BUNDLE PATH... --out DIR")
    stop = threading.Event()
    with quiet_libraries(), stopping_on_signals(stop):
        with starting():
            from medduet.cli.display.progress import draw_progress
            from medduet.inference.folder import TABLE, predict_files

        sources = given.pop("images")
        record = predict_files(**given, sources=sources, progress=draw_progress, stop=stop)
    done = f", {record.skipped} done before" if record.skipped else ""
    sys.stdout.write(f"{record.images} images{done}: {record.path / TABLE}\n")
    if record.unfamiliar:
        sys.stdout.write(
            f"unlike the training images: {record.unfamiliar}, see the column warning\n"
        )
    for name, reason in list(record.broken.items())[:SHOWN]:
        sys.stdout.write(f"could not do {name}: {reason}\n")
    if len(record.broken) > SHOWN:
        sys.stdout.write(f"and {len(record.broken) - SHOWN} more, see the column error\n")
    return int(bool(record.broken) and not record.images)


def calibrate(words: list[str]) -> int:
    """Calibrate a bundle on other images."""

    def arguments(
        path: tyro.conf.Positional[Path],
        data: str | None = None,
        out: Path | None = None,
        split: Literal["train", "val", "test", "all"] = "all",
        size: int | None = None,
        device: Device = "auto",
        cache: Path | None = None,
    ) -> dict[str, Any]:
        """Write a bundle with the same weights, calibrated on images of your own.

        Sets of classes hold what they promise on images like those they were fitted on.

        Args:
            path: The folder of the run, or of the bundle.
            data: The images, with labels, as in training.
            out: Folder to write.
            split: Which of their splits; all: every image.
            size: Side of the images in pixels; default: what the network was trained on.
            device: auto, cpu, cuda, cuda:1 or mps.
            cache: Where downloads and unpacked arrays live.
        """
        return dict(locals())

    given = parse(arguments, words, "medduet calibrate")
    if given["out"] is None or given["data"] is None:
        raise ConfigError(
            "expected images and a folder to write: medduet calibrate BUNDLE --data DIR --out NEW"
        )
    source = {name: given.pop(name) for name in ("size", "cache")}
    data = DataConfig(name=given.pop("data"), **source)
    with quiet_libraries():
        from medduet.cli.display.progress import draw_progress
        from medduet.evaluation.calibrate import calibrate_bundle

        found = calibrate_bundle(**given, data=data, progress=draw_progress)
    sys.stdout.write(f"temperature {found.temperature:.3g}, fitted on {found.n} images\n")
    sys.stdout.write(f"written: {given['out']}\n")
    return 0


def ensemble(words: list[str]) -> int:
    """Make one bundle of several."""

    def arguments(
        paths: tyro.conf.Positional[tuple[Path, ...]] = (),
        out: Path | None = None,
        test_time: TestTime = "none",
        data: str | None = None,
        size: int | None = None,
        cache: Path | None = None,
        modality: Modality = "auto",
        evaluate: bool = True,
        device: Device = "auto",
    ) -> dict[str, Any]:
        """Make one bundle that says the mean of what several say, and tell what that gains.

        It is used like any other: evaluate, export, medduet.load.

        Args:
            paths: The folders of runs or bundles, trained on the same images in the same split.
            out: Folder to write.
            test_time: Also mirror each image (flip), turn it upside down (flips), by 90 degrees
                (turns), and take the mean.
            data: Images to judge on, as in training; default: those of the first run.
            size: Side of these images in pixels; default: what the networks were trained on.
            cache: Where downloads and unpacked arrays live.
            modality: What the images show, which says whether they may be turned.
            evaluate: Judge members and ensemble on the validation and test split.
            device: auto, cpu, cuda, cuda:1 or mps.
        """
        return dict(locals())

    given = parse(arguments, words, "medduet ensemble")
    if given["out"] is None:
        raise ConfigError("expected a folder to write: medduet ensemble RUN... --out DIR")
    source = {name: given.pop(name) for name in ("size", "cache")}
    name = given.pop("data")
    data = None if name is None else DataConfig(name=name, **source)
    with quiet_libraries():
        from medduet.cli.display.progress import draw_progress
        from medduet.cli.display.results import show_ensemble
        from medduet.evaluation.ensemble import ensemble

        show_ensemble(ensemble(**given, data=data, progress=draw_progress))
    return 0


def push(words: list[str]) -> int:
    """Send a network to the Hugging Face hub."""

    def arguments(
        path: tyro.conf.Positional[Path],
        name: tyro.conf.Positional[str],
        private: bool = False,
        licence: str | None = None,
        notes: Path | None = None,
    ) -> dict[str, Any]:
        """Send weights, config.json and a model card to a repository of the Hugging Face hub.

        Args:
            path: The folder of the run, or of the bundle.
            name: Of the repository, OWNER/NAME; it is made if it is not there.
            private: Keep a repository that is made to yourself.
            licence: Of the weights, in the hub's terms, such as cc-by-nc-4.0.
            notes: A Markdown file of your own, with which the card ends.
        """
        return dict(locals())

    given = parse(arguments, words, "medduet push")
    with quiet_libraries():
        from medduet.runs.push import push

        address = push(**given)
    sys.stdout.write(f"pushed; use it: medduet.load('{address}')\n")
    return 0


def serve(words: list[str]) -> int:
    """Serve networks to browsers and programs."""

    def arguments(
        networks: tyro.conf.Positional[list[str]],
        host: str = "127.0.0.1",
        port: int = 8000,
        max_mb: float = 32,
        max_megapixels: float = 40,
        queue: int = 64,
        timeout_s: float = 30,
        explain: bool = True,
        coverage: float | None = None,
        abstain_below: float | None = None,
        accuracy: float | None = None,
        device: Device = "auto",
    ) -> dict[str, Any]:
        """Serve networks: a page for people, JSON for programs. Nothing is kept, nobody is asked.

        Args:
            networks: Folders of bundles, runs or exports, each as PATH or NAME=PATH.
            host: Address to listen at; others than this machine's own have no protection.
            port: Port to listen at; 0: a free one.
            max_mb: Largest file in MB.
            max_megapixels: Largest image in millions of pixels; one takes 32 bytes for each.
            queue: Requests that may wait at the same time.
            timeout_s: Seconds in which a request is answered or given up.
            explain: Offer what spoke for the class, where the network can.
            coverage: Share of images whose true class is to be in the set; default: 0.9, if it is
                calibrated.
            abstain_below: Confidence below which the network abstains.
            accuracy: Instead, the accuracy of answers without abstention, as it was in calibration.
            device: Where bundles and runs are computed: auto, cpu, cuda, cuda:1 or mps.
        """
        return dict(locals())

    given = parse(arguments, words, "medduet serve")
    for name in ("max_mb", "max_megapixels", "queue", "timeout_s"):
        if not given[name] > 0:
            flag = name.replace("_", "-")
            raise ConfigError(f"expected --{flag} above 0, given {given[name]}")
    with quiet_libraries():
        from medduet.serve import server

        server.check_packages()
        from medduet.serve.limits import Limits

        limits = Limits(
            max_bytes=int(given.pop("max_mb") * 2**20),
            max_pixels=int(given.pop("max_megapixels") * 1e6),
            queue=given.pop("queue"),
            timeout_s=given.pop("timeout_s"),
        )
        try:
            server.serve(given.pop("networks"), limits, **given)
        except KeyboardInterrupt:  # uvicorn gives the signal on when all is answered
            return 0
    return 0
