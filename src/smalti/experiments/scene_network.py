"""A small network that predicts the labels and depths of the pixels of a scene, and its class. It is trained on real
scenes and evaluates samples.

Notation: B batch, C channels, H W pixels, n labels, N classes, M images.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (24, 48, 64, 96)
BATCH = 16


class KnownScenes(NamedTuple):
    """Scenes with their labels."""

    images: Tensor
    """(M,3,H,W) in [-1,1]"""
    classes: Tensor
    """(M,) int64"""
    labels: Tensor
    """(M,H,W) int64"""
    depths: Tensor
    """(M,1,H,W) in [-1,1], each from its nearest to its farthest"""

    def at(self, indices: Tensor) -> KnownScenes:
        """The scenes with these indices."""
        return KnownScenes(*(each[indices] for each in self))


class ScenePrediction(NamedTuple):
    """What the scene network predicts."""

    labels: Tensor
    """(B,n,H,W) logits"""
    depths: Tensor
    """(B,1,H,W)"""
    classes: Tensor
    """(B,N) logits"""


@final
class SceneNetwork(nn.Module):
    """(B,3,H,W) in [-1,1], sides divisible by 8 -> predictions. Convolutions down to an eighth and up again, with
    shortcuts."""

    def __init__(self, labels: int, classes: int) -> None:
        super().__init__()
        self.first = _block(3, WIDTHS[0])
        self.down = nn.ModuleList(_block(before, after) for before, after in pairwise(WIDTHS))
        self.up = nn.ModuleList(_block(before + after, after) for before, after in pairwise(WIDTHS[::-1]))
        self.pixels = nn.Conv2d(WIDTHS[0], labels + 1, 1)
        self.whole = nn.Linear(WIDTHS[-1], classes)

    def forward(self, images: Tensor) -> ScenePrediction:
        levels = [self.first(images)]  # (B,24,H,W)
        for block in self.down:
            levels.append(block(F.avg_pool2d(levels[-1], 2)))  # (B, .., H/2, W/2)
        x = levels[-1]
        classes = self.whole(x.mean((2, 3)))  # (B,N)
        for block, shortcut in zip(self.up, levels[-2::-1], strict=True):
            x = block(torch.cat((F.interpolate(x, scale_factor=2.0), shortcut), dim=1))  # (B, .., 2H, 2W)
        pixels = self.pixels(x)  # (B,n+1,H,W)
        return ScenePrediction(pixels[:, :-1], pixels[:, -1:], classes)


def _block(channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out_channels, 3, padding=1), nn.GroupNorm(8, out_channels), nn.SiLU(),
        nn.Conv2d(out_channels, out_channels, 3, padding=1), nn.GroupNorm(8, out_channels), nn.SiLU(),
    )  # fmt: skip


def train_scene_network(
    known: KnownScenes, *, labels: int, classes: int, steps: int, progress: Callable[[int, int], object]
) -> SceneNetwork:
    """Scenes -> a network in evaluation mode, the same each time: batches are drawn by a seed."""
    torch.manual_seed(0)
    model = SceneNetwork(labels, classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps + 1)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        batch = known.at(torch.randint(len(known.images), (BATCH,), generator=generator))
        prediction = model(batch.images)
        loss = (
            F.cross_entropy(prediction.labels, batch.labels)
            + F.l1_loss(prediction.depths, batch.depths)
            + 0.3 * F.cross_entropy(prediction.classes, batch.classes)
        )
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        progress(step + 1, steps)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def predict(model: SceneNetwork, images: Tensor) -> ScenePrediction:
    """(B,3,H,W), B of any size -> predictions."""
    parts = [model(some) for some in torch.split(images, BATCH)]
    return ScenePrediction(*(torch.cat(each) for each in zip(*parts, strict=True)))
