"""smalti.kernels.prepacked: the same numbers from weights that are ordered otherwise."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor, nn

from smalti.conditions.base import constant_prefix
from smalti.generation import generation_loop
from smalti.generation.code_sampler import Sampler
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import GenerationRequest, unknown_codes
from smalti.kernels.decode_block import MAX_ROWS
from smalti.kernels.prepacked import prepacked
from tests.generation.test_code_sampler import small, small_gpt
from tests.prior.test_neighborhood import small as small_neighborhood
from tests.prior.test_pixelsnail import small as small_pixelsnail

BUILDERS = {
    "transformer": small,
    "gpt": small_gpt,
    "pixelsnail": small_pixelsnail,
    "neighborhood": small_neighborhood,
}


@examples(max_examples=20)
@given(st.integers(1, MAX_ROWS + 8), st.integers(1, 70), st.integers(1, 70), st.booleans())
def test_products_are_the_same_up_to_rounding(rows: int, read: int, made: int, bias: bool) -> None:
    holder = nn.Sequential(nn.Linear(read, made, bias=bias))
    x = torch.randn(rows, read)
    with torch.no_grad():
        exact = holder.double()(x.double()).float()
        holder.float()
        for shape in ((rows, read), (rows, 1, read), (1, rows, read)):
            found = prepacked(holder)(x.view(shape))
            torch.testing.assert_close(found.view(rows, made), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_prepacked_prior_generates_the_same_codes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = BUILDERS[name](grid=(4, 4))

    def laid() -> Tensor:
        prefix, seeds = prior.null_prefix(3), torch.arange(3)
        return final_codes(
            generate(
                prior,
                GenerationRequest(
                    constant_prefix(prefix), sampler=Sampler(guidance=1.5), seeds=seeds, known=unknown_codes(3, (6, 7))
                ),
            )
        )

    found = laid()
    monkeypatch.setattr(generation_loop, "prepacked", lambda module: module)
    assert torch.equal(found, laid())


def test_packing_leaves_the_module_as_it_is_and_shares_what_it_can() -> None:
    prior = small_gpt()
    before = copy.deepcopy(prior.state_dict())
    copied = prepacked(prior)
    assert type(copied) is type(prior)
    assert copied.embedding is prior.embedding
    assert isinstance(prior.head, nn.Linear)
    assert not isinstance(copied.head, nn.Linear)
    assert copied.head.weight is prior.head.weight
    assert all(torch.equal(value, before[key]) for key, value in prior.state_dict().items())


def test_what_onednn_has_nothing_for_stays_as_it_is() -> None:
    prior = small_gpt().double()
    assert prepacked(prior) is prior
