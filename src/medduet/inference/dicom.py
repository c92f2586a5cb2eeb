"""Predictions for series of DICOM images as DICOM: a segmentation, and a structured report.

Source: DICOM PS3.3 A.51 (segmentation), PS3.16 TID 1500 (measurement report), by highdicom.
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from PIL import Image
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

from medduet._version import __version__
from medduet.inference.codes import PRIVATE, class_code, private, segment_codes
from medduet.inference.source import Frame, digest_of, read_frames
from medduet.utils.files import atomic_path

_NOWHERE = ("1.1", (1, 0, 0, 0, 1, 0), (1, 1), 1)
_FAILURES = (AttributeError, FileNotFoundError, IndexError, KeyError, TypeError, ValueError)
_File = tuple[Path, str, Sequence[dict[str, Any]]]


class DicomWriter:
    """Writes results to the folder `out`; `settings` tell networks and options apart, in UIDs."""

    def __init__(
        self,
        out: Path,
        network: str,
        class_names: Sequence[str],
        mask_names: Sequence[str],
        codes: Mapping[str, Sequence[str]],
        settings: str,
    ) -> None:
        self.out, self.network, self.codes = out, network[:64] or "network", codes
        self.class_names, self.mask_names = class_names, mask_names
        self.settings, self.seed = json.dumps([__version__, settings]), ""

    def write(self, files: Sequence[_File], number: int = 0) -> tuple[list[str], str]:
        """Write ``dicom/STEM-seg.dcm`` and ``dicom/STEM-sr.dcm`` on the files of a series.

        Frames of other sizes or planes have a ``STEM-seg-2.dcm`` and so on.

        Args:
            files: path, stem and rows of each; STEM of several images is the UID of their series.
            number: tells series of one UID apart.

        Returns:
            The names of what is written, and why the rest is not.
        """
        images: dict[str, list[Frame]] = {}  # copies count once
        for path, _, rows in files:
            images.setdefault((added := read_frames(path, rows))[0].source.SOPInstanceUID, added)
        frames, stem = sorted(chain(*images.values()), key=lambda x: x.order), files[0][1]
        if len(images) > 1:
            series = re.sub(r"[^\d.]", "", frames[0].source.SeriesInstanceUID)
            stem = str(Path(stem).with_name(f"{series}-{number}" if number else series))
        self.seed = json.dumps([self.settings, sorted({digest_of(path) for path, *_ in files})])
        planes = defaultdict[Any, list[Frame]](list)
        for frame in frames:
            planes[frame.kind].append(frame)
        drawn = [group for group in planes.values() if self._present(group)]
        jobs = [("seg", self._segmentation, *x) for x in enumerate(drawn, start=1)]
        jobs += [("sr", self._report, 1, frames)] * (frames[0].row.get("label") is not None)
        names, problems = list[str](), list[str]()
        for kind, function, n, group in jobs:
            name = f"dicom/{stem}-{kind}{f'-{n}' * (n > 1)}.dcm"
            try:
                data = function(group, n)
                del data.InstanceCreationDate, data.InstanceCreationTime  # equal when made again
                for item in data.ContributingEquipmentSequence:
                    item.pop("ContributionDateTime", None)
                with atomic_path(self.out / name) as temporary:
                    data.save_as(temporary, enforce_file_format=True)
                names.append(name)
            except _FAILURES as error:  # of highdicom, where a source contradicts what it needs
                problems.append(f"{name}: {' '.join(str(error).split())[:200]}")
        return names, "; ".join(problems)

    def _present(self, frames: Sequence[Frame]) -> list[int]:
        names = enumerate(self.mask_names)
        return [n for n, x in names if n and any(frame.row.get(f"pixels_{x}") for frame in frames)]

    def _uid(self, *names: object) -> str:
        return str(generate_uid(entropy_srcs=[self.seed, json.dumps(names)]))

    def _instance(self, source: Any, kind: str, number: int) -> dict[str, Any]:
        schemes = {code[1] for code in self.codes.values() if code[1].startswith("99")} | {PRIVATE}
        items = [CodingSchemeIdentificationItem(x, name=x) for x in sorted(schemes)]
        uids = {"series_instance_uid": self._uid(kind), "sop_instance_uid": self._uid(kind, number)}
        date = {"content_date": source.ContentDate, "content_time": source.ContentTime}
        maker = {"manufacturer": "MedDuet", "manufacturer_model_name": self.network}
        maker |= {"software_versions": __version__, "device_serial_number": "0"}
        numbers = {"series_number": 9001 + (kind == "report"), "instance_number": number}
        about = {"coding_schemes": items, "series_description": f"MedDuet {kind}"}
        return {**about, **uids, **date, **maker, **numbers}

    def _segmentation(self, frames: Sequence[Frame], number: int) -> Any:
        """Return the segmentation of frames of one size, in parallel planes if these are known."""
        present, first = self._present(frames), frames[0].source
        segment_of = np.zeros(256, np.uint8)
        segment_of[present] = range(1, len(present) + 1)
        # Several segments at one place alone are what SimpleITK can't read.
        flat = len(present) > 1 == sum(bool(self._present([frame])) for frame in frames)
        gaps = np.diff([frame.position[-1] for frame in frames])
        place = frames[0].plane if gaps.min(initial=1) > 1e-3 and len(frames) > flat else ()
        thickness = place and (place[3] or float(gaps.mean() if gaps.size else 0))
        # highdicom takes frames without a place only alone: they get one until it is done.
        reference, orientation, spacing, _ = place if thickness else _NOWHERE
        masks, sources = np.zeros((len(frames), first.Rows, first.Columns), np.uint8), []
        for n, frame in enumerate(frames):
            if self._present([frame]):  # else the memory is never touched
                mask = frame.row["mask"]  # a file, or of a volume its pixels
                if isinstance(mask, str):
                    with Image.open(self.out / mask) as picture:
                        mask = np.asarray(picture)
                masks[n] = segment_of[mask]
            sources.append(source := _single(frame.source, f"1.{n}"))
            source.FrameOfReferenceUID, source.ImageOrientationPatient = reference, [*orientation]
            source.PixelSpacing, source.SliceThickness = [*spacing], thickness or 1
            source.ImagePositionPatient = [*frame.position[:3]] if thickness else [0, 0, -n]
        segments = [self._segment(n, self.mask_names[k]) for n, k in enumerate(present, start=1)]
        kind, label = hd.seg.SegmentationTypeValues.BINARY, "MEDDUET"
        about = self._instance(first, "segmentation", number) | {"omit_empty_frames": not flat}
        about["content_description"] = "Predicted by a network; not for clinical use"
        data = hd.seg.Segmentation(sources, masks, kind, segments, content_label=label, **about)
        data.SourceImageSequence = references = _references(frames)
        data.ReferencedSeriesSequence[0].ReferencedInstanceSequence = references
        for dimension in (*data.DimensionIndexSequence, *data.DimensionOrganizationSequence):
            dimension.DimensionOrganizationUID = self._uid("dimensions", number)
        items = data.PerFrameFunctionalGroupsSequence
        origins = [x.DerivationImageSequence[0].SourceImageSequence[0] for x in items]
        numbers = [int(x.ReferencedSOPInstanceUID[2:]) for x in origins]  # before they are shared
        for n, origin in zip(numbers, origins, strict=True):
            origin.update(_references(frames[n : n + 1])[0])
            if frames[n].number:
                origin.ReferencedFrameNumber = frames[n].number
        if not thickness:
            _forget_place(data)
            one = len(references) == 1
            data.PatientOrientation = first.get("PatientOrientation") if one else None
        return data

    def _segment(self, number: int, name: str) -> Any:
        algorithm, family = hd.seg.SegmentAlgorithmTypeValues, codes.DCM.ArtificialIntelligence
        identity = hd.AlgorithmIdentificationSequence(self.network, family, __version__)
        kinds, uid = segment_codes(name, self.codes), self._uid("segment", name)
        about = (number, name[:64], *kinds, algorithm.AUTOMATIC, identity)
        return hd.seg.SegmentDescription(*about, tracking_uid=uid, tracking_id=name[:64])

    def _report(self, frames: Sequence[Frame], number: int) -> Any:
        identify = hd.sr.DeviceObserverIdentifyingAttributes
        device = identify(self._uid("device"), name="MedDuet", model_name=self.network)
        observer = hd.sr.ObserverContext(codes.DCM.Device, device)
        context = hd.sr.ObservationContext(observer_device_context=observer)
        procedure, title = private("Image classified by a network", "image"), codes.DCM
        measured = [self._measured(*x) for x in enumerate(frames, start=1)]
        content = hd.sr.MeasurementReport(
            context, procedure, measured, title.ImagingMeasurementReport
        )
        sources = [_single(frame.source, frame.source.SOPInstanceUID) for frame in frames]
        instance = self._instance(frames[0].source, "report", number)
        data = hd.sr.ComprehensiveSR(sources, content, **instance)
        evidence = data.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
        evidence.ReferencedSOPSequence = _references(frames)
        return data

    def _measured(self, number: int, frame: Frame) -> Any:
        row, names = frame.row, self.class_names
        image = frame.source.SOPClassUID, frame.source.SOPInstanceUID
        labels = [class_code(x, self.codes) for x in _named(row["label"], ", ", names)]
        in_set = [class_code(x, self.codes) for x in _named(row.get("set", ""), ";", names)]
        answers = [("class", "Predicted class", x) for x in labels or [private("none", "none")]]
        answers += [("set", "Prediction set", x) for x in in_set]
        if row.get("abstained") == "yes":
            answers.append(("abstained", "Abstained", private("confidence too low", "doubt")))
        if row.get("warning"):
            answers.append(("ood", "Warning", private("image out of distribution", "odd")))
        p = [(private(f"Probability of {x}"), row[f"p_{x}"], codes.UCUM.NoUnits) for x in names]
        evaluated = [(private(meaning, key), value) for key, meaning, value in answers]
        listed = [frame.number] if frame.number else None
        return hd.sr.MeasurementsAndQualitativeEvaluations(
            hd.sr.TrackingIdentifier(self._uid("image", number), f"image {number}"),
            finding_type=codes.DCM.Finding,
            algorithm_id=hd.sr.AlgorithmIdentification(self.network, __version__),
            source_images=[hd.sr.SourceImageForMeasurementGroup(*image, listed)],
            measurements=[hd.sr.Measurement(*x) for x in p],
            qualitative_evaluations=[hd.sr.QualitativeEvaluation(*x) for x in evaluated],
        )


def _single(source: Any, uid: str) -> Any:
    """Return an image of any class as highdicom takes it: as one without mandatory modules."""
    single = Dataset(dict(source.items()))
    del single.SOPClassUID, single.SOPInstanceUID  # shared with `source`
    single.SOPClassUID, single.SOPInstanceUID = SecondaryCaptureImageStorage, uid
    return single


def _references(frames: Sequence[Frame]) -> list[Any]:
    references = {frame.source.SOPInstanceUID: Dataset() for frame in frames}
    for frame in frames:
        reference, source = references[frame.source.SOPInstanceUID], frame.source
        reference.ReferencedSOPClassUID = source.SOPClassUID
        reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    return [*references.values()]


def _forget_place(data: Any) -> None:
    """Leave nothing of a place but the order of frames."""
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
    joined = f"{separator}{text}{separator}"
    several = [] if text in names else [x for x in names if f"{separator}{x}{separator}" in joined]
    return several or [text] * bool(text)
