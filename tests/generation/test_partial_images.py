"""Partial images: how often they are made, and what a stream yields of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from smalti.generation import generation_loop
from smalti.generation.generation_loop import generate, generation_states
from smalti.generation.partial_images import PreviewSchedule
from smalti.generation.request import GenerationRequest, unknown_codes
from smalti.prior import Prior
from tests.small_pipeline import pipeline


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which each row of codes advances by one."""
    now = [100.0]

    def slowly(prior: Prior, request: GenerationRequest) -> Iterator[Tensor]:
        for codes in generate(prior, request):
            now[0] += 1
            yield codes

    monkeypatch.setattr("smalti.generation.partial_images.time.monotonic", lambda: now[0])
    monkeypatch.setattr(generation_loop, "generate", slowly)
    return now


@pytest.mark.parametrize(("every", "rows"), [(0, range(10)), (4, (0, 4, 8, 9)), (1e9, (0, 9))])
def test_a_stream_shows_rows_at_intervals_and_the_last(clock: list[float], every: float, rows: list[int]) -> None:
    pipe = pipeline()
    steps = list(generate(pipe.prior, pipe.request(unknown_codes(1, (10, 4)), seed=1)))
    shown = list(pipe.stream(size=(40, 16), seed=1, every=every))
    assert len(shown) == len(rows)
    for row, image in zip(rows, shown, strict=True):
        assert torch.equal(image, pipe.decode_partial(steps[row])[0])


def test_previews_take_no_more_than_their_share(clock: list[float]) -> None:
    schedule = PreviewSchedule(every=5, max_share=0.1, first=3)
    due = []
    for _ in range(60):
        if schedule.is_due:
            due.append(clock[0] - 100)
            with schedule:
                clock[0] += 2
        clock[0] += 1
    assert due == [3, 3 + 2 + 18, 23 + 2 + 18, 43 + 2 + 18], (
        "nine times as long as a preview takes, which is more than 5"
    )


def test_states_report_the_progress_of_a_generation(clock: list[float]) -> None:
    pipe, known = pipeline(), unknown_codes(2, (5, 4))
    known[:, 1] = 3
    states = list(generation_states(pipe.prior, pipe.request(known)))
    assert [state.generated for state in states] == [8, 16, 24, 32]
    assert {state.total for state in states} == {32}
    assert [state.is_complete for state in states] == [False] * 3 + [True]
    assert states[0].seconds_left == pytest.approx(states[0].seconds * 3)
    nothing = list(generation_states(pipe.prior, pipe.request(torch.zeros(1, 2, 2, dtype=torch.int64))))
    assert all(state.is_complete and state.share == 1 and state.seconds_left == 0 for state in nothing)
