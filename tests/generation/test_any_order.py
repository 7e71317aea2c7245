"""Generation with any-order priors: known codes first, any order after them, windows, steps of several codes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smalti.conditions.base import constant_prefix
from smalti.core.errors import SmaltiError
from smalti.core.rng import gumbel
from smalti.core.settings import parse
from smalti.generation.code_sampler import Sampler
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.parallel_decoding import step_sizes
from smalti.generation.request import GenerationRequest, center_on_canvas, unknown_codes
from smalti.prior import NoCache, Prior, Transformer, TransformerSettings, Window, nll, placement

GRID = (4, 5)


def small(**changes: Any) -> Transformer:
    """A small prior with large weights, so that all that it reads shows in its logits."""
    torch.manual_seed(0)
    plain = {
        "codebook_size": 9,
        "condition_size": 3,
        "prefix_length": 2,
        "grid": GRID,
        "layers": 2,
        "embed_dim": 32,
        "heads": 2,
        "order": "any",
    }
    prior = Transformer(parse(TransformerSettings, {**plain, **changes}, where="test"))
    with torch.no_grad():
        for weight in prior.parameters():
            weight.normal_(0, 0.3) if weight.ndim == 2 else weight.uniform_(0.5, 1.5)
    return prior.eval()


def with_maps() -> Transformer:
    """A prior with a map of the window in its prefix."""
    return small(prefix_length=1 + GRID[0] * GRID[1], maps=(1,))


def request_of(prior: Prior, known: Tensor, **options: Any) -> GenerationRequest:
    generator = torch.Generator().manual_seed(5)
    prefix = torch.randint(3, (1, prior.prefix_length), generator=generator).expand(len(known), -1)
    seeds = torch.arange(3, 3 + len(known))
    return GenerationRequest(constant_prefix(prefix), known, seeds=seeds, **options)


def generated(prior: Prior, known: Tensor, **options: Any) -> Tensor:
    return final_codes(generate(prior, request_of(prior, known, **options)))


@torch.no_grad()
def plain_loop(prior: Prior, known: Tensor, order: list[int], *, guidance: float = 1.0) -> Tensor:
    """One image (h, w) in one window: for every missing code, in order, all that is known and then the code alone."""
    codes, columns = known.clone(), known.shape[1]
    prefix = request_of(prior, known[None]).prefix_at(Window(0, 0, *GRID))[:1]
    read = [place for place in range(known.numel()) if known.flatten()[place] >= 0]
    for place in (place for place in order if known.flatten()[place] < 0):
        cache_order = torch.tensor([*read, place])
        both = []
        for start in (prefix, prior.null_prefix(1)):
            sequence = prior.join(start, codes.flatten()[read][None])
            both.append(prior(sequence, cache=NoCache(columns=columns, order=cache_order))[0, -1, : prior.size])
        row, column = divmod(place, columns)
        noise = gumbel(torch.tensor([3]), prior.size, rows=torch.tensor([row]), columns=torch.tensor([column]))[0]
        codes[row, column] = (guidance * both[0] + (1 - guidance) * both[1] + noise).argmax()
        read.append(place)
    return codes


def masked(mask: Callable[[int, int], bool], batch: int = 1) -> Tensor:
    """Codes (batch, 4, 5), random where the mask keeps them."""
    kept = torch.tensor([[mask(row, column) for column in range(GRID[1])] for row in range(GRID[0])])
    codes = torch.randint(9, (batch, *GRID), generator=torch.Generator().manual_seed(2))
    return torch.where(kept, codes, -1)


HOLES: dict[str, Callable[[int, int], bool]] = {
    "nothing kept": lambda row, column: False,
    "upper half": lambda row, column: row < 2,
    "lower half": lambda row, column: row >= 2,
    "right side": lambda row, column: column >= 2,
    "border": lambda row, column: row in (0, 3) or column in (0, 4),
    "center": lambda row, column: row in (1, 2) and 1 <= column <= 3,
    "checkerboard": lambda row, column: (row + column) % 2 == 0,
    "all but one": lambda row, column: (row, column) != (1, 3),
}


@pytest.mark.parametrize("build", [small, with_maps])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("hole", HOLES)
def test_completion_is_conditioned_on_all_that_is_kept(
    hole: str, guidance: float, build: Callable[[], Transformer]
) -> None:
    prior, known = build(), masked(HOLES[hole])
    found = generated(prior, known, sampler=Sampler(guidance=guidance))[0]
    assert torch.equal(found, plain_loop(prior, known[0], list(range(20)), guidance=guidance))
    assert torch.equal(found[known[0] >= 0], known[0][known[0] >= 0])


def test_the_order_is_a_value_of_the_request() -> None:
    prior, known = small(), masked(HOLES["border"])
    order = torch.randperm(20, generator=torch.Generator().manual_seed(7))
    found = generated(prior, known, order=order)
    assert torch.equal(found[0], plain_loop(prior, known[0], order.tolist()))
    nothing = unknown_codes(1, GRID)
    assert not torch.equal(generated(prior, nothing, order=order), generated(prior, nothing)), "other codes"


@pytest.mark.parametrize("options", [{}, {"speculate": 3}, {"parallel": 4}])
def test_an_image_depends_on_its_own_seed_alone(options: dict[str, int]) -> None:
    prior, known = small(), masked(HOLES["right side"], batch=3)
    together = generated(prior, known, **options)
    request = request_of(prior, known, **options)
    for number in range(3):
        alone = replace(
            request,
            prefix_at=constant_prefix(request.prefix_at(Window(0, 0, *GRID))[:1]),
            known=known[number : number + 1],
            seeds=request.seeds[number : number + 1],
        )
        assert torch.equal(final_codes(generate(prior, alone))[0], together[number])


def test_speculation_gives_the_same_codes() -> None:
    prior, known = small(), masked(HOLES["center"], batch=2)
    assert torch.equal(generated(prior, known, speculate=3), generated(prior, known))


@pytest.mark.parametrize("hole", ["nothing kept", "center"])
def test_as_many_parallel_steps_as_codes_are_one_code_at_a_time(hole: str) -> None:
    prior, known = small(), masked(HOLES[hole], batch=2)
    count, order = int((known[0] < 0).sum()), torch.randperm(20, generator=torch.Generator().manual_seed(7))
    exact = generated(prior, known, order=order)
    assert step_sizes(count, count) == [1] * count
    assert torch.equal(generated(prior, known, order=order, parallel=count), exact)
    assert torch.equal(generated(prior, known, order=order, parallel=1000), exact)


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_codes_of_a_parallel_step_are_those_of_what_was_there_before_it(guidance: float) -> None:
    prior, known = small(), masked(HOLES["upper half"])
    order = torch.randperm(20, generator=torch.Generator().manual_seed(8))
    found = generated(prior, known, order=order, parallel=3, sampler=Sampler(guidance=guidance))[0]
    missing = [place for place in order.tolist() if known[0].flatten()[place] < 0]
    first = step_sizes(len(missing), 3)[0]
    for place in missing[:first]:
        alone = [place, *(other for other in range(20) if other != place)]
        assert found.flatten()[place] == plain_loop(prior, known[0], alone, guidance=guidance).flatten()[place]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 80))
def test_steps_grow_and_generate_every_code(count: int, steps: int) -> None:
    sizes = step_sizes(count, steps)
    assert sum(sizes) == count
    assert len(sizes) == min(steps, count)
    assert min(sizes) >= 1
    assert sizes[-1] >= sizes[0] - 1


@torch.no_grad()
def outpainted(prior: Prior, known: Tensor) -> Tensor:
    """One image (H, W) larger than the window, row by row: the window over a code, all that it holds, then the code."""
    codes, (height, width), (rows, columns) = known.clone(), known.shape, prior.grid
    prefix = request_of(prior, known[None]).prefix_at(Window(0, 0, *GRID))[:1]
    read: list[tuple[int, int]] = []
    window = None
    for i in range(height):
        for j in range(width):
            if known[i, j] >= 0:
                continue
            top = i - placement(i, height, rows, middle=lambda n: n // 2)
            left = j - placement(j, width, columns, middle=lambda n: n // 2)
            inside = [(a, b) for a in range(top, top + rows) for b in range(left, left + columns) if codes[a, b] >= 0]
            read = [*read, *(place for place in inside if place not in read)] if window == (top, left) else inside
            window = (top, left)
            order = torch.tensor([(a - top) * columns + b - left for a, b in [*read, (i, j)]])
            sequence = prior.join(prefix, torch.stack([codes[place] for place in read])[None]) if read else prefix
            sequence = sequence if read else prior.join(prefix, codes.new_empty(1, 0))
            logits = prior(sequence, cache=NoCache(columns=columns, order=order))[0, -1, : prior.size]
            noise = gumbel(torch.tensor([3]), prior.size, rows=torch.tensor([i]), columns=torch.tensor([j]))[0]
            codes[i, j] = (logits + noise).argmax()
    return codes


@pytest.mark.parametrize("canvas", [(4, 9), (7, 5), (7, 9)])
def test_outpainting_sees_what_is_known_on_all_sides(canvas: tuple[int, int]) -> None:
    prior = small()
    known = center_on_canvas(masked(lambda row, column: True), canvas)
    assert torch.equal(generated(prior, known)[0], outpainted(prior, known[0]))


@torch.no_grad()
def test_a_code_on_the_left_depends_on_known_codes_on_its_right() -> None:
    prior = small()
    known = torch.full((1, 4, 9), -1)
    known[:, :, 3:] = 1
    other = known.where(known < 0, 2)
    assert not torch.equal(generated(prior, known)[:, :, :3], generated(prior, other)[:, :, :3])


def test_larger_images_without_known_codes_are_generated_as_by_a_raster_prior() -> None:
    """The waves of the sliding window: equal to the windows of this file, which see the same codes."""
    prior, known = small(), unknown_codes(1, (6, 8))
    assert torch.equal(generated(prior, known)[0], outpainted(prior, known[0]))


@torch.no_grad()
def test_the_likelihood_of_a_completion_is_that_of_the_plain_loop() -> None:
    prior, codes = small(), masked(lambda row, column: True, batch=2)
    orders = torch.stack([torch.randperm(20, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)])
    prefix = torch.tensor([[0, 1], [2, 0]])
    found = nll(prior, prefix, codes, order=orders).flatten(1)
    for image in range(2):
        for turn, place in enumerate(orders[image].tolist()):
            read = orders[image, :turn]
            sequence = prior.join(prefix[image : image + 1], codes[image].flatten()[read][None])
            cache = NoCache(columns=5, order=orders[image, : turn + 1])
            logits = prior(sequence, cache=cache)[0, -1, : prior.size]
            expected = -logits.log_softmax(0)[codes[image].flatten()[place]]
            assert math.isclose(found[image, place], expected, rel_tol=1e-4, abs_tol=1e-5)


@torch.no_grad()
def test_without_an_order_likelihood_and_generation_are_in_raster_order() -> None:
    prior, codes = small(), masked(lambda row, column: True)
    prefix = torch.tensor([[0, 1]])
    raster = torch.arange(20)
    torch.testing.assert_close(nll(prior, prefix, codes), nll(prior, prefix, codes, order=raster))
    known = unknown_codes(1, GRID)
    assert torch.equal(generated(prior, known), generated(prior, known, order=raster))


def test_the_position_of_the_next_code_is_an_input() -> None:
    """Else all missing places would have the same logits after the same known codes."""
    prior, known = small(), torch.tensor([[1, 2, 3]])
    logits = [
        prior(prior.join(torch.tensor([[0, 1]]), known), cache=NoCache(columns=5, order=torch.tensor([0, 1, 2, place])))
        for place in (3, 17)
    ]
    assert not torch.allclose(logits[0][0, -1], logits[1][0, -1])
    assert torch.allclose(logits[0][0, :-1], logits[1][0, :-1], atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"speculate": 3}, {"parallel": 4}])
@pytest.mark.parametrize("hole", ["nothing kept", "center", "checkerboard"])
def test_a_resumed_generation_reads_the_codes_in_the_same_order(hole: str, options: dict[str, int]) -> None:
    """Codes that were generated before an interruption stay behind the kept ones, and parallel steps stay as long."""
    prior, request = small(), request_of(small(), masked(HOLES[hole], batch=2), **options)
    steps = list(generate(prior, request))
    for codes in steps:
        assert torch.equal(final_codes(generate(prior, replace(request, resumed=codes))), steps[-1])


@pytest.mark.parametrize("kept", [True, False])
def test_a_resumed_larger_image_has_the_same_windows(kept: bool) -> None:
    prior, inner = small(), masked(lambda row, column: True)
    request = request_of(prior, center_on_canvas(inner, (7, 9)) if kept else unknown_codes(1, (7, 9)))
    steps = list(generate(prior, request))
    for codes in steps:
        assert torch.equal(final_codes(generate(prior, replace(request, resumed=codes))), steps[-1])


def test_a_resumed_large_image_goes_on_within_a_standing_window() -> None:
    prior = small()
    request = request_of(prior, center_on_canvas(masked(lambda row, column: True), (7, 9)))
    whole = final_codes(generate(prior, request))
    missing = request.missing_positions.flatten().nonzero().flatten().tolist()
    for count in range(len(missing)):
        codes = whole.clone().flatten(1)
        codes[:, missing[count:]] = -1
        resumed = replace(request, resumed=codes.view_as(whole))
        assert torch.equal(final_codes(generate(prior, resumed)), whole), count


def test_what_does_not_go_together_is_refused_in_a_sentence() -> None:
    any_order, raster, known = small(), small(order="raster"), unknown_codes(2, GRID)
    with pytest.raises(SmaltiError, match=r"generates in the order 'raster' alone; leave the order out"):
        generated(raster, known, order=torch.arange(20))
    with pytest.raises(SmaltiError, match=r"parallel = 4 needs an any-order prior"):
        generated(raster, known, parallel=4)
    with pytest.raises(SmaltiError, match=r"parallel = 4 and speculate = 2 do not go together"):
        generated(any_order, known, parallel=4, speculate=2)
    with pytest.raises(SmaltiError, match=r"names each of the 20 positions of the grid once"):
        generated(any_order, known, order=torch.zeros(20, dtype=torch.int64))
    with pytest.raises(SmaltiError, match=r"parallel = 4 needs a window that covers the grid"):
        generated(any_order, unknown_codes(1, (4, 9)), parallel=4)
    with pytest.raises(SmaltiError, match=r"parallel = -1 is not a number of steps"):
        generated(any_order, known, parallel=-1)
    known[0, 0, 0] = 1
    with pytest.raises(SmaltiError, match=r"all images of a request must have the same known positions"):
        generated(any_order, known)
