"""Maps in the prefix of the transformer: placed as the image's codes are, and told where the next code is laid."""

from __future__ import annotations

import pytest
import torch

from smalti.conditions.base import constant_prefix
from smalti.core.errors import SmaltiError
from smalti.core.settings import parse
from smalti.generation.code_sampler import Sampler
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import GenerationRequest, unknown_codes
from smalti.prior import Transformer, TransformerSettings, nll

GRID, SIZE, CONDITION = (3, 4), 11, 7


def built(*, maps: tuple[int, ...], prefix: int, seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    settings = TransformerSettings(
        codebook_size=SIZE,
        condition_size=CONDITION,
        prefix_length=prefix,
        maps=maps,
        grid=GRID,
        layers=2,
        embed_dim=32,
        heads=2,
    )
    return Transformer(settings).eval()


def drawn(prefix: int, *, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(3)
    inputs = torch.randint(CONDITION, (batch, prefix), generator=chance)
    return inputs, torch.randint(SIZE, (batch, GRID[0] * GRID[1]), generator=chance)


@pytest.mark.parametrize(("maps", "prefix"), [((0,), 12), ((1,), 13), ((0, 14), 26)])
@torch.no_grad()
def test_code_by_code_it_is_the_same(maps: tuple[int, ...], prefix: int) -> None:
    prior = built(maps=maps, prefix=prefix)
    inputs, codes = drawn(prefix)
    sequence = prior.join(inputs, codes[:, :-1])
    whole = prior(sequence)
    for first in (1, prefix, prefix + 5):
        cache = prior.empty_cache()
        parts = [prior(sequence[:, :first], cache=cache)]
        parts += [prior(sequence[:, place : place + 1], cache=cache) for place in range(first, sequence.shape[1])]
        assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)


@torch.no_grad()
def test_the_map_conditions_where_the_next_code_is_generated() -> None:
    """With attention and perceptrons silenced, nothing but the hint is left: each code hears its own place
    of the map alone."""
    prior = built(maps=(1,), prefix=13)
    for block in prior.blocks:
        block.attention.out.weight.zero_()  # type: ignore[union-attr,operator]
        block.down.weight.zero_()  # type: ignore[union-attr,operator]
    inputs, codes = drawn(13, batch=1)
    before = nll(prior, inputs, codes.view(1, *GRID))
    for place in range(12):
        changed = inputs.clone()
        changed[:, 1 + place] = (changed[:, 1 + place] + 1) % CONDITION
        moved = (nll(prior, changed, codes.view(1, *GRID)) - before).abs().flatten() > 1e-7
        # The last code of the prefix is also what the first image code is read from.
        assert moved.nonzero().flatten().tolist() == sorted({place, *([0] if place == 11 else [])})


@torch.no_grad()
def test_later_codes_do_not_reach_earlier_ones() -> None:
    prior = built(maps=(0,), prefix=12)
    inputs, codes = drawn(12, batch=1)
    before = prior(prior.join(inputs, codes))
    for place in range(12):
        changed = codes.clone()
        changed[:, place] = (changed[:, place] + 1) % SIZE
        same = (prior(prior.join(inputs, changed)) == before).all(-1)[0]
        assert same[: 12 + place].all()
        assert not same[12 + place]


@torch.no_grad()
def test_larger_and_narrower_grids_are_generated() -> None:
    prior = built(maps=(0,), prefix=12)
    sampler = Sampler()
    for grid in ((5, 6), (3, 2)):
        prefix = prior.null_prefix(2)
        generated = final_codes(
            generate(
                prior,
                GenerationRequest(
                    constant_prefix(prefix), sampler=sampler, seeds=torch.arange(2), known=unknown_codes(2, grid)
                ),
            )
        )
        assert generated.shape == (2, *grid)
        assert (generated >= 0).all()


def test_orders_other_than_raster_have_their_own_positions() -> None:
    torch.manual_seed(0)
    settings = TransformerSettings(
        codebook_size=SIZE,
        condition_size=CONDITION,
        prefix_length=12,
        maps=(0,),
        grid=GRID,
        layers=1,
        embed_dim=32,
        heads=2,
        order="spiral_in",
    )
    prior = Transformer(settings).eval()
    prior.blocks[0].attention.out.weight.data.zero_()  # type: ignore[union-attr,operator]
    prior.blocks[0].down.weight.data.zero_()  # type: ignore[union-attr,operator]
    inputs, codes = drawn(12, batch=1)
    with torch.no_grad():
        before = nll(prior, inputs, codes.view(1, *GRID))
        for place in range(11):
            changed = inputs.clone()
            changed[:, place] = (changed[:, place] + 1) % CONDITION
            moved = (nll(prior, changed, codes.view(1, *GRID)) - before).abs().flatten() > 1e-7
            assert moved.nonzero().flatten().tolist() == [place]


def test_a_map_that_does_not_fit_is_refused() -> None:
    values = {"codebook_size": 4, "condition_size": 3, "prefix_length": 12, "maps": (1,), "grid": GRID}
    with pytest.raises(SmaltiError, match="a map of 12 codes from 1 on does not fit into 12 prefix codes"):
        parse(TransformerSettings, values, where="network")
