"""Eigenvalues where LAPACK gives up: the same by another way, and a sentence where there is none."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from smalti.core.errors import SmaltiError
from smalti.core.spectra import singular_values, spectrum
from smalti.evaluation.distances import FeatureMoments, InceptionScore, frechet
from smalti.evaluation.metrics import psnr
from smalti.evaluation.nearest_neighbors import kernel_distance, manifold
from smalti.evaluation.similarity import ms_ssim, ssim
from smalti.tokenizer.quantizers.simvq import SimVQ, SimVQSettings
from smalti.tokenizer.quantizers.vq import kmeans


def covariance(side: int, rank: int, *, unused: int = 0) -> Tensor:
    rows = torch.randn(rank, side, dtype=torch.float64, generator=torch.Generator().manual_seed(side + rank))
    rows[:, side - unused :] = 0
    return rows.T @ rows


MATRICES = {
    "full": covariance(9, 20),
    "singular": covariance(40, 4),
    "with empty rows": covariance(12, 3, unused=7),
    "empty": torch.zeros(5, 5, dtype=torch.float64),
    "of nothing": torch.zeros(0, 0, dtype=torch.float64),
    "constant": torch.ones(30, 30, dtype=torch.float64),
    "one number over and over": torch.eye(30, dtype=torch.float64) * 3,
    "tiny": covariance(6, 3) * 1e-300,
    "smallest of all": torch.full((2, 2), 5e-324, dtype=torch.float64),
    "huge": covariance(6, 3) * 1e300,
    "negative": -covariance(6, 6),
    "single": covariance(20, 3).float(),
}


def check(matrix: Tensor) -> None:
    values, vectors = spectrum(matrix, what="it")
    largest = float(matrix.abs().amax()) if matrix.numel() else 0.0
    scale = 1 / largest if largest > 1e-300 else 1.0
    close = 1e-4 if matrix.dtype == torch.float32 else 1e-12
    back = (vectors * (values * scale)) @ vectors.T
    torch.testing.assert_close(back, matrix * scale, rtol=0, atol=close)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(len(matrix), dtype=matrix.dtype), rtol=0, atol=close)
    assert bool((values.diff() >= 0).all())


@pytest.mark.parametrize("name", MATRICES)
def test_the_product_is_the_matrix(name: str) -> None:
    check(MATRICES[name])


class GivesUp:
    """A routine of LAPACK that fails as often as it is told to, in one of the ways there are."""

    def __init__(self, routine: Any, how: str, times: int) -> None:
        self.routine, self.how, self.times = routine, how, times

    def __call__(self, matrix: Any, **options: Any) -> Any:
        self.times -= 1
        if self.times < 0:
            return self.routine(matrix, **options)
        if self.how == "raises":
            raise LinAlgError("linalg: the algorithm failed to converge")
        broken = math.nan if self.how == "not a number" else 0.0
        found = self.routine(matrix, **options)
        return found * broken if isinstance(found, Tensor) else [found[0] * broken, found[1]]


@pytest.mark.parametrize("how", ["raises", "not a number", "wrong"])
@pytest.mark.parametrize("name", ["full", "singular", "with empty rows", "single"])
@pytest.mark.parametrize("numpy_too", [False, True])
def test_where_one_way_gives_up_another_is_taken(
    monkeypatch: pytest.MonkeyPatch, how: str, name: str, numpy_too: bool
) -> None:
    expected = singular_values(MATRICES[name], what="it")
    for library, routine in (("torch.linalg", torch.linalg), *([("numpy.linalg", np.linalg)] if numpy_too else [])):
        for function in ("eigh", "svdvals" if library == "torch.linalg" else "svd"):
            monkeypatch.setattr(
                f"{library}.{function}", GivesUp(getattr(routine, function), "raises" if numpy_too else how, 1)
            )
    check(MATRICES[name])
    torch.testing.assert_close(singular_values(MATRICES[name], what="it"), expected, rtol=1e-5, atol=1e-5)


def test_what_has_no_spectrum_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (math.nan, math.inf):
        for found in (spectrum, singular_values):
            with pytest.raises(SmaltiError, match="this matrix holds values that are not finite"):
                found(torch.eye(3) * value, what="this matrix")
    for library in (torch.linalg, np.linalg):
        monkeypatch.setattr(library, "eigh", GivesUp(torch.linalg.eigh, "raises", 9))
    with pytest.raises(SmaltiError, match=r"eigenvalues of this matrix could not be computed; measure more, or other"):
        spectrum(torch.eye(3), what="this matrix")


def test_a_frechet_distance_of_a_few_flat_images_has_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six plain images: the covariance of 1183 features has rank 5, and `eigh` of some LAPACKs raised."""
    chance = torch.Generator().manual_seed(0)
    gaussians = []
    for _ in range(2):
        features = torch.randn(6, 1183, generator=chance).relu()
        features[:, ::12] = 0
        moments = FeatureMoments(1183)
        moments.update(features)
        gaussians.append(moments.gaussian())
    monkeypatch.setattr("torch.linalg.eigh", GivesUp(torch.linalg.eigh, "raises", 1))
    found = frechet(*gaussians)
    assert found.value > found.means > 0
    assert "singular (rank 5)" in found.notes[0]
    assert frechet(gaussians[0], gaussians[0]).value < 1e-9


def test_images_that_are_all_alike_have_scores() -> None:
    features, others = torch.ones(12, 7), torch.full((12, 7), 2.0)
    moments = FeatureMoments(7)
    moments.update(features)
    still = moments.gaussian()
    assert frechet(still, still).value == 0
    assert manifold(features, features)[:2] == (1, 1)
    assert manifold(features, others)[:2] == (0, 0)
    assert kernel_distance(features, features, size=5).mean == pytest.approx(0, abs=1e-12)
    score = InceptionScore(4, images=12, splits=3)
    score.update(torch.tensor([[1000.0, 0, 0, -1000]]).repeat(12, 1), torch.arange(12))
    assert score.score()[:2] == (1, 0)
    score.update(torch.tensor([[math.inf, 0, 0, 0]]), torch.tensor([0]))
    with pytest.raises(SmaltiError, match="the logits of 13 images are not all finite"):
        score.score()


@pytest.mark.parametrize("level", [-1.0, 0.0, 1.0])
def test_flat_images_have_similarities(level: float) -> None:
    flat, other = torch.full((1, 3, 161, 161), level), torch.full((1, 3, 161, 161), -0.5)
    for measure in (ssim, ms_ssim):
        assert float(measure(flat, flat)) == pytest.approx(1, abs=1e-9)
        assert -1 <= float(measure(flat, other)) < 1
    assert float(psnr(flat, flat)) == pytest.approx(100)
    assert 0 < float(psnr(flat, other)) < 20


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("distinct", [1, 3])
def test_more_codes_than_distinct_features_start_on_the_features(normalized: bool, distinct: int) -> None:
    chance = torch.Generator().manual_seed(0)
    members = torch.randn(distinct, 4, generator=chance)
    if normalized:
        members = torch.nn.functional.normalize(members, dim=1)
    centers = kmeans(members.repeat(40, 1), 16, rounds=10, normalized=normalized, generator=chance)
    assert bool(centers.isfinite().all())
    torch.testing.assert_close(torch.cdist(members, centers).amin(1), torch.zeros(distinct), rtol=0, atol=1e-3)


def test_a_simvq_starts_on_features_that_are_all_alike() -> None:
    quantizer = SimVQ(SimVQSettings(codebook_size=16, codebook_dim=6))
    quantizer.init_codebook(torch.full((2, 6, 4, 4), 0.5), generator=torch.Generator())
    assert bool(quantizer.vectors().isfinite().all())
    with pytest.raises(SmaltiError, match="the covariance of the features holds values that are not finite"):
        quantizer.init_codebook(torch.full((2, 6, 4, 4), math.nan), generator=torch.Generator())
