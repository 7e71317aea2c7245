"""The projected discriminator: what of it learns, how its scales are weighed, and that it tells real from blurred."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.core.errors import SmaltiError
from smalti.core.settings import parse
from smalti.losses.adversarial import ADVERSARIAL
from smalti.losses.discriminator import DISCRIMINATORS
from smalti.losses.objective import AdversarialSettings
from smalti.losses.projected_discriminator import ProjectedDiscriminator, ProjectedSettings, RandomMixing


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Images of uniform noise in [-1, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def made(**values: Any) -> ProjectedDiscriminator:
    torch.manual_seed(0)
    return ProjectedDiscriminator(ProjectedSettings(**{"base_channels": 8, "head_channels": 8, **values}))


@pytest.mark.parametrize("mixing", ["channels_and_scales", "channels", "none"])
@pytest.mark.parametrize(("channels", "scales"), [(3, 4), (1, 2), (3, 1)])
def test_there_is_a_logit_of_each_scale_at_each_place_of_the_finest(mixing: str, channels: int, scales: int) -> None:
    logits = made(mixing=mixing, channels=channels, scales=scales)(noise(2, channels, 32, 48))
    assert logits.shape == (2, scales * 16 * 24)
    assert logits.isfinite().all()


def test_only_the_heads_learn() -> None:
    discriminator = made()
    learned = {name.split(".")[0] for name, weight in discriminator.named_parameters() if weight.requires_grad}
    assert learned == {"heads"}
    images = noise(1, 3, 32, 32).requires_grad_()
    torch.autograd.backward(discriminator(images).mean())
    assert images.grad is not None
    assert images.grad.abs().max() > 0
    frozen = [weight for weight in discriminator.parameters() if not weight.requires_grad]
    assert frozen
    assert all(weight.grad is None for weight in frozen)


def test_a_scale_weighs_as_much_as_another() -> None:
    """The mean over all logits is the mean over scales of their own means, however many places a scale has."""
    discriminator = made()
    for number, head in enumerate(discriminator.heads):
        for layer in head.modules():
            if isinstance(layer, nn.Conv2d):
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        head.register_forward_hook(lambda module, given, result, number=number: torch.full_like(result, 10.0**number))
    assert discriminator(noise(1, 3, 32, 48)).mean().item() == pytest.approx(1111 / 4)


def test_the_mixing_is_that_of_its_seed() -> None:
    a, b, other = made(seed=1), made(seed=1), made(seed=2)
    for key, value in a.mixing.state_dict().items():
        assert value.equal(b.mixing.state_dict()[key])
    assert not a.mixing.state_dict()["channels.0.weight"].equal(other.mixing.state_dict()["channels.0.weight"])


def test_mixing_across_scales_is_its_definition() -> None:
    mixing = RandomMixing((4, 6), 8, scales=True, generator=torch.Generator().manual_seed(0))
    fine, coarse = noise(1, 4, 8, 8), noise(1, 6, 4, 4, seed=1)
    weights = mixing.state_dict()
    deep = F.conv2d(mixing.channels[1](coarse), weights["scales.1.weight"], padding=1)
    up = F.interpolate(deep, (8, 8), mode="bilinear", align_corners=False)
    top = F.conv2d((mixing.channels[0](fine) + up) / 2**0.5, weights["scales.0.weight"], padding=1)
    for found, expected in zip(mixing([fine, coarse]), (top, deep), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_it_learns_to_distinguish_an_image_from_its_blur_within_steps() -> None:
    discriminator = made()
    optimizer = torch.optim.Adam(
        [weight for weight in discriminator.parameters() if weight.requires_grad], lr=2e-3, betas=(0.0, 0.99)
    )
    real = F.interpolate(noise(4, 3, 24, 24), (48, 48), mode="nearest")
    fake = F.avg_pool2d(real, 5, stride=1, padding=2)
    losses = []
    for _ in range(25):
        loss = ADVERSARIAL["hinge"].discriminator(discriminator(real), discriminator(fake))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_r1_and_double_precision_work() -> None:
    discriminator = made().double()
    images = noise(1, 3, 32, 32).double().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    torch.autograd.backward(gradient.square().sum())
    assert any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in discriminator.parameters())


def test_its_settings_are_read_by_name() -> None:
    found = parse(AdversarialSettings, {"discriminator": {"name": "projected", "scales": 2}, "r1": 1.0}, where="here")
    assert found.discriminator == ProjectedSettings(scales=2)
    assert isinstance(DISCRIMINATORS["projected"](found.discriminator), ProjectedDiscriminator)
    with pytest.raises(SmaltiError, match=r"unknown key 'discriminator\.layers'"):
        parse(AdversarialSettings, {"discriminator": {"name": "projected", "layers": 2}}, where="here")


def test_other_images_are_refused() -> None:
    for discriminator, images, words in (
        (made(), noise(1, 1, 32, 32), "of 3 channels, these have 1"),
        (made(channels=4), noise(1, 4, 32, 32), "it takes 1 and 3"),
        (made(), noise(1, 3, 32, 8), "32x8 are too small"),
    ):
        with pytest.raises(SmaltiError, match=words):
            discriminator(images)
