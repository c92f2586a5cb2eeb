"""Less memory, another memory format or compilation: nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

import medduet
from medduet import ConfigError, RunConfig, TrainingError, create_model
from medduet.models.base import DuetNetwork
from medduet.training.memory import checkpoint_activations
from medduet.training.reporter import Reporter
from medduet.training.step import split_batch
from medduet.types import Batch, Outputs

MakeConfig = Callable[..., RunConfig]


def epochs(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "epochs.jsonl").read_text("utf-8").splitlines()]


class Listener(Reporter):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def make_network(channels: int, name: str = "vovunet_var", width: int | None = 4) -> DuetNetwork:
    options = {} if width is None else {"width": width}
    torch.manual_seed(0)
    return create_model(name, in_channels=channels, num_classes=3, dense_channels=2, **options)


@pytest.mark.parametrize("chosen", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("given", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["vovunet_var", "smp:unet/resnet18"])
def test_every_convolution_has_the_memory_format(
    chosen: torch.memory_format, given: torch.memory_format, name: str
) -> None:
    network = make_network(3, name, 4 if name == "vovunet_var" else None).train()
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    network.normalize.memory_format = chosen
    seen: list[bool] = []

    def check(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        # A map of one pixel, or one channel, is the same in both.
        if output.shape[1] > 1 and output.shape[2] > 1:
            last = output.is_contiguous(memory_format=torch.channels_last)
            seen.append(last == (chosen == torch.channels_last))

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
            module.register_forward_hook(check)
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    image = image.contiguous(memory_format=given)
    with fabric.autocast():
        network(image)
    assert len(seen) > 20
    assert all(seen)
    plain = make_network(3, name, 4 if name == "vovunet_var" else None).train()
    for output, expected in zip(network(image), plain(image), strict=True):
        torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-3)


def test_weights_and_moments_stay_as_they_are_saved() -> None:
    # A fused optimizer goes through weights, gradients and moments by their place in memory.
    updates = []
    for fused in (False, True):
        network = make_network(3).train()
        network.normalize.memory_format = torch.channels_last
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, fused=fused)
        image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        for _ in range(2):
            optimizer.zero_grad()
            outputs = network(image)
            (outputs.class_logits.square().mean() + outputs.dense.square().mean()).backward()
            optimizer.step()
        for parameter in network.parameters():
            moment = optimizer.state[parameter]["exp_avg"]
            assert parameter.stride() == parameter.grad.stride() == moment.stride()
            assert parameter.is_contiguous()
        updates.append(torch.cat([parameter.flatten() for parameter in network.parameters()]))
    torch.testing.assert_close(updates[1], updates[0], rtol=1e-4, atol=1e-5)


# Memory -----------------------------------------------------------------------------------------


def saved_bytes(network: DuetNetwork, image: torch.Tensor) -> tuple[int, torch.Tensor]:
    """What a forward pass keeps for the backward pass, each tensor once; and the loss."""
    kept: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = network(image)
        heads = [head for head in outputs if head is not None]
        loss = sum(head.float().square().mean() for head in heads)
    assert isinstance(loss, torch.Tensor)
    return sum(kept.values()), loss


@pytest.mark.parametrize(
    "name",
    [
        "vovunet_var",
        "adares_unet",
        "timm:resnet18",
        "timm:vit_tiny_patch16_224",
        "smp:fpn/resnet18",
    ],
)
def test_checkpointing_changes_memory_alone(name: str) -> None:
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    sizes, networks = [], []
    for checkpointed in (False, True):
        network = make_network(3, name, None if ":" in name else 4).train()
        if checkpointed:
            checkpoint_activations(network)
        torch.manual_seed(3)  # of dropout
        size, loss = saved_bytes(network, image)
        loss.backward()
        sizes.append(size)
        networks.append(network)
    plain, other = networks
    assert sizes[1] < 0.6 * sizes[0]
    gradients = dict(other.named_parameters())
    for key, parameter in plain.named_parameters():
        if parameter.grad is None:
            assert gradients[key].grad is None
        else:
            assert torch.equal(gradients[key].grad, parameter.grad), key
    for key, value in plain.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key
    for network in networks:
        network.eval()
    with torch.no_grad():
        assert torch.equal(plain(image).class_logits, other(image).class_logits)


def test_gradients_of_each_task_through_checkpoints(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    rows = []
    for checkpointed in (False, True):
        train = {"activation_checkpointing": checkpointed, "epochs": 1}
        objective = {"balance": "pcgrad", "tasks": ["classify", "segment"]}
        config = make_config(tmp_path / str(checkpointed), train=train, objective=objective)
        run = medduet.train(config).path
        row = json.loads((run / "epochs.jsonl").read_text("utf-8"))
        rows.append((row["train"], row["conflict"], row["val"]))
    assert rows[0] == rows[1]


@pytest.mark.slow
@pytest.mark.timeout(900)  # compiling takes minutes on a busy machine
def test_a_compiled_network_learns_the_same(make_config: MakeConfig, tmp_path: Path) -> None:
    losses = []
    for compiled in (False, True):
        config = make_config(
            tmp_path / str(compiled),
            data={"count": 20},
            model={"name": "adares_unet", "width": 1},
            objective={"tasks": ["classify"]},
            train={"compile": compiled, "epochs": 1},
        )
        run = medduet.train(config).path
        losses.append(json.loads((run / "epochs.jsonl").read_text("utf-8"))["train"]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_parts_add_up_to_the_whole_step(make_config: MakeConfig, tmp_path: Path) -> None:
    """Without batch normalisation in training mode, the gradient is the same but for rounding."""
    found = {}
    for name, most in (("whole", None), ("parts", 3)):
        train = {"micro_batch_size": most, "epochs": 2, "learning_rate": 1e-4}
        model = {"name": "timm:convnext_atto", "width": None}  # it has no batch normalisation
        data = {"size": 32}
        tasks = {"tasks": ["classify"], "class_weights": "balanced"}
        config = make_config(tmp_path / name, train=train, model=model, data=data, objective=tasks)
        medduet.train(config)
        found[name] = [row["train"]["loss"] for row in epochs(tmp_path / name)]
    assert found["parts"] == pytest.approx(found["whole"], rel=1e-4)
    assert found["parts"] != found["whole"]


def test_every_image_is_in_one_part() -> None:
    for images in range(2, 20):
        batch = Batch(torch.zeros(images, 1, 2, 2), *[torch.arange(images)] * 4)
        for most in range(2, 9):
            parts = split_batch(batch, most)
            sizes = [len(part.image) for part in parts]
            assert torch.equal(torch.cat([part.indices for part in parts]), batch.indices)
            assert min(sizes) >= 2
            assert max(sizes) <= max(most, 3)


def no_memory(monkeypatch: pytest.MonkeyPatch, above: int) -> None:
    """Let the network run out of memory with more than so many images in training."""
    plain = medduet.models.UNet.forward

    def forward(self: Any, image: torch.Tensor) -> Outputs:
        if len(image) > above and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return plain(self, image)

    monkeypatch.setattr(medduet.models.UNet, "forward", forward)


def test_less_memory_makes_smaller_parts_and_says_so(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Listener()
    no_memory(monkeypatch, 2)
    medduet.train(make_config(tmp_path / "run"), reporter=listener)
    assert [text.split(":")[0] for text in listener.messages[1:]] == [
        "out of memory with 8 images at a time",
        "out of memory with 4 images at a time",
    ]
    monkeypatch.undo()
    medduet.train(make_config(tmp_path / "asked", train={"micro_batch_size": 2}))
    losses = [
        [row["train"]["loss"] for row in epochs(tmp_path / name)] for name in ("run", "asked")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_too_little_memory_for_two_images(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_memory(monkeypatch, 1)
    with pytest.raises(TrainingError, match="out of memory with 2 images at a time: give a smal"):
        medduet.train(make_config(tmp_path / "run"))


def test_a_balance_that_needs_the_whole_batch(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(
        tmp_path / "a", train={"micro_batch_size": 4}, objective={"balance": "dwa"}
    )
    with pytest.raises(ConfigError, match="--balance dwa needs all images"):
        medduet.train(config)
    no_memory(monkeypatch, 4)
    config = make_config(tmp_path / "b", objective={"balance": "pcgrad"})
    with pytest.raises(TrainingError, match=r"out of memory with 8 images.*--batch-size"):
        medduet.train(config)
