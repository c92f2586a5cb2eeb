"""Several networks, and several views of each image, as one network."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from medduet.config import describe
from medduet.errors import MedDuetError, ModelError
from medduet.models.base import DuetNetwork, Normalize
from medduet.models.registry import create_model
from medduet.types import Outputs, TestTime

MAX_MEMBERS = 64
_SHARED = ("in_channels", "num_classes", "dense_channels", "dims")
_TURNS = {"none": 1, "flip": 1, "flips": 2, "turns": 4}


class Ensemble(DuetNetwork):
    """One network that predicts the mean over its members and over views of an image.

    Probabilities are averaged, not scores: the softmax (sigmoid for several labels at once) of
    `class_logits` is the mean of the members', and so for the mask at each pixel, whose scores are
    the first `mask_channels` of the dense ones. Reconstructions are averaged as images. Views are
    ``"none"``, ``"flip"`` (left and right exchanged, 2 views), ``"flips"`` (upside down, too, 4) or
    ``"turns"`` (by 90 degrees, too, 8), of volumes slice by slice; dense outputs are turned back
    first.
    """

    def __init__(
        self,
        members: Sequence[DuetNetwork],
        *,
        multi_label: bool,
        mask_channels: int,
        test_time: TestTime = "none",
    ) -> None:
        super().__init__()
        if not 1 <= len(members) <= MAX_MEMBERS:
            raise ModelError(f"expected 1 to {MAX_MEMBERS} members, given {len(members)}")
        if any(isinstance(member, Ensemble) for member in members):
            raise ModelError("an ensemble can't be a member of another: give its members")
        sizes = [{name: member.arguments[name] for name in _SHARED} for member in members]
        same = sizes.count(sizes[0]) == len(sizes)
        if not same or not 0 <= mask_channels <= sizes[0]["dense_channels"]:
            raise ModelError(
                f"expected members with the same {', '.join(_SHARED)} and mask_channels among the "
                f"dense ones, given {sizes} and {mask_channels=}"
            )
        self.members, self._networks = nn.ModuleList(members), list(members)
        self.encoder_modules = [part for member in members for part in member.encoder_modules]
        self.decoder_modules = [part for member in members for part in member.decoder_modules]
        self.normalize = Normalize(sizes[0]["in_channels"], members[0].dims)
        self.normalize.load_state_dict(members[0].normalize.state_dict())
        self.multi_label, self.mask_channels = multi_label, mask_channels
        flips = (False,) if test_time == "none" else (False, True)
        turns = range(0, 4, 4 // _TURNS[test_time])  # in quarters
        self.views = [(quarters, mirrored) for quarters in turns for mirrored in flips]
        self.min_side = max(member.min_side for member in members)
        self.patch = members[0].patch
        for member in members:
            member.patch = None  # windows are those of the ensemble
        counts = Counter(member.arguments["name"] for member in members)
        names = " and ".join(f"{count} {name}" for name, count in counts.items())
        views = "" if test_time == "none" else f", test-time {test_time}"
        self.arguments = {
            "name": f"ensemble of {names}{views}",
            **sizes[0],
            "ensemble": [member.arguments for member in members],
            "test_time": test_time,
            "multi_label": multi_label,
            "mask_channels": mask_channels,
            "ordinal": all(member.ordinal for member in members),
        }

    def forward(self, image: Tensor) -> Outputs:
        """Return the mean predictions."""
        class_logits, masks, images = [], [], []
        for quarters, mirrored in self.views:
            view = self._view(image, quarters, mirrored)
            for member in self._networks:
                scores, dense = member(view)
                if scores is not None:
                    class_logits.append(scores)
                if dense is not None:
                    dense = torch.rot90(_mirrored(dense, mirrored), -quarters, (-2, -1))
                    masks.append(dense[:, : self.mask_channels])
                    if dense.shape[1] > self.mask_channels:
                        images.append(member.normalize.invert(dense[:, self.mask_channels :]))
        heads = []
        if self.mask_channels:
            heads.append(_mean_scores(masks, sigmoid=self.mask_channels == 1))
        if images:
            rebuilt = torch.stack(images).mean(dim=0)
            heads.append((rebuilt - self.normalize.mean) / self.normalize.std)
        return Outputs(
            _mean_scores(class_logits, self.multi_label) if class_logits else None,
            torch.cat(heads, dim=1) if heads else None,
        )

    def _classify(self, image: Tensor) -> Tensor | None:
        if not self.arguments["num_classes"]:
            return None
        views = [self._view(image, *view) for view in self.views]
        scores = [member.classify(view) for view in views for member in self._networks]
        return _mean_scores(scores, self.multi_label)

    def _view(self, image: Tensor, quarters: int, mirrored: bool) -> Tensor:
        """Return a view in the memory format that was set for the ensemble, not for its members."""
        return self.normalize.arranged(_mirrored(torch.rot90(image, quarters, (-2, -1)), mirrored))


def _mirrored(image: Tensor, mirrored: bool) -> Tensor:
    return image.flip(-1) if mirrored else image


def _mean_scores(scores: Sequence[Tensor], sigmoid: bool) -> Tensor:
    """Return the scores ``(N, K, ...)`` whose sigmoid, or softmax over K, is the mean of theirs."""
    all_scores = torch.stack(list(scores))
    all_scores = all_scores.to(torch.promote_types(all_scores.dtype, torch.float))
    if sigmoid:
        yes, no = F.logsigmoid(all_scores), F.logsigmoid(-all_scores)
        return yes.logsumexp(dim=0) - no.logsumexp(dim=0)
    return all_scores.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(scores))


class _Settings(BaseModel):
    model_config = ConfigDict(strict=True)
    ensemble: list[dict[str, Any]]
    test_time: TestTime
    multi_label: bool
    mask_channels: int


def build_network(arguments: Any) -> DuetNetwork:
    """Build the network or the ensemble whose `DuetNetwork.arguments` these are.

    They may be a stranger's: no weights are fetched, and on ``meta`` no size costs memory.
    """
    try:
        if "ensemble" not in arguments:
            return _build_one(arguments)
        settings = _Settings.model_validate(arguments)
        members = [_build_one(member) for member in settings.ensemble[: MAX_MEMBERS + 1]]
        return Ensemble(members, **settings.model_dump(exclude={"ensemble"}))
    except ValidationError as error:
        raise ModelError(f"settings of the ensemble: {describe(error, _Settings)}") from error
    except MedDuetError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"the arguments of the network can't be used: {error}") from error


def _build_one(arguments: dict[str, Any]) -> DuetNetwork:
    if "pretrained" in arguments:
        raise ModelError("a saved network can't ask for other weights: leave 'pretrained' out")
    return create_model(**arguments)
