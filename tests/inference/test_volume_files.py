"""Volumes predicted from files: masks where their image is, as others read them."""

import csv
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

import medduet
from medduet import ConfigError, DataError, RunConfig, predict_files
from medduet.inference.exported import BatchPrediction
from medduet.inference.graph import NetworkGraph
from medduet.inference.results import measures
from medduet.runs.environment import prepared_as

hd = pytest.importorskip("highdicom")
nib = pytest.importorskip("nibabel")
sitk = pytest.importorskip("SimpleITK")
pydicom = pytest.importorskip("pydicom")

AFFINE = np.array([[-0.5, 0.1, 0, 7], [-0.1, -0.5, 0, -3], [0, 0, 3, 11], [0, 0, 0, 1]])
SPACING = (3.0, 0.51, 0.51)


def scan(number: int = 0) -> np.ndarray:
    """Return slices, rows and columns with one bright block, which is the lesion."""
    volume = np.random.default_rng(number).integers(0, 100, (8, 20, 24)).astype(np.int16)
    volume[1:4, 2 + number % 3 : 8, 3:12] += 150
    return volume


@pytest.fixture(scope="module")
def run(make_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on NIfTI files with masks."""
    root = tmp_path_factory.mktemp("volumes")
    for number in range(12):
        folder = root / "set" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        volume = scan(number)
        nib.save(nib.Nifti1Image(volume.T, AFFINE), folder / f"{number}.nii.gz")
        mask = nib.Nifti1Image(np.uint8(volume >= 150).T, AFFINE)
        nib.save(mask, folder / f"{number}_mask.nii.gz")
    config = make_config(
        root / "run",
        data={"name": str(root / "set"), "size": None, "count": None, "group_by": "none"},
        train={"epochs": 2, "patch": 16},
        objective={"tasks": ["classify", "segment"]},
    )
    return medduet.train(config).path


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the network be right, so that only places can be wrong."""

    def predict(graph: NetworkGraph, image: np.ndarray) -> BatchPrediction:
        return BatchPrediction(np.array([[0.25, 0.75]]), np.uint8(image[:, 0] >= 130))

    monkeypatch.setattr(NetworkGraph, "predict", predict)


def rows_of(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))


def test_a_run_on_files(run: Path, tmp_path: Path) -> None:
    bundle = medduet.runs.bundle.load_bundle(run)
    assert bundle.config.preprocessing.size == [16, 20, 24]
    assert np.allclose(bundle.config.preprocessing.spacing, SPACING, rtol=1e-2)
    data = medduet.RunConfig().data.model_copy(
        update={"name": str(run.parent / "set"), "group_by": "none"}
    )
    again = medduet.evaluate(run, data=data, out=tmp_path / "again")["test"]
    assert again["n"] > 0
    ct = prepared_as(data.model_copy(update={"modality": "ct"}), bundle.config.preprocessing)
    assert medduet.open_images(ct).info["window"] is None  # as in training
    for option, value in (("spacing", (2.0,)), ("window", (40.0, 400.0)), ("fit", "stretch")):
        with pytest.raises(ConfigError, match=rf"{option} of the training.*omit --data.{option}"):
            medduet.evaluate(run, data=data.model_copy(update={option: value}))
    record = predict_files(run, [run.parent / "set"], tmp_path / "out")
    assert (record.images, record.broken) == (12, {})
    answer = medduet.Predictor(run)(scan())
    assert answer.mask.shape == (8, 20, 24)
    for option in ({"explain": True}, {"explain": True, "classify_only": True}):
        with pytest.raises(ConfigError, match="of which there are no heat maps"):
            medduet.Predictor(run, **option)


@pytest.mark.usefixtures("exact")
def test_all_orientations_get_their_mask_back(run: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    image = nib.Nifti1Image(scan().T, AFFINE)
    turns = product(permutations(range(3)), product((1, -1), repeat=3))
    for number, turn in enumerate(turns):
        nib.save(image.as_reoriented(np.stack(turn, axis=1)), tmp_path / "in" / f"{number}.nii.gz")
    record = predict_files(run, [tmp_path / "in"], out := tmp_path / "out", overlays=False)
    assert (record.images, record.broken) == (48, {})
    for number in range(48):
        source, mask = (
            sitk.ReadImage(str(folder / f"{number}.nii.gz"))
            for folder in (tmp_path / "in", out / "masks")
        )
        for name in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            assert np.allclose(getattr(source, name)(), getattr(mask, name)(), atol=1e-4)
        assert np.array_equal(sitk.GetArrayFromImage(source) >= 150, sitk.GetArrayFromImage(mask))


def test_probabilities_lie_where_the_mask_does(run: Path, tmp_path: Path) -> None:
    image = nib.Nifti1Image(scan(3).T, AFFINE).as_reoriented([[2, -1], [0, 1], [1, -1]])
    nib.save(image, tmp_path / "scan.nii.gz")
    predict_files(run, [tmp_path / "scan.nii.gz"], out := tmp_path / "out", probabilities=True)
    mask = nib.load(out / "masks" / "scan.nii.gz")
    maps = nib.load(out / "probabilities" / "scan.nii.gz")
    assert maps.shape == (*image.shape, 2)
    assert np.allclose(maps.affine, image.affine, atol=1e-4)
    values = maps.get_fdata()
    assert np.allclose(values.sum(axis=-1), 1, atol=1e-5)
    assert np.array_equal(values[..., 1] > 0.5, np.asarray(mask.dataobj) == 1)  # 1 voxel is 1 voxel
    assert 0 < values[..., 1].min() < values[..., 1].max() < 1


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("ending", ["mha", "nrrd", "tif"])
def test_other_files(run: Path, tmp_path: Path, ending: str) -> None:
    image = sitk.GetImageFromArray(scan())
    if ending != "tif":
        image.SetSpacing(SPACING[::-1])
        image.SetOrigin((1, 2, 3))
    sitk.WriteImage(image, path := str(tmp_path / f"a.{ending}"))
    predict_files(run, [path], out := tmp_path / "out")
    if ending == "tif":  # of which no spacing is known
        assert "the distance of its voxels in mm" in rows_of(out)[0]["error"]
    else:
        mask = sitk.ReadImage(str(out / "masks" / "a.nii.gz"))
        assert np.array_equal(sitk.GetArrayFromImage(mask), scan() >= 150)
        assert np.allclose(mask.GetSpacing(), image.GetSpacing(), atol=1e-4)
        assert np.allclose(mask.GetOrigin(), image.GetOrigin())
        (row,) = rows_of(out)
        voxels = int((scan() >= 150).sum())
        assert (row["file"], row["label"], row["slices"]) == (f"a.{ending}", "b", "8")
        assert int(row["pixels_lesion"]) == voxels
        assert float(row["ml_lesion"]) == pytest.approx(voxels * np.prod(SPACING) / 1000, abs=1e-3)
        corner = np.multiply((2, 5, 8), SPACING)  # between the centres of its outermost voxels
        assert float(row["mm_lesion"]) == pytest.approx(np.linalg.norm(corner), abs=0.01)
        assert float(row["mm_error"]) == pytest.approx(np.linalg.norm(SPACING), abs=0.01)


@pytest.mark.usefixtures("exact")
def test_a_series_becomes_one_segmentation(
    run: Path, tmp_path: Path, save_series: Callable[..., list[Path]]
) -> None:
    paths = save_series(folder := tmp_path / "study" / "ct", scan())
    record = predict_files(run, [tmp_path / "study"], out := tmp_path / "out")
    assert (record.images, record.broken) == (1, {})
    (row,) = rows_of(out)
    assert (row["file"], row["mask"]) == ("ct", "masks/ct.nii.gz")
    segmentation, report = row["dicom"].split(";")
    data = hd.seg.segread(out / segmentation)
    truth = scan() >= 150
    order = [paths[k] for k in np.flatnonzero(truth.any(axis=(1, 2)))]
    assert data.NumberOfFrames == len(order) == 3
    uids = [pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in order]
    pixels = data.get_pixels_by_source_instance(uids, segment_numbers=[1])[..., 0]
    assert np.array_equal(pixels, truth[truth.any(axis=(1, 2))])
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    series, mask = reader.Execute(), sitk.ReadImage(str(out / "masks" / "ct.nii.gz"))
    for name in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert np.allclose(getattr(series, name)(), getattr(mask, name)(), atol=1e-4)
    assert np.array_equal(sitk.GetArrayFromImage(mask), truth)
    itk = sitk.ReadImage(str(out / segmentation), sitk.sitkUInt8)
    nearest = sitk.Resample(itk, series, sitk.Transform(), sitk.sitkNearestNeighbor)
    assert np.array_equal(sitk.GetArrayFromImage(nearest) > 0, truth)
    assert pydicom.dcmread(out / report).SOPClassUID.name == "Comprehensive SR Storage"
    assert predict_files(run, [tmp_path / "study"], out).skipped == 1
    assert predict_files(run, [folder], tmp_path / "alone").images == 1


@pytest.mark.usefixtures("exact")
def test_a_sagittal_series(
    run: Path, tmp_path: Path, save_series: Callable[..., list[Path]]
) -> None:
    """It is predicted as the NIfTI file of the same series is, and its mask lies on its slices."""
    volume = np.full((20, 30, 16), 20, np.int16)
    volume[3:8, 10:25, 2:6] = 200
    turned = {
        "ImageOrientationPatient": lambda k: [0, 1, 0, 0, 0, -1],
        "ImagePositionPatient": lambda k: [40 - 3 * k, -5, 9],
    }
    paths = save_series(tmp_path / "in" / "ct", volume, **turned)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "in" / "ct")))
    sitk.WriteImage(reader.Execute(), str(tmp_path / "in" / "same.nii.gz"))
    record = predict_files(run, [tmp_path / "in"], out := tmp_path / "out")
    assert (record.images, record.broken) == (2, {})
    one, two = rows_of(out)
    for name in ("slices", "height", "width", "spacing", "ml_lesion", "mm_lesion"):
        assert one[name] == two[name]
    segmentation = hd.seg.segread(out / one["dicom"].split(";")[0])
    uids = [pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in paths[3:8]]
    pixels = segmentation.get_pixels_by_source_instance(uids, segment_numbers=[1])[..., 0]
    truth = volume[3:8] > 100  # whose rows of 0.5 mm the network has seen in voxels of 3 mm
    assert 2 * (pixels * truth).sum() / (pixels.sum() + truth.sum()) > 0.85


def test_channels_are_predicted_together(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The lesion is in the second channel alone."""
    for number in range(12):
        lesion, plain = scan(number), np.random.default_rng(number).normal(size=(8, 20, 24))
        for k, volume in enumerate((plain, lesion)):
            path = tmp_path / "set" / "imagesTr" / f"c{number}_{k:04}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(volume.T.astype(np.float32), AFFINE), path)
        (tmp_path / "set" / "labelsTr").mkdir(exist_ok=True)
        mask = nib.Nifti1Image(np.uint8(lesion >= 150).T, AFFINE)
        nib.save(mask, tmp_path / "set" / "labelsTr" / f"c{number}.nii.gz")
    data = {"name": str(tmp_path / "set"), "size": None, "count": None, "group_by": "none"}
    run = medduet.train(
        make_config(
            tmp_path / "run",
            data=data,
            train={"epochs": 1},
            objective={"tasks": ["segment"]},
        )
    ).path

    def predict(graph: NetworkGraph, image: np.ndarray) -> BatchPrediction:
        return BatchPrediction(None, np.uint8(image[:, 1] >= 130))

    monkeypatch.setattr(NetworkGraph, "predict", predict)
    record = predict_files(run, [tmp_path / "set" / "imagesTr"], out := tmp_path / "out")
    assert (record.images, record.broken) == (12, {})
    for row in rows_of(out):
        found = sitk.GetArrayFromImage(sitk.ReadImage(str(out / row["mask"]))) > 0
        truth = scan(int(row["file"][1:].partition("_")[0])) >= 150
        assert np.array_equal(found, truth)
    one = tmp_path / "set" / "imagesTr" / "c3_0000.nii.gz"
    second = one.with_name("c3_0001.nii.gz")
    second.write_bytes(one.with_name("c4_0001.nii.gz").read_bytes())
    assert predict_files(run, [one.parent], out).skipped == 11  # it was changed
    third = one.with_name("c3_0002.nii.gz")
    third.write_bytes(one.read_bytes())
    with pytest.raises(DataError, match="2 channels of each volume, as in training, given 3 of"):
        predict_files(run, [one.parent], tmp_path / "three")
    third.unlink()
    assert medduet.Predictor(run)(one).mask.shape == (8, 20, 24)
    with one.open("rb") as file, pytest.raises(DataError, match="folder with 2 channels of it"):
        medduet.Predictor(run)(file)
    (tmp_path / "alone").mkdir()
    one.rename(tmp_path / "alone" / "c3.nii.gz")
    record = predict_files(run, [tmp_path / "alone"], tmp_path / "again")
    assert "expected a volume of 2 channels, NAME_0000" in record.broken["c3.nii.gz"]


def test_what_is_no_volume(run: Path, tmp_path: Path) -> None:
    Image.fromarray(np.uint8(scan()[0])).save(tmp_path / "a.png")
    record = predict_files(run, [tmp_path / "a.png"], tmp_path / "out")
    assert "expected a volume of several slices" in record.broken["a.png"]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_diameter_of_what_lies_in_one_slice(axis: int) -> None:
    y, x = np.indices((160, 160)) - 80
    drawn = (y / 70) ** 2 + ((x + y / 2) / 20) ** 2 < 1
    mask = np.stack([drawn * 0, drawn, drawn * 0], axis).astype(np.uint8)
    points = np.argwhere(mask) * (spacing := (3.0, 0.7, 0.5))
    corners = points[ConvexHull(np.delete(points, axis, axis=1)).vertices]
    row = measures(mask, spacing, ["background", "lesion"])
    assert row["mm_lesion"] == pytest.approx(pdist(corners).max(), abs=0.006)
