"""min-p, and guidance that changes along an image: against the slow truth, from Python and from the command line."""

from __future__ import annotations

import inspect
import math
from dataclasses import fields
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smalti.cli.complete import complete
from smalti.cli.sample import sample
from smalti.core.errors import SmaltiError
from smalti.core.settings import parse
from smalti.generation.code_sampler import SCHEDULES, GuidanceScheduleName, Sampler, filter_logits, guidance_scale
from smalti.generation.request import unknown_codes
from smalti.pipeline import Pipeline
from tests import reference
from tests.generation.test_code_sampler import sample_codes, small

SAMPLERS = {
    "min-p": Sampler(min_p=0.2, temperature=0.8),
    "all filters": Sampler(min_p=0.05, top_k=7, top_p=0.95),
    "linear": Sampler(guidance=3.0, guidance_schedule="linear"),
    "cosine": Sampler(guidance=3.0, guidance_schedule="cosine", min_p=0.1),
    "cosine to none": Sampler(guidance=0.0, guidance_schedule="cosine"),
}


@given(
    st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=12, unique=True),
    st.integers(0, 14),
    st.floats(0.5, 1, width=32),
    st.floats(0, 0.984375, width=32),  # at 1 the two fall apart by differences below all rounding
)
def test_filters_are_the_slow_truth(logits: list[float], top_k: int, top_p: float, min_p: float) -> None:
    filtered = filter_logits(torch.tensor([logits]), temperature=1, top_k=top_k, top_p=top_p, min_p=min_p)[0]
    kept = set(filtered.isfinite().nonzero().flatten().tolist())
    # Sums and logarithms in single precision may fall on either side; the truth a little apart must enclose them.
    less, more = (max(top_p - 1e-5, 0), top_p + 1e-5) if top_p < 1 else (1.0, 1.0)
    low = reference.surviving(logits, top_k=top_k, top_p=less, min_p=min(min_p * (1 + 1e-5), 1))
    high = reference.surviving(logits, top_k=top_k, top_p=more, min_p=min_p * (1 - 1e-5))
    assert low <= kept <= high
    assert kept, "the likeliest always stays"


def test_min_p_is_a_share_of_the_largest_probability() -> None:
    """Probabilities 0.5, 0.25, 0.15, 0.1: a half of the largest is kept, for it is not less than that."""
    logits = torch.tensor([[0.5, 0.25, 0.15, 0.1], [0.1, 0.15, 0.25, 0.5]]).log2() * math.log(2)
    kept = {
        p: filter_logits(logits, temperature=1, top_k=0, top_p=1, min_p=p).isfinite().sum(1) for p in (0, 0.25, 0.4, 1)
    }
    assert [each.tolist() for each in kept.values()] == [[4, 4], [3, 3], [2, 2], [1, 1]]
    warm = filter_logits(logits, temperature=3, top_k=0, top_p=1, min_p=0.4).isfinite().sum(1)
    assert warm.tolist() == [4, 4], "the temperature comes before it"


def test_schedules_begin_without_guidance_and_reach_all_of_it() -> None:
    assert set(SCHEDULES) == set(get_args(GuidanceScheduleName))
    scales = {
        name: [
            guidance_scale(turn, count=5, sampler=Sampler(guidance=3.0, guidance_schedule=name)) for turn in range(5)
        ]
        for name in get_args(GuidanceScheduleName)
    }
    assert scales["constant"] == [3.0] * 5
    assert scales["linear"] == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert scales["cosine"] == pytest.approx([1.0, 2 - 0.5**0.5, 2.0, 2 + 0.5**0.5, 3.0])
    assert guidance_scale(0, count=1, sampler=Sampler(guidance=3.0, guidance_schedule="linear")) == 1.0


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(("order", "grid"), [("raster", (4, 4)), ("raster", (6, 5)), ("spiral_in", (4, 4))])
def test_images_are_the_slow_truth(name: str, order: str, grid: tuple[int, int]) -> None:
    prior, known = small(order=order), unknown_codes(2, grid)
    known[:, 0, :2] = torch.tensor([3, 5])
    codes = sample_codes(prior, known, sampler=SAMPLERS[name])
    for item in range(2):
        truth = reference.sampled(prior, torch.tensor([item]), known[item], sampler=SAMPLERS[name], seed=item)
        assert torch.equal(codes[item], truth)


def test_the_options_change_images() -> None:
    prior, known = small(), unknown_codes(3, (4, 4))
    images = [
        sample_codes(prior, known, sampler=Sampler(guidance=3.0, guidance_schedule=name))
        for name in get_args(GuidanceScheduleName)
    ]
    images += [sample_codes(prior, known), sample_codes(prior, known, sampler=Sampler(min_p=0.5))]
    assert all(not torch.equal(a, b) for place, a in enumerate(images) for b in images[:place])


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_an_image_resumed_from_its_own_codes_is_the_same_under_a_schedule(name: str) -> None:
    prior = small()
    whole = sample_codes(prior, unknown_codes(1, (7, 4)), sampler=SAMPLERS[name])
    half = whole.clone()
    half[:, 3:] = -1
    assert torch.equal(sample_codes(prior, half, sampler=SAMPLERS[name]), whole)


@pytest.mark.parametrize("offered", [Pipeline.sample, Pipeline.stream, sample, complete])
def test_every_option_of_the_sampler_is_offered_with_its_default(offered: Any) -> None:
    parameters = inspect.signature(offered).parameters
    for field in fields(Sampler):
        assert parameters[field.name].default == field.default, field.name


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"min_p": 1.5}, "sampling: min_p = 1.5: .*less than or equal to 1"),
        ({"guidance_schedule": "square"}, "guidance_schedule = 'square': .*'constant', 'linear' or 'cosine'"),
    ],
)
def test_wrong_options_are_sentences(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SmaltiError, match=sentence):
        parse(Sampler, values, where="sampling")
