"""Predictions for a DICOM image as DICOM: a segmentation, and a structured report.

Source: DICOM PS3.3 A.51 (segmentation), PS3.16 TID 1500 (measurement report), by highdicom.
"""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medduet._version import __version__
from medduet.data.reading.core import needed
from medduet.errors import DataError
from medduet.inference.predictor import Prediction
from medduet.utils.files import atomic_path

_MAKER, _SCHEME = "MedDuet", "99MEDDUET"
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
    """Write ``STEM-seg.dcm`` and ``STEM-sr.dcm`` for a DICOM file, and return the paths.

    Patient and study are those of `source`; DataError if it lacks what results refer to.
    """
    needed("highdicom", source)
    image = needed("pydicom", source).dcmread(source, force=True)
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
        if not image.get(name):
            raise DataError(f"{source}: expected {name}, to which DICOM results refer")
    network, written = network[:64] or "network", []
    groups: list[tuple[Path, int | None, Sequence[Prediction]]] = [(stem, None, predictions)]
    if len(predictions) > 1 and not image.get("FrameOfReferenceUID"):
        # Where frames have no place in space, as in films, highdicom asks for one for each.
        folder = stem.with_name(source.name)
        numbered = enumerate(predictions, start=1)
        groups = [(folder / f"{n:04}", n, [prediction]) for n, prediction in numbered]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values in the source that bend the standard
        try:
            for target, frame, group in groups:
                masks = [prediction.mask for prediction in group if prediction.mask is not None]
                if np.any(masks):
                    data = _segmentation(image, np.stack(masks), network, mask_names, frame)
                    written.append(_save(data, target.with_name(f"{target.name}-seg.dcm")))
            if any(prediction.probabilities for prediction in predictions):
                data = _report(image, predictions, network)
                written.append(_save(data, stem.with_name(f"{stem.name}-sr.dcm")))
        except (AttributeError, ValueError, TypeError, KeyError, IndexError) as error:
            # What highdicom raises where the source lacks or contradicts what it needs.
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{source}: can't be the source of DICOM results: {reason}") from error
    return written


def _save(data: Any, path: Path) -> Path:
    with atomic_path(path) as temporary:
        data.save_as(temporary, enforce_file_format=True)
    return path


def _instance(network: str, number: int) -> dict[str, Any]:
    import highdicom as hd

    return {
        "series_instance_uid": hd.UID(),
        "series_number": number,
        "sop_instance_uid": hd.UID(),
        "instance_number": 1,
        "manufacturer": _MAKER,
        "manufacturer_model_name": network,
        "software_versions": __version__,
        "device_serial_number": "0",
    }


def _segmentation(
    image: Any,
    masks: NDArray[np.uint8],
    network: str,
    mask_names: Sequence[str],
    frame: int | None,
) -> Any:
    """Return the segmentation of all frames, or that of one `frame` of a film."""
    import highdicom as hd
    from pydicom import Dataset
    from pydicom.sr.codedict import codes

    source = image
    if frame is not None:  # as if it were a single image, which is what highdicom takes
        source = Dataset(dict(image.items()))
        source.file_meta = image.file_meta
        del source.PixelData, source.NumberOfFrames, source.SOPClassUID  # shared with the image
        source.SOPClassUID = _ONE_FRAME
    present = [number for number in range(1, len(mask_names)) if (masks == number).any()]
    algorithm = hd.AlgorithmIdentificationSequence(
        name=network, family=codes.DCM.ArtificialIntelligence, version=__version__
    )
    segments = [
        hd.seg.SegmentDescription(
            segment_number=segment,
            segment_label=mask_names[number][:64],
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Lesion
            if _LESION.search(mask_names[number])
            else _code(f"mask-{number}", mask_names[number]),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for segment, number in enumerate(present, start=1)
    ]
    data = hd.seg.Segmentation(
        source_images=[source],
        pixel_array=np.stack([masks == number for number in present], axis=-1),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        content_label="MEDDUET",
        content_description="Predicted by a network; not for clinical use",
        series_description="MedDuet segmentation",
        **_instance(network, 9001),
    )
    if frame is not None:
        derived = data.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0]
        origin = derived.SourceImageSequence[0]
        origin.ReferencedFrameNumber = frame
        for reference in (origin, data.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0]):
            reference.ReferencedSOPClassUID = image.SOPClassUID
    if "PatientOrientation" not in data and not image.get("FrameOfReferenceUID"):
        data.PatientOrientation = image.get("PatientOrientation") or None
    return data


def _report(image: Any, predictions: Sequence[Prediction], network: str) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=hd.UID(), name=_MAKER, model_name=network
    )
    groups = []
    for number, prediction in enumerate(predictions, start=1):
        frame = [number] if len(predictions) > 1 else None
        origin = hd.sr.SourceImageForMeasurementGroup(
            image.SOPClassUID, image.SOPInstanceUID, referenced_frame_numbers=frame
        )
        measurements = [
            hd.sr.Measurement(
                name=_code(f"probability-{k}", f"Probability of {name}"),
                value=round(value, 6),
                unit=codes.UCUM.NoUnits,
            )
            for k, (name, value) in enumerate(prediction.probabilities.items())
        ]
        texts = [("class", "Predicted class", prediction.label or "none")]
        if prediction.prediction_set is not None:
            classes = " or ".join(prediction.prediction_set) or "none"
            texts.append(("set", "Prediction set", classes))
        if prediction.abstained:
            texts.append(("abstained", "Abstained", "confidence too low"))
        if prediction.is_ood:
            texts.append(("ood", "Warning", "image out of distribution"))
        groups.append(
            hd.sr.MeasurementsAndQualitativeEvaluations(
                tracking_identifier=hd.sr.TrackingIdentifier(hd.UID(), f"frame {number}"),
                finding_type=codes.DCM.Finding,
                algorithm_id=hd.sr.AlgorithmIdentification(name=network, version=__version__),
                source_images=[origin],
                measurements=measurements,
                qualitative_evaluations=[
                    hd.sr.QualitativeEvaluation(_code(key, name), _code(f"{key}-value", value))
                    for key, name, value in texts
                ],
            )
        )
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(
            observer_device_context=hd.sr.ObserverContext(codes.DCM.Device, device)
        ),
        procedure_reported=_code("image", "Image classified by a network"),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    return hd.sr.ComprehensiveSR(
        evidence=[image],
        content=content,
        series_description="MedDuet report; not for clinical use",
        **_instance(network, 9002),
    )


def _code(value: str, meaning: str) -> Any:
    import highdicom as hd

    return hd.sr.CodedConcept(value=value[:16], scheme_designator=_SCHEME, meaning=meaning[:64])
