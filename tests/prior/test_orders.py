"""smalti.prior.order: every order beside its definition, and what a prior does with one."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from smalti.core.errors import SmaltiError
from smalti.core.settings import parse
from smalti.prior import GPT, ORDERS, GPTSettings, Order, Transformer, TransformerSettings, nll
from smalti.prior.cache import NoCache

# Places of a grid of 4 x 4, in the order in which the original visits them.
VISITS: dict[Order, list[int]] = {
    "raster": list(range(16)),
    "subsample": [0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15],
    "z_curve": [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15],
    "spiral_out": [9, 5, 6, 10, 14, 13, 12, 8, 4, 0, 1, 2, 3, 7, 11, 15],
    "spiral_in": [15, 11, 7, 3, 2, 1, 0, 4, 8, 12, 13, 14, 10, 6, 5, 9],
    "random": [3, 13, 7, 2, 6, 10, 4, 1, 14, 0, 15, 9, 8, 12, 11, 5],
    "alternate": [0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11, 15, 14, 13, 12],
}
SIDES = st.integers(1, 9)


def prior(kind: str = "gpt", **changes: Any) -> GPT | Transformer:
    """A small prior with a window of 4 x 4."""
    torch.manual_seed(0)
    values = {"codebook_size": 7, "grid": (4, 4), "layers": 1, "embed_dim": 16, "heads": 2, **changes}
    if kind == "gpt":
        return GPT(
            parse(GPTSettings, {"vocab_size": 7, "block_size": 16, "start_code": 0, **values}, where="test")
        ).eval()
    return Transformer(parse(TransformerSettings, values, where="test")).eval()


def test_every_order_has_a_name_and_a_test() -> None:
    assert set(get_args(Order)) == set(ORDERS) == set(VISITS)


@pytest.mark.parametrize("name", VISITS)
def test_a_square_is_visited_as_the_original_does(name: Order) -> None:
    assert ORDERS[name](4, 4).tolist() == VISITS[name]


@pytest.mark.parametrize("name", VISITS)
@given(SIDES, SIDES)
def test_every_place_of_every_grid_is_visited_once(name: Order, rows: int, columns: int) -> None:
    places = ORDERS[name](rows, columns)
    assert places.dtype == torch.int64
    assert sorted(places.tolist()) == list(range(rows * columns))


@given(SIDES, SIDES)
def test_a_z_curve_is_sorted_by_alternating_bits(rows: int, columns: int) -> None:
    def woven(place: int) -> str:
        row, column = f"{place // columns:04b}", f"{place % columns:04b}"
        return "".join(one + other for one, other in zip(row, column, strict=True))

    assert ORDERS["z_curve"](rows, columns).tolist() == sorted(range(rows * columns), key=woven)


@given(st.integers(0, 3))
def test_a_subsampled_square_is_sorted_by_alternating_bits_from_the_last_on(level: int) -> None:
    side = 2**level

    def woven(place: int) -> str:
        row, column = f"{place // side:04b}"[::-1], f"{place % side:04b}"[::-1]
        return "".join(one + other for one, other in zip(row, column, strict=True))

    assert ORDERS["subsample"](side, side).tolist() == sorted(range(side * side), key=woven)


@given(SIDES, SIDES)
def test_a_subsampled_grid_begins_with_its_even_rows_and_columns(rows: int, columns: int) -> None:
    quarter = (rows + 1) // 2 * ((columns + 1) // 2)
    first = ORDERS["subsample"](rows, columns)[:quarter].tolist()
    assert sorted(first) == [row * columns + column for row in range(0, rows, 2) for column in range(0, columns, 2)]


@given(st.integers(1, 9))
def test_a_spiral_goes_from_neighbor_to_neighbor_around_the_middle(side: int) -> None:
    places = ORDERS["spiral_out"](side, side)
    rows, columns = places // side, places % side
    assert ((rows.diff().abs() + columns.diff().abs()) == 1).all()
    middle = ((side - 1) / 2, (side - 1) / 2)
    rings = torch.maximum((rows - middle[0]).abs(), (columns - middle[1]).abs())
    assert (rings.diff() >= 0).all()
    assert ORDERS["spiral_in"](side, side).tolist() == places.tolist()[::-1]


@given(SIDES, SIDES)
def test_alternate_rows_go_back(rows: int, columns: int) -> None:
    path = ORDERS["alternate"](rows, columns)
    steps = (path // columns).diff().abs() + (path % columns).diff().abs()
    assert (steps == 1).all()


@pytest.mark.parametrize("kind", ["gpt", "transformer"])
@pytest.mark.parametrize("name", VISITS)
def test_a_prior_gives_its_places(kind: str, name: Order) -> None:
    assert prior(kind, order=name).sequence_order((4, 4), device=torch.device("cpu")).tolist() == VISITS[name]


@pytest.mark.parametrize("kind", ["gpt", "transformer"])
@pytest.mark.parametrize("grid", [(4, 2), (2, 4), (8, 8)])
def test_an_order_other_than_raster_takes_its_own_grid_alone(kind: str, grid: tuple[int, int]) -> None:
    cpu = torch.device("cpu")
    assert len(prior(kind).sequence_order(grid, device=cpu)) == grid[0] * grid[1]
    message = f"in the order 'alternate', .* 4 x 4 codes only, not for {grid[0]} x {grid[1]}; only a prior in raster"
    with pytest.raises(SmaltiError, match=message):
        prior(kind, order="alternate").sequence_order(grid, device=cpu)
    with pytest.raises(SmaltiError, match=message):
        nll(prior(kind, order="alternate"), torch.zeros(1, 1).long(), torch.zeros(1, *grid).long())


def test_places_are_not_changed_by_who_reads_them() -> None:
    curved = prior(order="z_curve")
    curved.sequence_order((4, 4), device=torch.device("cpu")).zero_()
    assert curved.sequence_order((4, 4), device=torch.device("cpu")).tolist() == VISITS["z_curve"]


@pytest.mark.parametrize("name", VISITS)
def test_likelihoods_can_be_learned_after_inference_mode(name: Order) -> None:
    """What is kept from a call under inference mode cannot be saved for a backward pass."""
    trained = prior("transformer", order=name)
    prefix, codes = trained.null_prefix(1), torch.randint(7, (1, 4, 4))
    with torch.inference_mode():
        nll(trained, prefix, codes)
    nll(trained, prefix, codes).mean().backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", ["z_curve", "spiral_out"])
@pytest.mark.parametrize("prefix", [1, 20])
def test_rotations_follow_the_order(name: Order, prefix: int) -> None:
    raster, other = prior("transformer", prefix_length=prefix), prior("transformer", prefix_length=prefix, order=name)
    assert isinstance(raster, Transformer)
    assert isinstance(other, Transformer)
    for straight, turned in zip(
        raster.rotation(0, prefix + 16, NoCache(columns=4)),
        other.rotation(0, prefix + 16, NoCache(columns=4)),
        strict=True,
    ):
        assert torch.equal(straight[:prefix], straight[prefix].expand(prefix, -1)), "a prefix code is turned"
        assert torch.equal(turned[:prefix], straight[:prefix])
        assert torch.equal(turned[prefix:], straight[prefix:][VISITS[name]])


@examples(max_examples=10)
@given(st.sampled_from(sorted(VISITS)))
def test_positions_of_a_gpt_count_along_the_sequence(name: Order) -> None:
    codes = torch.randint(7, (2, 16), generator=torch.Generator().manual_seed(3))
    assert torch.equal(prior(order=name)(codes), prior()(codes))
