"""The measure of a hatch: 1 without one, large with one, at the period that is asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.evaluation.periodic_artifacts import PowerSpectrum, hatch, is_measurable


def smooth(count: int = 64, side: int = 128) -> Tensor:
    """Images of noise whose energy falls off with the frequency, as photographs' does."""
    generator = torch.Generator().manual_seed(0)
    frequency = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.fftfreq(side)[None]).clamp(min=1 / side)
    spectrum = torch.fft.fft2(torch.randn(count, 3, side, side, generator=generator)) / frequency
    images = torch.fft.ifft2(spectrum).real
    result: Tensor = images / images.abs().max()
    return result


def tiles(strength: float, period: int, side: int = 128) -> Tensor:
    """(side,side): a pattern that repeats every `period` pixels."""
    pattern = torch.randn(period, period, generator=torch.Generator().manual_seed(1))
    return strength * pattern.repeat(side // period, side // period)


def measured(images: Tensor, period: int) -> float:
    return hatch(spectrum_of(images), period=period)


def spectrum_of(images: Tensor) -> Tensor:
    spectrum = PowerSpectrum()
    for batch in torch.split(images, 16):
        spectrum.update(batch)
    return spectrum.mean()


@pytest.mark.parametrize("period", [2, 4, 8])
def test_natural_images_have_none(period: int) -> None:
    assert measured(smooth(), period) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("period", [4, 8])
def test_a_pattern_is_seen_at_its_period_and_grows_with_its_strength(period: int) -> None:
    images = smooth()
    faint, strong = (measured(images + tiles(strength, period), period) for strength in (0.02, 0.1))
    assert 1.3 < faint < strong
    assert measured(images + tiles(0.1, 5, 130)[:128, :128], 4) < 1.3  # another period is none


def test_what_cannot_be_measured_is_a_sentence() -> None:
    with pytest.raises(SmaltiError, match="no images"):
        PowerSpectrum().mean()
    for size, period in ((40, 4), (128, 1)):
        assert not is_measurable((size, size), period=period)
        with pytest.raises(SmaltiError, match=f"period {period} cannot be measured in images of {size}x{size}"):
            hatch(torch.ones(size, size), period=period)


def test_images_of_other_sizes_are_left_out() -> None:
    images, spectrum = smooth(4), PowerSpectrum()
    spectrum.update(images)
    spectrum.update(images[..., :64])
    assert spectrum.count == 4
    assert spectrum.mean().equal(spectrum_of(images))
