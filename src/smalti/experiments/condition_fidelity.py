"""Condition fidelity: how well generated images follow their condition, with a measure for each kind of condition.

Notation: B images, H W pixels, n labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.data.annotations.objects import ObjectAnnotation
from smalti.experiments.scene_network import KnownScenes, SceneNetwork, predict
from smalti.images.edge_maps import edges
from smalti.images.io import to_array

STEEP = 48
"""Of 255: where edges are this steep they count as such."""
FOUND = 0.3
"""Fraction of a box that has to show a class for it to be found there."""
PLACES = 8
"""Other positions that each box is looked for at."""
SKY, GROUND = (0, 1, 2, 3), (5, 6, 7, 8)
"""The labels of scenes that belong above, and those that belong below."""


class ComparedImages(NamedTuple):
    """Samples of held-out conditions, and what they are held against."""

    conditioned: Tensor
    """(B,3,H,W) in [-1,1], each with the condition of the scene in its place"""
    unconditional: Tensor
    """(B,3,H,W), of the same prior and seeds, unconditional"""
    real: Tensor
    """(B,3,H,W), the scenes as the tokenizer gives them back"""
    known: KnownScenes
    listed: Sequence[Sequence[ObjectAnnotation]]
    """What is in each scene, as fractions of it"""
    network: SceneNetwork


class Fidelity(NamedTuple):
    """A measure of conditional images, of reconstructed real images, and of unconditional images."""

    conditioned: float
    real: float
    unconditional: float
    score: float
    """What the goal is for."""
    goal: float


Measure = Callable[[ComparedImages], Fidelity]


def _each(of: Callable[[Tensor], float], compared: ComparedImages) -> tuple[float, float, float]:
    return of(compared.conditioned), of(compared.real), of(compared.unconditional)


def labels(compared: ComparedImages) -> Fidelity:
    """Mean intersection over union of the labels that the scene network predicts and those of the maps; the score is a
    share of what real images reach."""
    conditioned, real, unconditional = _each(
        lambda images: mean_iou(predict(compared.network, images).labels.argmax(1), compared.known.labels), compared
    )
    return Fidelity(conditioned, real, unconditional, score=conditioned / max(real, 1e-9), goal=0.5)


def depths(compared: ComparedImages) -> Fidelity:
    """Rank correlation of the depths that the scene network predicts and those of the maps, the mean over images."""

    def of(images: Tensor) -> float:
        seen = predict(compared.network, images).depths
        pairs = zip(seen, compared.known.depths, strict=True)
        return float(torch.stack([rank_correlation(one, other) for one, other in pairs]).mean())

    conditioned, real, unconditional = _each(of, compared)
    return Fidelity(conditioned, real, unconditional, score=conditioned, goal=0.6)


def edge_maps(compared: ComparedImages) -> Fidelity:
    """F-score of edges, a pixel off allowed; the score is how many times that of unconditional images."""
    wanted = _steep(compared.known.images)
    conditioned, real, unconditional = _each(lambda images: f_score(_steep(images), wanted), compared)
    return Fidelity(conditioned, real, unconditional, score=conditioned / max(unconditional, 1e-9), goal=2.0)


def classes(compared: ComparedImages) -> Fidelity:
    """Fraction of images whose class the scene network classifies correctly."""

    def of(images: Tensor) -> float:
        return float((predict(compared.network, images).classes.argmax(1) == compared.known.classes).float().mean())

    conditioned, real, unconditional = _each(of, compared)
    return Fidelity(conditioned, real, unconditional, score=conditioned, goal=0.5)


def smaller(compared: ComparedImages, *, times: int) -> Fidelity:
    """PSNR in dB of the downscaled images against the downscaled scenes."""
    wanted = F.avg_pool2d(compared.known.images, times)

    def of(images: Tensor) -> float:
        errors = (F.avg_pool2d(images.clamp(-1, 1), times) - wanted).square().mean((1, 2, 3)) / 4
        return float((-10 * errors.log10()).mean())

    conditioned, real, unconditional = _each(of, compared)
    return Fidelity(conditioned, real, unconditional, score=conditioned, goal=20.0)


def boxes(compared: ComparedImages, *, names: Sequence[str], only: Callable[[ObjectAnnotation], bool]) -> Fidelity:
    """How often the scene network predicts the class of a thing in its box; the score is how many times as often as in
    boxes of the same size at other positions of the same images. `names`: of the labels, in order."""
    generator = torch.Generator().manual_seed(0)

    def of(images: Tensor) -> tuple[float, float]:
        seen = predict(compared.network, images).labels.argmax(1)  # (B,H,W)
        here, elsewhere = [], []
        for labeled, listed in zip(seen, compared.listed, strict=True):
            for annotation in filter(only, listed):
                shows = (labeled == names.index(annotation.name)).float()
                left, top, width, height = annotation.box
                here.append(_shown(shows, (left, top, width, height)) >= FOUND)
                for across, down in torch.rand(PLACES, 2, generator=generator).tolist():
                    box = (across * (1 - width), down * (1 - height), width, height)
                    elsewhere.append(_shown(shows, box) >= FOUND)
        return _share(here), _share(elsewhere)

    (conditioned, others), (real, _), (unconditional, _) = (
        of(compared.conditioned),
        of(compared.real),
        of(compared.unconditional),
    )
    return Fidelity(conditioned, real, unconditional, score=conditioned / max(others, 1e-9), goal=3.0)


def heights(compared: ComparedImages) -> Fidelity:
    """Of tall images: the fraction of the sky's pixels in the upper third, and of the ground's in the lower, of both
    thirds."""

    def of(images: Tensor) -> float:
        seen = predict(compared.network, images).labels.argmax(1)  # (B,H,W)
        third = seen.shape[1] // 3
        above = torch.isin(seen[:, :third], torch.tensor(SKY)).float().mean()
        below = torch.isin(seen[:, -third:], torch.tensor(GROUND)).float().mean()
        return float(above + below) / 2

    conditioned, real, unconditional = _each(of, compared)
    return Fidelity(conditioned, real, unconditional, score=conditioned / max(real, 1e-9), goal=0.8)


def mean_iou(seen: Tensor, wanted: Tensor) -> float:
    """Labels (B,H,W) and those that should be -> the mean over the labels that should be of intersection over union."""
    found = []
    for label in torch.unique(wanted).tolist():
        one, other = seen == label, wanted == label
        found.append(float((one & other).sum() / (one | other).sum()))
    return sum(found) / len(found)


def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Two tensors of as many numbers -> the correlation of their ranks (Spearman's), equal numbers sharing their mean
    rank; 0 where one of the two is all the same."""
    ranks = torch.stack([_ranks(one.flatten()), _ranks(other.flatten())])
    ranks -= ranks.mean(1, keepdim=True)
    spread = ranks.norm(dim=1).prod()
    return torch.where(spread > 0, (ranks[0] * ranks[1]).sum() / spread.clamp(min=1e-12), 0.0)


def _ranks(values: Tensor) -> Tensor:
    """(m,) -> (m,) float64 mean ranks."""
    _, group, counts = torch.unique(values, return_inverse=True, return_counts=True)
    means: Tensor = counts.cumsum(0).double() - (counts - 1) / 2
    return means[group]


def _steep(images: Tensor) -> Tensor:
    """Images (B,3,H,W) -> where they have edges (B,H,W) bool."""
    return torch.stack([torch.from_numpy(edges(image)[:, :, 0] >= STEEP) for image in to_array(images)])


def f_score(seen: Tensor, wanted: Tensor) -> float:
    """Edges (B,H,W) bool and those that should be -> 2 p r / (p + r), one pixel off counting as right."""
    precision = float((seen & _wider(wanted)).sum() / seen.sum().clamp(min=1))
    recall = float((wanted & _wider(seen)).sum() / wanted.sum().clamp(min=1))
    return 2 * precision * recall / max(precision + recall, 1e-9)


def _wider(found: Tensor) -> Tensor:
    return F.max_pool2d(found.float().unsqueeze(1), 3, stride=1, padding=1)[:, 0] > 0


def _shown(shows: Tensor, box: tuple[float, float, float, float]) -> float:
    """Where a class is seen (H,W), and a box as fractions -> the fraction of the box that shows it, of one pixel at
    least."""
    (H, W), (left, top, width, height) = shows.shape, box
    first_row, first_column = min(max(int(top * H), 0), H - 1), min(max(int(left * W), 0), W - 1)
    last_row = max(round((top + height) * H), first_row + 1)
    last_column = max(round((left + width) * W), first_column + 1)
    return float(shows[first_row:last_row, first_column:last_column].mean())


def _share(found: Sequence[bool]) -> float:
    return sum(found) / max(len(found), 1)
