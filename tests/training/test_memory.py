"""Less memory, another memory format or compilation: nothing else changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

import medduet
from medduet import RunConfig, TrainingError, create_model
from medduet.models.base import DuetNetwork
from medduet.training.step import split_batch
from medduet.types import Batch, Outputs

MakeConfig = Callable[..., RunConfig]


def make_network(name: str = "vovunet_var") -> DuetNetwork:
    options = {} if ":" in name else {"width": 4}
    torch.manual_seed(0)
    return create_model(name, in_channels=3, num_classes=3, dense_channels=2, **options).train()


@pytest.mark.parametrize("chosen", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["vovunet_var", "smp:unet/resnet18"])
def test_every_convolution_has_the_memory_format(chosen: torch.memory_format, name: str) -> None:
    network, seen = make_network(name), list[bool]()
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    network.normalize.memory_format = chosen

    def check(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        # A map of one pixel, or one channel, is the same in both.
        if output.shape[1] > 1 and output.shape[2] > 1:
            last = output.is_contiguous(memory_format=torch.channels_last)
            seen.append(last == (chosen == torch.channels_last))

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
            module.register_forward_hook(check)
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with fabric.autocast():
        network(image)
    assert len(seen) > 20
    assert all(seen)
    for output, expected in zip(network(image), make_network(name)(image), strict=True):
        torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-3)


CHANGES = {
    "compile": {
        "data": {"count": 20},
        "model": {"name": "adares_unet", "width": 1},
        "objective": {"tasks": ["classify"]},
    },
    # Without batch normalisation, the gradient is the same but for rounding.
    "micro_batch_size": {
        "data": {"size": 32},
        "model": {"name": "timm:convnext_atto", "width": None},
        "objective": {"tasks": ["classify"], "class_weights": "balanced"},
    },
}


@pytest.mark.timeout(900)  # compiling takes minutes on a busy machine
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("micro_batch_size", 3),
        pytest.param("compile", True, marks=pytest.mark.slow),
    ],
)
def test_options_that_change_no_loss(
    make_config: MakeConfig, epochs: Any, tmp_path: Path, option: str, value: Any
) -> None:
    losses = []
    for name, train in (("plain", {}), ("other", {option: value})):
        train |= {"epochs": 1, "learning_rate": 1e-4}
        medduet.train(make_config(tmp_path / name, train=train, **CHANGES[option]))
        losses.append(epochs(tmp_path / name)[0]["train"]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


# Micro-batches ----------------------------------------------------------------------------------


def test_every_image_is_in_one_micro_batch() -> None:
    for images in range(2, 20):
        batch = Batch(torch.zeros(images, 1, 2, 2), *[torch.arange(images)] * 4)
        for most in range(2, 9):
            parts = split_batch(batch, most)
            sizes = [len(part.image) for part in parts]
            assert torch.equal(torch.cat([part.indices for part in parts]), batch.indices)
            assert min(sizes) >= 2
            assert max(sizes) <= max(most, 3)


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the network run out of memory with more than so many images in training."""
    plain = medduet.models.UNet.forward

    def limit(most: int) -> None:
        def forward(self: Any, image: torch.Tensor) -> Outputs:
            if len(image) > most and torch.is_grad_enabled():
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return plain(self, image)

        monkeypatch.setattr(medduet.models.UNet, "forward", forward)

    return limit


def test_less_memory_makes_smaller_micro_batches_and_says_so(
    make_config: MakeConfig, epochs: Any, listener: Any, no_memory: Any, tmp_path: Path
) -> None:
    no_memory(2)
    medduet.train(make_config(tmp_path / "run"), reporter=listener)
    assert [
        text.split(":")[0] for text in listener.messages if text.startswith("out of memory")
    ] == [
        "out of memory with 8 images at a time",
        "out of memory with 4 images at a time",
    ]
    medduet.train(make_config(tmp_path / "asked", train={"micro_batch_size": 2}))
    runs = [epochs(tmp_path / name) for name in ("run", "asked")]
    losses = [[row["train"]["loss"] for row in rows] for rows in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_memory_that_does_not_suffice_ends_the_run(
    make_config: MakeConfig, no_memory: Any, tmp_path: Path
) -> None:
    no_memory(1)
    told = "out of memory with 2 images.*give a smaller --batch-size"
    with pytest.raises(TrainingError, match=told):
        medduet.train(make_config(tmp_path / "run"))
