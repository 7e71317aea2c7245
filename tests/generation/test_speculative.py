"""smalti.generation.speculative: codes that are guessed are those that are laid one by one, in fewer calls
of the prior."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

from smalti.cli.complete import complete
from smalti.cli.sample import sample
from smalti.core.errors import SmaltiError
from smalti.generation.code_sampler import Sampler
from smalti.generation.generation_loop import generate
from smalti.generation.request import GenerationRequest, unknown_codes
from smalti.images.io import save_png
from smalti.pipeline import Pipeline
from smalti.prior import ORDERS, Prior, Window
from tests import reference
from tests.cli.test_cli import Runner
from tests.cli.test_cli import smalti as smalti
from tests.generation.test_code_sampler import small
from tests.generation.test_wavefront import Reads, networks, prefix_function
from tests.prior.test_neighborhood import small as small_neighborhood
from tests.small_pipeline import noise, pipeline, written

SAMPLERS = {
    "plain": Sampler(),
    "greedy": Sampler(temperature=0),
    "filtered": Sampler(temperature=0.9, top_k=6, top_p=0.9, min_p=0.05),
    "guided": Sampler(guidance=1.7, top_k=7),
    "rising": Sampler(guidance=3.0, guidance_schedule="cosine"),
    "unconditional": Sampler(guidance=0),
}


def generate_steps(prior: Prior, known: Tensor, *, speculate: int, first: int = 0, **options: Any) -> list[Tensor]:
    """All that is yielded for images with seeds from `first` on, each told a map of its own where the prior reads
    one."""
    prefix_at = prefix_function(prior, len(known), (known.shape[1], known.shape[2]), 3)
    options = {"sampler": Sampler(), **options}
    seeds = torch.arange(first, first + len(known))
    return list(generate(prior, GenerationRequest(prefix_at, seeds=seeds, known=known, speculate=speculate, **options)))


def partly_known(batch: int, grid: tuple[int, int], share: float, number: int) -> Tensor:
    """Random codes, of which this fraction is to be laid."""
    generator = torch.Generator().manual_seed(number)
    codes = torch.randint(9, (batch, *grid), generator=generator)
    return codes.masked_fill(torch.rand(codes.shape, generator=generator) < share, -1)


# --- the same codes
# -----------------------------------------------------------------------------------------------------


@examples(max_examples=20)
@given(
    st.sampled_from(sorted(networks())),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.sampled_from(sorted(SAMPLERS)),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.integers(1, 20),
    st.integers(0, 2**31),
)
def test_images_are_those_of_the_plain_loop(
    network: str, grid: tuple[int, int], sampler: str, batch: int, share: float, count: int, number: int
) -> None:
    """Under the window itself and under narrower ones; a few guesses, and more than there are codes."""
    prior = networks()[network]((4, 4), 2)
    known = partly_known(batch, grid, share, number)
    options: dict[str, Any] = {"sampler": SAMPLERS[sampler], "first": number}
    steps = generate_steps(prior, known, speculate=count, **options)
    plain = generate_steps(prior, known, speculate=0, **options)
    assert len(steps) == len(plain)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(steps, plain, strict=True))
    prefix_at = prefix_function(prior, batch, grid, 3)
    for item in range(batch):

        def prefix_of(window: Window, item: int = item) -> Tensor:
            return prefix_at(window)[item]

        truth = reference.sampled(prior, prefix_of, known[item], sampler=SAMPLERS[sampler], seed=number + item)
        assert torch.equal(steps[-1][item], truth)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_any_order_will_do(order: str, share: float) -> None:
    prior, known = small(order=order, prefix_length=2), partly_known(2, (4, 4), share, 8)
    options: dict[str, Any] = {"sampler": SAMPLERS["rising"], "first": 5}
    proposed, plain = (generate_steps(prior, known, speculate=count, **options)[-1] for count in (5, 0))
    assert torch.equal(proposed, plain)


def test_an_image_resumed_from_its_own_codes_is_the_same() -> None:
    prior = small()
    whole = generate_steps(prior, unknown_codes(2, (4, 4)), speculate=3)[-1]
    half = whole.clone()
    half[:, 1:, 2:] = -1
    assert torch.equal(generate_steps(prior, half, speculate=3)[-1], whole)


def test_what_is_known_is_not_requested() -> None:
    prior = small()
    reads, known = Reads(prior), partly_known(2, (4, 4), 0.0, 1)
    (steps,) = generate_steps(prior, known, speculate=4)
    assert torch.equal(steps, known)
    assert not reads.shapes


# --- in fewer calls
# ------------------------------------------------------------------------------------------------------


def calls_of(prior: Prior, known: Tensor, *, speculate: int, **options: Any) -> tuple[Tensor, list[tuple[int, int]]]:
    reads = Reads(prior)
    return generate_steps(prior, known, speculate=speculate, **options)[-1], list(reads.shapes)


@pytest.mark.parametrize("network", ["gpt", "maps", "transformer"])
@pytest.mark.parametrize(("sampler", "batch"), [("plain", 1), ("plain", 2), ("rising", 1)])
def test_there_are_as_many_calls_as_in_the_slow_loop(network: str, sampler: str, batch: int) -> None:
    """In a batch the worst guess of any image decides."""
    grid = (3, 4)
    for seed in range(3):
        prior = networks()[network]((4, 4), 2)
        codes, shapes = calls_of(prior, unknown_codes(batch, grid), speculate=3, sampler=SAMPLERS[sampler], first=seed)
        truth, calls = reference.speculative(
            prior,
            prefix_function(prior, batch, grid, 3),
            grid,
            sampler=SAMPLERS[sampler],
            seeds=range(seed, seed + batch),
            count=3,
        )
        assert torch.equal(codes, truth)
        assert len(shapes) == calls


def flat(prior: Prior) -> Prior:
    """A prior that finds all codes equally likely, whatever it is told: the noise alone says what is laid."""
    with torch.no_grad():
        for weight in prior.head.parameters():
            weight.zero_()
    return prior


def test_answers_that_are_right_already_are_believed_in_the_next_call() -> None:
    """Where the noise alone says what is laid, one call answers for all, and the next finds all guesses right."""
    prior = flat(small(prefix_length=2))
    codes, shapes = calls_of(prior, unknown_codes(2, (4, 4)), speculate=15)
    assert torch.equal(codes, generate_steps(prior, unknown_codes(2, (4, 4)), speculate=0)[-1])
    assert len(shapes) <= 3
    assert shapes[:2] == [(2, 2), (2, 15)], "the last code is never read"


def test_a_code_that_repeats_is_proposed_at_once() -> None:
    """The likeliest code is everywhere the same; a call lays one code more than it guesses, and reads one
    that is laid."""
    codes, shapes = calls_of(
        flat(small(prefix_length=2)), unknown_codes(3, (4, 4)), speculate=4, sampler=SAMPLERS["greedy"]
    )
    assert (codes == 0).all()
    assert shapes == [(3, 2), (3, 5), (3, 5), (3, 5)]


# --- where it is asked for
# -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "count", "sentence"),
    [
        (
            (4, 5),
            8,
            "speculate = 8 needs a window .* a window of 4 x 4 codes moves over a grid of 4 x 5; leave it at 0, or gen",
        ),
        ((5, 4), 1, "speculate = 1 needs a window .* a window of 4 x 4 codes moves over a grid of 5 x 4"),
        ((4, 4), -1, "speculate = -1 is not a number of codes; give 0"),
    ],
)
def test_wrong_drafts_are_sentences(grid: tuple[int, int], count: int, sentence: str) -> None:
    with pytest.raises(SmaltiError, match=sentence):
        generate_steps(small(), unknown_codes(1, grid), speculate=count)


def test_a_neighborhood_transformer_has_no_window_to_proposal_under() -> None:
    prior = small_neighborhood()
    prefix, known = prior.null_prefix(1), unknown_codes(1, prior.grid)
    with pytest.raises(
        SmaltiError, match=r"speculate = 2 needs a window, .* a neighborhood transformer has none; leave it at 0"
    ):
        generate(
            prior,
            GenerationRequest(
                lambda window: prefix, sampler=Sampler(), seeds=torch.zeros(1).long(), known=known, speculate=2
            ),
        )


@pytest.mark.parametrize(
    "offered",
    [
        Pipeline.sample,
        Pipeline.stream,
        Pipeline.complete,
        Pipeline.request,
        Pipeline.request_for,
        sample,
        complete,
    ],
)
def test_it_is_offered_and_off(offered: Any) -> None:
    assert inspect.signature(offered).parameters["speculate"].default == 0


def test_a_pipeline_drafts_in_all_that_generates_images() -> None:
    pipe = pipeline()
    images = pipe.sample(1, label="dusk", seed=3)
    nothing = torch.zeros(images.shape[2:], dtype=torch.bool)
    reads = Reads(pipe.prior)
    ways: list[Callable[[], Tensor]] = [
        lambda: pipe.sample(1, label="dusk", seed=3, speculate=4),
        lambda: pipe.complete(images, nothing, label="dusk", seed=3, speculate=4),
        lambda: list(pipe.stream(label="dusk", seed=3, speculate=4))[-1][None],
    ]
    for way in ways:
        reads.shapes.clear()
        assert torch.equal(way(), images)
        assert max(codes for _, codes in reads.shapes) == 5


def test_commands_proposal(smalti: Runner, tmp_path: Path) -> None:
    """The files are the same, whatever is guessed: nothing in them tells of it."""
    written(tmp_path / "model")
    save_png(tmp_path / "given.png", noise(3, 12, 16))
    sample = ("sample", tmp_path / "model", "-n", 2, "--label", "dusk")
    complete = ("complete", tmp_path / "model", tmp_path / "given.png", "--keep", "top-half", "-n", 2)
    for command in (sample, complete, (*sample, "--best-of", 2, "--seed", 7)):
        for name, proposals in (("plain", ()), ("guessed", ("--speculate", 5))):
            ended = smalti(*command, "--out", tmp_path / name, *proposals)
            assert ended.status == 0, ended.err
    names = sorted(path.name for path in (tmp_path / "plain").iterdir())
    assert len(names) == 6
    for name in names:
        assert (tmp_path / "guessed" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    out = ("--out", tmp_path / "out", "--speculate", 2)
    for larger in ((*sample, "--size", "20x24"), (*complete, "--canvas", "20x24")):
        smalti.fails(*larger, *out, sentence="a window of 3 x 4 codes moves over a grid of 5 x 6; leave it at 0")
    assert not list(tmp_path.glob("out/*"))
