"""The codebook of running means: against sums and counts kept one by one, its start, its restarts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from smalti.core.settings import parse
from smalti.tokenizer.quantizers import EMA, EMASettings
from smalti.tokenizer.quantizers.ema import SMOOTHING, smoothed
from tests import reference


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Uniform in [-1, 1]."""
    return torch.rand(*shape, generator=seeded(seed)) * 2 - 1


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quantizer(**changes: Any) -> EMA:
    torch.manual_seed(0)
    return EMA(
        parse(EMASettings, {"codebook_size": 5, "codebook_dim": 3, "dead_code_threshold": 0, **changes}, where="test")
    )


def flat(features: Tensor, *, normalized: bool) -> Tensor:
    rows = features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])
    return F.normalize(rows, dim=1) if normalized else rows


@pytest.mark.parametrize("normalized", [True, False])
def test_codes_are_running_means(normalized: bool) -> None:
    made = quantizer(l2_normalize=normalized, decay=0.7)
    before, steps = made.codebook.clone(), []
    for seed in range(6):
        features = noise(2, 3, 4, 4, seed=seed)
        codes = made(features).codes
        assert made.update_codebook(features, codes, generator=seeded(0)) == 0
        steps.append((flat(features, normalized=normalized), codes.flatten()))
    expected = reference.moving_average(before, steps, memory=0.7, smoothing=SMOOTHING)
    torch.testing.assert_close(made.codebook, expected, rtol=1e-5, atol=1e-5)
    assert (made.codebook - before).abs().max() > 0.1


def test_without_memory_codes_are_the_means_of_the_step() -> None:
    made = quantizer(decay=0.0, l2_normalize=False)
    features, codes = noise(1, 3, 4, 5), torch.arange(20).view(1, 4, 5) % 5
    made.update_codebook(features, codes, generator=seeded(0))
    means = [flat(features, normalized=False)[codes.flatten() == code].mean(0) for code in range(5)]
    torch.testing.assert_close(made.codebook, torch.stack(means), rtol=1e-4, atol=1e-5)


def test_smoothed_counts_are_above_zero_and_as_many() -> None:
    use = torch.tensor([0.0, 3.0, 1.0, 0.0])
    assert smoothed(use).min() > 0
    torch.testing.assert_close(smoothed(use).sum(), use.sum())
    torch.testing.assert_close(smoothed(use), use, rtol=0, atol=1e-4)


def test_only_the_features_are_requested_to_move() -> None:
    made, features = quantizer(l2_normalize=False, commitment=0.3), noise(2, 3, 4, 4).requires_grad_()
    assert not list(made.parameters())
    quantized = made(features)
    chosen = made.codebook[quantized.codes].permute(0, 3, 1, 2)
    torch.testing.assert_close(quantized.loss, 0.3 * (features - chosen).square().mean())
    (gradient,) = torch.autograd.grad(quantized.loss, features)
    torch.testing.assert_close(gradient, 0.3 * 2 * (features - chosen).detach() / features.numel())


def test_after_k_means_the_sums_belong_to_the_placed_codes() -> None:
    """Features that lie on the codes do not move them; sums left from before would draw them away."""
    made = quantizer(l2_normalize=False, codebook_size=4, kmeans_iterations=10, decay=0.9)
    made.use.copy_(torch.tensor([3.0, 0.1, 0.5, 0.4]))
    assert made.init_features == 16
    made.init_codebook(noise(2, 3, 5, 5), generator=seeded(0))
    placed = made.codebook.clone()
    assert torch.equal(made.use, torch.ones(4))
    on_codes = placed.repeat(4, 1).view(1, 4, 4, 3).permute(0, 3, 1, 2)
    for _ in range(3):
        made.update_codebook(on_codes, made(on_codes).codes, generator=seeded(0))
    torch.testing.assert_close(made.codebook, placed, rtol=1e-4, atol=1e-5)
    assert quantizer(kmeans_iterations=0).init_features == 0


def test_a_restarted_code_stays_where_it_was_put() -> None:
    """A code whose old sum and count stay goes back to where it was at the next step."""
    made = quantizer(l2_normalize=False, decay=0.5, dead_code_threshold=0.3)
    features, codes = noise(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)
    before = made.codebook.clone()
    moved = [made.update_codebook(features, codes, generator=seeded(step)) for step in range(2)]
    assert moved == [0, 4]
    rows = flat(features, normalized=False)
    assert all((rows == code).all(1).any() for code in made.codebook[1:])
    placed = made.codebook.clone()
    made.update_codebook(features, codes, generator=seeded(2))
    torch.testing.assert_close(made.codebook[1:], placed[1:], rtol=1e-4, atol=1e-4)
    assert ((placed - before)[1:].norm(dim=1) > 0.1).all()


def test_means_keep_their_length_and_codes_have_length_1() -> None:
    made = quantizer(decay=0.01)
    features = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).T.view(1, 3, 1, 2)
    made.update_codebook(features, torch.zeros(1, 1, 2, dtype=torch.int64), generator=seeded(0))
    torch.testing.assert_close(made.codebook[0], torch.tensor([0.5, 0.5, 0.0]), rtol=0, atol=0.01)
    torch.testing.assert_close(made.vectors().norm(dim=1), torch.ones(5))
