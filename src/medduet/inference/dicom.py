"""Predictions for a DICOM image as DICOM: a segmentation, and a structured report.

Source: DICOM PS3.3 A.51 (segmentation), PS3.16 TID 1500 (measurement report), by highdicom.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medduet._version import __version__
from medduet.data.reading.core import needed
from medduet.errors import DataError
from medduet.inference.prediction import Prediction
from medduet.utils.files import atomic_path

_MAKER, _SCHEME = "MedDuet", "99MEDDUET"
_SERIES = {"seg": 9001, "sr": 9002}
_ONE_FRAME = "1.2.840.10008.5.1.4.1.1.7"  # secondary capture, which has no mandatory modules
_LESION = re.compile(r"lesion|tumou?r|mass|nodule|polyp|ulcer", re.IGNORECASE)


def write_dicom(
    source: Path,
    predictions: Sequence[Prediction],
    stem: Path,
    *,
    network: str,
    mask_names: Sequence[str],
) -> list[Path]:
    """Write the predictions for the frames of a DICOM file, and return the paths.

    ``STEM-seg.dcm`` has a segment for each mask class that is drawn somewhere, if any is; films
    whose frames have no place in space have one for each frame in a folder called as the source,
    ``0001-seg.dcm``.
    ``STEM-sr.dcm`` has the class of each frame and the probabilities.

    Args:
        source: the file; patient, study and frame of reference are taken over from it.
        predictions: one for each of its frames.
        stem: the paths up to their ending.
        network: its name.
        mask_names: of the mask classes, background first.

    Raises:
        DataError: the file lacks what a result in DICOM has to refer to.
    """
    needed("highdicom", source)
    pydicom = needed("pydicom", source)
    image = pydicom.dcmread(source, force=True)
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
        if not image.get(name):
            raise DataError(f"{source}: expected {name}, without which no result can refer to it")
    # Where the position of frames in space is unknown, as in films of ultrasound, the standard (as
    # highdicom reads it) has a segmentation refer to a single frame.
    is_film = len(predictions) > 1 and not image.get("FrameOfReferenceUID")
    parts: list[tuple[Path, int | None, Sequence[Prediction]]] = [(stem, None, predictions)]
    if is_film:
        folder = stem.with_name(source.name)
        parts = [(folder / f"{n:04}", n, [each]) for n, each in enumerate(predictions, start=1)]
    written = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values in the source that bend the standard
        try:
            for place, frame, group in parts:
                if any(each.mask is not None and each.mask.any() for each in group):
                    written.append(place.with_name(f"{place.name}-seg.dcm"))
                    data = _segmentation(image, group, network, mask_names, frame)
                    _save(data, written[-1])
            if any(each.probabilities for each in predictions):
                written.append(stem.with_name(f"{stem.name}-sr.dcm"))
                _save(_report(image, predictions, network), written[-1])
        except (AttributeError, ValueError, TypeError, KeyError, IndexError) as error:
            # highdicom raises these where the source lacks or contradicts what it needs.
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{source}: no result in DICOM can be made of it: {reason}") from error
    return written


def _save(data: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        data.save_as(temporary, enforce_file_format=True)


def _segmentation(
    image: Any,
    predictions: Sequence[Prediction],
    network: str,
    mask_names: Sequence[str],
    frame: int | None,
) -> Any:
    """Return the segmentation of all frames, or that of one `frame` of a film, from 1."""
    import highdicom as hd
    from pydicom import Dataset
    from pydicom.sr.codedict import codes

    source = image
    if frame is not None:  # as if it were a single image, which is what highdicom takes
        source = Dataset(dict(image.items()))
        source.file_meta = image.file_meta
        del source.PixelData, source.NumberOfFrames, source.SOPClassUID
        source.SOPClassUID = _ONE_FRAME
    masks = np.stack([each.mask for each in predictions if each.mask is not None])
    present = [number for number in range(1, len(mask_names)) if (masks == number).any()]
    algorithm = hd.AlgorithmIdentificationSequence(
        name=network[:64], family=codes.DCM.ArtificialIntelligence, version=__version__
    )
    data = hd.seg.Segmentation(
        source_images=[source],
        pixel_array=np.stack([masks == number for number in present], axis=-1),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            hd.seg.SegmentDescription(
                segment_number=place,
                segment_label=mask_names[number][:64],
                segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
                segmented_property_type=codes.SCT.Lesion
                if _LESION.search(mask_names[number])
                else _code(f"mask-{number}", mask_names[number]),
                algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm,
            )
            for place, number in enumerate(present, start=1)
        ],
        series_number=_SERIES["seg"],
        manufacturer_model_name=network[:64],
        software_versions=__version__,
        device_serial_number="0",
        content_label="MEDDUET",
        content_description="Predicted by a network; not for clinical use",
        series_description="MedDuet segmentation",
        **_instance(),
    )
    if frame is not None:
        _refer_to_frame(data, image, frame)
    if "PatientOrientation" not in data and not image.get("FrameOfReferenceUID"):
        data.PatientOrientation = image.get("PatientOrientation") or None
    return data


def _refer_to_frame(data: Any, image: Any, frame: int) -> None:
    """Let a segmentation refer to one frame of a film, counted from 1."""
    sources = [
        source
        for group in data.PerFrameFunctionalGroupsSequence
        for derived in group.DerivationImageSequence
        for source in derived.SourceImageSequence
    ]
    instances = [
        instance
        for series in data.ReferencedSeriesSequence
        for instance in series.ReferencedInstanceSequence
    ]
    for source in sources:
        source.ReferencedFrameNumber = frame
    for reference in (*sources, *instances):
        reference.ReferencedSOPClassUID = image.SOPClassUID


def _instance() -> dict[str, Any]:
    import highdicom as hd

    return {
        "series_instance_uid": hd.UID(),
        "sop_instance_uid": hd.UID(),
        "instance_number": 1,
        "manufacturer": _MAKER,
    }


def _report(image: Any, predictions: Sequence[Prediction], network: str) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    device = hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=hd.UID(), name=_MAKER, model_name=network[:64]
        ),
    )
    algorithm = hd.sr.AlgorithmIdentification(name=network[:64], version=__version__)
    groups = []
    for number, prediction in enumerate(predictions, start=1):
        frame = [number] if len(predictions) > 1 else None
        groups.append(
            hd.sr.MeasurementsAndQualitativeEvaluations(
                tracking_identifier=hd.sr.TrackingIdentifier(
                    uid=hd.UID(), identifier=f"frame {number}"
                ),
                finding_type=codes.DCM.Finding,
                algorithm_id=algorithm,
                source_images=[
                    hd.sr.SourceImageForMeasurementGroup(
                        image.SOPClassUID, image.SOPInstanceUID, referenced_frame_numbers=frame
                    )
                ],
                measurements=[
                    hd.sr.Measurement(
                        name=_code(f"probability-{place}", f"Probability of {name}"),
                        value=round(value, 6),
                        unit=codes.UCUM.NoUnits,
                    )
                    for place, (name, value) in enumerate(prediction.probabilities.items())
                ],
                qualitative_evaluations=[
                    hd.sr.QualitativeEvaluation(
                        name=_code(key, meaning), value=_code(f"{key}-value", value)
                    )
                    for key, meaning, value in _evaluations(prediction)
                ],
            )
        )
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=device),
        procedure_reported=_code("image", "Image classified by a network"),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    return hd.sr.ComprehensiveSR(
        evidence=[image],
        content=content,
        series_number=_SERIES["sr"],
        series_description="MedDuet report; not for clinical use",
        **_instance(),
    )


def _evaluations(prediction: Prediction) -> list[tuple[str, str, str]]:
    """Return code, meaning and value of what the report says in words."""
    evaluations = [("class", "Predicted class", prediction.label or "none")]
    if prediction.prediction_set is not None:
        names = " or ".join(prediction.prediction_set) or "none"
        evaluations.append(("set", "Prediction set", names))
    if prediction.abstained:
        evaluations.append(("abstained", "Abstained", "confidence too low"))
    if prediction.is_ood:
        evaluations.append(("ood", "Warning", "image out of distribution"))
    return evaluations


def _code(value: str, meaning: str) -> Any:
    import highdicom as hd

    return hd.sr.CodedConcept(value=value[:16], scheme_designator=_SCHEME, meaning=meaning[:64])
