"""Quantizers without a codebook (FSQ, LFQ, BSQ): every code counted out, the bound, the entropies against the whole
softmax."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from smalti.core.settings import parse
from smalti.tokenizer.quantizers import FSQ, LFQ, FSQSettings, LFQSettings
from smalti.tokenizer.quantizers.lfq import (
    code_probabilities,
    entropy_of_all,
    entropy_of_bits,
    mean_probabilities,
)
from tests import reference


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fsq(*levels: int) -> FSQ:
    return FSQ(FSQSettings(levels=levels))


def lfq(**changes: Any) -> LFQ:
    return LFQ(parse(LFQSettings, {"codebook_dim": 5, **changes}, where="test"))


def entropy(probabilities: Tensor) -> Tensor:
    terms: Tensor = torch.special.entr(probabilities)
    return terms.sum(-1)


# --- finite scalar quantization -------------------------------------------------------------------------------------


def test_sizes_of_the_paper() -> None:
    """Table 1 there."""
    sizes = {
        (8, 6, 5): 240,
        (8, 5, 5, 5): 1000,
        (7, 5, 5, 5, 5): 4375,
        (8, 8, 8, 6, 5): 15360,
        (8, 8, 8, 5, 5, 5): 64000,
    }
    for levels, size in sizes.items():
        settings = FSQSettings(levels=levels)
        assert (settings.codebook_size, settings.codebook_dim, FSQ(settings).size) == (size, len(levels), size)


@given(levels=st.lists(st.integers(3, 9), min_size=1, max_size=4))
def test_codes_are_digits_of_a_number(levels: list[int]) -> None:
    """The first number of a feature is the lowest digit; digits count levels from below, latents lie in [-1,1]."""
    made = fsq(*levels)
    codes = torch.arange(made.size).view(1, 1, -1)
    latents = made.lookup(codes)[0, :, 0].T
    expected = [
        [(digit - level // 2) / (level // 2) for digit, level in zip(reversed(digits), levels, strict=True)]
        for digits in itertools.product(*(range(level) for level in reversed(levels)))
    ]
    torch.testing.assert_close(latents, torch.tensor(expected))


@pytest.mark.parametrize("level", [3, 4, 5, 6, 7, 8])
def test_one_number_takes_each_of_its_levels(level: int) -> None:
    """From far below to far above: every level, in order, and none beyond."""
    made = fsq(level)
    features = torch.linspace(-20, 20, 4001).view(1, 1, 1, -1)
    codes = made(features).codes.flatten()
    assert (codes.diff() >= 0).all()
    assert torch.equal(torch.unique(codes), torch.arange(level))
    zero = made(torch.zeros(1, 1, 1, 1))
    assert float(zero.latents) == 0
    assert float(made.bypass(torch.zeros(1, 1, 1, 1)).latents) == pytest.approx(0, abs=2e-3 * level)


def test_gradients_are_those_of_the_bound() -> None:
    made, features, gradient = fsq(8, 5, 4), drawn(2, 3, 3, 4).requires_grad_(), drawn(2, 3, 3, 4, seed=1)
    (found,) = torch.autograd.grad((made(features).latents * gradient).sum(), features)
    (bounded,) = torch.autograd.grad((made.bypass(features).latents * gradient).sum(), features)
    torch.testing.assert_close(found, bounded)
    for d, level in enumerate((8, 5, 4)):
        reach = (level - 1) * (1 - 1e-3) / 2
        shift = math.tan(0.5 / reach) if level % 2 == 0 else 0.0
        slope = (1 - torch.tanh(features[:, d] + shift).square()) * reach / (level // 2)
        torch.testing.assert_close(found[:, d], slope * gradient[:, d])


def test_rounding_requests_nothing() -> None:
    made, features = fsq(5, 5), drawn(1, 2, 3, 3)
    assert float(made(features).loss) == 0
    assert (made(features).latents - made.bypass(features).latents).abs().max() <= 0.25 + 1e-6
    assert list(made.state_dict()) == []


# --- lookup-free quantization ---------------------------------------------------------------------------------------


def corners(D: int) -> Tensor:
    """All codes' bits as rows of -1 and +1 (2^D, D), the lowest bit first."""
    return torch.tensor([[1.0 if code >> bit & 1 else -1.0 for bit in range(D)] for code in range(2**D)])


@pytest.mark.parametrize("spherical", [False, True])
def test_codes_are_signs(spherical: bool) -> None:
    made = lfq(spherical=spherical)
    unit = 5**-0.5 if spherical else 1.0
    found = made.lookup(torch.arange(32).view(1, 1, -1))[0, :, 0].T
    torch.testing.assert_close(found, unit * corners(5))
    quantized = made(drawn(2, 5, 3, 4))
    torch.testing.assert_close(quantized.latents, unit * drawn(2, 5, 3, 4).sign())
    if spherical:
        torch.testing.assert_close(quantized.latents.norm(dim=1), torch.ones(2, 3, 4))


@pytest.mark.parametrize("spherical", [False, True])
def test_the_loss_is_that_of_the_whole_softmax(spherical: bool) -> None:
    """Probabilities of all 32 codes from squared distances: what no large codebook can hold."""
    made = lfq(spherical=spherical, commitment=0.3, entropy=0.2, temperature=0.7)
    features = drawn(2, 5, 3, 4)
    flat = features.permute(0, 2, 3, 1).reshape(-1, 5)
    flat = torch.nn.functional.normalize(flat, dim=1) if spherical else flat
    table = made.lookup(torch.arange(32).view(1, 1, -1))[0, :, 0].T
    likely = reference.code_probabilities(flat, table, temperature=0.7 * made.unit**2)
    chosen = table[reference.nearest(flat, table)]
    expected = 0.3 * (flat - chosen).square().mean() + 0.2 * (entropy(likely).mean() - entropy(likely.mean(0)))
    for quantized in (made(features), made.schedule(0, length=10)(features)):
        torch.testing.assert_close(quantized.loss, expected)
    assert float(made.bypass(features).loss) == 0


@given(seed=st.integers(0, 10**6), D=st.integers(1, 7), scale=st.floats(0.01, 30))
def test_probabilities_of_codes_are_products_of_bits(seed: int, D: int, scale: float) -> None:
    logits = scale * drawn(6, D, seed=seed)
    whole = reference.code_probabilities(logits / 4, corners(D), temperature=1.0)
    torch.testing.assert_close(code_probabilities(logits), whole, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(mean_probabilities(logits), whole.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(entropy_of_bits(logits), entropy(whole).mean(), rtol=1e-3, atol=1e-5)


def test_groups_are_exact_alone_and_never_less_together() -> None:
    """One bit decides another here, which only a group that holds both can know."""
    logits = drawn(200, 6)
    logits[:, 4] = 10 * logits[:, 1]
    whole = entropy(code_probabilities(logits).mean(0))
    found = {group: entropy_of_all(logits, group=group, mean=lambda tensor: tensor) for group in (1, 2, 3, 5, 6, 18)}
    torch.testing.assert_close(found[6], whole)
    torch.testing.assert_close(found[18], whole)
    assert all(float(found[group]) > float(whole) + 0.01 for group in (1, 2, 3))
    parts = [entropy(code_probabilities(logits[:, first : first + 2]).mean(0)) for first in (0, 2, 4)]
    torch.testing.assert_close(found[2], torch.stack(parts).sum())


def test_independent_bits_lose_nothing_in_groups() -> None:
    all_codes = 8 * corners(4)
    for group in (1, 2, 3, 4):
        found = entropy_of_all(all_codes, group=group, mean=lambda tensor: tensor)
        assert float(found) == pytest.approx(4 * math.log(2), rel=1e-3)


def test_certain_bits_have_finite_gradients() -> None:
    logits = torch.tensor([[500.0, -500.0, 0.0], [80.0, 1e4, -1e-8]]).requires_grad_()
    total = entropy_of_bits(logits) - entropy_of_all(logits, group=2, mean=lambda tensor: tensor)
    (gradient,) = torch.autograd.grad(total, logits)
    assert torch.isfinite(total)
    assert torch.isfinite(gradient).all()


def test_18_bits_are_counted_together() -> None:
    """2^18 codes of 512 vectors: 134 million probabilities, of which none but the means are held."""
    made = lfq(codebook_dim=18)
    features = drawn(2, 18, 16, 16).requires_grad_()
    quantized = made.schedule(0, length=10)(features)
    quantized.loss.backward()  # type: ignore[no-untyped-call]
    assert quantized.codes.max() < 2**18
    assert features.grad is not None
    assert features.grad.any()
