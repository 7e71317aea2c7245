"""The discriminators: the paper's parameter counts, their grids of logits, their norms, and what they refuse."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
import torch.distributed as distributed
from pydantic import ValidationError
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from smalti.core.errors import SmaltiError
from smalti.core.settings import as_mapping, parse
from smalti.losses.base import Discriminator
from smalti.losses.discriminator import DISCRIMINATORS
from smalti.losses.objective import AdversarialSettings
from smalti.losses.patch_discriminator import (
    NORMS,
    ActNorm,
    BlurDiscriminator,
    BlurPool,
    BlurSettings,
    PatchDiscriminator,
    PatchSettings,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Images of uniform noise in [-1, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(("layers", "count", "side"), [(3, 2_765_633, 30), (2, 663_361, 62)])
def test_the_papers_discriminators_have_their_size(layers: int, count: int, side: int) -> None:
    discriminator = PatchDiscriminator(PatchSettings(layers=layers, norm="batch"))
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == count
    with torch.device("meta"):
        assert PatchDiscriminator(PatchSettings(layers=layers))(torch.empty(1, 3, 256, 256)).shape == (1, 1, side, side)


SETTINGS: dict[str, Any] = {"patch": PatchSettings, "blur": BlurSettings}
KINDS = [
    (name, norm, spectral)
    for name, cls in SETTINGS.items()
    for norm in get_args(get_type_hints(cls)["norm"])
    for spectral in (False, True)
]
"""Every discriminator with every norm it has."""


def made(name: str, **values: Any) -> Discriminator:
    """A small discriminator."""
    settings: Any = SETTINGS[name](**{"base_channels": 8, "layers": 2, "patch_size": 1, **values})
    return DISCRIMINATORS[name](settings)


@pytest.mark.parametrize(("name", "norm", "spectral"), KINDS)
@pytest.mark.parametrize(("channels", "layers", "stem"), [(1, 1, 1), (3, 2, 2), (4, 3, 1), (3, 1, 4)])
def test_logits_have_the_documented_grid(
    name: str, norm: str, spectral: bool, channels: int, layers: int, stem: int
) -> None:
    discriminator = made(name, channels=channels, layers=layers, norm=norm, patch_size=stem, spectral=spectral)
    logits = discriminator(noise(2, channels, 48, 64))
    factor, lost = stem * 2**layers, {"patch": 2, "blur": 0}[name]
    assert logits.shape == (2, 1, 48 // factor - lost, 64 // factor - lost)
    assert logits.isfinite().all()


def test_the_settings_know_every_norm_of_the_table() -> None:
    assert {name for name, _, _ in KINDS} | {"projected"} == set(DISCRIMINATORS)
    with pytest.raises(SmaltiError, match=r"here: norm = 'layer'") as raised:
        parse(PatchSettings, {"norm": "layer"}, where="here")
    assert re.findall(r"'(\w+)'", str(raised.value))[1:] == list(NORMS)


def test_settings_without_a_name_are_those_of_the_reference() -> None:
    """As in all recipes and run folders that are older than the second discriminator."""
    found = parse(AdversarialSettings, {"discriminator": {"base_channels": 8}}, where="here").discriminator
    assert found == PatchSettings(base_channels=8)
    other = parse(AdversarialSettings, {"discriminator": {"name": "blur", "base_channels": 8}}, where="here")
    assert other.discriminator == BlurSettings(base_channels=8)
    assert parse(AdversarialSettings, as_mapping(other), where="here") == other
    with pytest.raises(SmaltiError, match=r"unknown key 'discriminator\.base_chanels'; did you mean 'base_channels'"):
        parse(AdversarialSettings, {"discriminator": {"name": "blur", "base_chanels": 8}}, where="here")
    with pytest.raises(SmaltiError, match=r"discriminator = .*'style'.*'patch', 'blur', 'projected'"):
        parse(AdversarialSettings, {"discriminator": {"name": "style"}}, where="here")


def test_initial_weights_are_the_originals() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(PatchSettings(norm="batch"))
    state = discriminator.state_dict()
    assert math.isclose(state["main.5.weight"].std().item(), 0.02, rel_tol=0.02)
    assert abs(state["main.5.weight"].mean().item()) < 1e-3
    assert math.isclose(state["main.9.weight"].std().item(), 0.02, rel_tol=0.2)
    assert math.isclose(state["main.9.weight"].mean().item(), 1.0, rel_tol=0.01)
    assert state["main.9.bias"].eq(0).all()


@pytest.mark.parametrize(("name", "norm", "spectral"), [kind for kind in KINDS if not kind[2]])
def test_a_logit_depends_on_its_image_alone_but_with_batch_norm(name: str, norm: str, spectral: bool) -> None:
    images = noise(3, 3, 32, 32)
    discriminator = made(name, norm=norm)
    discriminator(noise(4, 3, 32, 32, seed=1))  # ActNorm sets its scales by the first batch
    alone = torch.allclose(discriminator(images)[:1], discriminator(images[:1]), atol=1e-6)
    assert alone is (norm != "batch")


def test_the_smallest_image_gives_one_logit_and_a_smaller_one_a_sentence() -> None:
    discriminator = PatchDiscriminator(PatchSettings(base_channels=8, layers=2, patch_size=2))
    assert discriminator.smallest == 24
    assert discriminator(noise(1, 3, 24, 24)).shape == (1, 1, 1, 1)
    with pytest.raises(SmaltiError, match=r"24x22 are too small.*2 layers and patch_size 2.*24 pixels"):
        discriminator(noise(1, 3, 24, 22))


def test_other_images_than_those_it_was_made_for_are_reported() -> None:
    discriminator = PatchDiscriminator(PatchSettings(base_channels=8, layers=2, patch_size=2))
    with pytest.raises(SmaltiError, match=r"3 channels, these have 4.*set its channels to 4"):
        discriminator(noise(1, 4, 32, 32))
    with pytest.raises(SmaltiError, match="patch_size 2 does not divide images of 33x32"):
        discriminator(noise(1, 3, 33, 32))


@pytest.mark.parametrize(
    "wrong", [{"layers": 0}, {"base_channels": 0}, {"patch_size": 0}, {"channels": 0}, {"norm": "layer"}]
)
def test_settings_that_make_no_discriminator_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PatchSettings(**wrong)


# --- blurred subsampling -------------------------------------------------------------------------------------------


def test_blurring_is_what_it_says_and_needs_no_weights() -> None:
    pool = BlurPool()
    assert not list(pool.parameters())
    assert not pool.state_dict()
    line = torch.zeros(1, 1, 1, 8)
    line[..., 3] = 64.0
    assert pool(line.expand(1, 2, 8, 8).clone())[0, 1, 1].tolist() == [0.0, 24.0, 8.0, 0.0]
    inside = pool(torch.ones(1, 3, 8, 8))[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(inside, torch.ones_like(inside))
    assert pool(noise(1, 3, 9, 7)).shape == (1, 3, 4, 3)


def test_what_is_too_fine_for_the_grid_is_gone() -> None:
    """A plain stride reads a fine chequerboard as a flat image of one of its two colors."""
    fine = (torch.arange(16).view(-1, 1) + torch.arange(16)).remainder(2).mul(2.0).sub(1).expand(1, 1, -1, -1)
    inside = BlurPool()(fine)[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(inside, torch.zeros_like(inside))
    assert fine[..., ::2, ::2].abs().min() == 1.0


def test_a_logit_of_the_blurred_one_sees_a_patch_of_the_documented_size() -> None:
    torch.manual_seed(0)
    settings = BlurSettings(base_channels=8, norm="none")
    discriminator = BlurDiscriminator(settings)
    images = noise(1, 3, 160, 160).requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(images)[0, 0, 10, 10], images)
    touched = gradient.abs().sum((0, 1, 2)).nonzero().flatten()
    assert int(touched.max() - touched.min()) + 1 == 64 == (9 * 2**settings.layers - 4) * settings.patch_size


def test_the_blurred_ones_smallest_image_gives_four_logits() -> None:
    """With a single position a group of one channel would have nothing to be normalized by."""
    discriminator = BlurDiscriminator(BlurSettings(base_channels=8))
    assert discriminator.smallest == 16
    assert discriminator(noise(1, 3, 16, 16)).shape == (1, 1, 2, 2)
    with pytest.raises(SmaltiError, match=r"16x14 are too small.*2 layers and patch_size 2.*16 pixels"):
        discriminator(noise(1, 3, 16, 14))


# --- spectral normalization ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_every_convolution_has_the_largest_singular_value_1(name: str) -> None:
    torch.manual_seed(0)
    discriminator = made(name, spectral=True, norm="none")
    for _ in range(200):
        discriminator(noise(1, 3, 32, 32))
    discriminator.eval()
    convolutions = [layer for layer in discriminator.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 4
    for layer in convolutions:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1.0, rel=1e-2)


@pytest.mark.parametrize("name", SETTINGS)
def test_normalized_weights_survive_copies_and_evaluation(name: str) -> None:
    torch.manual_seed(0)
    discriminator = made(name, spectral=True)
    discriminator(noise(2, 3, 32, 32))
    other, twin = made(name, spectral=True), copy.deepcopy(discriminator).eval()
    other.load_state_dict(discriminator.state_dict())
    images = noise(2, 3, 32, 32, seed=1)
    logits = discriminator.eval()(images)
    torch.testing.assert_close(other.eval()(images), logits)
    torch.testing.assert_close(twin(images), logits)
    assert discriminator(images).equal(logits)  # the singular value stands still


@pytest.mark.parametrize("name", SETTINGS)
def test_two_passes_wait_for_one_backward(name: str) -> None:
    """The iteration of the second pass must not spoil what the first one keeps. The gradient is that of what was
    computed."""
    torch.manual_seed(0)
    discriminator = made(name, spectral=True)
    fake, real = discriminator(noise(2, 3, 32, 32)), discriminator(noise(2, 3, 32, 32, seed=1))
    gradients = torch.autograd.grad((fake - real).square().mean(), list(discriminator.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("name", SETTINGS)
def test_in_half_precision_the_normalized_weights_are_nearly_the_same(name: str) -> None:
    torch.manual_seed(0)
    discriminator = made(name, spectral=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(20):
            half = discriminator(noise(2, 3, 32, 32))
    exact = discriminator.eval()(noise(2, 3, 32, 32))
    assert all(buffer.dtype == torch.float32 for buffer in discriminator.buffers() if buffer.is_floating_point())
    assert (half - exact).abs().max() < 0.1 * exact.std() + 0.02


# --- ActNorm -------------------------------------------------------------------------------------------------------


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (B,C,h,w) -> mean and unbiased deviation (C,) of each channel."""
    rows = x.detach().transpose(0, 1).flatten(1)
    return rows.mean(1), rows.std(1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-11)])
def test_the_first_training_batch_comes_out_with_mean_0_and_deviation_1(dtype: torch.dtype, tolerance: float) -> None:
    spread, center = torch.tensor([2.0, 0.1, 30.0]).view(3, 1, 1), torch.tensor([1.0, -7.0, 0.0]).view(3, 1, 1)
    x = noise(2, 3, 4, 5).to(dtype) * spread + center
    norm = ActNorm(3).to(dtype)
    _, deviation = moments(x)
    mean, after = moments(norm(x))
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0.0, atol=tolerance)
    torch.testing.assert_close(after, deviation / (deviation + 1e-6), rtol=tolerance, atol=0.0)
    torch.testing.assert_close(norm.loc.detach().flatten(), -moments(x)[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(norm.scale.detach().flatten(), 1 / (deviation + 1e-6), rtol=tolerance, atol=0.0)
    assert norm.initialized.item() == 1


def test_later_batches_move_nothing() -> None:
    norm = ActNorm(2)
    norm(noise(2, 2, 4, 4))
    loc, scale = norm.loc.detach().clone(), norm.scale.detach().clone()
    other = noise(3, 2, 6, 6, seed=1) * 5 + 2
    torch.testing.assert_close(norm(other), scale * (other + loc))
    assert norm.loc.equal(loc)
    assert norm.scale.equal(scale)


def test_in_evaluation_the_scales_are_used_as_they_are() -> None:
    norm = ActNorm(2).eval()
    x = noise(2, 2, 4, 4)
    assert norm(x).equal(x)
    with torch.no_grad():
        norm.loc.fill_(0.5)
        norm.scale.fill_(3.0)
    torch.testing.assert_close(norm(x), 3 * (x + 0.5))
    assert norm.initialized.item() == 0
    assert not torch.allclose(norm.train()(x), 3 * (x + 0.5))


def test_what_was_set_is_kept_with_the_weights() -> None:
    """A discriminator that continues after a stop must not set its scales again by whatever comes first."""
    settings = PatchSettings(base_channels=8, layers=2, norm="act")
    first, second = PatchDiscriminator(settings), PatchDiscriminator(settings)
    first(noise(2, 3, 32, 32))
    state = first.state_dict()
    assert {key: tuple(state[key].shape) for key in state if key.startswith("main.3.")} == {
        "main.3.loc": (1, 16, 1, 1),
        "main.3.scale": (1, 16, 1, 1),
        "main.3.initialized": (),
    }
    assert state["main.3.initialized"].dtype == torch.uint8
    second.load_state_dict(state)
    images = noise(2, 3, 32, 32, seed=1) * 3
    torch.testing.assert_close(second(images), first(images))


def test_scales_are_learned_from_the_first_batch_on() -> None:
    """The gradient is that of scale * (x + loc) with both as plain parameters, not through the batch's statistics."""
    x = noise(2, 3, 4, 4).double().requires_grad_()
    norm = ActNorm(3).double()
    weights = noise(2, 3, 4, 4, seed=1).double()
    (norm(x) * weights).sum().backward()
    assert norm.loc.grad is not None
    assert norm.scale.grad is not None
    torch.testing.assert_close(x.grad, norm.scale.detach() * weights)
    torch.testing.assert_close(norm.loc.grad, (norm.scale.detach() * weights).sum((0, 2, 3), keepdim=True))
    shifted = x.detach() + norm.loc.detach()
    torch.testing.assert_close(norm.scale.grad, (shifted * weights).sum((0, 2, 3), keepdim=True))


def test_half_precision_images_are_measured_in_single_precision() -> None:
    """Far from 0 the deviation of half-precision numbers is lost when their mean is rounded to half precision."""
    x = (noise(4, 2, 8, 8) + 64).bfloat16()
    norm = ActNorm(2)
    norm(x)
    torch.testing.assert_close(-norm.loc.detach().flatten(), moments(x.float())[0])
    torch.testing.assert_close(1 / norm.scale.detach().flatten(), moments(x.float())[1], rtol=1e-4, atol=1e-4)


def test_with_act_norm_the_convolutions_keep_their_bias() -> None:
    for norm, kept in (("act", True), ("group", True), ("batch", False)):
        discriminator = PatchDiscriminator(
            parse(PatchSettings, {"norm": norm, "base_channels": 8, "layers": 3}, where="test")
        )
        inner = [layer for layer in discriminator.main if isinstance(layer, nn.Conv2d)][1:-1]
        assert len(inner) == 3
        assert all((layer.bias is not None) is kept for layer in inner)


@pytest.mark.parametrize("norm", NORMS)
def test_a_conditional_discriminator_sees_the_condition(norm: Any) -> None:
    """The condition is joined to the images along the channels by whoever asks."""
    discriminator = PatchDiscriminator(PatchSettings(channels=5, base_channels=8, layers=2, norm=norm))
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.mul_(5.0)
    images, condition = noise(2, 3, 32, 32), noise(2, 2, 32, 32, seed=1).requires_grad_()
    discriminator(torch.cat((noise(2, 3, 32, 32, seed=2), condition), 1))
    discriminator.eval()
    logits = discriminator(torch.cat((images, condition), 1))
    (gradient,) = torch.autograd.grad(logits.square().sum(), condition)
    assert (gradient.abs().amax((0, 2, 3)) > 0).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_discriminator_in_double_precision_stays_there(norm: Any) -> None:
    torch.manual_seed(0)
    single = PatchDiscriminator(PatchSettings(base_channels=8, layers=2, norm=norm))
    double = PatchDiscriminator(PatchSettings(base_channels=8, layers=2, norm=norm)).double()
    double.load_state_dict(single.state_dict())
    images = noise(2, 3, 32, 32)
    logits = double(images.double())
    assert logits.dtype == torch.float64
    assert not logits.equal(logits.float().double())
    torch.testing.assert_close(logits, single(images).double(), rtol=1e-4, atol=1e-6)


def _first_batch(rank: int, folder: str) -> None:
    """One of two processes: its share of the first batch, and where the scales stand after it."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    norm = ActNorm(2)
    norm(first_batch()[2 * rank : 2 * rank + 2])
    torch.save(norm.state_dict(), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def first_batch() -> Tensor:
    return torch.cat([noise(2, 2, 4, 4, seed=seed) * (seed + 1) + seed for seed in (0, 1)])


@pytest.mark.slow
def test_several_processes_start_from_the_batches_of_all(tmp_path: Path) -> None:
    """Data-parallel copies are made equal once, before the first forward: scales set by each one's own batch would stay
    apart."""
    spawn(_first_batch, args=(str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    alone = ActNorm(2)
    alone(first_batch())
    for rank in (0, 1):
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert all(state[key].equal(value) for key, value in alone.state_dict().items())
