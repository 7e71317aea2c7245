"""Scores of sets of images that compare single features: the kernel distance, and the measures of nearest neighbors.

The features have to be kept. `FeatureReservoir` bounds their number by choosing images; its choice goes by their
indices (an image's index is its number in the set, 0 to N-1), and so is the same for any order, batch size and number
of processes.

Notation: B batch, N M images of two sets, D features, S subsets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.core.rng import philox
from smalti.evaluation.distances import CPU, Spread
from smalti.evaluation.metrics import Accumulator

BLOCK = 1024  # rows of a matrix of pairs held at once
SAME = 1e-10  # relative squared distance below which features are equal: networks in float32 round by about 1e-6


class _Rows(NamedTuple):
    """Images with their ranks (n,), indices (n,) and features (n,D)."""

    ranks: Tensor
    indices: Tensor
    features: Tensor

    def taken(self, which: Tensor) -> _Rows:
        return _Rows(*(each[which] for each in self))


@final
class FeatureReservoir(Accumulator):
    """A reservoir of features (B,D) -> those of at most `limit` images, in float32.

    The images kept are those with the least of random numbers that belong to (seed, index): a uniform choice without
    replacement, whose members do not depend on what comes first or on which process. Memory is up to 2 x `limit` x D x
    4 bytes, since it is sorted out in large portions.
    """

    def __init__(self, width: int, *, limit: int = 10_000, seed: int = 0, device: torch.device = CPU) -> None:
        self.limit = limit
        self.seed = seed
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        none = torch.zeros(0, dtype=torch.int64, device=device)
        self._parts = [_Rows(none, none, torch.zeros(0, width, device=device))]

    def update(self, features: Tensor, indices: Tensor) -> None:
        """Features (B,D) of the images whose indices in the set are (B,) int64, not negative."""
        indices = indices.to(self.count.device)
        self._add(_Rows(self._rank(indices), indices, features.detach().to(indices.device).float()))
        self.count += len(indices)

    def state(self) -> dict[str, Tensor]:
        rows = self._sorted_out()
        missing = self.limit - len(rows.indices)
        nowhere = rows.indices.new_full((missing,), -1)
        ranks, indices = (torch.cat((each, nowhere)) for each in (rows.ranks, rows.indices))
        features = F.pad(rows.features, (0, 0, 0, missing))
        return {"count": self.count.clone(), "ranks": ranks, "indices": indices, "features": features}

    def merge_state(self, state: Mapping[str, Tensor]) -> None:
        count, ranks, indices, features = (
            state[name].to(self.count.device) for name in ("count", "ranks", "indices", "features")
        )
        self._add(_Rows(ranks, indices, features).taken(indices >= 0))
        self.count += count

    def features(self) -> Tensor:
        """Those kept (N,D), in the order of their indices."""
        rows = self._sorted_out()
        order = rows.indices.argsort()
        assert bool((rows.indices[order].diff() > 0).all()), "an image was counted twice"
        return rows.features[order]

    def notes(self) -> tuple[str, ...]:
        """A sentence where not all images were kept."""
        if int(self.count) <= self.limit:
            return ()
        return (f"{self.limit} of {int(self.count)} images were compared, selected with seed {self.seed}",)

    def _rank(self, indices: Tensor) -> Tensor:
        zero = torch.zeros_like(indices)
        counter = torch.stack((indices & 0xFFFFFFFF, indices >> 32, zero, zero))
        key = torch.tensor([[self.seed & 0xFFFFFFFF], [self.seed >> 32]], device=indices.device)
        words = philox(counter, key)
        return (words[0] << 30) | (words[1] >> 2)  # 62 random bits

    def _add(self, rows: _Rows) -> None:
        if len(self._parts[0].ranks) == self.limit:
            rows = rows.taken(rows.ranks < self._parts[0].ranks.amax())
        self._parts.append(rows)
        if sum(len(part.ranks) for part in self._parts) > 2 * self.limit:
            self._sorted_out()

    def _sorted_out(self) -> _Rows:
        """Leave no more than `limit` rows, in one part."""
        rows = _Rows(*(torch.cat(each) for each in zip(*self._parts, strict=True)))
        if len(rows.ranks) > self.limit:
            rows = rows.taken(rows.ranks.topk(self.limit, largest=False, sorted=False).indices)
        self._parts = [rows]
        return rows


def kernel_distance(
    samples: Tensor, reference: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 2020
) -> Spread:
    """Features (N,D) and (M,D) of two sets -> the kernel distance over `subsets` random subsets of `size` images.

    Binkowski, Sutherland, Arbel and Gretton 2018, "Demystifying MMD GANs": the unbiased estimate of the squared maximum
    mean discrepancy under the kernel (x.y / D + 1)^3; with InceptionV3's `pool2048` it is KID. It can be negative. The
    subsets are those that torch-fidelity draws with the same seed from the same features in the same order.

    Raises `SmaltiError` when a set has fewer images than a subset.
    """
    least = min(len(samples), len(reference))
    if not 2 <= size <= least:
        raise SmaltiError(
            f"the kernel distance cannot draw subsets of {size} images from sets of {len(samples)} and "
            f"{len(reference)}; a subset has 2 to {least}"
        )
    a, b = _double(samples), _double(reference)
    generator = np.random.RandomState(seed)  # torch-fidelity's generator, whose numbers NumPy keeps forever
    chosen_a, chosen_b = a.new_zeros(subsets, len(a)), b.new_zeros(subsets, len(b))  # 1 where a subset has the image
    for subset in range(subsets):
        for chosen in (chosen_a, chosen_b):
            indices = torch.from_numpy(generator.choice(chosen.shape[1], size, replace=False))
            chosen[subset, indices.to(chosen.device)] = 1
    within = _pairs(a, a, chosen_a, chosen_a) - chosen_a @ _kernel(a.square().sum(1), a.shape[1])
    within += _pairs(b, b, chosen_b, chosen_b) - chosen_b @ _kernel(b.square().sum(1), a.shape[1])
    between = _pairs(a, b, chosen_a, chosen_b)
    values = within / (size * (size - 1)) - 2 * between / size**2
    return Spread(float(values.mean()), float(values.std(correction=0)), ())


def _kernel(products: Tensor, width: int) -> Tensor:
    base = products / width + 1
    return base * base * base


def _pairs(a: Tensor, b: Tensor, chosen_a: Tensor, chosen_b: Tensor) -> Tensor:
    """For each subset (S,N), (S,M) of ones and zeros -> the sum of the kernel over its pairs (S,).

    Every value of the kernel is computed once and shared by the subsets, which overlap: 100 subsets of 1000 of 2000
    images take 25 times less work so than one by one.
    """
    total = a.new_zeros(len(chosen_a))
    for rows in _blocks(len(a)):
        kernel = _kernel(a[rows] @ b.T, a.shape[1])  # (rows,M)
        total += (chosen_a[:, rows] @ kernel * chosen_b).sum(1)
    return total


class Manifold(NamedTuple):
    """How much two sets of images overlap, measured by balls around them that reach to near neighbors."""

    precision: float
    """Fraction of the samples that are in the ball of some reference image: how many look real."""
    recall: float
    """Fraction of the reference that is in the ball of some sample: how much of the variety is there."""
    density: float
    """In how many reference balls a sample lies, over the number expected: precision that one outlier cannot raise;
    can be above 1."""
    coverage: float
    """Fraction of the reference images whose ball holds a sample."""


def manifold(samples: Tensor, reference: Tensor, *, neighbors: int = 3, density_neighbors: int = 5) -> Manifold:
    """Features (N,D) and (M,D) of two sets -> precision and recall, density and coverage.

    A ball around an image reaches to its k-th nearest neighbor in its own set. Precision and recall: Kynkaanniemi et
    al. 2019, "Improved Precision and Recall Metric for Assessing Generative Models", k = `neighbors`, borders
    included. Density and coverage: Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative Models",
    k = `density_neighbors`, borders not included, as in their code.

    Raises `SmaltiError` for sets that have no k-th neighbor.
    """
    most = max(neighbors, density_neighbors)
    least = min(len(samples), len(reference))
    if min(neighbors, density_neighbors) < 1 or least <= most:
        raise SmaltiError(
            f"{neighbors} and {density_neighbors} neighbors cannot be found among {least} images; "
            f"both sets need at least {most + 1} images"
        )
    a, b = _double(samples), _double(reference)
    reach = _radii(a, neighbors, most)[:, 0]  # (N,)
    radii, wide = _radii(b, neighbors, density_neighbors).unbind(1)  # (M,) each
    real = torch.zeros(len(a), dtype=torch.bool, device=a.device)
    found, covered = (torch.zeros(len(b), dtype=torch.bool, device=a.device) for _ in range(2))
    inside = 0
    for rows in _blocks(len(b)):
        distance = _squared_distances(b[rows], a)  # (rows,N)
        real |= (distance <= radii[rows, None]).any(0)
        found[rows] = (distance <= reach).any(1)
        inside += int((distance < wide[rows, None]).sum())
        covered[rows] = distance.amin(1) < wide[rows]
    precision, recall, coverage = (float(each.double().mean()) for each in (real, found, covered))
    return Manifold(precision, recall, inside / (density_neighbors * len(a)), coverage)


def _radii(features: Tensor, *neighbors: int) -> Tensor:
    """(N,D) -> the squared distances (N,2) to each one's k-th neighbors; the nearest of all is itself."""
    blocks = []
    for rows in _blocks(len(features)):
        nearest = _squared_distances(features[rows], features).topk(max(neighbors) + 1, largest=False).values
        blocks.append(nearest[:, list(neighbors)])
    return torch.cat(blocks)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(N,D), (M,D) -> (N,M); exactly 0 for features that are equal up to rounding, which sets may contain often."""
    lengths = a.square().sum(1)[:, None] + b.square().sum(1)
    distances = lengths - 2 * (a @ b.T)
    return distances.masked_fill_(distances < SAME * lengths, 0.0)


def _blocks(rows: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, rows)) for start in range(0, rows, BLOCK))


def _double(features: Tensor) -> Tensor:
    """The tensor in float64, on the CPU if it is on an Apple GPU, which has no float64."""
    return features.detach().to(CPU if features.device.type == "mps" else features.device).double()
