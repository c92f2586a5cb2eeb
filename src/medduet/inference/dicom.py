"""Predictions for series of DICOM images as DICOM: a segmentation, and a structured report.

Source: DICOM PS3.3 A.51 (segmentation), PS3.16 TID 1500 (measurement report), by highdicom.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medduet._version import __version__
from medduet.inference.codes import PRIVATE, class_code, private, segment_codes
from medduet.inference.source import Frame, digest_of, read_frames
from medduet.utils.files import atomic_path

_MAKER = "MedDuet"
_ONE_FRAME = "1.2.840.10008.5.1.4.1.1.7"  # secondary capture, which has no mandatory modules
_NOWHERE = ("1.1", (1, 0, 0, 0, 1, 0), (1, 1), 1)
_SINGLE = {f"1.2.840.10008.5.1.4.1.1.{x}" for x in ("1", "2", "4", "6.1", "7", "128")}
"""Classes of single images, to whose frames, if there are some, nothing may refer."""
_FAILURES = (AttributeError, FileNotFoundError, IndexError, KeyError, TypeError, ValueError)
_Files = Sequence[tuple[Path, str, Sequence[dict[str, Any]]]]


@dataclass(frozen=True)
class DicomWriter:
    """Writes results in DICOM to the folder `out`; `seed` tells networks and options apart."""

    out: Path
    network: str
    class_names: Sequence[str]
    mask_names: Sequence[str]
    codes: Mapping[str, Sequence[str]]
    seed: str

    def write(self, files: _Files, number: int = 0) -> tuple[list[str], str]:
        """Write ``dicom/STEM-seg.dcm`` and ``dicom/STEM-sr.dcm`` on the files of a series.

        Frames of other sizes or planes have a ``STEM-seg-2.dcm`` and so on.

        Args:
            files: paths, stems and rows; where images are several, STEM is the UID of the series.
            number: of the series among those of its UID.

        Returns:
            The names of what is written, and why the rest is not.
        """
        images: dict[str, list[Frame]] = {}  # copies count once
        for path, _, rows in files:
            frames = read_frames(path, rows)
            images.setdefault(frames[0].source.SOPInstanceUID, frames)
        frames, stem = sorted(chain(*images.values()), key=_order), Path("dicom", files[0][1])
        if len(images) > 1:
            series = re.sub(r"[^\d.]", "", frames[0].source.SeriesInstanceUID)
            stem = stem.with_name(f"{series}-{number}" if number else series)
        groups: dict[Any, list[Frame]] = defaultdict(list)
        for frame in frames:
            groups[_plane(frame)].append(frame)
        digests = sorted(digest_of(path) for path, *_ in files)
        make = _Results(self, json.dumps([self.seed, __version__, sorted({*digests})]))
        drawn = [group for group in groups.values() if self.present(group)]
        jobs = [("seg", make.segmentation, group) for group in drawn]
        if frames[0].row.get("label") is not None:
            jobs.append(("sr", make.report, frames))
        names, problems, counts = list[str](), list[str](), Counter[str]()
        for kind, function, group in jobs:
            counts[kind] += 1
            last = f"-{counts[kind]}" if counts[kind] > 1 else ""
            name = f"{stem.as_posix()}-{kind}{last}.dcm"
            try:
                data = function(group, counts[kind])
                del data.InstanceCreationDate, data.InstanceCreationTime  # made again, it is equal
                for item in data.ContributingEquipmentSequence:
                    item.pop("ContributionDateTime", None)
                with atomic_path(self.out / name) as temporary:
                    data.save_as(temporary, enforce_file_format=True)
                names.append(name)
            except _FAILURES as error:
                reason = " ".join(str(error).split())[:200]
                problems.append(f"can't be the source of {name}: {reason}")
        return names, "; ".join(problems)

    def present(self, frames: Sequence[Frame]) -> list[int]:
        """Return which mask classes are in the masks of frames."""
        names = enumerate(self.mask_names)
        return [n for n, x in names if n and any(frame.row.get(f"pixels_{x}") for frame in frames)]


class _Results:
    """Makes the results of a series; of an equal `seed` they are equal."""

    def __init__(self, writer: DicomWriter, seed: str) -> None:
        self.writer, self._seed = writer, seed

    def _uid(self, *names: object) -> str:
        from pydicom.uid import generate_uid

        return str(generate_uid(entropy_srcs=[self._seed, json.dumps(names)]))

    def _instance(self, source: Any, kind: str, number: int) -> dict[str, Any]:
        from highdicom.coding_schemes import CodingSchemeIdentificationItem

        schemes = {code[1] for code in self.writer.codes.values() if code[1].startswith("99")}
        items = [CodingSchemeIdentificationItem(x, name=x) for x in sorted({PRIVATE, *schemes})]
        return {
            "series_instance_uid": self._uid(kind),
            "series_number": 9001 if kind == "segmentation" else 9002,
            "series_description": f"MedDuet {kind}; not for clinical use",
            "sop_instance_uid": self._uid(kind, number),
            "instance_number": number,
            "manufacturer": _MAKER,
            "manufacturer_model_name": self.writer.network,
            "software_versions": __version__,
            "device_serial_number": "0",
            "content_date": source.ContentDate,
            "content_time": source.ContentTime,
            "coding_schemes": items,
        }

    def segmentation(self, frames: Sequence[Frame], number: int) -> Any:
        """Return the segmentation of frames of one size, in parallel planes if these are known."""
        import highdicom as hd

        writer, first = self.writer, frames[0].source
        present = writer.present(frames)
        segment_of = np.zeros(256, np.uint8)
        segment_of[present] = range(1, len(present) + 1)
        gaps = np.diff([frame.position[-1] for frame in frames])
        # Several segments at one place are what SimpleITK can't read.
        flat = len(present) > 1 == sum(bool(writer.present([frame])) for frame in frames)
        known = gaps.min(initial=1) > 1e-3 and not (flat and len(frames) == 1)
        place = frames[0].plane if known else ()
        gap = float(gaps.mean()) if gaps.size else place and place[3]
        # highdicom takes frames without a place only alone: they get one until it is done.
        reference, orientation, spacing, thickness = place if gap else _NOWHERE
        masks, sources = np.zeros((len(frames), first.Rows, first.Columns), np.uint8), []
        for n, frame in enumerate(frames):
            if writer.present([frame]):  # else the memory is never touched
                with Image.open(writer.out / frame.row["mask"]) as mask:
                    masks[n] = segment_of[np.asarray(mask)]
            sources.append(source := _single(frame, f"1.{n}"))
            source.FrameOfReferenceUID, source.ImageOrientationPatient = reference, [*orientation]
            source.ImagePositionPatient = [*frame.position[:3]] if gap else [0, 0, n]
            source.PixelSpacing, source.SliceThickness = [*spacing], thickness or gap
            source.SpacingBetweenSlices = gap or 1
        data = hd.seg.Segmentation(
            sources,
            masks,
            hd.seg.SegmentationTypeValues.BINARY,
            [self._segment(n, writer.mask_names[k]) for n, k in enumerate(present, start=1)],
            omit_empty_frames=not flat,
            content_label="MEDDUET",
            content_description="Predicted by a network; not for clinical use",
            **self._instance(first, "segmentation", number),
        )
        data.SourceImageSequence = references = _references(frames)
        data.ReferencedSeriesSequence[0].ReferencedInstanceSequence = references
        items = data.PerFrameFunctionalGroupsSequence
        origins = [x.DerivationImageSequence[0].SourceImageSequence[0] for x in items]
        numbers = [int(x.ReferencedSOPInstanceUID[2:]) for x in origins]
        for n, origin in zip(numbers, origins, strict=True):
            origin.ReferencedSOPClassUID = frames[n].source.SOPClassUID
            origin.ReferencedSOPInstanceUID = frames[n].source.SOPInstanceUID
            if frame_numbers := _frame_numbers(frames[n]):
                origin.ReferencedFrameNumber = frame_numbers
        for dimension in (*data.DimensionIndexSequence, *data.DimensionOrganizationSequence):
            dimension.DimensionOrganizationUID = self._uid("dimensions", number)
        if not gap:
            _forget_place(data)
            one = len(references) == 1
            data.PatientOrientation = first.get("PatientOrientation") if one else None
        return data

    def _segment(self, number: int, name: str) -> Any:
        import highdicom as hd
        from pydicom.sr.codedict import codes

        network, ai = self.writer.network, codes.DCM.ArtificialIntelligence
        return hd.seg.SegmentDescription(
            number,
            name[:64],
            *segment_codes(name, self.writer.codes),
            hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            hd.AlgorithmIdentificationSequence(network, ai, __version__),
            tracking_id=name[:64],
            tracking_uid=self._uid("segment", name),
        )

    def report(self, frames: Sequence[Frame], number: int) -> Any:
        """Return the report on all frames."""
        import highdicom as hd
        from pydicom.sr.codedict import codes

        network = self.writer.network
        device = hd.sr.DeviceObserverIdentifyingAttributes(
            self._uid("device"), name=_MAKER, model_name=network
        )
        observer = hd.sr.ObserverContext(codes.DCM.Device, device)
        content = hd.sr.MeasurementReport(
            hd.sr.ObservationContext(observer_device_context=observer),
            private("Image classified by a network", "image"),
            imaging_measurements=[self._measured(*x) for x in enumerate(frames, start=1)],
            title=codes.DCM.ImagingMeasurementReport,
        )
        sources = [_single(frame, frame.source.SOPInstanceUID) for frame in frames]
        instance = self._instance(frames[0].source, "report", number)
        data = hd.sr.ComprehensiveSR(sources, content, **instance)
        evidence = data.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
        evidence.ReferencedSOPSequence = _references(frames)
        return data

    def _measured(self, number: int, frame: Frame) -> Any:
        """Return what the report says of a frame."""
        import highdicom as hd
        from pydicom.sr.codedict import codes

        row, names, own = frame.row, self.writer.class_names, self.writer.codes
        classes = _named(row["label"], ", ", names)
        answers = [("class", "Predicted class", class_code(x, own)) for x in classes]
        if not classes:
            answers.append(("class", "Predicted class", private("none", "none")))
        in_set = _named(row.get("set", ""), ";", names)
        answers += [("set", "Prediction set", class_code(x, own)) for x in in_set]
        if row.get("abstained") == "yes":
            answers.append(("abstained", "Abstained", private("confidence too low", "doubt")))
        if row.get("warning"):
            answers.append(("ood", "Warning", private("image out of distribution", "odd")))
        source, one = frame.source, codes.UCUM.NoUnits
        image = hd.sr.SourceImageForMeasurementGroup(
            source.SOPClassUID, source.SOPInstanceUID, _frame_numbers(frame)
        )
        title = f"frame {frame.number}" if frame.number else f"image {number}"
        uid = self._uid("image", source.SOPInstanceUID, frame.number)
        return hd.sr.MeasurementsAndQualitativeEvaluations(
            hd.sr.TrackingIdentifier(uid, title),
            finding_type=codes.DCM.Finding,
            algorithm_id=hd.sr.AlgorithmIdentification(self.writer.network, __version__),
            source_images=[image],
            measurements=[
                hd.sr.Measurement(private(f"Probability of {x}"), row[f"p_{x}"], one) for x in names
            ],
            qualitative_evaluations=[
                hd.sr.QualitativeEvaluation(private(meaning, key), value)
                for key, meaning, value in answers
            ],
        )


def _order(frame: Frame) -> tuple[Any, ...]:
    source = frame.source
    return frame.position[-1], source.InstanceNumber, source.SOPInstanceUID, frame.number


def _plane(frame: Frame) -> tuple[Any, ...]:
    """Return what is equal in all frames of a segmentation: their size, and planes in space."""
    reference, orientation, spacing = frame.plane[:3] or ("", (), ())
    size = frame.source.Rows, frame.source.Columns
    return *size, reference, *(np.round(orientation, 3) + 0.0).tolist(), *spacing


def _single(frame: Frame, uid: str) -> Any:
    """Return a frame as highdicom takes those of any class: a single image."""
    from pydicom import Dataset

    source = Dataset(dict(frame.source.items()))
    del source.SOPClassUID, source.SOPInstanceUID  # shared with the other frames
    source.SOPClassUID, source.SOPInstanceUID = _ONE_FRAME, uid
    return source


def _frame_numbers(frame: Frame) -> list[int] | None:
    is_listed = frame.number and frame.source.SOPClassUID not in _SINGLE
    return [frame.number] if is_listed else None


def _references(frames: Iterable[Frame]) -> list[Any]:
    """Return references to the files of frames."""
    from pydicom import Dataset

    sources, references = {frame.source.SOPInstanceUID: frame.source for frame in frames}, []
    for uid, source in sources.items():
        references.append(reference := Dataset())
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = (
            source.SOPClassUID,
            uid,
        )
    return references


def _forget_place(data: Any) -> None:
    """Remove the place of all frames, whose order remains."""
    shared, index = data.SharedFunctionalGroupsSequence[0], data.DimensionIndexSequence[1]
    del data.FrameOfReferenceUID, data.PositionReferenceIndicator
    del shared.PlaneOrientationSequence, shared.PixelMeasuresSequence
    data.pop("DimensionOrganizationType", None)
    index.DimensionDescriptionLabel = "In-Stack Position Number"
    index.DimensionIndexPointer, index.FunctionalGroupPointer = 0x00209057, 0x00209111
    for item in data.PerFrameFunctionalGroupsSequence:
        del item.PlanePositionSequence
        content = item.FrameContentSequence[0]
        content.StackID, content.InStackPositionNumber = "1", content.DimensionIndexValues[1]


def _named(text: str, separator: str, names: Sequence[str]) -> list[str]:
    """Return the names that are joined in a text."""
    if text in names:
        return [text]
    text = f"{separator}{text}{separator}"
    places = {text.find(f"{separator}{name}{separator}"): name for name in names}
    return [places[place] for place in sorted(places) if place >= 0]
