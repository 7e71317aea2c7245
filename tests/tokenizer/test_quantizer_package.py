"""The same numbers as the package vector-quantize-pytorch, an independent implementation, where it is installed."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from smalti.tokenizer.quantizers import (
    EMA,
    FSQ,
    LFQ,
    VQ,
    EMASettings,
    FSQSettings,
    LFQSettings,
    SimVQ,
    SimVQSettings,
    VQSettings,
)
from smalti.tokenizer.quantizers.ema import SMOOTHING
from smalti.tokenizer.quantizers.lfq import entropy_of_all, entropy_of_bits

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

K, D, N = 40, 6, 2 * 8 * 9


def package() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("vector_quantize_pytorch")
    except Exception as error:  # a package that is half installed can raise anything
        pytest.skip(f"vector-quantize-pytorch cannot be imported: {error}".split("\n")[0])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def theirs(**options: Any) -> Any:
    """Their quantizer with our codebook."""
    made = package().VectorQuantize(
        dim=D,
        codebook_size=K,
        accept_image_fmap=True,
        threshold_ema_dead_code=0,
        kmeans_init=False,
        commitment_weight=1.0,
        **{"rotation_trick": False, **options},
    )
    codebook = drawn(K, D, seed=1)
    if options.get("use_cosine_sim"):
        codebook = F.normalize(codebook, dim=1)
    made._codebook.embed.data.copy_(codebook[None])
    made._codebook.embed_avg.data.copy_(codebook[None])
    return made


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("gradient", ["straight-through", "rotation"])
def test_nearest_codes(normalized: bool, gradient: Any) -> None:
    other = theirs(use_cosine_sim=normalized, rotation_trick=gradient == "rotation", ema_update=False)
    ours = VQ(VQSettings(codebook_size=K, codebook_dim=D, l2_normalize=normalized, gradient=gradient, commitment=1.0))
    with torch.no_grad():
        ours.codebook.copy_(drawn(K, D, seed=1))
    mine, features = drawn(2, D, 8, 9).requires_grad_(), drawn(2, D, 8, 9).requires_grad_()
    found = ours(mine)
    latents, codes, _ = other.train()(features)
    assert torch.equal(found.codes, codes)
    torch.testing.assert_close(found.latents, latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.lookup(found.codes), latents.detach(), rtol=1e-5, atol=1e-5)
    direction = drawn(2, D, 8, 9, seed=2)
    (a,) = torch.autograd.grad((found.latents * direction).sum(), mine)
    (b,) = torch.autograd.grad((latents * direction).sum(), features)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalized", [False, True])
def test_running_means(normalized: bool) -> None:
    """Several steps move the codebook alike. They count in vectors and begin at 1, we in mean counts:
    theirs are set to ours."""
    memory, mean = 0.8, N / K
    other = theirs(use_cosine_sim=normalized, decay=memory, eps=SMOOTHING * mean).train()
    other._codebook.cluster_size.data.fill_(mean)
    other._codebook.embed_avg.data.mul_(mean)
    ours = EMA(
        EMASettings(
            codebook_size=K,
            codebook_dim=D,
            l2_normalize=normalized,
            decay=memory,
            dead_code_threshold=0,
            commitment=1.0,
        )
    )
    ours.codebook.copy_(other._codebook.embed[0])
    for step in range(3):
        features = drawn(2, D, 8, 9, seed=step)
        found = ours(features)
        latents, codes, loss = other(features)
        assert torch.equal(found.codes, codes)
        torch.testing.assert_close(found.latents, latents, rtol=1e-5, atol=1e-5)
        if not normalized:  # theirs measures the features before they are scaled
            torch.testing.assert_close(found.loss, loss.squeeze(), rtol=1e-5, atol=1e-5)
        ours.update_codebook(features, found.codes, generator=torch.Generator())
        torch.testing.assert_close(ours.vectors(), other._codebook.embed[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (7, 4), (3, 6, 8)])
def test_finite_scalars(levels: tuple[int, ...]) -> None:
    """All codes have the same latents, and features the same codes but for a thousandth at the edges of cells, where
    their bound is wider by 0.2 % than the paper's."""
    other, ours = package().FSQ(levels=list(levels)), FSQ(FSQSettings(levels=levels))
    everything = torch.arange(ours.size).view(1, 1, -1)
    torch.testing.assert_close(ours.lookup(everything), other.indices_to_codes(everything))
    features = 2 * drawn(2, len(levels), 40, 50)
    found, (latents, codes) = ours(features), other(features)
    same = found.codes == codes
    assert same.float().mean() > 0.98
    torch.testing.assert_close(found.latents.movedim(1, -1)[same], latents.movedim(1, -1)[same])
    half = torch.tensor([level // 2 for level in levels]).view(-1, 1, 1)
    bounded = ours.bypass(features).latents * half
    from_edge = 0.5 - (bounded - bounded.round()).abs().amax(1)  # (B,h,w)
    assert same[from_edge > 0.01].all()
    assert (from_edge > 0.01).float().mean() > 0.8


@pytest.mark.parametrize("spherical", [False, True])
def test_signs(spherical: bool) -> None:
    """Their first number is the highest bit, ours (as in the paper) the lowest."""
    temperature, unit = 0.5, D**-0.5 if spherical else 1.0
    other = package().LFQ(dim=D, codebook_size=2**D, spherical=spherical, commitment_loss_weight=1.0).train()
    ours = LFQ(LFQSettings(codebook_dim=D, spherical=spherical, temperature=temperature, commitment=1.0, entropy=0.0))
    features = drawn(2, D, 8, 9)
    # One bit tells two codes apart by 4 feature unit; they take twice the inner product times the inverse temperature.
    inverse = 1 / (unit**2 * temperature)
    (latents, codes, _), parts = other(features.flip(1), inv_temperature=inverse, return_loss_breakdown=True)
    found = ours(features)
    assert torch.equal(found.codes, codes)
    torch.testing.assert_close(found.latents, latents.flip(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.loss, parts.commitment, rtol=1e-5, atol=1e-6)
    flat = features.permute(0, 2, 3, 1).reshape(-1, D)
    logits = (F.normalize(flat, dim=1) if spherical else flat) * 4 / (unit * temperature)
    torch.testing.assert_close(entropy_of_bits(logits), parts.per_sample_entropy, rtol=1e-3, atol=1e-3)
    whole = entropy_of_all(logits, group=D, mean=lambda tensor: tensor)
    torch.testing.assert_close(whole, parts.batch_entropy, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("gradient", ["straight-through", "rotation"])
def test_one_layer_for_all_codes(gradient: Any) -> None:
    other = package().SimVQ(dim=D, codebook_size=K, channel_first=True, rotation_trick=gradient == "rotation")
    ours = SimVQ(SimVQSettings(codebook_size=K, codebook_dim=D, gradient=gradient))
    with torch.no_grad():
        ours.frozen.copy_(other.frozen_codebook)
        ours.linear.weight.copy_(other.code_transform.weight)
        ours.linear.bias.zero_()
    mine, features = drawn(2, D, 8, 9).requires_grad_(), drawn(2, D, 8, 9).requires_grad_()
    found, (latents, codes, loss) = ours(mine), other(features)
    assert torch.equal(found.codes, codes)
    torch.testing.assert_close(found.latents, latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.loss, loss)
    direction = drawn(2, D, 8, 9, seed=2)
    (a,) = torch.autograd.grad((found.latents * direction).sum() + found.loss, mine)
    (b,) = torch.autograd.grad((latents * direction).sum() + loss, features)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
