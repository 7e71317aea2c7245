"""Scores of sets of images that are streams over their features: the Frechet distance, and the Inception Score.

They need memory that does not depend on the number of images. Every image has an index: its number in the set, 0 to
N-1, whichever process sees it and when. What divides the images goes by indices, and so gives the same result for any
order, batch size and number of processes.

Notation: B batch, N images, D features, C classes, S splits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, final

import torch
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.core.spectra import singular_values, spectrum
from smalti.evaluation.metrics import Accumulator

CPU = torch.device("cpu")


class Gaussian(NamedTuple):
    """A normal distribution fitted to the features of a set of images."""

    mean: Tensor
    """(D,) float64"""
    covariance: Tensor
    """(D,D) float64, divided by N-1"""
    images: int | None
    """N, or None where a file of statistics does not say"""


@final
class FeatureMoments(Accumulator):
    """Batches of features (B,D), one after the other -> their mean and covariance, in float64; memory D x D.

    Batches are merged by the parallel rule of Chan, Golub and LeVeque 1983 ("Algorithms for Computing the Sample
    Variance"), which loses no digits to a large mean. Works as well for D scores of each image instead of features.
    """

    def __init__(self, width: int, *, device: torch.device = CPU) -> None:
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self.mean = torch.zeros(width, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(width, width, dtype=torch.float64, device=device)  # N times the biased covariance

    def update(self, features: Tensor) -> None:
        """Features (B,D) of images that were not counted yet."""
        batch = features.detach().to(self.mean.device).double()
        if not len(batch):
            return
        mean = batch.mean(0)  # (D,)
        total = self.count + len(batch)
        share = len(batch) / total.double()
        shift = mean - self.mean
        # The term between the batch and what came before is one more row of the same product.
        between = shift * (self.count * share).sqrt()
        rows = torch.cat((batch - mean, between[None]))  # (B+1,D)
        self.scatter.addmm_(rows.T, rows)
        self.mean += shift * share
        self.count = total

    def state(self) -> dict[str, Tensor]:
        return {"count": self.count.clone(), "mean": self.mean.clone(), "scatter": self.scatter.clone()}

    def merge_state(self, state: Mapping[str, Tensor]) -> None:
        count, mean, scatter = (state[name].to(self.mean.device) for name in ("count", "mean", "scatter"))
        total = self.count + count
        share = count / total.clamp(min=1).double()
        shift = mean - self.mean
        self.scatter += scatter + torch.outer(shift, shift) * (self.count * share)
        self.mean += shift * share
        self.count = total

    def gaussian(self) -> Gaussian:
        """The distribution so far. Raises `SmaltiError` for fewer than 2 images, and for features that are not
        numbers."""
        count = int(self.count)
        if count < 2:
            raise SmaltiError(f"a covariance needs at least 2 images, there {'is' if count == 1 else 'are'} {count}")
        if not (self.mean.isfinite().all() and self.scatter.isfinite().all()):
            raise SmaltiError(
                f"the features of {count} images are not all finite numbers; look for a damaged weight file"
            )
        return Gaussian(self.mean.clone(), self.scatter / (count - 1), count)


class Frechet(NamedTuple):
    """A Frechet distance, and what it is made of."""

    value: float
    means: float
    """The squared distance of the means: that part of the value which is due to the average image."""
    notes: tuple[str, ...]
    """Sentences for the reader of the number, where it is not what it seems."""


def frechet(samples: Gaussian, reference: Gaussian) -> Frechet:
    """Two distributions of features -> the squared Frechet (2-Wasserstein) distance between them.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)): Dowson and Landau 1982; with InceptionV3's `pool2048` it is FID (Heusel
    et al. 2017). The trace of the root is the sum of the singular values of R1 R2, R being the symmetric roots: no root
    of a small eigenvalue's rounding error is taken, and singular covariances need no special treatment. Fewer images
    than features, and singular covariances, are in `notes`.

    Raises `SmaltiError` for statistics of unequal widths, or that are no mean and covariance.
    """
    width = len(samples.mean)
    if samples.mean.shape != reference.mean.shape:
        raise SmaltiError(
            f"statistics of {width} and of {len(reference.mean)} features cannot be compared; they are from "
            "different networks"
        )
    first, second = _Root.of(samples, name="samples"), _Root.of(reference, name="reference")
    means = float((samples.mean - reference.mean.to(samples.mean.device)).square().sum())
    cross = first.scaled.T @ second.scaled.to(first.scaled.device)  # (rank1,rank2)
    overlap = float(singular_values(cross, what="the product of both covariances").sum())
    traces = float(samples.covariance.trace()) + float(reference.covariance.trace())
    notes = (*first.notes(samples), *second.notes(reference))
    return Frechet(max(0.0, means + traces - 2 * overlap), means, notes)


class _Root(NamedTuple):
    """A root of a covariance without its null space."""

    name: str
    scaled: Tensor
    """(D,rank): eigenvectors times the roots of their eigenvalues"""

    @classmethod
    def of(cls, gaussian: Gaussian, *, name: str) -> _Root:
        mean, covariance = gaussian.mean.double(), gaussian.covariance.double()
        if covariance.shape != (len(mean), len(mean)):
            raise SmaltiError(
                f"the statistics of the {name} are no mean and covariance: "
                f"their shapes are {tuple(mean.shape)} and {tuple(covariance.shape)}"
            )
        if not (mean.isfinite().all() and covariance.isfinite().all()):
            raise SmaltiError(f"the statistics of the {name} hold values that are not finite; compute them again")
        values, vectors = spectrum((covariance + covariance.T) / 2, what=f"the covariance of the {name}")
        largest = float(values[-1].clamp(min=0))
        if float(values[0]) < -1e-3 * largest or (largest == 0 and bool(values.any())):
            raise SmaltiError(
                f"the statistics of the {name} hold no covariance: it has the negative eigenvalue "
                f"{float(values[0]):.3g}; compute them again"
            )
        kept = values > largest * len(mean) * torch.finfo(torch.float64).eps  # the rest is rounding
        return cls(name, vectors[:, kept] * values[kept].sqrt())

    def notes(self, gaussian: Gaussian) -> Iterator[str]:
        width, rank = self.scaled.shape
        if gaussian.images is not None and gaussian.images < width:
            yield (
                f"{self.name}: {gaussian.images} images are fewer than the {width} features, so their covariance is "
                f"singular (rank {rank}) and the distance too large; compare it only with values of as many images"
            )
        elif rank < width:
            yield (
                f"{self.name}: the covariance is singular (rank {rank} of {width} features); "
                "where it has no variance, that of the other set counts whole"
            )


class Spread(NamedTuple):
    """A score as the mean over parts of the images."""

    mean: float
    deviation: float
    """The standard deviation over the parts; not the error of the mean."""
    notes: tuple[str, ...]


@final
class InceptionScore(Accumulator):
    """Logits (B,C) of the images of one set -> exp of the mean divergence of an image's classes from all images'.

    Salimans et al. 2016, "Improved Techniques for Training GANs": exp(E KL(p(y|x) || p(y))), the mean over `splits`
    consecutive parts of the set, as is usual. `images` is N, which decides the parts. Memory S x C. The logits of the
    published scores are InceptionV3's `logits_unbiased`.
    """

    def __init__(self, classes: int, *, images: int, splits: int = 10, device: torch.device = CPU) -> None:
        if not 1 <= splits <= images:
            raise SmaltiError(
                f"the Inception Score of {images} images cannot be taken in {splits} parts; ask for fewer"
            )
        self.images = images
        ends = [(part + 1) * images // splits for part in range(splits)]
        self._ends = torch.tensor(ends, device=device)
        self.counts = torch.zeros(splits, dtype=torch.int64, device=device)
        self.shares = torch.zeros(splits, classes, dtype=torch.float64, device=device)  # sum of p(y|x)
        self.certainty = torch.zeros(splits, dtype=torch.float64, device=device)  # sum of p(y|x) log p(y|x)

    def update(self, logits: Tensor, indices: Tensor) -> None:
        """Logits (B,C) of the images whose indices in the set are (B,) int64, in [0,N)."""
        log = logits.detach().to(self.shares.device).double().log_softmax(1)  # (B,C)
        indices = indices.to(self.shares.device).contiguous()
        assert bool(((indices >= 0) & (indices < self.images)).all()), f"indices outside of 0..{self.images - 1}"
        part = torch.searchsorted(self._ends, indices, right=True)  # (B,)
        share = log.exp()
        self.counts.index_add_(0, part, torch.ones_like(part))
        self.shares.index_add_(0, part, share)
        self.certainty.index_add_(0, part, (share * log).sum(1))

    def state(self) -> dict[str, Tensor]:
        return {"counts": self.counts.clone(), "shares": self.shares.clone(), "certainty": self.certainty.clone()}

    def merge_state(self, state: Mapping[str, Tensor]) -> None:
        self.counts += state["counts"].to(self.counts.device)
        self.shares += state["shares"].to(self.counts.device)
        self.certainty += state["certainty"].to(self.counts.device)

    def score(self) -> Spread:
        """The score so far, in [1, C]. Raises `SmaltiError` when a part has no image, and for logits that are not
        finite."""
        if not bool((self.counts > 0).all()):
            part = int((self.counts == 0).nonzero()[0]) + 1
            raise SmaltiError(
                f"part {part} of {len(self.counts)} of the images is empty, so the Inception Score has no value; "
                "ask for fewer parts"
            )
        if not bool(self.shares.isfinite().all() and self.certainty.isfinite().all()):
            raise SmaltiError(
                f"the logits of {int(self.counts.sum())} images are not all finite numbers; look for a damaged "
                "weight file"
            )
        mean = self.shares / self.counts[:, None]  # p(y)
        divergence = self.certainty / self.counts - torch.special.xlogy(mean, mean).sum(1)
        scores = divergence.exp()
        return Spread(float(scores.mean()), float(scores.std(correction=0)), tuple(self._notes()))

    def _notes(self) -> Iterator[str]:
        seen, least = int(self.counts.sum()), int(self.counts.min())
        if seen != self.images:
            yield f"{seen} of {self.images} images were counted"
        if least < self.shares.shape[1]:
            yield (
                f"a part has {least} images, fewer than the {self.shares.shape[1]} classes: the score is too low; "
                "compare it only with values of as many images and parts"
            )
