"""The Gumbel-softmax quantizer against PyTorch's own, its temperature over a training, and what evaluation takes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional as F

from smalti.core.settings import parse
from smalti.tokenizer.quantizers import Gumbel, GumbelSettings, Quantized
from smalti.tokenizer.quantizers.gumbel import warmup_cosine

USED = [4, 0, 3]


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Normal, of standard deviation 2: logits made of it are neither even nor certain."""
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantizer(*, used: bool = False, **changes: Any) -> Gumbel:
    """6 codes of 3 numbers; `used`: with a table of three of them."""
    torch.manual_seed(0)
    table = {"remap": {"used": len(USED), "unknown": "extra"}} if used else {}
    made = Gumbel(parse(GumbelSettings, {"codebook_size": 6, "codebook_dim": 3, **table, **changes}, where="test"))
    if used:
        made.get_buffer("table.used").copy_(torch.tensor(USED))
    return made


def bias_of(made: Gumbel) -> Tensor:
    assert made.projection.bias is not None
    return made.projection.bias


# --- the draw -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("hard", [True, False])
def test_training_draws_as_pytorch_does(hard: bool, used: bool) -> None:
    """The same noise from the same seed, so the same codes, latents and gradients."""
    made = quantizer(used=used, straight_through=hard, temperature={"start": 0.7, "peak": 0.7, "end": 0.7})
    features, direction = noise(2, 3, 4, 5).requires_grad_(), noise(2, 3, 4, 5, seed=1)
    torch.manual_seed(3)
    quantized = made.schedule(0, length=10)(features)

    rows = torch.tensor(USED if used else range(6))
    logits = made.projection(features)[:, rows]
    torch.manual_seed(3)
    one_hot = F.gumbel_softmax(logits, tau=0.7, hard=hard, dim=1)
    latents = torch.einsum("bkhw,kd->bdhw", one_hot, made.codebook[rows])
    assert torch.equal(quantized.codes, one_hot.argmax(1))
    assert len(torch.unique(quantized.codes)) == len(rows)
    torch.testing.assert_close(quantized.latents, latents)
    weights = [features, made.codebook, made.projection.weight, bias_of(made)]
    found = torch.autograd.grad((quantized.latents * direction).sum(), weights)
    expected = torch.autograd.grad((latents * direction).sum(), weights)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_hard_latents_are_exactly_those_of_the_code() -> None:
    """The original leaves the rounding of 1 - p + p in them."""
    made = quantizer()
    quantized = made.schedule(0, length=10)(noise(2, 3, 4, 5))
    assert torch.equal(quantized.latents, made.lookup(quantized.codes))


def test_the_temperature_changes_the_mixture_but_not_the_codes() -> None:
    made, features, given_noise = quantizer(), noise(2, 3, 4, 5), noise(2, 6, 4, 5, seed=1)

    def chosen(temperature: float, *, hard: bool) -> Quantized:
        return made.sample(features, given_noise, temperature=temperature, hard=hard)

    hard = chosen(1.0, hard=True)
    farther: list[float] = []
    for temperature in (1e-6, 0.1, 1.0, 10.0):
        soft = chosen(temperature, hard=False)
        assert torch.equal(soft.codes, hard.codes)
        assert torch.equal(chosen(temperature, hard=True).latents, hard.latents)
        farther.append(float((soft.latents - hard.latents).detach().square().sum()))
    assert farther[0] < 1e-10
    assert farther == sorted(farther)


@pytest.mark.parametrize("used", [False, True])
def test_codes_are_drawn_as_often_as_they_are_likely(used: bool) -> None:
    made, count = quantizer(used=used, noisy=True), 4000
    features = noise(1, 3, 1, 1).expand(1, 3, 1, count)
    likely = made.logits(features)[0, :, 0, 0].softmax(0)
    share = torch.bincount(made(features).codes.flatten(), minlength=len(likely)) / count
    assert (share - likely).abs().max() < 5 * math.sqrt(0.25 / count)


# --- evaluation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("used", [False, True])
def test_evaluation_takes_the_likeliest_code(used: bool) -> None:
    made, features = quantizer(used=used), noise(2, 3, 4, 5)
    state = torch.get_rng_state()
    quantized = made(features)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(quantized.codes, made.logits(features).argmax(1))
    assert torch.equal(quantized.latents, made.lookup(quantized.codes))
    assert torch.equal(made.train()(features).codes, quantized.codes)


def test_noisy_evaluation_draws_each_time() -> None:
    made, features = quantizer(noisy=True, straight_through=False), noise(2, 3, 4, 5)
    first, second = made(features), made(features)
    assert not torch.equal(first.codes, second.codes)
    assert torch.equal(first.latents, made.lookup(first.codes))  # one code whatever training does
    assert torch.equal(first.loss, second.loss)


def test_unused_codes_are_never_chosen() -> None:
    made = quantizer(used=True)
    with torch.no_grad():
        bias_of(made)[1] = 1e3
    quantized = made(noise(2, 3, 4, 5))
    assert made.size == 4
    assert (quantized.codes < 3).all()
    vectors = quantized.latents.permute(0, 2, 3, 1).reshape(-1, 3)
    assert torch.equal(vectors, made.codebook[torch.tensor(USED)[quantized.codes.flatten()]])
    assert torch.equal(made.lookup(torch.tensor([[[3]]]))[0, :, 0, 0], made.codebook[USED[0]])


# --- the loss -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("used", [False, True])
def test_the_loss_is_the_distance_from_the_uniform_distribution(used: bool) -> None:
    """Of all codes, also where a table leaves some out: then it is log(6 / 3) more than from the table's own."""
    made, features = quantizer(used=used, kl_weight=0.3), noise(2, 3, 4, 5)
    logits = made.logits(features).movedim(1, -1)
    uniform = Categorical(logits=torch.zeros_like(logits))
    nats = kl_divergence(Categorical(logits=logits), uniform).mean() + math.log(6 / logits.shape[-1])
    for quantized in (made(features), made.schedule(0, length=10)(features), made.schedule(9, length=10)(features)):
        torch.testing.assert_close(quantized.loss, 0.3 * nats)
    assert made.bypass(features).loss.item() == 0


def test_the_loss_lies_between_0_and_the_logarithm_of_the_size() -> None:
    made, features = quantizer(kl_weight=1.0), noise(1, 3, 2, 2)
    with torch.no_grad():
        made.projection.weight.zero_()
        bias_of(made).zero_()
        assert float(made(features).loss) == pytest.approx(0, abs=1e-6)
        bias_of(made)[2] = 1e4
        assert float(made(features).loss) == pytest.approx(math.log(6), rel=1e-6)


# --- the temperature over a training --------------------------------------------------------------------------------


@given(
    start=st.floats(0.01, 2),
    peak=st.floats(0.01, 2),
    end=st.floats(0.01, 2),
    warmup=st.floats(0, 100),
    decay=st.floats(0, 100),
)
def test_the_temperature_goes_from_start_over_peak_to_end(
    start: float, peak: float, end: float, warmup: float, decay: float
) -> None:
    plan = {"start": start, "peak": peak, "end": end, "warmup": warmup, "decay": decay}
    assert warmup_cosine(0, **plan) == pytest.approx(start if warmup else peak if decay else end)
    if decay > warmup:
        assert warmup_cosine(warmup, **plan) == pytest.approx(peak)
        assert warmup_cosine((warmup + decay) / 2, **plan) == pytest.approx((peak + end) / 2)
    for seen in (max(warmup, decay), 200.0):
        assert warmup_cosine(seen, **plan) == pytest.approx(end)
    values = [warmup_cosine(seen, **plan) for seen in range(120)]
    assert min(start, peak, end) <= min(values) * (1 + 1e-9)
    assert max(values) <= max(start, peak, end) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("plan", "seen", "expected"),
    [
        ({}, 0, 1.0),
        ({}, 250, (1 + 1 / 16) / 2),
        ({}, 500, 1 / 16),
        ({}, 1000, 1 / 16),
        ({"start": 0.5, "warmup": 0.2}, 100, 0.75),
        ({"start": 0.5, "warmup": 200}, 100, 0.75),
        ({"start": 0.5, "warmup": 200, "decay": 400, "end": 0.2}, 300, 0.6),
        ({"decay": 1.0, "end": 0.2}, 500, 0.6),
    ],
)
def test_training_follows_its_plan(plan: dict[str, float], seen: int, expected: float) -> None:
    """Times are fractions of the training up to 1, and images above."""
    made, features = quantizer(straight_through=False, temperature=plan), noise(2, 3, 4, 5)
    torch.manual_seed(5)
    found = made.schedule(seen, length=1000)(features)
    torch.manual_seed(5)
    gumbel_noise = -torch.empty(2, 6, 4, 5).exponential_().log()
    wanted = made.sample(features, gumbel_noise, temperature=expected, hard=False)
    torch.testing.assert_close(found.latents, wanted.latents)
    assert torch.equal(found.codes, wanted.codes)


# --- before, after, and in other precisions -------------------------------------------------------------------------


def test_before_codes_are_used_they_are_drawn_without_a_loss() -> None:
    """Where they are not placed."""
    made = quantizer(kmeans_iterations=0, straight_through=False, temperature={"start": 0.3, "warmup": 0.5})
    features, results = noise(2, 3, 4, 5), []
    for quantize in (made.bypass, made.schedule(0, length=10)):
        torch.manual_seed(0)
        results.append(quantize(features))
    relaxed, first = results
    assert torch.equal(relaxed.latents, first.latents)
    assert torch.equal(relaxed.codes, first.codes)
    assert relaxed.loss.item() == 0


def test_before_codes_are_placed_features_are_left_alone() -> None:
    made, features = quantizer(), noise(2, 3, 4, 5).requires_grad_()
    relaxed = made.bypass(features)
    assert torch.equal(relaxed.latents, features)
    assert torch.equal(relaxed.codes, made(features).codes)
    assert relaxed.loss.item() == 0


@pytest.mark.parametrize("used", [False, True])
def test_placed_codes_are_drawn_by_their_distance(used: bool) -> None:
    """exp(-|feature - code|^2 / 2 s^2), where s^2 is the mean squared distance of features from their codes."""
    made, features = quantizer(used=used), noise(2, 3, 6, 5)
    assert made.init_features == 24
    made.init_codebook(features, generator=torch.Generator().manual_seed(0))
    flat = features.permute(0, 2, 3, 1).reshape(-1, 3)
    squares = (flat[:, None] - made.codebook.detach()).square().sum(2)  # (N,K)
    assert len(torch.unique(squares.argmin(1))) == 6
    expected = (-squares / (2 * squares.min(1).values.mean()))[:, USED if used else range(6)].log_softmax(1)
    found = made.logits(features).detach().movedim(1, -1).reshape(-1, expected.shape[1]).log_softmax(1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert all(parameter.requires_grad for parameter in made.parameters())


def test_fewer_features_than_codes_can_be_started_from() -> None:
    made = quantizer()
    made.init_codebook(noise(1, 3, 1, 2), generator=torch.Generator().manual_seed(0))
    assert all(torch.isfinite(parameter).all() for parameter in made.parameters())


def test_nothing_is_placed_and_nothing_mended() -> None:
    made, features = quantizer(kmeans_iterations=0), noise(2, 3, 4, 5)
    assert made.init_features == 0
    before = {name: value.clone() for name, value in made.state_dict().items()}
    made.init_codebook(features, generator=torch.Generator())
    assert made.update_codebook(features, torch.zeros(2, 4, 5, dtype=torch.int64), generator=torch.Generator()) == 0
    for name, value in made.state_dict().items():
        assert torch.equal(value, before[name])


def test_choosing_is_done_in_float32_under_autocast() -> None:
    made, features, given_noise = quantizer(), noise(2, 3, 4, 5).bfloat16(), noise(2, 6, 4, 5, seed=1)
    expected = made.sample(features.float(), given_noise, temperature=0.5, hard=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert made.projection(features).dtype == torch.bfloat16
        found = made.sample(features, given_noise, temperature=0.5, hard=False)
        assert made(features).latents.dtype == torch.float32
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_float64_stays_float64() -> None:
    made, features = quantizer(noisy=True, kl_weight=0.3).double(), noise(2, 3, 4, 5).double()
    quantized = made(features)
    assert quantized.latents.dtype == quantized.loss.dtype == torch.float64
    logits = made.projection(features).movedim(1, -1)
    nats = kl_divergence(Categorical(logits=logits), Categorical(logits=torch.zeros_like(logits))).mean()
    torch.testing.assert_close(quantized.loss, 0.3 * nats, rtol=1e-8, atol=0)
    assert torch.equal(quantized.latents, made.lookup(quantized.codes))
