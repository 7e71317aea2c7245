"""smalti.generation.cuda_graphs: the next code by a call that is the same at every place, with the logits of the ordinary one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from smalti.core.errors import SmaltiError
from smalti.generation import sliding_window
from smalti.generation.code_sampler import Sampler, final_codes, sample, unknown_codes
from smalti.generation.cuda_graphs import GraphablePrior, GraphDecoder
from smalti.kernels.prepacked import prepacked
from smalti.prior import StaticCache
from tests.generation.test_code_sampler import small, small_gpt

KINDS: dict[str, Callable[[], GraphablePrior]] = {
    "gpt": small_gpt,
    "gpt, prefix": partial(small_gpt, prefix_length=5, unmasked=3, block_size=32),
    "gpt, spiral": partial(small_gpt, order="spiral_in"),
    "transformer": small,
    "transformer, prefix": partial(small, prefix_length=4, tied=True, prefix_rotation="erased", query_key_norm=False),
    "transformer, maps": partial(small, prefix_length=34, maps=(0, 17)),
    "transformer, z-curve, map": partial(small, prefix_length=17, maps=(1,), order="z_curve"),
}

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that CUDA knows on this machine")


def drawn(*shape: int, below: int, number: int = 0) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(number))


def window_of(prior: GraphablePrior, narrow: bool) -> tuple[int, int]:
    return (3, 3) if narrow and prior.order == "raster" else prior.grid


@torch.no_grad()
def begun(
    prior: GraphablePrior, batch: int, window: tuple[int, int], codes: Tensor, device: str = "cpu"
) -> StaticCache:
    """A cache that holds a prefix and some codes (B, n)."""
    prefix = drawn(batch, prior.prefix_length, below=3).to(device)
    cache = prior.empty_cache(window=window)
    prior.next_logits(prior.join(prefix, codes), cache=cache)
    return cache


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@examples(max_examples=20)
@given(st.sampled_from(sorted(KINDS)), st.integers(1, 4), st.integers(0, 6), st.booleans(), st.booleans())
@torch.no_grad()
def test_logits_are_those_of_the_ordinary_call(kind: str, batch: int, first: int, narrow: bool, ready: bool) -> None:
    """From any place on, to the last code that is read; at places in between an ordinary call reads two codes at once."""
    prior = prepacked(KINDS[kind]()) if ready else KINDS[kind]()
    window = window_of(prior, narrow)
    count = window[0] * window[1]
    codes = drawn(batch, count, below=9, number=first)
    ordinary, cache = (begun(prior, batch, window, codes[:, :first]) for _ in range(2))
    for memory in cache.buffers.values():
        memory[..., cache.length :, :] = torch.nan  # as memory that was just taken may hold
    steps = GraphDecoder(prior, cache)
    place = first
    while place < count - 1:
        if place % 5 == 3:
            two = codes[:, place : place + 2]
            close(prior.next_logits(two, cache=cache), prior.next_logits(two, cache=ordinary))
            place += 2
        else:
            found = steps.logits(codes[:, place])
            close(found, prior.next_logits(codes[:, place : place + 1], cache=ordinary))
            place += 1
        assert cache.length == ordinary.length


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guidance", [1.0, 1.8])
def test_images_are_the_same(monkeypatch: pytest.MonkeyPatch, kind: str, guidance: float) -> None:
    prior, seeds, sampler = KINDS[kind](), torch.arange(3), Sampler(temperature=0.9, top_k=7, guidance=guidance)
    prefix, known = drawn(3, prior.prefix_length, below=3), unknown_codes(3, (4, 4))
    known[:, 1:3, 2] = 1
    generate_codes = partial(sample, prior, prefix, (4, 4), sampler=sampler, seeds=seeds, known=known)
    truth = final_codes(generate_codes())
    monkeypatch.setattr(sliding_window, "uses_cuda_graphs", lambda device: True)
    with mock.patch.object(GraphDecoder, "logits", autospec=True, side_effect=GraphDecoder.logits) as replayed:
        assert torch.equal(final_codes(generate_codes()), truth)
    assert replayed.call_count >= 10  # all but the first, and those after known ones, which are read together with them


def test_graphs_are_for_who_requests_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU alone, and there only where the variable is set: the capture was never run."""
    monkeypatch.delenv("SMALTI_GRAPHS", raising=False)
    requested = [torch.device("cpu"), torch.device("cuda")]
    assert [sliding_window.uses_cuda_graphs(device) for device in requested] == [False, False]
    monkeypatch.setenv("SMALTI_GRAPHS", "1")
    assert [sliding_window.uses_cuda_graphs(device) for device in requested] == [False, True]


class Watching(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes each operation, the shape that it makes, and where the tensors are that it reads and makes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[str, object]] = []
        self.devices: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.seen.append((str(func), tuple(made.shape) if isinstance(made, Tensor) else None))
        self.devices |= {one.device.type for one in tree_leaves((args, kwargs, made)) if isinstance(one, Tensor)}
        return made


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_call_is_the_same_at_every_place_and_stays_on_its_device(kind: str) -> None:
    """What a CUDA graph asks for, as far as it can be told without one. A tensor on "meta" has no numbers to look at."""
    prior = KINDS[kind]().to("meta")
    steps = GraphDecoder(prior, begun(prior, 2, prior.grid, drawn(2, 0, below=9).to("meta"), "meta"))
    calls, codes = [], drawn(2, below=9).to("meta")
    for _ in range(15):
        with Watching() as watching:
            steps.call()
        assert watching.devices == {"meta"}
        calls.append(watching.seen)
        steps.logits(codes)
    assert len(calls[0]) > 20
    assert all(call == calls[0] for call in calls)


@torch.no_grad()
def test_what_was_given_out_stays_as_it_is() -> None:
    """A graph that is played back writes into the same memory each time, as the call does here."""
    prior = small()
    steps = GraphDecoder(prior, begun(prior, 2, (4, 4), drawn(2, 0, below=9)))
    call, memory = steps.call, torch.empty(2, 9)
    steps.call = lambda: memory.copy_(call())
    first = steps.logits(drawn(2, below=9))
    before = first.clone()
    steps.logits(drawn(2, below=9, number=1))
    assert torch.equal(first, before)


@torch.no_grad()
def test_a_cache_without_its_prefix_and_a_place_beyond_the_last_are_our_own_mistakes() -> None:
    prior = small(prefix_length=4)
    with pytest.raises(AssertionError, match="0 codes are kept, and the prefix alone has 4"):
        GraphDecoder(prior, prior.empty_cache())
    steps = GraphDecoder(prior, begun(prior, 1, (4, 4), drawn(1, 15, below=9)))
    with pytest.raises(AssertionError, match="nothing follows code 19 of this cache"):
        steps.logits(drawn(1, below=9))


# --- on a GPU (never run so far) --------------------------------------------------------------------------------------


@cuda
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_graph_that_is_replayed_gives_the_logits_of_the_ordinary_call(kind: str) -> None:
    prior = KINDS[kind]().to("cuda")
    codes = drawn(4, 16, below=9).to("cuda")
    ordinary, cache = (begun(prior, 4, prior.grid, codes[:, :2], "cuda") for _ in range(2))
    steps = GraphDecoder(prior, cache)
    made = [steps.logits(codes[:, place]) for place in range(2, 15)]
    for place, found in zip(range(2, 15), made, strict=True):
        expected = prior.next_logits(codes[:, place : place + 1], cache=ordinary)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@cuda
@torch.no_grad()
def test_a_graph_is_not_captured_where_it_would_outlive_its_weights() -> None:
    prior = small().to("cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        cache = begun(prior, 1, (4, 4), drawn(1, 0, below=9).to("cuda"), "cuda")
        with pytest.raises(SmaltiError, match="give it cache_enabled=False"):
            GraphDecoder(prior, cache)
