"""smalti.kernels.causal_attention: attention in C while a prior learns is the definition, forwards and backwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

from smalti.kernels import causal_attention
from smalti.prior import Prior, nll
from smalti.prior.attention import attend
from tests.generation.test_code_sampler import small, small_gpt
from tests.processes import threads

here = pytest.mark.skipif(causal_attention._library() is None, reason="no C compiler with OpenMP on this machine")


def parts(B: int, N: int, T: int, d: int, *, lying: bool = True) -> list[Tensor]:
    """Queries, keys, values and a gradient (B,N,T,d), which lie as priors make them, (B,T,N,d), or otherwise."""
    chance = torch.Generator().manual_seed(T * d)
    made = [torch.randn(B, T, N, d, generator=chance).transpose(1, 2) for _ in range(4)]
    if not lying:  # as after a rotation, and with the numbers of a code apart
        made = [
            made[0].contiguous(),
            made[1].transpose(2, 3).contiguous().transpose(2, 3),
            made[2],
            made[3].contiguous(),
        ]
    return [*(each.requires_grad_() for each in made[:3]), made[3]]


def exactly(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """In float64, written out."""
    T, d = queries.shape[2:]
    scores = queries.double() @ keys.double().transpose(2, 3) / d**0.5
    after = torch.ones(T, T, dtype=torch.bool).triu(1)
    seen: Tensor = scores.masked_fill(after, -torch.inf).softmax(dim=3) @ values.double()
    return seen


@here
@examples(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 70), st.integers(1, 70), st.booleans())
def test_it_is_the_definition_and_its_gradients(B: int, N: int, T: int, d: int, lying: bool) -> None:
    *inputs, upstream = parts(B, N, T, d, lying=lying)
    assert causal_attention.is_supported(*inputs)
    found, exact = attend(*inputs, dropout=0.0), exactly(*inputs)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(exact, inputs, upstream.double())
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@here
def test_large_scores_stay_finite() -> None:
    *inputs, upstream = parts(1, 2, 40, 16)
    inputs = [(each.detach() * 100).requires_grad_() for each in inputs]
    found, exact = causal_attention.attend(*inputs), exactly(*inputs)
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-3)
    assert all(each.isfinite().all() for each in torch.autograd.grad(found, inputs, upstream))


@here
@pytest.mark.parametrize("count", [1, 3])
def test_the_number_of_threads_changes_nothing(count: int) -> None:
    *inputs, upstream = parts(3, 2, 50, 24)

    def made() -> tuple[Tensor, ...]:
        seen = causal_attention.attend(*inputs)
        return seen, *torch.autograd.grad(seen, inputs, upstream)

    with threads(2):
        before = made()
    with threads(count):
        assert all(map(torch.equal, before, made()))


@here
@pytest.mark.parametrize("build", [small, small_gpt])
def test_a_prior_learns_the_same_by_it(build: Callable[..., Prior], monkeypatch: pytest.MonkeyPatch) -> None:
    prior = build().train()
    codes = torch.randint(0, 9, (2, 4, 4), generator=torch.Generator().manual_seed(0))
    counted: list[Tensor] = []
    own = causal_attention.attend

    def counting(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        counted.append(queries)
        return own(queries, keys, values)

    def learned() -> tuple[Tensor, ...]:
        weights = [weight for weight in prior.parameters() if weight.requires_grad]
        loss = nll(prior, prior.null_prefix(2), codes).mean()
        return torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)

    monkeypatch.setattr(causal_attention, "attend", counting)
    ours = learned()
    assert len(counted) == 2  # blocks
    monkeypatch.setattr(causal_attention, "is_supported", lambda *inputs: False)
    for one, other in zip(ours, learned(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@here
def test_where_nothing_is_learned_it_is_left_to_pytorch() -> None:
    *inputs, _ = parts(1, 1, 8, 8)
    assert not causal_attention.is_supported(*(each.detach() for each in inputs))
    with torch.no_grad():
        assert not causal_attention.is_supported(*inputs)
        plain = F.scaled_dot_product_attention(inputs[0], inputs[1], inputs[2], is_causal=True)
        assert torch.equal(attend(*inputs, dropout=0.0), plain)
    with torch.autocast("cpu", torch.bfloat16):
        assert not causal_attention.is_supported(*inputs)
    assert not causal_attention.is_supported(*(each.double() for each in inputs))


@here
def test_a_gradient_of_its_gradient_is_refused() -> None:
    *inputs, _ = parts(1, 1, 8, 8)
    (first,) = torch.autograd.grad(causal_attention.attend(*inputs).pow(2).sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.backward(first.sum())
