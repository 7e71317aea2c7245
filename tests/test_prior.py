"""smalti.prior.base and transformer: what every prior must be, shown on the transformer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor, nn

from smalti.errors import SmaltiError
from smalti.prior import NoCache, Prior, Transformer, TransformerSettings, nats, parameter_groups
from smalti.prior.transformer import rotated
from smalti.settings import as_mapping, parse


def small(**changes: Any) -> Transformer:
    """A small transformer with large weights, so that all that it reads shows in its logits."""
    plain = {"size": 11, "condition_size": 3, "prefix": 2, "grid": (3, 4), "layers": 2, "width": 32, "heads": 2}
    torch.manual_seed(0)
    prior = Transformer(parse(TransformerSettings, {**plain, **changes}, where="test"))
    with torch.no_grad():
        for weight in prior.parameters():
            weight.normal_(0, 0.3) if weight.ndim == 2 else weight.uniform_(0.5, 1.5)
    return prior.eval()


def sequences(prior: Prior, batch: int = 2, *, grid: tuple[int, int] | None = None) -> Tensor:
    """Random prefix and all image codes of a grid but the last, joined."""
    rows, columns = grid or prior.grid
    generator = torch.Generator().manual_seed(1)
    prefix = torch.randint(4, (batch, prior.prefix), generator=generator)
    return prior.join(prefix, torch.randint(prior.size, (batch, rows * columns - 1), generator=generator))


def test_logits_have_the_promised_shape() -> None:
    prior = small()
    codes = sequences(prior)
    assert prior(codes).shape == (2, 2 + 11, 11)
    assert prior.next_logits(codes, cache=NoCache(columns=4)).shape == (2, 11)


def test_a_code_changes_its_own_and_later_logits_only() -> None:
    prior = small()
    codes = sequences(prior, 1)
    before = prior(codes)
    for place in range(codes.shape[1]):
        changed = codes.clone()
        changed[0, place] = (changed[0, place] + 1) % prior.size
        difference = (prior(changed) - before).abs().amax(dim=(0, 2))
        assert (difference[:place] == 0).all(), f"code {place} is seen too early"
        assert (difference[place:] > 1e-4).all(), f"code {place} is not seen"


@examples(deadline=None, max_examples=30)
@given(st.sets(st.integers(1, 12)), st.sampled_from([(3, 4), (2, 3), (3, 1)]))
def test_cached_pieces_give_the_logits_of_the_whole(cuts: set[int], grid: tuple[int, int]) -> None:
    prior = small()
    codes = sequences(prior, grid=grid)
    cache, pieces = prior.empty_cache(window=grid), []
    with torch.no_grad():
        whole = prior(codes, cache=NoCache(columns=grid[1]))
        for piece in torch.tensor_split(codes, sorted(cut for cut in cuts if cut < codes.shape[1]), dim=1):
            pieces.append(prior(piece, cache=cache))
    assert cache.length == codes.shape[1]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_a_cache_takes_its_memory_once_and_refuses_gradients() -> None:
    prior = small()
    codes, cache = sequences(prior), prior.empty_cache()
    with pytest.raises(AssertionError, match="no gradients"):
        prior(codes, cache=cache)
    with torch.no_grad():
        prior(codes[:, :3], cache=cache)
        places = {name: memory.data_ptr() for name, memory in cache.kept.items()}
        prior(codes[:, 3:], cache=cache)
    assert len(places) == 4
    assert places == {name: memory.data_ptr() for name, memory in cache.kept.items()}


def test_a_cache_follows_the_type_of_autocast() -> None:
    prior = small()
    codes, cache = sequences(prior), prior.empty_cache()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        whole = prior(codes)
        pieces = [prior(piece[:, None], cache=cache) for piece in codes.unbind(dim=1)]
    assert {memory.dtype for memory in cache.kept.values()} == {torch.bfloat16}
    difference = torch.cat(pieces, dim=1).softmax(dim=2) - whole.softmax(dim=2)
    assert difference.abs().mean() < 0.02


def test_the_width_of_the_grid_places_the_codes() -> None:
    prior = small(grid=(4, 4))
    codes = sequences(prior, grid=(2, 2))
    narrow, wide = prior(codes, cache=NoCache(columns=2)), prior(codes, cache=NoCache(columns=4))
    same = prior.prefix + 2  # prefix and first row stand where they stood
    torch.testing.assert_close(narrow[:, :same], wide[:, :same])
    assert (narrow[:, same:] - wide[:, same:]).abs().max() > 1e-3


@pytest.mark.parametrize("columns", [1, 4])
def test_codes_of_one_row_or_of_one_column_are_told_apart(columns: int) -> None:
    """One layer sees a bag of codes: only their places can make a difference when two are exchanged."""
    prior = small(layers=1, grid=(4, 4))
    last = []
    for codes in ([[3, 7, 5]], [[7, 3, 5]]):
        sequence = prior.join(prior.null_prefix(1), torch.tensor(codes))
        last.append(prior(sequence, cache=NoCache(columns=columns))[:, -1])
    assert (last[0] - last[1]).abs().max() > 1e-3


def test_rotary_positions_turn_and_products_depend_on_the_distance_alone() -> None:
    prior = small(grid=(3, 4))
    query, key = torch.randn(2, 16)
    rotation = prior.rotation(prior.prefix, prior.prefix + 12, 4)
    queries, keys = (rotated(one.expand(12, 16), rotation).view(3, 4, 16) for one in (query, key))
    torch.testing.assert_close(queries.norm(dim=-1), query.norm().expand(3, 4))
    torch.testing.assert_close(queries[2, 1] @ keys[1, 0], queries[1, 3] @ keys[0, 2])
    assert torch.equal(queries[0, 0], query)
    assert len({round(float(queries[2, 3] @ keys[row, column]), 4) for row in range(3) for column in range(4)}) == 12


def test_sequences_that_do_not_fit_are_refused() -> None:
    prior = small()
    codes = sequences(prior)
    with pytest.raises(AssertionError, match="do not fit"):
        prior(torch.cat((codes, codes), dim=1))
    with pytest.raises(AssertionError, match="columns"):
        prior(codes, cache=NoCache(columns=5))


def test_a_picture_in_a_batch_has_the_logits_it_has_alone() -> None:
    prior = small()
    codes = sequences(prior, 7)
    torch.testing.assert_close(prior(codes)[[3]], prior(codes[[3]]), atol=1e-5, rtol=1e-5)


def test_condition_codes_have_a_range_of_their_own_and_nothing_is_its_last() -> None:
    prior = small()
    joined = prior.join(torch.tensor([[0, 2]]), torch.tensor([[0, 10]]))
    assert joined.tolist() == [[11, 13, 0, 10]]
    empty = prior.null_prefix(3)
    assert empty.tolist() == [[3, 3]] * 3
    assert prior.join(empty, empty[:, :0]).max() == prior.embedding.num_embeddings - 1


def test_the_order_of_prefix_codes_matters() -> None:
    prior = small(layers=1)
    one, other = torch.tensor([[0, 1]]), torch.tensor([[1, 0]])
    last = [prior(prior.join(prefix, torch.tensor([[5]])))[:, -1] for prefix in (one, other)]
    assert (last[0] - last[1]).abs().max() > 1e-3


def test_every_weight_learns_from_the_first_step() -> None:
    torch.manual_seed(0)
    prior = Transformer(TransformerSettings(size=11, prefix=2, grid=(3, 4), layers=2, width=32, heads=2))
    nats(prior, prior.null_prefix(2), torch.randint(11, (2, 3, 4))).mean().backward()  # type: ignore[no-untyped-call]
    for name, weight in prior.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


def test_a_fresh_prior_knows_nothing() -> None:
    torch.manual_seed(0)
    prior = Transformer(TransformerSettings(size=64, grid=(4, 4), layers=3, width=64, heads=4)).eval()
    loss = nats(prior, prior.null_prefix(4), torch.randint(64, (4, 4, 4))).mean()
    assert loss.item() == pytest.approx(math.log(64), abs=0.15)


@pytest.mark.parametrize("grid", [(3, 4), (2, 3), (1, 1)])
def test_nats_are_those_of_one_code_after_the_other(grid: tuple[int, int]) -> None:
    prior = small()
    codes, prefix = torch.randint(11, (2, *grid)), torch.tensor([[0, 3], [2, 1]])
    flat = codes.flatten(1)
    with torch.no_grad():
        losses = nats(prior, prefix, codes)
        for place in range(flat.shape[1]):
            logits = prior(prior.join(prefix, flat[:, :place]), cache=NoCache(columns=grid[1]))[:, -1]
            truth = -logits.log_softmax(dim=1).gather(1, flat[:, [place]])[:, 0]
            torch.testing.assert_close(losses.flatten(1)[:, place], truth, atol=1e-4, rtol=1e-5)
    assert losses.shape == codes.shape


def test_it_learns_a_few_pictures_by_heart() -> None:
    torch.manual_seed(0)
    settings = TransformerSettings(size=16, condition_size=4, grid=(4, 4), layers=2, width=64, heads=4)
    prior = Transformer(settings)
    codes, labels = torch.randint(16, (4, 4, 4)), torch.arange(4)[:, None]
    optimiser = torch.optim.AdamW(parameter_groups(prior, weight_decay=0.01), lr=5e-3, betas=(0.9, 0.95))
    for _ in range(60):
        optimiser.zero_grad()
        nats(prior, labels, codes).mean().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    prior.eval()
    with torch.no_grad():
        assert nats(prior, labels, codes).mean() < 0.05
        assert nats(prior, labels.roll(1), codes)[:, 0, 0].mean() > 1, "the label is not read"


def test_dropout_works_in_training_only() -> None:
    prior = small(dropout=0.5)
    codes = sequences(prior)
    assert torch.equal(prior(codes), prior(codes))
    prior.train()
    assert not torch.equal(prior(codes), prior(codes))


def test_matrices_decay_and_nothing_else() -> None:
    prior = small()
    names = {id(weight): name for name, weight in prior.named_parameters()}
    decayed, spared = parameter_groups(prior, weight_decay=0.1)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert {names[id(weight)].split(".")[-2] for weight in decayed["params"]} == {
        "project",
        "out",
        "up",
        "down",
        "head",
    }
    assert len(decayed["params"]) + len(spared["params"]) == len(names)
    mixed = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.Embedding(2, 2))
    mixed[1].requires_grad_(False)
    assert [len(group["params"]) for group in parameter_groups(mixed, weight_decay=1)] == [1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "size = 0"),
        ({"prefix": 0}, "prefix = 0"),
        ({"heads": 3}, "heads = 3: the width 32 must be a multiple of 4 x heads"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"grid": [4, 0]}, "grid"),
        ({"head": 3}, "did you mean 'heads'"),
    ],
)
def test_settings_that_cannot_be_are_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SmaltiError, match=message):
        small(**changes)


def test_settings_survive_a_file() -> None:
    settings = small().settings
    assert parse(TransformerSettings, as_mapping(settings), where="file") == settings
