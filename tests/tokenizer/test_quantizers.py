"""Nearest codes (VQ): the search, the loss and its gradients against plain forms, start and restart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from smalti.core.settings import parse
from smalti.tokenizer.quantizers import VQ, VQSettings, kmeans, nearest, search
from smalti.tokenizer.quantizers.vq import code_counts, forgotten
from tests import reference


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Uniform in [-1, 1]."""
    return torch.rand(*shape, generator=seeded(seed)) * 2 - 1


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quantizer(**changes: Any) -> VQ:
    torch.manual_seed(0)
    made = VQ(
        parse(VQSettings, {"codebook_size": 5, "codebook_dim": 3, "l2_normalize": False, **changes}, where="test")
    )
    with torch.no_grad():
        made.codebook.copy_(noise(*made.codebook.shape, seed=3))
    return made


# --- the nearest code ----------------------------------------------------------------------------------------------


@examples(deadline=None)
@given(data=st.data(), dimension=st.integers(1, 4), size=st.integers(1, 12), count=st.integers(0, 20))
def test_nearest_is_the_whole_matrix(data: st.DataObject, dimension: int, size: int, count: int) -> None:
    """Small whole numbers, for which float32 is exact, so that ties are ties in both forms; and pieces of any
    height."""
    length = (size + count) * dimension
    numbers = data.draw(st.lists(st.integers(-2, 2), min_size=length, max_size=length))
    table = torch.tensor(numbers, dtype=torch.float32).view(-1, dimension)
    codebook, vectors = table[:size], table[size:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "SEARCH_ELEMENTS", data.draw(st.integers(1, 60)))
        patch.setattr(search, "SEARCH_CODES", data.draw(st.integers(1, 13)))
        found = nearest(vectors, codebook)
    assert found.tolist() == (reference.nearest(vectors, codebook).tolist() if count else [])


@pytest.mark.parametrize("pieces", [1, 700, 2**22])
def test_nearest_of_ordinary_vectors(monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    monkeypatch.setattr(search, "SEARCH_ELEMENTS", pieces)
    vectors, codebook = noise(50, 6), noise(33, 6, seed=1)
    assert torch.equal(nearest(vectors, codebook), reference.nearest(vectors, codebook))


def test_the_first_of_equals_is_taken() -> None:
    assert (
        nearest(torch.zeros(3, 2), torch.tensor([[5.0, 5.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])).tolist() == [1] * 3
    )


def test_nearest_is_found_in_float32_under_autocast() -> None:
    codebook = torch.tensor([[1.0, 1.0], [1.001, 1.0]])  # one and the same in bfloat16
    vectors = torch.tensor([[1.0011, 1.0], [0.9, 1.0]])
    assert torch.equal(codebook[0].bfloat16(), codebook[1].bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (vectors @ codebook.T).dtype == torch.bfloat16
        assert nearest(vectors, codebook).tolist() == [1, 0]


@pytest.mark.parametrize("normalized", [True, False])
def test_quantizing_is_done_in_float32_under_autocast(normalized: bool) -> None:
    made, features = quantizer(l2_normalize=normalized), noise(2, 3, 4, 4).bfloat16()
    expected = made(features.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = made(features)
    assert found.latents.dtype == found.loss.dtype == torch.float32
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


# --- the quantizer -------------------------------------------------------------------------------------------------


def test_float64_stays_float64() -> None:
    """Once everything was cut to float32, in which these two codes are one."""
    codebook = torch.tensor([[1.0, 1.0], [1.0 + 5e-8, 1.0]], dtype=torch.float64)
    vectors = torch.tensor([[1.0 + 1e-7, 1.0], [0.9, 1.0]], dtype=torch.float64)
    assert nearest(vectors, codebook).tolist() == [1, 0]
    for pair in ((vectors.float(), codebook.float()), (vectors, codebook.float())):
        assert nearest(*pair).tolist() == [0, 0]

    made, features = quantizer().double(), noise(2, 3, 4, 4).double()
    quantized = made(features)
    chosen = made.codebook.detach()[quantized.codes].permute(0, 3, 1, 2)
    torch.testing.assert_close(quantized.latents.detach(), chosen, rtol=0, atol=1e-15)
    expected = 1.25 * (features - chosen).square().mean()
    torch.testing.assert_close(quantized.loss.detach(), expected, rtol=1e-14, atol=0)
    made.update_codebook(features, quantized.codes, generator=seeded(0))
    assert made.use.dtype == torch.float64


def test_nearest_codes_are_the_same_early_and_late() -> None:
    made = quantizer()
    assert made.schedule(0, length=10) is made
    assert made.schedule(10, length=10) is made


def test_gradients_pass_straight_through() -> None:
    features, direction = noise(2, 3, 4, 5).requires_grad_(), noise(2, 3, 4, 5, seed=1)
    (gradient,) = torch.autograd.grad((quantizer()(features).latents * direction).sum(), features)
    assert torch.equal(gradient, direction)


def test_normalized_gradients_pass_through_the_normalization() -> None:
    features, direction = noise(2, 3, 4, 5).requires_grad_(), noise(2, 3, 4, 5, seed=1)
    quantized = quantizer(l2_normalize=True)(features)
    (gradient,) = torch.autograd.grad((quantized.latents * direction).sum(), features)
    (expected,) = torch.autograd.grad((F.normalize(features, dim=1) * direction).sum(), features)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(quantized.latents.norm(dim=1), torch.ones(2, 4, 5))


def test_only_directions_count_where_codes_are_normalized() -> None:
    made, features = quantizer(l2_normalize=True), noise(2, 3, 4, 5)
    before = made(features)
    with torch.no_grad():
        made.codebook.mul_(torch.tensor([[0.1], [1], [2], [30], [0.5]]))
    after = made(7 * features)
    assert torch.equal(before.codes, after.codes)
    torch.testing.assert_close(before.latents, after.latents)
    torch.testing.assert_close(before.loss, after.loss)


@pytest.mark.parametrize("beta_on", ["commitment", "codebook"])
def test_the_loss_is_equation_4(beta_on: str) -> None:
    """Both terms have the value v = mean |z - e|^2 (over all numbers), and each moves one side only."""
    made, features, beta = quantizer(beta_on=beta_on, commitment=0.3), noise(2, 3, 2, 2).requires_grad_(), 0.3
    flat = features.detach().permute(0, 2, 3, 1).reshape(-1, 3)
    codes = reference.nearest(flat, made.codebook.detach())
    difference = flat - made.codebook.detach()[codes]
    to_features, to_codes = (beta, 1.0) if beta_on == "commitment" else (1.0, beta)

    quantized = made(features)
    assert torch.equal(quantized.codes.flatten(), codes)
    torch.testing.assert_close(quantized.loss.detach(), (1 + beta) * difference.square().mean())
    of_features, of_codes = torch.autograd.grad(quantized.loss, [features, made.codebook])
    expected = to_features * 2 * difference / difference.numel()
    torch.testing.assert_close(of_features.permute(0, 2, 3, 1).reshape(-1, 3), expected)
    for code in range(made.size):
        expected = -to_codes * 2 * difference[codes == code].sum(0) / difference.numel()
        torch.testing.assert_close(of_codes[code], expected)


# --- start and restart ---------------------------------------------------------------------------------------------


def clusters(*, normalized: bool) -> tuple[Tensor, Tensor]:
    """Four far centers (4, D), and 40 vectors within 0.05 of each, shuffled."""
    centers = torch.eye(4) * (1.0 if normalized else 10.0)
    vectors = centers.repeat(40, 1) + 0.05 * noise(160, 4)
    return centers, F.normalize(vectors, dim=1) if normalized else vectors


@pytest.mark.parametrize("normalized", [True, False])
def test_kmeans_finds_separated_clusters(normalized: bool) -> None:
    centers, vectors = clusters(normalized=normalized)
    found = kmeans(vectors, 16, rounds=10, normalized=normalized, generator=seeded(0))
    assert found.shape == (16, 4)
    assert torch.equal(torch.unique(nearest(found, centers)), torch.arange(4))
    assert (found - centers[nearest(found, centers)]).abs().max() < 0.1
    if normalized:
        torch.testing.assert_close(found.norm(dim=1), torch.ones(16))


def test_a_single_center_is_the_mean() -> None:
    vectors = noise(30, 4)
    found = kmeans(vectors, 1, rounds=1, normalized=False, generator=seeded(0))
    torch.testing.assert_close(found, vectors.mean(0, keepdim=True))


def test_rounds_of_kmeans_come_closer() -> None:
    vectors, errors = noise(200, 3), []
    for rounds in range(6):
        centers = kmeans(vectors, 8, rounds=rounds, normalized=False, generator=seeded(0))
        errors.append(float((vectors - centers[nearest(vectors, centers)]).square().sum()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.8 * errors[0]


def test_kmeans_of_fewer_vectors_than_centers() -> None:
    vectors = noise(3, 2)
    found = kmeans(vectors, 8, rounds=3, normalized=False, generator=seeded(0))
    torch.testing.assert_close(found, vectors[nearest(found, vectors)])
    assert torch.equal(torch.unique(nearest(found, vectors)), torch.arange(3))


def test_start_places_codes_on_features() -> None:
    _, vectors = clusters(normalized=False)
    features = vectors.view(2, 8, 10, 4).permute(0, 3, 1, 2)
    made = quantizer(codebook_size=16, codebook_dim=4, kmeans_iterations=10)
    assert made.init_features == 64
    made.init_codebook(features, generator=seeded(0))
    assert float(made(features).loss.detach()) < 0.01
    assert made.codebook.requires_grad


def test_without_kmeans_nothing_is_requested() -> None:
    assert quantizer(codebook_size=16, codebook_dim=4, kmeans_iterations=0).init_features == 0


def test_dead_codes_restart_and_only_they() -> None:
    features = noise(2, 3, 4, 4)
    codes = torch.zeros(2, 4, 4, dtype=torch.int64)
    codes[0, :2] = 3
    made = quantizer(usage_decay=0.0)
    before = made.codebook.detach().clone()
    assert made.update_codebook(features, codes, generator=seeded(0)) == 3
    assert torch.equal(made.codebook[[0, 3]], before[[0, 3]])
    flat = features.permute(0, 2, 3, 1).reshape(-1, 3)
    rows = nearest(made.codebook[[1, 2, 4]].detach(), flat)
    assert torch.equal(made.codebook[[1, 2, 4]], flat[rows])
    assert len(torch.unique(rows)) == 3
    torch.testing.assert_close(made.use, torch.tensor([24 / 32 * 5, 1.0, 1.0, 8 / 32 * 5, 1.0]))


def test_restarts_are_repeatable() -> None:
    features, codes, books = noise(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64), []
    for seed in (0, 0, 1):
        made = quantizer(usage_decay=0.0)
        made.update_codebook(features, codes, generator=seeded(seed))
        books.append(made.codebook.detach())
    assert torch.equal(books[0], books[1])
    assert not torch.equal(books[0], books[2])


def test_use_is_remembered() -> None:
    features, codes = noise(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64)
    made = quantizer(usage_decay=0.5, dead_code_threshold=0.1)
    moved = [made.update_codebook(features, codes, generator=seeded(0)) for _ in range(4)]
    assert moved == [0, 0, 0, 4]  # 1/2, 1/4, 1/8, 1/16 of the mean use
    assert (
        quantizer(usage_decay=0.0, dead_code_threshold=0.0).update_codebook(features, codes, generator=seeded(0)) == 0
    )


def test_no_more_codes_restart_than_a_quarter_of_the_vectors() -> None:
    """Those that are used least."""
    made = quantizer(usage_decay=0.0, dead_code_threshold=0.9)
    made.use[1:] = torch.tensor([0.5, 0.3, 0.6, 0.2])
    before = made.codebook.detach().clone()
    assert made.update_codebook(noise(1, 3, 2, 4), torch.zeros(1, 2, 4, dtype=torch.int64), generator=seeded(0)) == 2
    assert (made.codebook != before).any(1).tolist() == [False, False, True, False, True]


def test_use_is_remembered_until_each_code_has_had_its_turns() -> None:
    assert forgotten(0.95, vectors=4096, size=1024) == pytest.approx(0.05)
    assert forgotten(0.95, vectors=1024, size=16384) == 1 / 64
    assert forgotten(0.5, vectors=10**6, size=2) == 0.5


def test_codes_that_are_all_used_alike_are_not_called_dead_by_chance() -> None:
    """256 codes, 16 vectors per step. With a memory of 20 steps, 1.25 uses a code, hundreds of codes restarted."""
    made, generator = quantizer(codebook_size=256), seeded(0)
    features = noise(1, 3, 4, 4)
    moved = [
        made.update_codebook(features, torch.randint(0, 256, (1, 4, 4), generator=generator), generator=generator)
        for _ in range(400)
    ]
    assert sum(moved) < 5
    assert made.use.mean() == pytest.approx(1, abs=0.2)


def test_counts_are_those_of_bincount() -> None:
    codes = torch.randint(0, 7, (2, 5, 6), generator=seeded(0))
    assert torch.equal(code_counts(codes, 9), torch.bincount(codes.flatten(), minlength=9).float())


def test_restarted_codes_have_length_1_where_codes_are_normalized() -> None:
    made = quantizer(usage_decay=0.0, l2_normalize=True)
    made.update_codebook(9 * noise(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64), generator=seeded(0))
    torch.testing.assert_close(made.codebook[1:].norm(dim=1), torch.ones(4))


def test_relaxed_latents_are_the_features_themselves() -> None:
    """Before the codes are placed: unquantized, of length 1, without a loss, and with a gradient for every
    parameter."""
    quantizer = VQ(VQSettings(codebook_size=8, codebook_dim=4))
    features = noise(2, 4, 3, 5).requires_grad_()
    relaxed = quantizer.bypass(features)
    assert torch.equal(relaxed.latents, torch.nn.functional.normalize(features, dim=1))
    assert torch.equal(relaxed.codes, quantizer(features).codes)
    assert float(relaxed.loss.detach()) == 0
    (relaxed.latents.sum() + relaxed.loss).backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None
    assert quantizer.codebook.grad is not None
    assert not quantizer.codebook.grad.any()
