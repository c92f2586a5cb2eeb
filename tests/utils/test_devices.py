"""Device, precision and memory of a process."""

import pytest

from medduet import ConfigError, TrainConfig
from medduet.utils import devices


@pytest.mark.parametrize("text", ["gpu", "cpu:3", "cuda:x", ""])
def test_what_is_no_device_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected auto, cpu, cuda or cuda:N"):
        devices.find_device(text)
    with pytest.raises(ValueError, match="expected auto, cpu, cuda or cuda:N"):
        TrainConfig(device=text)
