"""An exported network predicts what the network does, for any number and size of images."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import medduet
from medduet import (
    ConfigError,
    DataConfig,
    ExportedModel,
    MissingFileError,
    ModelError,
    Predictor,
    RunRecord,
    create_model,
    export_bundle,
    load,
)
from medduet.cli import main
from medduet.inference.export import largest
from medduet.models.weights import save_network

MakeBundle = Callable[..., Path]
Images = Callable[[int, int, int], NDArray[np.uint8]]
RUN: Any = {"capture_output": True, "text": True, "timeout": 200, "check": False}


@pytest.fixture(scope="module")
def onnx(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported network; look, don't touch."""
    return export_bundle(bundle, tmp_path_factory.mktemp("exported") / "onnx", count=4).path


def same(model: ExportedModel, path: Path, image: NDArray[np.uint8]) -> medduet.BatchPrediction:
    """Compare with what torch computes; return the predictions."""
    with torch.inference_mode():
        class_logits, dense = load(path)(torch.from_numpy(image))
    predicted = model(image)
    probability = class_logits.softmax(dim=1).numpy()
    if model.config.multi_label:
        probability = class_logits.sigmoid().numpy()
    np.testing.assert_allclose(predicted.probability, probability, atol=1e-4)
    mask = (dense[:, 0] > 0) if dense.shape[1] == 1 else dense.argmax(dim=1)
    assert (predicted.mask != mask.numpy()).mean() < 0.001
    return predicted


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 40, 33), (2, 16, 97)])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_any_number_and_size(
    bundle: Path, onnx: Path, images: Images, runtime: Any, shape: tuple[int, int, int]
) -> None:
    predicted = same(ExportedModel(onnx, runtime=runtime), bundle, images(*shape))
    assert predicted.reconstruction is None
    assert predicted.probability.dtype == np.float32
    assert predicted.mask.dtype == np.uint8
    assert predicted.mask.shape == shape
    assert 0.1 < predicted.mask.mean() < 0.9, "a mask that can't be wrong"
    assert shape[0] == 1 or predicted.probability.std(axis=0).max() > 0.001


def test_the_file_says_what_it_takes_and_gives(onnx: Path) -> None:
    model = pytest.importorskip("onnx").load(onnx / "model.onnx")
    assert (model.ir_version, model.opset_import[0].version) == (8, 18)  # of onnxruntime 1.15
    named = ["batch", "height", "width"]
    shapes = {"image": ["batch", 1, *named[1:]], "probability": ["batch", 3], "mask": named}
    for value in (*model.graph.input, *model.graph.output):
        dims = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        assert dims == shapes.pop(value.name)
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    assert json.loads(metadata["class_names"]) == ["class 0", "class 1", "class 2"]
    assert json.loads(metadata["preprocessing"])["size"] == [32, 32]
    content = (onnx / "model.onnx").read_bytes()
    assert str(Path(medduet.__file__).parent).encode() not in content


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm:convnextv2_atto", "smp:segformer/mit_b0"])
def test_other_networks(name: str, make_bundle: MakeBundle, images: Images, tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "bundle", name)
    model = ExportedModel(export_bundle(path, tmp_path / "onnx", count=2).path)
    for shape in ((2, 32, 32), (1, 50, 33), (1, 96, 64)):
        same(model, path, images(*shape))


@pytest.mark.slow
def test_other_tasks(make_bundle: MakeBundle, images: Images, tmp_path: Path) -> None:
    image = images(2, 32, 48)
    several = make_bundle(tmp_path / "several", layout=(4, 0), multi_label=True)
    out = export_bundle(several, tmp_path / "a", count=2, fixed_size=True).path
    with pytest.raises(ModelError, match=r"32, 32\) of uint8, given \(2, 1, 32, 48\)"):
        ExportedModel(out)(image)
    model, image = ExportedModel(out), images(2, 32, 32)
    assert len(np.unique(same(model, several, image).mask)) > 1

    rebuilt = make_bundle(tmp_path / "rebuilt", classes=0, layout=(0, 1))
    predicted = ExportedModel(export_bundle(rebuilt, tmp_path / "b", count=2).path)(image)
    assert predicted.probability is predicted.mask is None
    network = load(rebuilt)
    pixels = network.normalize.invert(network(torch.from_numpy(image)).dense).detach().numpy()
    np.testing.assert_allclose(predicted.reconstruction, pixels, atol=1e-4)
    with pytest.raises(ConfigError, match="no class head"):
        export_bundle(rebuilt, tmp_path / "alone", classify_only=True)


def test_no_use_is_reported_to_anybody(onnx: Path, tmp_path: Path) -> None:
    # OpenVINO keeps the identity that it reports under in the user's home.
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    load_it = "import sys, medduet; medduet.ExportedModel(sys.argv[1], runtime='openvino')"
    done = subprocess.run(
        [sys.executable, "-c", load_it, str(onnx)],
        env=environment | {"HOME": str(tmp_path / "home")},
        **RUN,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "home" / "intel").exists()


def test_a_set_to_compare_on(bundle: Path, tmp_path: Path, images: Images) -> None:
    data = DataConfig(name="phantom", size=32, count=40)
    record = export_bundle(bundle, tmp_path / "onnx", data=data, count=0)
    assert (record.images, record.n) == ("phantom", 8)
    same(ExportedModel(record.path, runtime="openvino"), bundle, images(2, 32, 32))


def test_a_run_is_compared_on_its_own_images(finished_run: RunRecord, tmp_path: Path) -> None:
    record = export_bundle(finished_run.path, tmp_path / "onnx", count=0)
    assert (record.n, record.differences["class"]) == (8, 0)
    assert record.differences["reconstruction"] < 1e-4
    page = (record.path / "README.md").read_text()
    assert str(record) in page
    code = page.split("```python")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(compile(code.replace("path/of/this/folder", str(record.path)), "page", "exec"), names)
    assert [value.shape for value in names["outputs"]] == [(1, 4), (1, 16, 16), (1, 1, 16, 16)]
    assert ExportedModel(record.path).config.metrics["selection"] == "validation-selected"


NO_TORCH = """
import sys

class Block:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in ("torch", "onnx", "lightning", "timm"):
            raise ImportError(f"{name} is not to be imported")

sys.meta_path.insert(0, Block())
import numpy as np
import medduet

image = np.zeros((2, 1, 40, 33), np.uint8)
for runtime in ("onnxruntime", "openvino"):
    predicted = medduet.ExportedModel(sys.argv[1], runtime=runtime)(image)
    print(predicted.probability.shape, predicted.mask.shape)
print(medduet.Predictor(sys.argv[1])(image[0, 0]).label, "torch" in sys.modules)
"""


def test_it_predicts_without_torch(onnx: Path) -> None:
    done = subprocess.run([sys.executable, "-c", NO_TORCH, str(onnx)], **RUN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["(2, 3) (2, 40, 33)"] * 2 + ["class 0 False"]


def test_damaged_folders(bundle: Path, tmp_path: Path) -> None:
    for folder in (tmp_path, bundle):
        with pytest.raises(MissingFileError, match=r"medduet export BUNDLE --out DIR"):
            ExportedModel(folder)
    out = tmp_path / "out"
    words = ["export", str(bundle), "--out", str(out), "--classify-only", "--count", "2"]
    assert main(words) == 0
    assert ExportedModel(out)(np.zeros((2, 1, 40, 48), np.uint8)).mask is None
    with (out / "model.onnx").open("ab") as file:
        file.write(b"1")
    with pytest.raises(ModelError, match="SHA-256 differs"):
        ExportedModel(out)


def test_settings_that_do_not_fit(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert np.isnan(largest({"probability": 0.5, "reconstruction": np.nan}))
    assert largest({"probability": 0.2, "mask": 0.5, "class": 1.0}) == 0.5
    out = tmp_path / "out"
    network = create_model("unet_var", in_channels=1, num_classes=2, width=2)
    save_network(tmp_path / "network", network)
    rgb = DataConfig(name="phantom", size=32, count=20, channels=3)
    for path, where, error, words, options in (
        (bundle, tmp_path, ConfigError, "already exists", {}),
        (tmp_path / "network", out, ModelError, "does not say what its outputs mean", {}),
        (bundle, out, ConfigError, "given 4 of phantom with 3", {"data": rgb}),
        (bundle, out, ModelError, "tolerance is 0; ", {"count": 4, "tolerance": 0.0}),
    ):
        with pytest.raises(error, match=words):
            export_bundle(path, where, **options)
    assert main(["export", str(bundle), "--out", str(out), "--count", "-1"]) == 2
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"needs onnxscript: pip install 'medduet\[export\]'"):
        export_bundle(bundle, out)
    assert not out.exists()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_threads_can_share_it_and_images_must_fit(onnx: Path, images: Images, runtime: Any) -> None:
    model = ExportedModel(onnx, runtime=runtime)
    for shape, kind in (((1, 3, 32, 32), "u1"), ((32, 32), "u1"), ((1, 1, 15, 32), "f4")):
        with pytest.raises(ModelError, match=r"images \(N, 1, H >= 16, W >= 16\) of uint8, given"):
            model(np.zeros(shape, kind))
    assert Predictor(onnx, classify_only=True)(images(1, 40, 40)[0, 0]).mask is None
    with pytest.raises(ConfigError, match="is exported"):
        Predictor(onnx, explain=True)
    inputs = [images(8, 64, 64)[i : i + 1] for i in range(8)] * 8
    expected = [model(image).mask for image in inputs[:8]]
    assert len({mask.tobytes() for mask in expected}) == 8
    with ThreadPoolExecutor(8) as pool:
        for number, predicted in enumerate(pool.map(model, inputs)):
            assert np.array_equal(predicted.mask, expected[number % 8])


@pytest.mark.parametrize(
    ("probability", "mask"),
    [
        (np.zeros((1, 3), np.int64), np.zeros((1, 32, 32), np.uint8)),
        (np.zeros((1, 4), np.float32), np.zeros((1, 32, 32), np.uint8)),
        ([np.zeros((1, 3), np.float32)], np.zeros((1, 32, 32), np.uint8)),
        (np.zeros((1, 3), np.float32), np.zeros((1, 32, 32), np.int64)),
        (np.zeros((1, 3), np.float32), np.zeros((1, 16, 16), np.uint8)),
        (np.zeros((1, 3), np.float32), np.full((1, 32, 32), 2, np.uint8)),  # of no mask class
        (np.zeros((1, 3), np.float32), None),
    ],
)
def test_outputs_of_another_kind_are_refused(onnx: Path, probability: Any, mask: Any) -> None:
    model = ExportedModel(onnx)
    model._run = lambda image: [each for each in (probability, mask) if each is not None]
    with pytest.raises(ModelError, match="can't be used: "):
        model(np.zeros((1, 1, 32, 32), np.uint8))
