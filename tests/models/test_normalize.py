from __future__ import annotations

import pytest
import torch

from medduet import ModelError, create_model
from medduet.models.normalize import Normalize


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


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (1, 16, 16), (16, 16), (1, 1, 1, 16, 16)])
def test_images_of_another_shape(shape: tuple[int, ...]) -> None:
    network = create_model("unet_var", in_channels=1, num_classes=2, width=2)
    with pytest.raises(ModelError, match=r"\(N, 1, H, W\)") as caught:
        network(torch.zeros(shape))
    assert "\n" not in str(caught.value)
