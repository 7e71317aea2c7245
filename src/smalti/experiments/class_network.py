"""A small classifier of images, trained on real images only, whose accuracy on samples is a metric.

Notation: B batch, C channels, H W pixels, N classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smalti.data.loader import Batch


@final
class Classifier(nn.Module):
    """(B,C,H,W) in [-1,1] -> (B,N) logits: four strided convolutions and the mean over what is left of the image."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        widths = (channels, 32, 64, 96, 128)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in widths[1:])
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.silu(norm(convolution(x)))  # (B, .., H/2, W/2)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]  # (B,N)


def train_classifier(batches: Iterable[Batch], *, classes: int, seed: int) -> Classifier:
    """Labeled batches, as many as shall be learned from -> a classifier in evaluation mode."""
    torch.manual_seed(seed)
    steps = list(batches)
    model = Classifier(steps[0].images.shape[1], classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=len(steps) + 1)
    for batch in steps:
        loss = F.cross_entropy(model(batch.images), batch.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: Classifier, batches: Iterable[Batch]) -> float:
    """Fraction of the images whose label is named right."""
    right, count = 0, 0
    for batch in batches:
        right += int((model(batch.images).argmax(1) == batch.labels).sum())
        count += len(batch.labels)
    return right / count
