"""Predictions for a DICOM image as DICOM: a segmentation, and a structured report.

Source: DICOM PS3.3 A.51 (segmentation), PS3.16 TID 1500 (measurement report), by highdicom.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medduet._version import __version__
from medduet.data.reading.core import needed
from medduet.errors import DataError
from medduet.inference.prediction import Prediction
from medduet.utils.files import atomic_path

_SCHEME = "99MEDDUET"
_MAKER = "MedDuet"
_SERIES = {"seg": 9001, "sr": 9002}
_ONE_FRAME = "1.2.840.10008.5.1.4.1.1.7"  # secondary capture: asks for nothing of its own
_OF_ALL = (0x7FE00010, 0x00280008)  # pixels, number of frames
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
    written = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values in the source that bend the standard
        try:
            for frame, frames in _together(image, predictions):
                drawn = [predictions[number] for number in frames]
                if any(
                    prediction.mask is not None and prediction.mask.any() for prediction in drawn
                ):
                    own = stem
                    if frame is not None:
                        own = stem.with_name(source.name) / f"{frame:04}"
                    written.append(own.with_name(f"{own.name}-seg.dcm"))
                    alone = image if frame is None else _one_frame(image)
                    data = _segmentation(alone, drawn, network, mask_names)
                    if frame is not None:
                        _point_to_frame(data, image, frame)
                    if "PatientOrientation" not in data and not image.get("FrameOfReferenceUID"):
                        data.PatientOrientation = image.get("PatientOrientation") or None
                    _save(data, written[-1])
            if any(prediction.probabilities for prediction in predictions):
                written.append(stem.with_name(f"{stem.name}-sr.dcm"))
                _save(_report(image, predictions, network), written[-1])
        except (AttributeError, ValueError, TypeError, KeyError, IndexError) as error:
            # highdicom raises these where the source lacks or contradicts what it needs.
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{source}: no result in DICOM can be made of it: {reason}") from error
    return written


def _together(
    image: Any, predictions: Sequence[Prediction]
) -> Iterator[tuple[int | None, list[int]]]:
    """Give the frames that share a segmentation, and the number of the frame if it is a single one.

    That is all of them, unless nothing tells how they lie in space, as in films of ultrasound:
    then the standard, as highdicom reads it, has a segmentation refer to a single frame.
    """
    frames = list(range(len(predictions)))
    if len(frames) == 1 or image.get("FrameOfReferenceUID"):
        yield None, frames
    else:
        yield from ((number + 1, [number]) for number in frames)


def _one_frame(image: Any) -> Any:
    """Return a film as if it was a single image, which is what highdicom takes."""
    from pydicom import Dataset

    one = Dataset()
    for element in image:
        if element.tag not in _OF_ALL:
            one.add(copy.copy(element))
    one.file_meta, one.SOPClassUID = image.file_meta, _ONE_FRAME
    return one


def _point_to_frame(data: Any, image: Any, number: int) -> None:
    """Let a segmentation refer to one frame of a film, counted from 1."""
    of_frames = [
        source
        for group in data.PerFrameFunctionalGroupsSequence
        for derived in group.DerivationImageSequence
        for source in derived.SourceImageSequence
    ]
    of_series = [
        each
        for series in data.ReferencedSeriesSequence
        for each in series.ReferencedInstanceSequence
    ]
    for source in of_frames:
        source.ReferencedFrameNumber = number
    for reference in (*of_frames, *of_series):
        reference.ReferencedSOPClassUID = image.SOPClassUID


def _save(data: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        data.save_as(temporary, enforce_file_format=True)


def _segmentation(
    image: Any, predictions: Sequence[Prediction], network: str, mask_names: Sequence[str]
) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    masks: NDArray[np.uint8] = np.stack(
        [prediction.mask for prediction in predictions if prediction.mask is not None]
    )
    drawn = [number for number in range(1, len(mask_names)) if (masks == number).any()]
    algorithm = hd.AlgorithmIdentificationSequence(
        name=network[:64], family=codes.DCM.ArtificialIntelligence, version=__version__
    )
    descriptions = []
    for place, number in enumerate(drawn, start=1):
        name = mask_names[number]
        kind = codes.SCT.Lesion if _LESION.search(name) else _code(f"mask-{number}", name)
        descriptions.append(
            hd.seg.SegmentDescription(
                segment_number=place,
                segment_label=name[:64],
                segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
                segmented_property_type=kind,
                algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm,
            )
        )
    pixels = np.stack([masks == number for number in drawn], axis=-1)
    return hd.seg.Segmentation(
        source_images=[image],
        pixel_array=pixels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=hd.UID(),
        series_number=_SERIES["seg"],
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=_MAKER,
        manufacturer_model_name=network[:64],
        software_versions=__version__,
        device_serial_number="0",
        content_label="MEDDUET",
        content_description="Predicted by a network; not for clinical use",
        series_description="MedDuet segmentation",
    )


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
        series_instance_uid=hd.UID(),
        series_number=_SERIES["sr"],
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=_MAKER,
        series_description="MedDuet report; not for clinical use",
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
