"""smalti.generation.code_sampler and window: each step of the ladder, and whole images against the plain slow loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

from smalti.conditions.base import constant_prefix
from smalti.core.errors import SmaltiError
from smalti.core.settings import parse
from smalti.generation.code_sampler import Sampler, apply_guidance, filter_logits, gumbel_argmax
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import GenerationRequest, unknown_codes
from smalti.prior import GPT, ORDERS, GPTSettings, Order, Prior, Transformer, TransformerSettings, Window, placement
from tests import reference

SAMPLERS = {
    "plain": Sampler(),
    "greedy": Sampler(temperature=0),
    "filtered": Sampler(temperature=0.9, top_k=6, top_p=0.9),
    "guided": Sampler(guidance=1.7, top_k=7),
    "unconditional": Sampler(guidance=0),
}


def small(**changes: Any) -> Transformer:
    """A small transformer with large weights, so that its logits weigh more than the noise."""
    torch.manual_seed(0)
    plain = {
        "codebook_size": 9,
        "condition_size": 3,
        "prefix_length": 1,
        "grid": (4, 4),
        "layers": 2,
        "embed_dim": 32,
        "heads": 2,
    }
    prior = Transformer(parse(TransformerSettings, {**plain, **changes}, where="test"))
    with torch.no_grad():
        for weight in prior.parameters():
            weight.normal_(0, 0.3) if weight.ndim == 2 else weight.uniform_(0.5, 1.5)
    return prior.eval()


def small_gpt(**changes: Any) -> GPT:
    """The same of a GPT, of which three codes can never be image codes."""
    torch.manual_seed(0)
    plain = {
        "vocab_size": 12,
        "codebook_size": 9,
        "prefix_length": 1,
        "grid": (4, 4),
        "layers": 2,
        "embed_dim": 32,
        "heads": 2,
        "start_code": 11,
    }
    prior = GPT(parse(GPTSettings, {**plain, **changes}, where="test"))
    with torch.no_grad():
        for weight in prior.parameters():
            weight.normal_(0, 0.3) if weight.ndim == 2 else weight.uniform_(0.5, 1.5)
    return prior.eval()


def sample_codes(prior: Prior, known: Tensor, *, sampler: Sampler = SAMPLERS["plain"], first: int = 0) -> Tensor:
    """The finished codes of images with labels 0, 1, 2, 0, ... and seeds from `first` on."""
    batch = len(known)
    prefix = (torch.arange(first, first + batch) % 3)[:, None].expand(-1, prior.prefix_length)
    seeds = torch.arange(first, first + batch)
    return final_codes(generate(prior, GenerationRequest(constant_prefix(prefix), known, seeds=seeds, sampler=sampler)))


# The ladder


def test_filters_keep_what_the_original_keeps() -> None:
    """Numbers of survivors among forty equal logits, from the original's sampler: exact sums are not enough."""
    flat = torch.zeros(1, 40)
    for top_p, left in ((0.3, 13), (0.9, 36), (0.95, 39), (0.0, 1), (1.0, 40)):
        assert filter_logits(flat, temperature=1, top_k=0, top_p=top_p).isfinite().sum() == left, top_p


def test_ties_at_the_threshold_of_top_k_are_kept() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 2.0, 0.0]])
    kept = filter_logits(logits, temperature=1, top_k=2, top_p=1).isfinite()
    assert kept.tolist() == [[True, False, True, True, False]]


@given(
    st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=12, unique=True),
    st.integers(0, 14),
    st.floats(0, 1, width=32),
)
def test_filters_are_the_slow_truth(logits: list[float], top_k: int, top_p: float) -> None:
    filtered = filter_logits(torch.tensor([logits]), temperature=1, top_k=top_k, top_p=top_p)[0]
    kept = set(filtered.isfinite().nonzero().flatten().tolist())
    # Sums in single precision may fall on either side of p; the truth at p less and more than that must enclose them.
    low = reference.surviving(logits, top_k=top_k, top_p=max(top_p - 1e-5, 0)) if top_p < 1 else kept
    high = reference.surviving(logits, top_k=top_k, top_p=top_p + 1e-5)
    assert low <= kept <= high
    assert all(filtered[code] == torch.tensor(logits)[code] for code in kept)


def test_temperature_divides_before_the_nucleus_is_cut() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    warm = filter_logits(logits, temperature=2, top_k=0, top_p=1)
    assert warm.tolist() == [[0.0, 0.5, 1.0]]
    counts = [int(filter_logits(logits, temperature=heat, top_k=0, top_p=0.6).isfinite().sum()) for heat in (0.1, 1, 9)]
    assert counts == [1, 1, 2]


def test_temperature_zero_keeps_the_first_of_the_likeliest() -> None:
    logits = torch.tensor([[1.0, 5.0, 5.0], [0.0, -1.0, -2.0]])
    filtered = filter_logits(logits, temperature=0, top_k=3, top_p=0.5)
    assert filtered.isfinite().tolist() == [[False, True, False], [True, False, False]]
    assert gumbel_argmax(filtered, 100 * torch.rand(2, 3)).tolist() == [1, 0]


def test_guidance_moves_from_the_empty_logits_through_the_conditional_ones() -> None:
    conditional, empty = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    assert apply_guidance(conditional, empty, scale=0).tolist() == empty.tolist()
    assert apply_guidance(conditional, empty, scale=1).tolist() == conditional.tolist()
    assert apply_guidance(conditional, empty, scale=3).tolist() == [[4.0, -2.0]]


# The window


def test_the_window_of_16_over_24_stands_where_the_original_puts_it() -> None:
    starts = [index - placement(index, 24, 16) for index in range(24)]
    assert starts == [0] * 9 + [1, 2, 3, 4, 5, 6, 7] + [8] * 8


@given(st.integers(1, 20), st.integers(0, 30))
def test_placement_is_the_rule_of_the_original(window: int, more: int) -> None:
    length = window + more
    for index in range(length):
        local = placement(index, length, window)
        assert local == reference.placement(index, length, window)
        assert 0 <= local < window
        assert 0 <= index - local <= more


# Whole images


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("grid", [(4, 4), (3, 2), (5, 5), (2, 6)])
def test_images_are_those_of_the_slow_loop(name: str, grid: tuple[int, int]) -> None:
    prior, known = small(), unknown_codes(2, grid)
    codes = sample_codes(prior, known, sampler=SAMPLERS[name])
    for item in range(2):
        truth = reference.sampled(prior, torch.tensor([item]), known[item], sampler=SAMPLERS[name], seed=item)
        assert torch.equal(codes[item], truth)


@pytest.mark.parametrize("name", ["plain", "guided"])
@pytest.mark.parametrize("grid", [(4, 4), (3, 2), (5, 6)])
def test_a_gpt_generates_what_the_slow_loop_does(name: str, grid: tuple[int, int]) -> None:
    prior, known = small_gpt(unmasked=2, prefix_length=2), unknown_codes(2, grid)
    codes = sample_codes(prior, known, sampler=SAMPLERS[name])
    for item in range(2):
        truth = reference.sampled(prior, torch.tensor([item, item]), known[item], sampler=SAMPLERS[name], seed=item)
        assert torch.equal(codes[item], truth)


@pytest.mark.parametrize("build", [small, small_gpt])
@pytest.mark.parametrize("order", ORDERS)
@examples(max_examples=2)
@given(number=st.integers(0, 2**31))
def test_every_order_is_generated_as_the_slow_loop_does(build: Callable[..., Prior], order: str, number: int) -> None:
    prior, generator = build(order=order, grid=(3, 4)), torch.Generator().manual_seed(number)
    known = torch.randint(9, (2, 3, 4), generator=generator)
    known[torch.rand(known.shape, generator=generator) < 0.7] = -1
    codes = sample_codes(prior, known, sampler=SAMPLERS["guided"])
    for item in range(2):
        truth = reference.sampled(prior, torch.tensor([item]), known[item], sampler=SAMPLERS["guided"], seed=item)
        assert torch.equal(codes[item], truth)


@pytest.mark.parametrize("order", ORDERS)
def test_codes_come_in_the_order_as_they_are_generated(order: Order) -> None:
    prior, seeds = small(order=order, grid=(3, 4)), torch.arange(2)
    prefix, known = torch.zeros(2, 1).long(), unknown_codes(2, (3, 4))
    steps = list(
        generate(prior, GenerationRequest(constant_prefix(prefix), sampler=Sampler(), seeds=seeds, known=known))
    )
    visited = ORDERS[order](3, 4)
    assert len(steps) == 3
    for row, codes in enumerate(steps):
        filled = visited[: 4 * row + 4]
        assert torch.equal((codes >= 0).flatten(1).sum(1), torch.tensor([len(filled)] * 2))
        assert torch.equal(codes.flatten(1)[:, filled], steps[-1].flatten(1)[:, filled])


def test_chance_belongs_to_the_place_in_every_order() -> None:
    """A prior that scores all codes alike takes what the noise of each place says, whenever the place is laid."""
    images = []
    for order in ORDERS:
        prior = small(order=order)
        prior.state_dict()["head.weight"].zero_()
        images.append(sample_codes(prior, unknown_codes(2, (4, 4))))
    assert all(torch.equal(image, images[0]) for image in images)
    assert len(set(images[0].flatten().tolist())) > 4


@pytest.mark.parametrize("grid", [(4, 3), (8, 8)])
def test_an_order_other_than_raster_takes_its_own_grid_alone(grid: tuple[int, int]) -> None:
    with pytest.raises(SmaltiError, match=f"in the order 'spiral_in', .* 4 x 4 codes only, not for {grid[0]} x"):
        sample_codes(small(order="spiral_in"), unknown_codes(1, grid))


@pytest.mark.parametrize("window", [(3, 5), (5, 3), (1, 1), (3, 4)])
def test_odd_windows_slide_as_the_slow_loop_does(window: tuple[int, int]) -> None:
    prior, known = small(grid=window, prefix_length=2), unknown_codes(1, (5, 6))
    truth = reference.sampled(prior, torch.tensor([0, 0]), known[0], sampler=SAMPLERS["plain"], seed=0)
    assert torch.equal(sample_codes(prior, known)[0], truth)


@pytest.mark.parametrize("name", ["plain", "guided"])
@pytest.mark.parametrize("grid", [(4, 4), (5, 5)])
def test_an_image_does_not_depend_on_its_batch(name: str, grid: tuple[int, int]) -> None:
    prior = small()
    together = sample_codes(prior, unknown_codes(7, grid), sampler=SAMPLERS[name])
    alone = torch.cat(
        [sample_codes(prior, unknown_codes(1, grid), sampler=SAMPLERS[name], first=item) for item in range(7)]
    )
    assert torch.equal(together, alone)
    assert len({str(codes.tolist()) for codes in together}) == 7, "all images are the same"


@pytest.mark.parametrize("grid", [(4, 4), (5, 5), (2, 3)])
@pytest.mark.parametrize("places", [1, 3, 9])
def test_generation_goes_on_as_if_it_had_not_stopped(grid: tuple[int, int], places: int) -> None:
    prior = small()
    whole = sample_codes(prior, unknown_codes(2, grid))
    known = whole.clone()
    known.flatten(1)[:, min(places, grid[0] * grid[1] - 1) :] = -1
    assert torch.equal(sample_codes(prior, known), whole)


@examples(max_examples=5)
@given(st.integers(0, 2**31), st.sampled_from([(4, 4), (5, 5)]))
def test_known_codes_stay_and_are_heeded(number: int, grid: tuple[int, int]) -> None:
    prior, generator = small(), torch.Generator().manual_seed(number)
    known = torch.randint(9, (2, *grid), generator=generator)
    known[torch.rand(known.shape, generator=generator) < 0.5] = -1
    codes = sample_codes(prior, known)
    assert torch.equal(codes[known >= 0], known[known >= 0])
    for item in range(2):
        truth = reference.sampled(prior, torch.tensor([item]), known[item], sampler=Sampler(), seed=item)
        assert torch.equal(codes[item], truth)


def test_rows_come_as_they_are_filled() -> None:
    prior = small()
    steps = list(
        generate(
            prior,
            GenerationRequest(
                constant_prefix(torch.zeros(2, 1).long()),
                sampler=Sampler(),
                seeds=torch.arange(2),
                known=unknown_codes(2, (3, 4)),
            ),
        )
    )
    assert len(steps) == 3
    for row, codes in enumerate(steps):
        assert (codes[:, : row + 1] >= 0).all()
        assert (codes[:, row + 1 :] == -1).all()
        assert torch.equal(codes[:, : row + 1], steps[-1][:, : row + 1])


def test_the_condition_is_read_and_guidance_strengthens_it() -> None:
    prior, known = small(), unknown_codes(1, (4, 4))
    sampled = {
        (label, scale): list(
            generate(
                prior,
                GenerationRequest(
                    constant_prefix(torch.tensor([[label]])),
                    sampler=Sampler(guidance=scale),
                    seeds=torch.tensor([5]),
                    known=known,
                ),
            )
        )[-1]
        for label in (0, 1)
        for scale in (0.0, 1.0, 3.0)
    }
    assert torch.equal(sampled[0, 0.0], sampled[1, 0.0]), "scale 0 is to forget the condition"
    assert not torch.equal(sampled[0, 1.0], sampled[1, 1.0])
    assert not torch.equal(sampled[0, 1.0], sampled[0, 3.0])


def test_a_prefix_can_follow_the_window() -> None:
    prior, seen = small(grid=(2, 2)), []

    def prefix_at(window: Window) -> Tensor:
        seen.append(window)
        return torch.full((1, 1), (window.left + window.top) % 3)

    known, seeds = unknown_codes(1, (3, 3)), torch.tensor([0])
    codes = list(generate(prior, GenerationRequest(prefix_at, sampler=Sampler(), seeds=seeds, known=known)))[-1]
    # Rows and columns 0 and 1 stand in the first window, 2 in the second. Each is asked once, for those
    # that come back are kept.
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert sorted(seen) == [Window(top, left, 2, 2) for top, left in places]
    assert not torch.equal(codes, sample_codes(prior, known))


@examples(max_examples=6)
@given(
    st.sampled_from([small, small_gpt]),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.integers(0, 2**31),
)
def test_a_prefix_for_each_window_is_generated_as_the_slow_loop_does(
    build: Callable[..., Prior], grid: tuple[int, int], window: tuple[int, int], number: int
) -> None:
    prior, generator = build(grid=window, prefix_length=2), torch.Generator().manual_seed(number)
    known = torch.randint(9, (2, *grid), generator=generator)
    known[torch.rand(known.shape, generator=generator) < 0.6] = -1

    def prefix_at(place: Window) -> Tensor:
        return torch.tensor([[place.top % 3, place.left % 3], [place.left % 3, place.top % 3]])

    seeds = torch.tensor([number, 7])
    generation = generate(prior, GenerationRequest(prefix_at, sampler=SAMPLERS["guided"], seeds=seeds, known=known))
    codes = final_codes(generation)
    for item in range(2):

        def prefix_of(place: Window, item: int = item) -> Tensor:
            return prefix_at(place)[item]

        truth = reference.sampled(prior, prefix_of, known[item], sampler=SAMPLERS["guided"], seed=int(seeds[item]))
        assert torch.equal(codes[item], truth)


def test_images_can_be_used_for_training_afterward() -> None:
    """Codes laid under inference mode cannot be saved for a backward pass."""
    prior = small()
    codes = sample_codes(prior, unknown_codes(1, (4, 4)))
    prior(prior.join(prior.null_prefix(1), codes.flatten(1)[:, :-1])).sum().backward()
    assert not codes.is_inference()


# What a user can get wrong


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"known": unknown_codes(2, (0, 4))}, "grid of 0 x 4 codes"),
        ({"prefix": torch.zeros(2, 3).long()}, r"shape \(2, 3\), and this prior reads \(batch, 1\)"),
        ({"seeds": torch.arange(3)}, r"seeds must have the shape \(2,\)"),
        ({"seeds": torch.tensor([0, -4])}, "seed -4 is negative"),
        ({"known": unknown_codes(2, (4, 4)) + 10}, "known code 9 is not one of this prior's 9"),
        ({"known": unknown_codes(2, (4, 4)) - 1}, "known code -2"),
    ],
)
def test_what_does_not_belong_together_raises_an_error(changes: dict[str, Any], message: str) -> None:
    right: dict[str, Any] = {"prefix": torch.zeros(2, 1).long(), "known": unknown_codes(2, (4, 4))}
    values = {**right, "seeds": torch.arange(2), **changes}
    with pytest.raises(SmaltiError, match=message):
        final_codes(generate(small(), GenerationRequest(constant_prefix(values.pop("prefix")), **values)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"known": unknown_codes(2, (4, 0))}, "grid of 4 x 0 codes"),
        ({"seeds": torch.arange(3)}, r"for 2 images seeds must have the shape \(2,\); they have \(3,\)"),
        ({"seeds": torch.tensor([0, -4])}, "seed -4 is negative"),
        ({"known": unknown_codes(2, (4, 4)) + 10}, "known code 9 is not one of this prior's 9"),
    ],
)
def test_a_prefix_for_each_window_does_not_hide_mistakes(changes: dict[str, Any], message: str) -> None:
    right: dict[str, Any] = {"seeds": torch.arange(2), "known": unknown_codes(2, (4, 4))}
    with pytest.raises(SmaltiError, match=message):
        generate(
            small(),
            GenerationRequest(lambda window: torch.zeros(2, 1).long(), sampler=Sampler(), **{**right, **changes}),
        )


def test_a_prior_in_training_is_refused() -> None:
    prior = small().train()
    with pytest.raises(SmaltiError, match=r"prior\.eval\(\)"):
        sample_codes(prior, unknown_codes(1, (4, 4)))


@pytest.mark.parametrize("values", [{"temperature": -1}, {"top_k": -1}, {"top_p": 1.5}, {"guidance": float("inf")}])
def test_samplers_that_are_invalid_raise_errors(values: dict[str, float]) -> None:
    name, value = next(iter(values.items()))
    with pytest.raises(SmaltiError, match=f"{name} = {value}"):
        parse(Sampler, values, where="--set")
