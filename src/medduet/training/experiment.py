"""What training and evaluation work with."""

import threading
from dataclasses import dataclass, field

from lightning.fabric import Fabric

from medduet.config import RunConfig
from medduet.data.imageset import ImageSet
from medduet.losses.objective import Objective
from medduet.models.base import DuetNetwork
from medduet.models.inference import DECLARED
from medduet.runs.folder import RunFolder
from medduet.runs.predictions import Predictions
from medduet.training.reporter import Reporter
from medduet.training.validation import predict_split


@dataclass(frozen=True)
class Experiment:
    """One network, its data and its settings, on launched processes."""

    fabric: Fabric
    config: RunConfig
    data: ImageSet
    network: DuetNetwork
    """Not the wrapper that Fabric makes of it."""
    objective: Objective
    folder: RunFolder
    reporter: Reporter = field(default_factory=Reporter)
    stop: threading.Event = field(default_factory=threading.Event)
    """Set from outside to end training after the current step."""

    def predict(
        self, split: str, *, thorough: bool, temperature: float | None = None
    ) -> Predictions:
        """Predict every image of `split`, see `predict_split`.

        Not `thorough`, as after an epoch, it is with the losses, and in the precision of the
        training; else as the bundle will predict.
        """
        mixed = self.fabric.strategy.precision.precision == "bf16-mixed"
        return predict_split(
            self.fabric,
            self.network,
            self.data.split(split),
            self.objective.layout,
            data=self.data,
            objective=None if thorough else self.objective,
            thorough=thorough,
            precision="bfloat16" if mixed and not thorough else DECLARED,
            temperature=temperature,
        )
