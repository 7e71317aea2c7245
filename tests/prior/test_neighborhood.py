"""smalti.prior.neighborhood: what a code sees, and that images of any size are those of the plain loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.core.settings import parse
from smalti.generation.code_sampler import Sampler
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.neighborhood_decoding import RowCacheAttention, neighborhood_waves
from smalti.generation.request import GenerationRequest, unknown_codes
from smalti.prior import Neighborhood, NeighborhoodSettings, NoCache, neighborhood, nll, parameter_groups
from smalti.prior.code_likelihood import window_nll
from smalti.training.prior_networks import CodesRead, NeighborhoodNetwork, build_network
from tests import reference

GRIDS = st.tuples(st.integers(1, 8), st.integers(1, 8))


def small(**changes: Any) -> Neighborhood:
    """A small neighborhood transformer with large weights, so that its logits weigh more than the noise."""
    torch.manual_seed(0)
    plain = {
        "codebook_size": 9,
        "condition_size": 3,
        "grid": (4, 4),
        "radius": 2,
        "layers": 2,
        "embed_dim": 32,
        "heads": 2,
    }
    prior = Neighborhood(parse(NeighborhoodSettings, {**plain, **changes}, where="test"))
    with torch.no_grad():
        for weight in prior.parameters():
            weight.normal_(0, 0.3) if weight.ndim == 2 else weight.uniform_(0.5, 1.5)
    return prior.eval()


KINDS: dict[str, dict[str, Any]] = {
    "label": {"prefix_length": 1},
    "list": {"prefix_length": 3},
    "map": {"prefix_length": 16, "maps": (0,)},
    "label, map, more": {"prefix_length": 19, "maps": (1,)},
    "two maps": {"prefix_length": 34, "maps": (0, 17)},
}


def drawn(*shape: int, below: int, number: int = 0) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(number))


def prefix_for(prior: Neighborhood, batch: int, grid: tuple[int, int], number: int = 0) -> Tensor:
    count = prior.free_length + len(prior.hints) * grid[0] * grid[1]
    return drawn(batch, count, below=3, number=number)


def logits_of(prior: Neighborhood, prefix: Tensor, codes: Tensor) -> Tensor:
    """Logits of all codes, (B,h,w,K)."""
    with torch.no_grad():
        sequence = prior.join(prefix, codes.flatten(1)[:, :-1])
        logits: Tensor = prior(sequence, cache=NoCache(columns=codes.shape[2]))
    return logits[:, prefix.shape[1] - 1 :].reshape(*codes.shape, -1)


# What a code sees


@pytest.mark.parametrize("reach", [1, 2])
def test_one_layer_sees_its_neighborhood_and_nothing_else(reach: int) -> None:
    """A code is known to the place at its right and the one below, so a layer sees it from there as well."""
    prior, grid = small(layers=1, radius=reach), (7, 8)
    prefix, codes = prefix_for(prior, 1, grid), drawn(1, *grid, below=9)
    before = logits_of(prior, prefix, codes)[0]
    for i, j in ((0, 0), (2, 3), (3, 7), (5, 0)):
        other = codes.clone()
        other[0, i, j] = (other[0, i, j] + 1) % 9
        changed = (logits_of(prior, prefix, other)[0] - before).abs().amax(-1) > 1e-6
        inputs = [(i, j + 1)] * (j + 1 < grid[1]) + [(i + 1, j)] * (i + 1 < grid[0])
        for a in range(grid[0]):
            for b in range(grid[1]):
                near = any(
                    (0 < a - x <= reach and abs(b - y) <= reach) or (a == x and 0 <= b - y <= reach) for x, y in inputs
                )
                assert bool(changed[a, b]) == near, (i, j, a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_conditions_at_its_position_and_the_rest_everywhere(kind: str) -> None:
    prior, grid = small(layers=1, **KINDS[kind]), (3, 9)
    prefix, codes = prefix_for(prior, 1, grid), drawn(1, *grid, below=9)
    before = logits_of(prior, prefix, codes)[0]
    begins = [begin + number * (27 - 16) for number, begin in enumerate(prior.settings.maps)]
    for place in range(prefix.shape[1]):
        other = prefix.clone()
        other[0, place] = (other[0, place] + 1) % 3
        changed = (logits_of(prior, other, codes)[0] - before).abs().amax(-1) > 1e-6
        inside = [place - begin for begin in begins if begin <= place < begin + 27]
        if inside:
            i, j = divmod(inside[0], 9)
            assert changed[i, j]
            assert not changed.flatten()[: inside[0]].any()
            assert not changed[:, : max(j - 2, 0)].any()
        else:
            assert changed.all()


def test_the_same_surroundings_are_the_same_anywhere() -> None:
    """Far from the borders an image that is shifted has shifted logits: nothing hangs on where a place is."""
    prior = small()
    codes, prefix = drawn(1, 12, 24, below=9), drawn(1, 1, below=3)
    here = logits_of(prior, prefix, codes)[0, 5:, 6:12]
    there = logits_of(prior, prefix, codes.roll(7, dims=2))[0, 5:, 13:19]
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)


@examples(max_examples=10)
@given(GRIDS, st.integers(1, 4), st.integers(1, 5))
def test_tiles_are_the_whole_mask(grid: tuple[int, int], reach: int, tile: int) -> None:
    prior = small(radius=reach)
    prefix, codes = prefix_for(prior, 2, grid), drawn(2, *grid, below=9)
    whole = logits_of(prior, prefix, codes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighborhood, "TILE_SIZE", tile)
        torch.testing.assert_close(logits_of(prior, prefix, codes), whole, rtol=1e-4, atol=1e-4)


# When a code is laid, and what is kept


@given(GRIDS, st.integers(1, 4))
def test_a_wave_sees_earlier_waves_alone(grid: tuple[int, int], reach: int) -> None:
    waves = neighborhood_waves(torch.ones(grid, dtype=torch.bool), radius=reach)
    number = {place[:2]: count for count, wave in enumerate(waves) for place in wave}
    assert len(number) == grid[0] * grid[1]
    for i, j in number:
        for a in range(max(i - reach, 0), i + 1):
            for b in range(max(j - reach, 0), min(j + reach, grid[1] - 1) + 1):
                if a < i or b < j:
                    assert number[a, b] < number[i, j]


def test_a_grid_of_64_with_a_reach_of_4_takes_379_waves() -> None:
    assert len(neighborhood_waves(torch.ones(64, 64, dtype=torch.bool), radius=4)) == 64 + 63 * 5


@pytest.mark.parametrize(("grid", "rows"), [((64, 16), 2 + 1 + 6), ((4, 16), 4), ((64, 2), 2 + 1 + 1)])
def test_only_the_rows_in_reach_are_kept(grid: tuple[int, int], rows: int) -> None:
    prior = small()
    ring = RowCacheAttention(grid, prefix=prior.encode_prefix(drawn(1, 1, below=3)), radius=prior.radius)
    assert ring.rows == rows


# Images


@examples(max_examples=15)
@given(
    st.sampled_from(sorted(KINDS)),
    GRIDS,
    st.integers(1, 3),
    st.sampled_from([1.0, 1.7]),
    st.integers(1, 2),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(0, 2**31),
)
def test_images_are_those_of_the_plain_loop(
    kind: str, grid: tuple[int, int], reach: int, guidance: float, batch: int, share: float, number: int
) -> None:
    prior = small(radius=reach, **KINDS[kind])
    known = drawn(batch, *grid, below=9, number=number)
    known[torch.rand(known.shape, generator=torch.Generator().manual_seed(number)) < share] = -1
    prefix, seeds = prefix_for(prior, batch, grid, number), torch.arange(batch) + number
    sampler = Sampler(temperature=0.9, guidance=guidance)
    codes = final_codes(
        generate(prior, GenerationRequest(lambda window: prefix, sampler=sampler, seeds=seeds, known=known))
    )
    empty = torch.full((prefix.shape[1],), 3)
    for item in range(batch):
        truth = reference.sampled_whole(prior, prefix[item], empty, known[item], sampler=sampler, seed=int(seeds[item]))
        assert torch.equal(codes[item], truth)


def test_each_wave_is_one_call_and_a_row_of_codes_is_more_each_time() -> None:
    prior, calls = small(), []
    prior.left.register_forward_hook(lambda module, inputs, out: calls.append(tuple(inputs[0].shape)))
    steps = list(
        generate(
            prior,
            GenerationRequest(
                lambda window: drawn(2, 1, below=3),
                sampler=Sampler(),
                seeds=torch.arange(2),
                known=unknown_codes(2, (5, 12)),
            ),
        )
    )
    assert len(calls) == 12 + 4 * 3
    assert sum(count for _, count in calls) == 5 * 12
    assert len(steps) == 5
    generated = [int((codes[0] >= 0).sum()) for codes in steps]
    assert all(12 * row <= count < 12 * row + 5 for row, count in enumerate(generated, start=1))


def test_an_image_that_is_unconditional_may_have_any_size() -> None:
    prior = small(**KINDS["label, map, more"])
    null, known, seeds = prior.null_prefix(1), unknown_codes(1, (3, 7)), torch.arange(1)
    generated = final_codes(
        generate(prior, GenerationRequest(lambda window: null, sampler=Sampler(), seeds=seeds, known=known))
    )
    whole = torch.full((1, 3 + 21), 3)
    same = final_codes(
        generate(prior, GenerationRequest(lambda window: whole, sampler=Sampler(), seeds=seeds, known=known))
    )
    assert torch.equal(generated, same)
    with pytest.raises(SmaltiError, match="the prefix has 19 codes, and for 3 x 7 codes this prior reads 24"):
        final_codes(
            generate(prior, GenerationRequest(lambda window: null * 0, sampler=Sampler(), seeds=seeds, known=known))
        )


def test_likelihoods_of_any_size_are_those_of_the_whole_image() -> None:
    prior, codes = small(), drawn(2, 6, 9, below=9)
    prefix = prefix_for(prior, 2, (6, 9))
    with torch.no_grad():
        found = window_nll(prior, lambda window: prefix, codes)
    truth = -logits_of(prior, prefix, codes).log_softmax(-1).gather(3, codes[..., None])[..., 0]
    torch.testing.assert_close(found, truth)


# Training


def test_it_learns_from_crops_and_knows_larger_images() -> None:
    """Stripes of a width that the class tells: learned on 6 x 6 codes, and as likely on 12 x 18."""
    torch.manual_seed(0)
    prior = build_network(
        NeighborhoodNetwork(layers=1, embed_dim=32, heads=2, radius=2, dropout=0.0), CodesRead(4, (6, 6), 2, 1)
    ).prior
    optimizer = torch.optim.AdamW(parameter_groups(prior, weight_decay=0.0), lr=0.01)

    def striped(kind: int, height: int, width: int) -> Tensor:
        start = int(torch.randint(4, ()))
        return ((torch.arange(width) + start) // (kind + 1) % 4).expand(height, width)

    def batch(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        variants = torch.randint(2, (16, 1))
        return variants, torch.stack([striped(int(kind), *size) for kind in variants])

    for _ in range(60):
        optimizer.zero_grad()
        torch.autograd.backward(nll(prior, *batch((6, 6))).mean())
        optimizer.step()
    prior.eval()
    with torch.no_grad():
        trained, larger = (float(nll(prior, *batch(size))[:, 1:].mean()) for size in ((6, 6), (12, 18)))
    assert trained < 0.1
    assert larger < 0.1


def test_settings_that_do_not_go_together_raise_errors() -> None:
    with pytest.raises(SmaltiError, match="multiple of 4 x heads"):
        small(embed_dim=36)
    with pytest.raises(SmaltiError, match="a map of 16 codes from 1 on does not fit into 16 prefix codes"):
        small(prefix_length=16, maps=(1,))
