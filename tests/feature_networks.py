"""A feature network small enough for tests, and images for it: what the tests of evaluation share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, final

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from smalti.core.progress_callback import Progress, no_progress
from smalti.evaluation import features
from smalti.evaluation.features import SCORES, FeatureNetwork, InceptionFeatures, NetworkOutput


@final
class Means(FeatureNetwork):
    """Mean colors of a 2x2 grid as features, of a 3x3 grid as spatial ones; logits of 5 classes."""

    weights = "means"
    about = "the mean colors of four quarters"
    names: ClassVar[Mapping[str, str]] = {score: f"{score}_squeezenet" for score in SCORES}
    width, spatial_width, classes = 12, 27, 5

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(1 / 255))

    def extract(self, images: Tensor) -> NetworkOutput:
        x = images.float() * self.get_buffer("scale")
        quarters = F.adaptive_avg_pool2d(x, 2).flatten(1)
        return NetworkOutput(quarters, F.adaptive_avg_pool2d(x, 3).flatten(1), 8 * quarters[:, :5])


@final
class NamedAsInception(FeatureNetwork):
    """The same, whose scores have the names of Inception's."""

    weights = "means-as-inception"
    about = "the mean colors of four quarters"
    names: ClassVar[Mapping[str, str]] = InceptionFeatures.names
    width, spatial_width, classes = 12, 27, 5

    def extract(self, images: Tensor) -> NetworkOutput:
        return Means().extract(images)


def use_means(patch: pytest.MonkeyPatch) -> None:
    """Put the small networks in the places of the published ones."""

    def squeezenet(*, progress: Progress = no_progress) -> FeatureNetwork:
        return Means()

    def inception(*, progress: Progress = no_progress) -> FeatureNetwork:
        return NamedAsInception()

    patch.setitem(features.NETWORKS, "squeezenet", squeezenet)
    patch.setitem(features.NETWORKS, "inception", inception)
    for name in ("squeezenet", "inception"):
        patch.delitem(features.PUBLISHED, name)  # they have no weights


def forbid_downloads(patch: pytest.MonkeyPatch, empty: Path) -> None:
    """No weights of others can be had."""
    empty.mkdir(exist_ok=True)
    patch.setenv("SMALTI_OFFLINE", "1")
    patch.setenv("SMALTI_WEIGHTS", str(empty))
    patch.setenv("SMALTI_CACHE", str(empty))


def write_noise(folder: Path, *, count: int, size: tuple[int, int] = (16, 16), seed: int = 0) -> Path:
    """Colored noise around a color of each image's own, as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = np.random.RandomState(seed)
    for number in range(count):
        color = chance.uniform(40, 215, 3)
        pixels = np.clip(chance.normal(color, 25, (*size, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return folder
