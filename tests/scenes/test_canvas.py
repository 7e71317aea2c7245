"""What landscapes are painted with: noise, mixing and the choice among points, against their plain formulas."""

from __future__ import annotations

import numpy as np
import pytest

from smalti.scenes.canvas import FAR, SKY, Air, Canvas, mixed
from smalti.scenes.painter import _majority
from smalti.scenes.palettes import plane
from smalti.scenes.textures import Floats, clamp, texture
from smalti.scenes.textures import _tile as tile
from tests.reference import between_four, second_nearest

PLANES, POINTS, COLOR = (3, 4, 5), (4, 5), (3, 1, 1)
GENERATOR = np.random.default_rng(0)


def numbers(*shape: int) -> Floats:
    return GENERATOR.uniform(0, 1, shape).astype(np.float32)


@pytest.mark.parametrize("first", [PLANES, COLOR])
@pytest.mark.parametrize("second", [PLANES, COLOR])
@pytest.mark.parametrize("share", [PLANES, POINTS, (4, 1), ()])
def test_mixing_follows_its_formula_and_leaves_alone_what_it_is_given(
    first: tuple[int, ...], second: tuple[int, ...], share: tuple[int, ...]
) -> None:
    given = [numbers(*shape) for shape in (first, second, share)]
    before = [values.copy() for values in given]
    result = mixed(*given)
    assert result.dtype == np.float32
    assert np.array_equal(result, before[0] + (before[1] - before[0]) * before[2])
    assert all(np.array_equal(now, then) for now, then in zip(given, before, strict=True))


@pytest.mark.parametrize("color", [PLANES, COLOR])
@pytest.mark.parametrize("shade", [POINTS, ()])
def test_light_and_air_follow_their_formulas(color: tuple[int, ...], shade: tuple[int, ...]) -> None:
    air = Air(numbers(*COLOR), numbers(*COLOR), numbers(*COLOR), 5000.0, 1)
    own, facing = numbers(*color), numbers(*shade)
    kept = [values.copy() for values in (air.ambient, air.direct, air.haze, own, facing)]
    assert np.array_equal(air.lit(own, facing), own * (air.ambient + air.direct * facing))
    veil = (1 - np.exp(-(facing * np.float32(4000)) / np.float32(5000.0))) * np.float32(0.92)
    assert np.array_equal(air.veiled(own, facing * np.float32(4000)), own + (air.haze - own) * veil)
    for now, then in zip((air.ambient, air.direct, air.haze, own, facing), kept, strict=True):
        assert np.array_equal(now, then)


@pytest.mark.parametrize(
    "values", [0.4, -1.0, 7, np.arange(-3, 4), np.linspace(-1, 2, 7), np.linspace(-1, 2, 7, dtype="f4")]
)
def test_clamp_holds_numbers_and_arrays_of_any_kind(values: float | Floats) -> None:
    before = np.array(values)
    clamped = clamp(values, 0, 1)
    assert clamped.dtype == np.float32
    assert np.array_equal(clamped, np.clip(before, 0, 1).astype(np.float32))
    assert np.array_equal(values, before)


@pytest.mark.parametrize("name", ["billow", "rough", "grain", "slope"])
def test_noise_lies_between_the_four_points_around(name: str) -> None:
    """At steps of a point, and of four: a copy of the tile a quarter as large; across the border, where it repeats."""
    for step, copy in ((1 / 1024, 0), (4 / 1024, 2)):
        rows, columns = ((start + step * np.arange(9)).astype(np.float32) for start in (0.9961, -0.0042))
        found = texture(name, rows, columns)
        level = tile(name)[copy]
        expected = [[between_four(level, float(row), float(column)) for column in columns] for row in rows]
        assert np.allclose(found, expected, atol=2e-3)  # places on the grid have 24 bits


def test_noise_leaves_its_tile_alone() -> None:
    before = tile("grain")[0].copy()
    places = np.linspace(0, 1, 600, dtype=np.float32)
    assert np.array_equal(texture("grain", places, places), texture("grain", places, places))
    assert np.array_equal(tile("grain")[0], before)


def test_paint_covers_what_it_should() -> None:
    canvas = Canvas(4, 6)
    canvas.color += plane((0.2, 0.4, 0.6))
    cover = np.array([[0.0, 0.25, 0.5], [0.75, 1.0, 0.0]], dtype=np.float32)
    color = plane((1.0, 0.0, 0.5))
    assert canvas.composite(slice(1, 3), slice(2, 5), cover, color, 70.0, 5) == 1
    part = canvas.color[:, 1:3, 2:5]
    assert np.allclose(part, plane((0.2, 0.4, 0.6)) * (1 - cover) + color * cover, atol=1e-6)
    mine = np.zeros((4, 6), dtype=bool)
    mine[1:3, 2:5] = cover >= 0.5
    assert np.array_equal(canvas.identity == 1, mine)
    assert np.array_equal(canvas.depth, np.where(mine, np.float32(70), np.float32(FAR)))
    assert canvas.labels == [SKY, 5]
    assert np.array_equal(canvas.color[:, 3], np.broadcast_to(plane((0.2, 0.4, 0.6))[:, 0], (3, 6)))


@pytest.mark.parametrize("items", [1, 2, 3, 40])
def test_of_four_points_the_second_nearest_says_whose_a_pixel_is(items: int) -> None:
    """From one thing everywhere to borders everywhere; equal things may lie at different depths."""
    canvas = Canvas(24, 32)
    canvas.identity[:] = GENERATOR.integers(0, items, (24, 32))
    canvas.depth[:] = numbers(24, 32)
    identity, depth = _majority(canvas)
    expected = second_nearest(canvas.identity, canvas.depth)
    assert np.array_equal(identity, expected[0])
    assert np.array_equal(depth, expected[1])
