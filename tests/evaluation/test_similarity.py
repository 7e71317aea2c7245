"""SSIM and MS-SSIM, against numbers of scikit-image 0.26 and of TensorFlow 2.21 for images made by a formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.evaluation.similarity import MIN_SIDE, ms_ssim, ssim


def waves(height: int, width: int, channels: int, *, speeds: tuple[float, float, float]) -> np.ndarray:
    """Levels (H,W,C) of a pattern of waves, float64."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    a, b, c = speeds
    planes = [
        127.5 + 100 * np.sin(a * x / 7 + k) * np.cos(b * y / 5 - k) + 20 * np.sin(c * (x * y) / 31)
        for k in range(channels)
    ]
    return np.stack([plane.round() for plane in planes], axis=-1).clip(0, 255)


def pair(height: int, width: int, channels: int) -> tuple[Tensor, Tensor]:
    """Two images (1,C,H,W) in [-1,1], somewhat alike."""
    a = waves(height, width, channels, speeds=(1.0, 1.0, 1.0))
    b = waves(height, width, channels, speeds=(1.05, 0.9, 1.3))
    return image(a), image((0.7 * a + 0.3 * b).round())


def image(levels: np.ndarray) -> Tensor:
    return torch.from_numpy(levels / 127.5 - 1).permute(2, 0, 1)[None].float()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((161, 176, 3), 0.8701883524922894),
        ((190, 201, 1), 0.8597041489245331),
        ((64, 96, 3), 0.9303970927119005),
        ((11, 13, 1), 0.9994175327105005),
    ],
)
def test_ssim_is_that_of_scikit_image(shape: tuple[int, int, int], expected: float) -> None:
    """structural_similarity(a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)"""
    a, b = pair(*shape)
    assert ssim(a, b).item() == pytest.approx(expected, rel=1e-12)
    assert ssim(b, a).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("shape", "expected"), [((161, 176, 3), 0.8204577), ((190, 201, 1), 0.72479236)], ids=["smallest", "gray"]
)
def test_ms_ssim_is_that_of_tensorflow(shape: tuple[int, int, int], expected: float) -> None:
    """tf.image.ssim_multiscale(a, b, 255), which computes in float32"""
    a, b = pair(*shape)
    assert ms_ssim(a, b).item() == pytest.approx(expected, abs=2e-5)
    assert ms_ssim(b, a).item() == pytest.approx(expected, abs=2e-5)


def test_both_are_one_for_equal_images() -> None:
    a, _ = pair(170, 165, 3)
    assert ssim(a, a).tolist() == pytest.approx([1.0], rel=1e-12)
    assert ms_ssim(a, a).tolist() == pytest.approx([1.0], rel=1e-12)
    assert ms_ssim(torch.ones_like(a), torch.ones_like(a)).tolist() == pytest.approx([1.0])


def test_each_image_has_its_own_value() -> None:
    a, b = pair(170, 165, 1)
    for measure in (ssim, ms_ssim):
        together = measure(torch.cat((a, b, a)), torch.cat((b, b, -a)))
        assert together.shape == (3,)
        assert together.tolist() == pytest.approx([float(measure(a, b)), 1.0, float(measure(a, -a))])


def test_a_negative_is_the_contrary() -> None:
    """Waves around mid-gray and their negative: structure is inverted, and MS-SSIM, which has no roots of that, is
    0."""
    a = torch.sin(torch.arange(200.0))[None, None, None].expand(1, 1, 170, 200)
    assert ssim(a, -a).item() < -0.8
    assert ms_ssim(a, -a).item() == 0.0


def test_one_inverted_scale_is_enough() -> None:
    """Fine stripes are inverted, the wave under them, which alone is left at the coarsest scale, is not."""
    x = torch.arange(200.0)[None, None, None].expand(1, 1, 170, 200)
    wave, stripes = 0.5 * torch.sin(x / 30), 0.4 * torch.cos(3 * x)
    assert ssim(wave + stripes, wave - stripes).item() < 0
    assert ms_ssim(wave + stripes, wave - stripes).item() == 0.0
    assert ms_ssim(wave + stripes, wave + 0.9 * stripes).item() > 0.9


def test_even_images_differ_in_luminance_alone() -> None:
    """Equation 6 of the paper, by hand; the coarsest scale alone looks at luminance."""
    a, b = 60.0, 100.0
    luminance = (2 * a * b + 2.55**2) / (a**2 + b**2 + 2.55**2)
    first, second = (image(np.full((161, 161, 3), level)) for level in (a, b))
    assert ssim(first, second).item() == pytest.approx(luminance, rel=1e-9)
    assert ms_ssim(first, second).item() == pytest.approx(luminance**0.1333, rel=1e-9)


def test_images_are_compared_as_files_hold_them() -> None:
    a, b = pair(32, 32, 3)
    assert (
        ssim(a * 1.001 + 1e-4, b).item() == ssim((((a * 1.001 + 1e-4) * 127.5 + 127.5).round() / 127.5 - 1), b).item()
    )
    assert ssim(3 * a, b).item() == ssim((3 * a).clamp(-1, 1), b).item()
    assert math.isfinite(ssim(torch.full_like(a, math.nan), b).item())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_floats_are_taken(dtype: torch.dtype) -> None:
    a, b = (each.to(dtype) for each in pair(32, 32, 3))
    assert ssim(a, b).item() == pytest.approx(ssim(a.float(), b.float()).item(), rel=1e-12)


def test_small_images_are_refused() -> None:
    a, b = pair(10, 40, 3)
    with pytest.raises(SmaltiError, match=r"SSIM needs images of 11 pixels or more each way, these have 10x40.*PSNR"):
        ssim(a, b)
    a, b = pair(MIN_SIDE, MIN_SIDE - 1, 1)
    with pytest.raises(SmaltiError, match=r"MS-SSIM needs images of 161 pixels .* have 161x160; .* use SSIM"):
        ms_ssim(a, b)
    assert ms_ssim(*pair(MIN_SIDE, MIN_SIDE, 1)).shape == (1,)


@pytest.mark.parametrize("measure", [ssim, ms_ssim])
def test_images_of_two_shapes_are_refused(measure: object) -> None:
    assert callable(measure)
    with pytest.raises(SmaltiError, match=r"one shape, these are \(1, 3, 200, 200\) and \(1, 1, 200, 200\)"):
        measure(pair(200, 200, 3)[0], pair(200, 200, 1)[0])
