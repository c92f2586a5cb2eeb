"""What `medduet predict` writes for each file: rows of the table, masks, pictures, DICOM."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medduet.data.reading.opening import HEAD, kind_of
from medduet.errors import MedDuetError
from medduet.inference.overlays import heatmap_png, mask_png, overlay_png
from medduet.inference.prediction import Prediction
from medduet.inference.predictor import Predictor
from medduet.utils.files import atomic_path, write_text

TABLE = "predictions.csv"
WARNING = "out of distribution"


class InputFile(NamedTuple):
    """A file to predict.

    Attributes:
        path: of the file.
        name: in the table.
        stem: of its outputs, up to their ending.
    """

    path: Path
    name: str
    stem: str


class ResultWriter:
    """Writes the predictions of files to the folder `out`.

    Args:
        out: the folder.
        predictor: whose predictions they are.
        overlays: whether to write images with their masks.
        dicom: whether to write results in DICOM for DICOM files.
    """

    def __init__(self, out: Path, predictor: Predictor, *, overlays: bool, dicom: bool) -> None:
        self.out, self.predictor, self.overlays, self.dicom = out, predictor, overlays, dicom

    def write_table(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write the table of all rows, with the columns that this network fills."""
        predictor = self.predictor
        columns = ["file", "frame", "height", "width"]
        if predictor.class_names:
            columns += ["label", *(f"p_{name}" for name in predictor.class_names)]
            columns += ["set"] if predictor.calibration is not None else []
            columns += ["abstained"] if predictor.min_confidence is not None else []
        if predictor.ood is not None:
            columns += ["ood_p", "warning"]
        optional = [f"pixels_{name}" for name in predictor.mask_names[1:]]
        optional += ["mask", "overlay", "heatmap", "dicom"]
        columns += [name for name in optional if any(name in row for row in rows)]
        text = io.StringIO()
        # What only a damaged journal has is left out.
        table = csv.DictWriter(
            text, [*columns, "error"], restval="", extrasaction="ignore", lineterminator="\n"
        )
        table.writeheader()
        table.writerows(rows)
        write_text(self.out / TABLE, text.getvalue())

    def write(self, file: InputFile, predictions: list[Prediction] | str) -> list[dict[str, Any]]:
        """Write the pictures of a file, and return its rows; of a text, which is an error, one."""
        if isinstance(predictions, str):
            return [{"file": file.name, "error": predictions.removeprefix(f"{file.path}: ")}]
        rows = []
        for number, prediction in enumerate(predictions, start=1):
            # No other image can be called so: there is no folder of the name of a file.
            stem = file.stem if len(predictions) == 1 else f"{file.name}/{number:04}"
            rows.append({"file": file.name, "frame": number} | self._row(prediction, stem))
        if self.dicom and _is_dicom(file.path):
            rows[0] |= self._write_dicom(file, predictions)
        return rows

    def _row(self, prediction: Prediction, stem: str) -> dict[str, Any]:
        height, width = prediction.image.shape[:2]
        row: dict[str, Any] = {"height": height, "width": width}
        if prediction.label is not None:
            row["label"] = prediction.label
            row |= {f"p_{name}": round(p, 6) for name, p in prediction.probabilities.items()}
            if prediction.prediction_set is not None:
                row["set"] = ";".join(prediction.prediction_set)
            if self.predictor.min_confidence is not None:
                row["abstained"] = "yes" if prediction.abstained else "no"
        if prediction.ood_p is not None:
            row["ood_p"] = round(prediction.ood_p, 6)
            row["warning"] = WARNING if prediction.is_ood else ""
        image, mask, heatmap = prediction.image, prediction.mask, prediction.heatmap
        if mask is not None:
            for number, name in enumerate(self.predictor.mask_names[1:], start=1):
                row[f"pixels_{name}"] = int((mask == number).sum())
            row["mask"] = self._save("masks", stem, mask_png(mask))
            if self.overlays:
                row["overlay"] = self._save("overlays", stem, overlay_png(image, mask))
        if heatmap is not None:
            row["heatmap"] = self._save("heatmaps", stem, heatmap_png(image, heatmap))
        return row

    def _save(self, kind: str, stem: str, content: bytes) -> str:
        name = f"{kind}/{stem}.png"
        with atomic_path(self.out / name) as temporary:
            temporary.write_bytes(content)
        return name

    def _write_dicom(self, file: InputFile, predictions: list[Prediction]) -> dict[str, Any]:
        from medduet.inference.dicom import write_dicom

        network = self.predictor.config.network.name or "network"
        stem = self.out / "dicom" / file.stem
        try:
            written = write_dicom(
                file.path, predictions, stem, network=network, mask_names=self.predictor.mask_names
            )
        except MedDuetError as error:
            return {"error": str(error).removeprefix(f"{file.path}: ")}
        return {"dicom": ";".join(path.relative_to(self.out).as_posix() for path in written)}


def _is_dicom(path: Path) -> bool:
    """Return whether a file that was read is DICOM, with a preamble or without."""
    try:
        with path.open("rb") as file:
            return kind_of(file.read(HEAD)) == "DICOM"
    except OSError:
        return False
