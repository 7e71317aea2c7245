"""The hatch term: what repeats with the patch counts, other errors hardly do."""

from __future__ import annotations

import pytest
import torch

from smalti.core.errors import SmaltiError
from smalti.evaluation.periodic_artifacts import PowerSpectrum, hatch
from smalti.losses.periodic import periodic_error


def images(seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_it_is_the_plain_loop() -> None:
    one, other = images(0), images(1)
    expected = []
    for image, reconstruction in zip(one, other, strict=True):
        squares = []
        for channel in range(3):
            for top in range(0, 64, 32):
                for left in range(0, 96, 32):
                    block = (reconstruction - image)[channel, top : top + 32, left : left + 32]
                    pattern = torch.stack([block[i::4, j::4].mean() for i in range(4) for j in range(4)])
                    squares.append((pattern - pattern.mean()).square())
        expected.append(torch.stack(squares).mean())
    torch.testing.assert_close(periodic_error(one, other, period=4), torch.stack(expected))


def test_a_hatch_counts_whole_and_noise_and_brightness_hardly() -> None:
    pattern = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1)  # (4, 4)
    hatched = images() + 0.1 * pattern.repeat(16, 24)
    assert torch.allclose(periodic_error(images(), hatched, period=4), torch.full((2,), 0.01))
    noisy = images() + 0.1 * torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    assert (periodic_error(images(), noisy, period=4) < 0.0004).all()
    assert torch.allclose(periodic_error(images(), images() + 0.5, period=4), torch.zeros(2), atol=1e-12)


def test_what_lies_beyond_whole_blocks_is_left_out() -> None:
    one, other = images(0), images(1)
    cut = periodic_error(one[..., :64], other[..., :64], period=4)
    assert torch.equal(periodic_error(one[..., :95], other[..., :95], period=4), cut)


def test_its_gradient_removes_a_hatch() -> None:
    pattern = torch.tensor([[0.3, 0.0], [0.0, 0.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1)
    given = images()
    reconstruction = (given + pattern.repeat(16, 24)).requires_grad_()
    spectrum = PowerSpectrum()
    spectrum.update(reconstruction.detach())
    before = hatch(spectrum.mean(), period=4)
    for _ in range(60):
        (gradient,) = torch.autograd.grad(periodic_error(given, reconstruction, period=4).sum(), reconstruction)
        reconstruction = (reconstruction - 500 * gradient).detach().requires_grad_()
    spectrum = PowerSpectrum()
    spectrum.update(reconstruction.detach())
    after = hatch(spectrum.mean(), period=4)
    assert before > 3 * after


def test_small_images_are_refused_in_a_sentence() -> None:
    with pytest.raises(
        SmaltiError, match=r"images of 16x40 are too small .* needs 32 pixels each way; .* hatch_weight to 0"
    ):
        periodic_error(torch.zeros(1, 3, 16, 40), torch.zeros(1, 3, 16, 40), period=4)
