"""The orders that an any-order prior is trained on: permutations, in the shares that the settings say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.core.settings import parse
from smalti.prior.order import known_first
from smalti.training.order_mixture import OrderMixture, random_holes

GRID = (6, 8)
COUNT = 48
CPU = torch.device("cpu")
RASTER = torch.arange(COUNT)


def drawn(
    batch: int = 2000, *, raster: float = 0.5, random: float = 0.25, seed: int = 0, grid: tuple[int, int] = GRID
) -> Tensor:
    torch.manual_seed(seed)
    return OrderMixture(raster=raster, random=random).draw(batch, grid, device=CPU)


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (6, 8), (16, 16)])
@pytest.mark.parametrize(("raster", "random"), [(0.5, 0.25), (0.0, 0.0), (0.0, 1.0)])
def test_every_order_is_a_permutation(grid: tuple[int, int], raster: float, random: float) -> None:
    orders = drawn(64, grid=grid, raster=raster, random=random)
    assert orders.shape == (64, grid[0] * grid[1])
    assert orders.dtype == torch.int64
    assert torch.equal(orders.sort(dim=1).values, torch.arange(grid[0] * grid[1]).expand(64, -1))


def test_each_image_has_an_order_of_its_own() -> None:
    orders = drawn(64, raster=0.0, random=1.0)
    assert len({tuple(order.tolist()) for order in orders}) == 64


@pytest.mark.parametrize("raster", [0.0, 0.3, 0.5, 1.0])
def test_shares_are_those_of_the_settings(raster: float) -> None:
    in_raster = (drawn(raster=raster, random=0.0) == RASTER).all(1).double().mean()
    # A hole at the lower end, or of everything, whose codes are in raster order, is raster order as well.
    assert raster <= in_raster + 0.05
    assert in_raster <= raster + (1 - raster) * 0.3
    assert ((drawn(raster=raster, random=1 - raster) == RASTER).all(1).double().mean() - raster).abs() < 0.05


def test_completions_begin_with_kept_codes_in_raster_order() -> None:
    """The turns before the hole rise; half of the holes are in raster order, so that these orders fall once at most."""
    orders = drawn(raster=0.0, random=0.0)
    falls = (orders.diff(dim=1) < 0).sum(1)
    assert 0.4 < (falls <= 1).double().mean() < 0.65
    first_fall = torch.where(falls > 0, (orders.diff(dim=1) < 0).int().argmax(1), COUNT)
    assert first_fall.double().mean() > 8, "a random permutation falls at the second code or the third"


def test_orders_are_those_of_torchs_seed() -> None:
    assert torch.equal(drawn(32, seed=3), drawn(32, seed=3))
    assert not torch.equal(drawn(32, seed=3), drawn(32, seed=4))


def test_drawing_takes_as_many_numbers_whatever_the_shares() -> None:
    """So that a change of the shares changes nothing else of a training."""
    after = []
    for raster, random in ((0.5, 0.25), (1.0, 0.0), (0.0, 0.0)):
        drawn(8, raster=raster, random=random)
        after.append(torch.rand(1))
    assert len({float(each) for each in after}) == 1


def test_holes_are_rectangles_their_outsides_and_scattered_codes() -> None:
    torch.manual_seed(0)
    holes = random_holes(3000, (16, 16))
    assert holes.shape == (3000, 16, 16)
    inside, outside = rectangular(holes), rectangular(~holes)
    assert 0.45 < (inside & ~outside).double().mean() < 0.6
    assert 0.2 < outside.double().mean() < 0.4  # also halves, whose outside is a half
    scattered = ~inside & ~outside
    assert 0.18 < scattered.double().mean() < 0.28
    shares = holes[scattered].double().mean((1, 2))
    assert shares.min() < 0.1
    assert shares.max() > 0.9
    whole = holes[inside & ~outside]
    assert whole[:, 0].any(1).double().mean() > 0.15, "some touch the upper border"
    assert whole[:, :, -1].any(1).double().mean() > 0.15, "some the right one"


def rectangular(holes: Tensor) -> Tensor:
    """Holes (batch, h, w) -> which are one rectangle (batch,)."""
    box = holes.any(2)[:, :, None] & holes.any(1)[:, None]
    whole = (holes == box).flatten(1).all(1)
    one_piece = [(holes.any(axis).int().diff(dim=1) == 1).sum(1) + holes.any(axis)[:, 0] <= 1 for axis in (1, 2)]
    return whole & one_piece[0] & one_piece[1]


def test_known_codes_come_first_in_raster_order() -> None:
    known = torch.tensor([[False, True, False, True, False, True]])
    assert known_first(known).tolist() == [[1, 3, 5, 0, 2, 4]]
    priority = torch.tensor([[0.9, 0.0, 0.5, 0.1, 0.2, 0.0]])
    assert known_first(known, priority=priority).tolist() == [[1, 3, 5, 4, 2, 0]]
    assert known_first(known[0]).tolist() == [1, 3, 5, 0, 2, 4]
    assert known_first(torch.zeros(5, dtype=torch.bool)).tolist() == [0, 1, 2, 3, 4]
    assert known_first(torch.ones(5, dtype=torch.bool)).tolist() == [0, 1, 2, 3, 4]


def test_shares_are_checked() -> None:
    for wrong, sentence in (
        ({"raster": -0.1}, "raster = -0.1"),
        ({"random": 1.5}, "random = 1.5"),
        (
            {"raster": 0.7, "random": 0.4},
            "raster = 0.7 and random = 0.4 are shares of all images; their sum is at most 1",
        ),
    ):
        with pytest.raises(SmaltiError, match=sentence):
            parse(OrderMixture, wrong, where="orders")
