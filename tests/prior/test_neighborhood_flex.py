"""smalti.prior.flex_attention: a neighborhood transformer that looks around by FlexAttention sees what it sees in tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import flex_attention as theirs

from smalti.prior import Neighborhood, NoCache, neighborhood
from smalti.prior.flex_attention import BLOCK_SIZE, MIN_HEAD_DIM, block_mask
from smalti.prior.neighborhood import FlexGridAttention, TiledGridAttention, neighborhood_mask
from tests.prior.test_neighborhood import KINDS, drawn, prefix_for, small

CPU, CUDA = torch.device("cpu"), torch.device("cuda")

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that CUDA knows on this machine")
# PyTorch warns of FlexAttention that is not compiled, and of parts of its compiler.
pytestmark = pytest.mark.filterwarnings("ignore")


def features(prior: Neighborhood, prefix: Tensor, codes: Tensor) -> Tensor:
    found: Tensor = prior.features(prior.join(prefix, codes.flatten(1)[:, :-1]), NoCache(columns=codes.shape[2]))
    return found


@pytest.fixture
def by_flex(monkeypatch: pytest.MonkeyPatch) -> Callable[[Neighborhood], None]:
    """Let a prior use FlexAttention here, with the gradients that PyTorch has for it on a CPU but does not offer."""
    monkeypatch.setattr(theirs, "_validate_device", lambda *given: None)
    return lambda prior: monkeypatch.setattr(prior, "grid_attention", lambda device: FlexGridAttention)


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def blocks(mask: Tensor) -> Tensor:
    """Which places see which (T, T) -> which blocks of places hold such a pair (b, b)."""
    count = -(-len(mask) // BLOCK_SIZE)
    whole = F.pad(mask, (0, count * BLOCK_SIZE - len(mask)) * 2).view(count, BLOCK_SIZE, count, BLOCK_SIZE)
    return whole.any(3).any(1)


@examples(max_examples=40)
@given(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.integers(1, 6))
@example((1, 400), 3)
@example((400, 1), 3)
@example((3, 200), 2)
def test_what_is_seen_is_what_tiles_show(grid: tuple[int, int], reach: int) -> None:
    count, whole = grid[0] * grid[1], (0, grid[0], 0, grid[1])
    mask, truth = block_mask(grid, reach, CPU), neighborhood_mask(whole, whole, reach, CPU)  # (T, T)
    place = torch.arange(count)
    assert torch.equal(mask.mask_mod(place * 0, place * 0, place[:, None], place[None]), truth)
    looked_at = mask.to_dense()[0, 0].bool()
    assert looked_at[blocks(truth)].all()
    assert not looked_at.triu(1).any()
    assert mask.shape[-2:] == (count, count)


@pytest.mark.parametrize("grid", [(6, 128), (5, 64), (3, 256), (64, 32), (20, 30), (3, 150)])
def test_no_other_block_is_looked_at(grid: tuple[int, int]) -> None:
    whole = (0, grid[0], 0, grid[1])
    assert torch.equal(
        block_mask(grid, 2, CPU).to_dense()[0, 0].bool(), blocks(neighborhood_mask(whole, whole, 2, CPU))
    )


def test_a_mask_is_made_once_and_is_good_for_training_too() -> None:
    with torch.inference_mode():
        mask = block_mask((7, 9), 2, CPU)
    assert block_mask((7, 9), 2, CPU) is mask
    assert not mask.kv_indices.is_inference()


@examples(max_examples=12)
@given(st.sampled_from(sorted(KINDS)), st.tuples(st.integers(1, 14), st.integers(1, 14)), st.integers(1, 4))
def test_features_are_those_of_tiles(kind: str, grid: tuple[int, int], reach: int) -> None:
    prior = small(radius=reach, **KINDS[kind])
    prefix, codes = prefix_for(prior, 2, grid), drawn(2, *grid, below=9)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        truth = features(prior, prefix, codes)
        patch.setattr(prior, "grid_attention", lambda device: FlexGridAttention)
        torch.testing.assert_close(features(prior, prefix, codes), truth, rtol=1e-5, atol=1e-5)


def gradients(prior: Neighborhood, grid: tuple[int, int]) -> list[Tensor]:
    prefix, codes = prefix_for(prior, 2, grid), drawn(2, *grid, below=9)
    return list(torch.autograd.grad(features(prior, prefix, codes).square().mean(), list(prior.blocks.parameters())))


@pytest.mark.parametrize("grid", [(3, 4), (12, 13)])
@pytest.mark.parametrize("kind", ["list", "label, map, more"])
def test_gradients_are_those_of_tiles(
    kind: str, grid: tuple[int, int], by_flex: Callable[[Neighborhood], None]
) -> None:
    prior = small(**KINDS[kind])
    truth = gradients(prior, grid)
    by_flex(prior)
    for found, expected in zip(gradients(prior, grid), truth, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_it_is_taken_where_blocks_are_compiled_for_a_gpu() -> None:
    prior = small()
    assert prior.settings.embed_dim // prior.settings.heads == MIN_HEAD_DIM
    assert prior.grid_attention(CUDA) is TiledGridAttention
    for block in prior.blocks:
        block.compile(dynamic=False)
    assert prior.grid_attention(CUDA) is FlexGridAttention
    assert prior.grid_attention(CPU) is TiledGridAttention
    narrow = small(heads=4)
    narrow.blocks[0].compile()
    assert narrow.grid_attention(CUDA) is TiledGridAttention


@pytest.mark.slow  # the compiler takes its time
@pytest.mark.parametrize("autocast", [False, True])
def test_compiled_blocks_see_the_same(autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    prior, grid = small(layers=1, **KINDS["label, map, more"]), (12, 13)
    prefix, codes = prefix_for(prior, 2, grid), drawn(2, *grid, below=9)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        truth = features(prior, prefix, codes)
        monkeypatch.setattr(prior, "grid_attention", lambda device: FlexGridAttention)
        for block in prior.blocks:
            block.compile(dynamic=False)
        found = features(prior, prefix, codes)
    error = (found - truth).abs().max() / truth.abs().max()
    assert error < (0.03 if autocast else 1e-5)


# --- on a GPU (never run so far) --------------------------------------------------------------------------------------


@cuda
@pytest.mark.parametrize("grid", [(3, 4), (12, 13), (64, 64)])
def test_on_a_gpu_compiled_blocks_see_and_learn_the_same(
    grid: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    prior, used = small().to("cuda"), []

    class Spy:
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            used.append(grid)
            return FlexGridAttention(*args, **kwargs)

    def learned() -> list[Tensor]:
        prefix, codes = prefix_for(prior, 2, grid).cuda(), drawn(2, *grid, below=9).cuda()
        found = features(prior, prefix, codes)
        return [found, *torch.autograd.grad(found.square().mean(), list(prior.blocks.parameters()))]

    truth = learned()
    monkeypatch.setattr(neighborhood, "FlexGridAttention", Spy)
    for block in prior.blocks:
        block.compile(dynamic=False)
    for found, expected in zip(learned(), truth, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    assert used
