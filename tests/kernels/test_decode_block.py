"""smalti.kernels.decode_block: what C computes for few codes is what PyTorch computes, up to rounding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor, nn

from smalti.conditions.base import constant_prefix
from smalti.generation import generation_loop
from smalti.generation.code_sampler import Sampler
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import GenerationRequest, unknown_codes
from smalti.kernels.decode_block import MAX_ROWS, DecodeBlock, PackedLinear, attend, attention_is_supported, available
from smalti.kernels.prepacked import prepacked
from smalti.prior import GPT, Neighborhood, Prior, Transformer
from tests.generation.test_code_sampler import small, small_gpt
from tests.prior.test_neighborhood import small as small_neighborhood
from tests.processes import threads

here = pytest.mark.skipif(not available(), reason="no C compiler with OpenMP on this machine")
BUILDERS: dict[str, Callable[..., Prior]] = {
    "transformer": small,
    "gpt": small_gpt,
    "neighborhood": small_neighborhood,
}


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def close_to_exact(found: Tensor, exact: Tensor, *, far: float = 1e-5) -> None:
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() <= far * exact.abs().max().clamp(min=1)


@here
@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("read", "made"), [(40, 72), (7, 16), (64, 5)])
def test_a_row_does_not_hang_on_the_others(read: int, made: int, bias: bool) -> None:
    panels = PackedLinear(nn.Linear(read, made, bias=bias))
    x = numbers(MAX_ROWS, read)
    alone = torch.cat([panels(row[None]) for row in x])
    with threads(3):
        for rows in range(1, MAX_ROWS + 1):
            assert torch.equal(panels(x[:rows]), alone[:rows])


@here
@torch.no_grad()
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 40), st.integers(0, 5), st.sampled_from([8, 24, 64, 72, 136])
)
def test_one_query_sees_what_attention_is(B: int, N: int, S: int, free: int, d: int) -> None:
    query, keys, values = (
        numbers(B, 1, N, d).transpose(1, 2),
        numbers(B, N, S + free, d),
        3 + numbers(B, N, S + free, d),
    )
    keys, values = keys[:, :, :S], values[:, :, :S]  # as they are in a cache that is not full
    assert attention_is_supported(query, keys, values)
    exact = F.scaled_dot_product_attention(query.double(), keys.double(), values.double())
    found = attend(query, keys, values)
    close_to_exact(found, exact)
    with threads(3):
        assert torch.equal(attend(query, keys, values), found)


@here
def test_what_attention_is_pytorchs() -> None:
    one, kept = numbers(1, 2, 1, 16), numbers(1, 2, 5, 16)
    assert not attention_is_supported(one, kept, kept)  # gradients may be asked for
    with torch.no_grad():
        assert attention_is_supported(one, kept, kept)
        assert not attention_is_supported(kept, kept, kept)
        assert not attention_is_supported(one[..., :4], kept[..., :4], kept[..., :4])
        assert not attention_is_supported(one.double(), kept.double(), kept.double())
        assert not attention_is_supported(one, kept, kept.transpose(1, 2).contiguous().transpose(1, 2))
        assert not attention_is_supported(one, kept[..., ::2], kept[..., ::2])
        with torch.autocast("cpu"):
            assert not attention_is_supported(one, kept, kept)


SIZES = st.sampled_from([(16, 1), (32, 2), (48, 2), (64, 1)])


@here
@torch.no_grad()
@examples(max_examples=30)
@given(
    st.sampled_from(["transformer", "gpt", "plain transformer"]),
    SIZES,
    st.integers(1, 5),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.sampled_from([1, 2]),
)
def test_blocks_are_the_same_code_by_code(
    name: str, size: tuple[int, int], batch: int, calls: list[int], threaded: int
) -> None:
    width, heads = size
    changes = (
        {"query_key_norm": False, "mlp_dim": 48, "prefix_rotation": "erased"} if name == "plain transformer" else {}
    )
    prior = BUILDERS[name.split()[-1]](embed_dim=width, heads=heads, **changes)
    prior.requires_grad_(False)
    exact = copy.deepcopy(prior).double()
    caches = prior.empty_cache(), exact.empty_cache()
    copied = prepacked(prior)
    steps = [block.decode_block for block in copied.get_submodule("blocks").children()]
    assert all(isinstance(step, DecodeBlock) for step in steps)
    with threads(threaded):
        for count in calls:
            codes = torch.randint(9, (batch, count), generator=torch.Generator().manual_seed(count))
            close_to_exact(copied(codes, cache=caches[0]), exact(codes, cache=caches[1]), far=2e-5)


@here
@torch.no_grad()
@pytest.mark.parametrize("scale", [0.1, 30.0, 3000.0])
@pytest.mark.parametrize("name", ["gpt", "transformer"])
def test_gates_are_right_far_from_zero(name: str, scale: float) -> None:
    """GELU and SiLU of numbers up to a hundred thousand, where an exponential would leave the floats."""
    prior = BUILDERS[name](layers=1)
    block: Any = prior.get_submodule("blocks.0")
    block.up = nn.Linear(block.up.in_features, block.up.out_features)  # with a bias, which a gated one need not have
    block.up.weight.mul_(scale * 10)
    block.down.weight.div_(scale)
    x, seen = numbers(2, 1, 32), numbers(2, 2, 1, 16)
    step: Any = prepacked(prior).get_submodule("blocks.0").decode_block
    double = copy.deepcopy(block).double()
    exact = x.double() + double.attention.out(seen.double().transpose(1, 2).flatten(2))
    hidden = double.up(double.mlp_norm(exact))
    gate, value = hidden.chunk(2, dim=-1)
    exact = exact + double.down(F.gelu(hidden) if name == "gpt" else F.silu(gate) * value)
    close_to_exact(step.finish(x, seen), exact)


@here
@examples(max_examples=15)
@given(
    st.sampled_from(list(BUILDERS)),
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(1, 3),
    st.sampled_from([1.0, 1.5]),
    st.integers(0, 2**40),
)
def test_the_codes_are_those_of_pytorch(
    name: str, height: int, width: int, batch: int, guidance: float, seed: int
) -> None:
    prior = BUILDERS[name]()

    def generated() -> Tensor:
        prefix, seeds = prior.null_prefix(batch), seed + torch.arange(batch)
        known, sampler = unknown_codes(batch, (height, width)), Sampler(top_k=5, guidance=guidance)
        return final_codes(
            generate(prior, GenerationRequest(constant_prefix(prefix), sampler=sampler, seeds=seeds, known=known))
        )

    found = generated()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation_loop, "prepacked", lambda module: module)
        assert torch.equal(found, generated())


@torch.no_grad()
@pytest.mark.parametrize("build", [small, small_gpt])
def test_widths_that_do_not_suit_are_pytorchs(build: Callable[..., Transformer | GPT]) -> None:
    prior = build(embed_dim=24, heads=2)  # heads of 12 numbers
    codes = torch.tensor([[1], [2]])
    found = prepacked(prior)(codes, cache=prior.empty_cache())
    torch.testing.assert_close(found, prior(codes, cache=prior.empty_cache()), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", BUILDERS)
def test_without_a_compiler_it_is_onednns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smalti.kernels.decode_block._library", lambda: None)
    prior = BUILDERS[name]()
    copied, codes = prepacked(prior), torch.tensor([[1, 2]])
    assert not any(isinstance(module, PackedLinear) for module in copied.modules())
    if isinstance(prior, Neighborhood):
        codes = prior.join(prior.null_prefix(1), torch.zeros(1, 15, dtype=torch.int64))
    found = copied(codes, cache=prior.empty_cache())
    torch.testing.assert_close(found, prior(codes, cache=prior.empty_cache()), rtol=1e-4, atol=1e-4)
