"""The forward pass equals a plain one, written out by hand, that reads the same weights."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from medduet import ModelError, Outputs, create_model
from medduet.models.base import DuetNetwork, Normalize

NAMES = ["vovunet_var", "unet_var"]
SIZES = [(16, 16), (17, 17), (28, 28), (33, 33), (64, 64), (17, 40), (47, 22)]


class ByHand:
    """VovUnet_Var and UNet_VAR as the paper and its code have them, out of a dict of weights."""

    def __init__(self, network: DuetNetwork, training: bool) -> None:
        self.weights = {name: value.clone() for name, value in network.state_dict().items()}
        self.training = training

    def conv(self, x: Tensor, name: str, padding: int = 0) -> Tensor:
        bias = self.weights.get(f"{name}.bias")
        return F.conv2d(x, self.weights[f"{name}.weight"], bias, padding=padding)

    def norm(self, x: Tensor, name: str) -> Tensor:
        w = self.weights
        mean, variance = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        if self.training:
            mean, variance = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), correction=0)
        scale = w[f"{name}.weight"] / (variance + 1e-5).sqrt()
        shift = w[f"{name}.bias"] - mean * scale
        return x * scale[:, None, None] + shift[:, None, None]

    def double_conv(self, x: Tensor, name: str) -> Tensor:
        for conv, norm in ((0, 1), (3, 4)):
            x = self.norm(self.conv(x, f"{name}.{conv}", padding=1), f"{name}.{norm}").relu()
        return x

    def osa_unit(self, x: Tensor, name: str) -> Tensor:
        maps = [x]
        for i in range(2):
            part = f"{name}.0.conv_mid.{i}"
            convolved = self.conv(maps[-1], f"{part}.conv", padding=1)
            maps.append(self.norm(convolved, f"{part}.bn").relu())
        part = f"{name}.0.conv_concat"
        fused = self.norm(self.conv(torch.cat(maps, dim=1), f"{part}.conv"), f"{part}.bn").relu()
        y = self.norm(fused, f"{name}.1")
        return 0.5 * y * (1 + torch.erf(y / 2**0.5))

    def __call__(self, image: Tensor, name: str) -> Outputs:
        block = {"vovunet_var": self.osa_unit, "unet_var": self.double_conv}[name]
        maps = [self.double_conv((image / 255 - 0.5) / 0.5, "stem")]
        for i in range(4):
            maps.append(block(F.max_pool2d(maps[-1], 2), f"down.{i}.1"))
        pooled = maps[-1].flatten(2).mean(dim=2)
        logits = pooled @ self.weights["class_head.weight"].T + self.weights["class_head.bias"]
        x = maps[-1]
        for i, skip in enumerate(reversed(maps[:-1])):
            kernel = self.weights[f"up.{i}.upsample.weight"]
            raised = F.conv_transpose2d(x, kernel, self.weights[f"up.{i}.upsample.bias"], stride=2)
            padded = torch.zeros_like(skip)
            padded[..., : raised.shape[-2], : raised.shape[-1]] = raised
            x = block(torch.cat([skip, padded], dim=1), f"up.{i}.block")
        return Outputs(logits, self.conv(x, "dense_head"))


def shaken(network: DuetNetwork) -> DuetNetwork:
    """Move every weight and running mean from its start, where a mistake could hide."""
    generator = torch.Generator().manual_seed(0)
    network.double()
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not name.startswith("normalize"):
            change = torch.rand(value.shape, generator=generator, dtype=value.dtype)
            value.add_(change * (0.5 if value.ndim < 2 else 0.02))
    return network


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_forward_equals_the_one_by_hand(name: str, size: tuple[int, int], training: bool) -> None:
    network = shaken(
        create_model(name, in_channels=3, num_classes=4, dense_channels=2, width=3)
    ).train(training)
    image = torch.randint(0, 256, (3, 3, *size), dtype=torch.uint8)
    expected = ByHand(network, training)(image.double(), name)
    with torch.no_grad():
        found = network(image)
    assert found.class_logits.shape == (3, 4)
    assert found.dense.shape == (3, 2, *size)
    torch.testing.assert_close(found.class_logits, expected.class_logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.dense, expected.dense, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(4, 7, 9, 1), (4, 7, 9, 3), (1, 1, 5, 3), (2, 6, 1, 3)])
def test_every_byte_is_what_the_formula_gives(shape: tuple[int, ...]) -> None:
    side_by_side = torch.randint(0, 256, shape, dtype=torch.uint8).permute(0, 3, 1, 2)
    normalize = Normalize(shape[3])
    normalize.set((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for image in (side_by_side, side_by_side.contiguous(), side_by_side[:, :, ::2, ::2]):
        before = image.clone()
        found, expected = normalize(image), (image / 255 - normalize.mean) / normalize.std
        assert torch.equal(found, expected)
        assert found.stride() == expected.stride()
        assert torch.equal(image, before)


def test_floats_are_left_as_they_are() -> None:
    image = torch.rand(2, 3, 4, 4, requires_grad=True)
    before = image.detach().clone()
    Normalize(3)(image).sum().backward()
    assert torch.equal(image, before)
    torch.testing.assert_close(image.grad, torch.full_like(before, 2.0))


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (16, 16), (1, 1, 1, 16, 16), (2, 1, 15, 16)])
def test_images_of_another_shape(shape: tuple[int, ...]) -> None:
    network = create_model("unet_var", in_channels=1, num_classes=2, width=2)
    with pytest.raises(ModelError, match=r"\(N, 1, H, W\)|at least 16 x 16.*--size 16") as caught:
        network(torch.zeros(shape))
    assert "\n" not in str(caught.value)
