"""smalti.generation.wavefront: which codes are laid at once, and that an image laid so is the one laid code by code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

from smalti.generation import sliding_window
from smalti.generation.code_sampler import Sampler
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import GenerationRequest, unknown_codes
from smalti.generation.wavefront import CodePosition, batch_by_length, batch_wave, row_ends, wavefront_schedule
from smalti.prior import Middle, Prior, Window, after_middle, before_middle
from tests import reference
from tests.generation.test_code_sampler import small, small_gpt
from tests.prior.test_pixelsnail import small as small_pixelsnail

MIDDLES = {"after": after_middle, "before": before_middle}
SAMPLERS = {
    "plain": Sampler(),
    "filtered": Sampler(temperature=0.9, top_k=6, top_p=0.9, min_p=0.01),
    "guided": Sampler(guidance=1.7, top_k=7),
    "rising": Sampler(guidance=2.5, guidance_schedule="linear"),
}
SIDES = st.integers(1, 9)
GRIDS = st.tuples(SIDES, SIDES)


def everything(*grid: int) -> Tensor:
    return torch.ones(grid, dtype=torch.bool)


def scattered(grid: tuple[int, int], share: float, number: int) -> Tensor:
    """Where codes are missing: about a `share` of the grid."""
    return torch.rand(grid, generator=torch.Generator().manual_seed(number)) < share


def within(grid: tuple[int, int], window: tuple[int, int]) -> tuple[int, int]:
    return min(grid[0], window[0]), min(grid[1], window[1])


# The schedule


@examples(max_examples=80)
@given(GRIDS, GRIDS, st.sampled_from(sorted(MIDDLES)), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 2**31))
def test_each_code_is_in_the_first_wave_that_it_can_be_in(
    grid: tuple[int, int], window: tuple[int, int], name: str, share: float, number: int
) -> None:
    missing, window = scattered(grid, share, number), within(grid, window)
    steps = reference.earliest(missing, window, middle=MIDDLES[name])
    generated = wavefront_schedule(missing, window=window, middle=MIDDLES[name])
    truth: dict[int, list[tuple[int, int]]] = {}
    for row, numbers in enumerate(steps):
        for column, step in enumerate(numbers):
            if step:
                truth.setdefault(step, []).append((row, column))
    assert {count: [place[:2] for place in wave] for count, wave in enumerate(generated, start=1)} == truth


@given(GRIDS, GRIDS, st.sampled_from(sorted(MIDDLES)))
def test_places_know_their_windows_and_turns(grid: tuple[int, int], window: tuple[int, int], name: str) -> None:
    rows, columns = within(grid, window)
    middle = MIDDLES[name]
    for wave in wavefront_schedule(everything(*grid), window=(rows, columns), middle=middle):
        for row, column, over, turn in wave:
            local = tuple(
                reference.placement(i, N, n, half=middle(n))
                for i, N, n in ((row, grid[0], rows), (column, grid[1], columns))
            )
            assert over == (row - local[0], column - local[1], rows, columns)
            assert turn == local[0] * columns + local[1]


@pytest.mark.parametrize("middle", MIDDLES.values())
def test_a_grid_of_64_under_a_window_of_16_takes_1072_waves(middle: Middle) -> None:
    generated = wavefront_schedule(everything(64, 64), window=(16, 16), middle=middle)
    assert len(generated) == 1072  # of 4096 codes
    assert max(len(wave) for wave in generated) == 4


@given(
    st.integers(1, 9),
    st.integers(0, 20),
    st.tuples(st.integers(4, 8), st.integers(4, 8)),
    st.sampled_from(sorted(MIDDLES)),
)
def test_a_row_begins_one_window_behind_the_row_above(
    height: int, more: int, window: tuple[int, int], name: str
) -> None:
    """As docs/high-resolution.md derives it: W + (H - 1) w waves."""
    width = window[1] + more
    generated = wavefront_schedule(
        everything(height, width), window=(min(window[0], height), window[1]), middle=MIDDLES[name]
    )
    assert len(generated) == width + (height - 1) * window[1]


@pytest.mark.parametrize("grid", [(4, 4), (3, 2), (9, 4)])
def test_a_grid_no_wider_than_the_window_is_generated_code_by_code(grid: tuple[int, int]) -> None:
    generated = wavefront_schedule(everything(*grid), window=(min(grid[0], 4), min(grid[1], 4)), middle=after_middle)
    assert [[place[:2] for place in wave] for wave in generated] == [
        [divmod(place, grid[1])] for place in range(grid[0] * grid[1])
    ]


def places(turns: list[int]) -> list[CodePosition]:
    return [CodePosition(row, 0, Window(row, 0, 8, 8), turn) for row, turn in enumerate(turns)]


@given(
    st.lists(st.integers(0, 63), min_size=1, max_size=9),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(1, 900),
    st.sampled_from([0, 0.5, 1]),
)
def test_what_is_generated_in_one_call_is_about_as_long(
    turns: list[int], prefix: int, copies: int, most: int, share: float
) -> None:
    wave = places(turns)
    found = batch_by_length(wave, prefix_length=prefix, copies=copies, max_codes=most, min_share=share)
    assert sorted(place for call in found for place in call) == wave
    for call in found:
        lengths = [prefix + place.offset for place in call]
        assert min(lengths) >= share * max(lengths)
        assert len(call) == 1 or len(call) * copies * max(lengths) <= most


@pytest.mark.parametrize(
    ("turns", "few", "most", "expected"),
    [
        ([36, 36, 35, 4], False, 999, [[36, 36, 35], [4]]),  # the last has a cache
        ([36, 9, 30, 4], False, 999, [[36, 30], [9], [4]]),
        ([36, 9, 30, 4], True, 999, [[36, 30, 9, 4]]),
        ([36, 35, 30], True, 80, [[36, 35], [30]]),  # two calls in any case, so that it keeps its cache
        ([36, 35, 30, 30], True, 80, [[36, 35], [30, 30]]),
        ([30], True, 999, [[30]]),
    ],
)
def test_a_place_with_a_cache_is_generated_alone_unless_there_should_be_few_calls(
    turns: list[int], few: bool, most: int, expected: list[list[int]]
) -> None:
    wave = places(turns)
    found = batch_wave(wave, cached_windows={wave[-1].window}, prefix_length=1, copies=1, max_codes=most, few_calls=few)
    assert [[place.offset for place in call] for call in found] == expected


def test_stretches_have_as_many_codes_each() -> None:
    missing = torch.tensor([[False, False], [True, True], [False, False], [True, False]])
    generated = wavefront_schedule(missing, window=(1, 1), middle=after_middle)
    assert [len(wave) for wave in generated] == [3]
    assert row_ends(generated, width=2) == [1, 1]
    assert row_ends(wavefront_schedule(everything(2, 6), window=(2, 2), middle=after_middle), width=6) == [4, 8]
    assert row_ends([], width=6) == [0]


# Whole images


def networks() -> dict[str, Callable[..., Prior]]:
    return {
        "transformer": lambda grid, prefix: small(grid=grid, prefix_length=prefix),
        "maps": lambda grid, prefix: small(grid=grid, prefix_length=prefix + grid[0] * grid[1], maps=(1,)),
        "gpt": lambda grid, prefix: small_gpt(grid=grid, prefix_length=prefix, unmasked=prefix),
        "pixelsnail": lambda grid, prefix: small_pixelsnail(grid=grid, prefix_length=prefix),
    }


def prefix_function(prior: Prior, batch: int, grid: tuple[int, int], number: int) -> Callable[[Window], Tensor]:
    """A prefix for each window: codes that hang on where it stands, then those of a map of the grid that lie under
    it."""
    drawn = torch.randint(3, (batch, *grid), generator=torch.Generator().manual_seed(number))

    def prefix_at(window: Window) -> Tensor:
        top, left, rows, columns = window
        under = drawn[:, top : top + rows, left : left + columns].flatten(1)
        free = torch.full((batch, prior.prefix_length), (2 * top + left) % 3)
        filled = torch.cat((free[:, :1], under, free), dim=1)
        return filled[:, : prior.prefix_length]

    return prefix_at


@examples(max_examples=12)
@given(
    st.sampled_from(sorted(networks())),
    GRIDS,
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.sampled_from(sorted(MIDDLES)),
    st.sampled_from(sorted(SAMPLERS)),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_images_are_those_of_the_plain_loop(
    network: str,
    grid: tuple[int, int],
    window: tuple[int, int],
    name: str,
    sampler: str,
    batch: int,
    share: float,
    few_calls: bool,
    number: int,
) -> None:
    prior = networks()[network](window, 2)
    known = torch.randint(9, (batch, *grid), generator=torch.Generator().manual_seed(number))
    known[scattered((batch * grid[0], grid[1]), share, number).view_as(known)] = -1
    prefix_at, seeds = prefix_function(prior, batch, grid, number), torch.arange(batch) + number
    options: dict[str, Any] = {"sampler": SAMPLERS[sampler], "middle": MIDDLES[name]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sliding_window, "_prefers_few_calls", lambda device: few_calls)
        codes = final_codes(generate(prior, GenerationRequest(prefix_at, seeds=seeds, known=known, **options)))
    for item in range(batch):

        def prefix_of(place: Window, item: int = item) -> Tensor:
            return prefix_at(place)[item]

        truth = reference.sampled(prior, prefix_of, known[item], seed=int(seeds[item]), **options)
        assert torch.equal(codes[item], truth)


@pytest.mark.parametrize("few_calls", [False, True])
@pytest.mark.parametrize("network", networks())
def test_guidance_that_rises_is_that_of_each_place(
    network: str, few_calls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a grid so wide that several places share a call, each with a scale of its own."""
    prior, grid = networks()[network]((3, 3), 2), (8, 12)
    prefix_at = prefix_function(prior, 1, grid, 5)
    monkeypatch.setattr(sliding_window, "_prefers_few_calls", lambda device: few_calls)
    reads = Reads(prior)
    codes = generate_steps(prior, unknown_codes(1, grid), sampler=SAMPLERS["rising"], prefix_at=prefix_at)[-1]
    assert max(sequences for sequences, _ in reads.shapes) >= 2 * 3
    truth = reference.sampled(
        prior, lambda place: prefix_at(place)[0], unknown_codes(1, grid)[0], sampler=SAMPLERS["rising"], seed=0
    )
    assert torch.equal(codes[0], truth)


class Reads:
    """Counts what a prior reads: the shape (sequences, codes) of each call."""

    def __init__(self, prior: Prior) -> None:
        self.shapes: list[tuple[int, int]] = []
        prior.get_submodule("embedding").register_forward_hook(lambda module, inputs, out: self.note(inputs[0]))

    def note(self, codes: Tensor) -> None:
        self.shapes.append((codes.shape[0], codes.shape[1]))


def generate_steps(prior: Prior, known: Tensor, **options: Any) -> list[Tensor]:
    seeds, place = torch.arange(len(known)), (known.shape[1], known.shape[2])
    options = {"sampler": Sampler(), "prefix_at": prefix_function(prior, len(known), place, 3), **options}
    return list(generate(prior, GenerationRequest(seeds=seeds, known=known, **options)))


def test_rows_in_flight_share_their_calls() -> None:
    prior = small(grid=(4, 4))
    reads = Reads(prior)
    generate_steps(prior, unknown_codes(2, (12, 24)))
    # In the middle of a grid six windows wide, up to six rows are in flight: one begins or ends,
    # and the rest share a call.
    assert max(sequences for sequences, _ in reads.shapes) >= 2 * 4
    assert len(reads.shapes) < 12 * 24 * 0.75  # at the borders calls of one place keep caches


def test_where_calls_are_what_costs_a_wave_is_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    prior, known = small(grid=(4, 4)), unknown_codes(2, (12, 24))
    codes = generate_steps(prior, known)[-1]
    monkeypatch.setattr(sliding_window, "_prefers_few_calls", lambda device: True)
    reads = Reads(prior)
    assert torch.equal(generate_steps(prior, known)[-1], codes)
    assert len(reads.shapes) == 24 + 11 * 4


def test_a_window_that_stands_still_keeps_its_cache() -> None:
    prior = small(grid=(4, 4), prefix_length=2)
    reads = Reads(prior)
    generate_steps(prior, unknown_codes(2, (4, 4)))
    assert reads.shapes == [(2, 2)] + 15 * [(2, 1)]
    reads.shapes.clear()
    generate_steps(prior, unknown_codes(1, (1, 9)))
    # Columns 0 to 2, and 7 to 8, lie under a window that stands; the second is opened at column 7,
    # over three codes and the prefix.
    assert reads.shapes == [(1, 2), (1, 1), (1, 1), (1, 4), (1, 4), (1, 4), (1, 4), (1, 4), (1, 1)]


def test_a_window_that_comes_back_keeps_its_cache() -> None:
    """At the upper border the windows of row 0 come back over rows 1 and 2, and are told the codes that are new
    alone."""
    prior = small(grid=(4, 4), prefix_length=2)
    reads = Reads(prior)
    generate_steps(prior, unknown_codes(1, (4, 6)))
    assert len(reads.shapes) == 4 * 6
    # Three windows, of whose codes the last is not read; under two of them neither is the one before.
    assert sum(codes for _, codes in reads.shapes) == (2 + 14) + (2 + 14) + (2 + 15)
    reads.shapes.clear()
    known = unknown_codes(1, (4, 6))
    known[0, 2:] = 0
    generate_steps(prior, known)
    assert sum(codes for _, codes in reads.shapes) == (2 + 6) + (2 + 6) + (2 + 7)


def test_windows_are_kept_as_far_as_there_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """And images do not depend on it."""
    prior, known = small(grid=(4, 4)), unknown_codes(2, (5, 12))
    reads = Reads(prior)
    whole = generate_steps(prior, known, sampler=SAMPLERS["guided"])[-1]
    read_all = sum(sequences * codes for sequences, codes in reads.shapes)
    reads.shapes.clear()
    monkeypatch.setattr(sliding_window, "MAX_CACHE_BYTES", 0)
    assert torch.equal(generate_steps(prior, known, sampler=SAMPLERS["guided"])[-1], whole)
    assert sum(sequences * codes for sequences, codes in reads.shapes) > 1.5 * read_all


def test_no_call_is_larger_than_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """And images do not depend on how many places share a call."""
    prior, known = small(grid=(4, 4)), unknown_codes(2, (8, 24))
    whole = generate_steps(prior, known, sampler=SAMPLERS["guided"])[-1]
    monkeypatch.setattr(sliding_window, "MAX_CALL_CODES", 100)
    reads = Reads(prior)
    assert torch.equal(generate_steps(prior, known, sampler=SAMPLERS["guided"])[-1], whole)
    assert max(sequences * codes for sequences, codes in reads.shapes if sequences > 4) <= 100


def test_a_wide_grid_is_displayed_before_its_first_row_is_complete() -> None:
    """A row begins when the one above is a window ahead; what is shown has a row's worth of codes more each time."""
    steps = generate_steps(small(grid=(4, 4)), unknown_codes(2, (6, 20)))
    assert len(steps) == 6
    for row, codes in enumerate(steps):
        generated = codes >= 0
        assert torch.equal(codes[generated], steps[-1][generated])
        counts = generated[0].sum(dim=1).tolist()
        assert (row + 1) * 20 <= sum(counts) < (row + 1) * 20 + 6  # no wave has more codes than there are rows
        assert counts == sorted(counts, reverse=True)
    assert 0 < int((steps[0][0, 1] >= 0).sum()) <= int((steps[0][0, 0] >= 0).sum()) - 4 < 16


def test_what_is_known_is_not_requested() -> None:
    prior = small(grid=(4, 4))
    reads = Reads(prior)
    known = torch.randint(9, (2, 6, 9), generator=torch.Generator().manual_seed(0))
    (steps,) = generate_steps(prior, known)
    assert torch.equal(steps, known)
    assert not reads.shapes
    known[1, 3, 5] = -1
    (steps,) = generate_steps(prior, known)
    assert (steps >= 0).all()
    assert len(reads.shapes) == 1


def test_a_row_that_misses_nothing_holds_up_no_other() -> None:
    """Under a known row, the next one waits for nothing above the window's reach."""
    missing = everything(5, 20)
    missing[1:4] = False
    generated = wavefront_schedule(missing, window=(4, 4), middle=after_middle)
    assert len(generated) == 20
    assert [place[:2] for place in generated[0]] == [(0, 0), (4, 0)]
