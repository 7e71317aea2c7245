"""smalti.prior.base and the two priors: what every prior must be, and what the transformer is beyond that."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor, nn

from smalti.core.errors import SmaltiError
from smalti.core.settings import as_mapping, parse
from smalti.prior import (
    GPT,
    GPTSettings,
    NoCache,
    Prior,
    Transformer,
    TransformerSettings,
    nll,
    parameter_groups,
)
from smalti.prior.transformer import apply_rotary

COMMON = {"codebook_size": 11, "prefix_length": 2, "grid": (3, 4), "layers": 2, "embed_dim": 32, "heads": 2}
LLAMAGEN = {"query_key_norm": False, "rotary_base": 10000, "prefix_rotation": "erased", "norm_epsilon": 1e-5}
PRIORS: dict[str, dict[str, Any]] = {
    "transformer": {"condition_size": 3},
    "transformer z_curve": {"condition_size": 3, "order": "z_curve"},
    "llamagen": {"condition_size": 3, "mlp_dim": 48, **LLAMAGEN},
    "gpt": {"vocab_size": 14, "start_code": 12, "block_size": 13},
    "gpt spiral_out": {"vocab_size": 14, "start_code": 12, "block_size": 20, "order": "spiral_out", "unmasked": 1},
}
"""Settings of priors, by what they are called in the tests."""


def fresh(kind: str = "transformer", **changes: Any) -> Transformer | GPT:
    """A small prior as it is before training."""
    torch.manual_seed(0)
    values = {**COMMON, **PRIORS[kind], **changes}
    if kind.startswith("gpt"):
        return GPT(parse(GPTSettings, values, where="test"))
    return Transformer(parse(TransformerSettings, values, where="test"))


def some(kind: str = "transformer", **changes: Any) -> Transformer | GPT:
    """A small prior with large weights, so that all that it reads shows in its logits."""
    prior = fresh(kind, **changes)
    with torch.no_grad():
        for weight in prior.parameters():
            weight.normal_(0, 0.3) if weight.ndim == 2 else weight.uniform_(0.5, 1.5)
    return prior.eval()


def small(**changes: Any) -> Transformer:
    """A small transformer with large weights."""
    prior = some(**changes)
    assert isinstance(prior, Transformer)
    return prior


@pytest.fixture(params=PRIORS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each of the priors in turn."""
    name: str = request.param
    return name


def sequences(prior: Prior, batch: int = 2, *, grid: tuple[int, int] | None = None) -> Tensor:
    """Random prefix and all image codes of a grid but the last, joined."""
    rows, columns = grid or prior.grid
    generator = torch.Generator().manual_seed(1)
    prefix = torch.randint(4, (batch, prior.prefix_length), generator=generator)
    return prior.join(prefix, torch.randint(prior.size, (batch, rows * columns - 1), generator=generator))


def test_logits_have_the_promised_shape(kind: str) -> None:
    prior = some(kind)
    codes = sequences(prior)
    logits = prior(codes)
    assert logits.shape == (2, 2 + 11, prior.state_dict()["head.weight"].shape[0])


def test_logits_of_queries_are_those_of_the_whole_sequence(kind: str) -> None:
    """The last block computes the queries alone, in any order, and another one for each sequence."""
    prior = some(kind)
    codes = sequences(prior)
    query_index = torch.tensor([[12, 1], [5, 7]])
    expected = torch.stack([each[index] for each, index in zip(prior(codes), query_index, strict=True)])
    torch.testing.assert_close(prior(codes, query_index=query_index), expected)
    single = prior(codes, query_index=query_index[:, :1])
    torch.testing.assert_close(single, expected[:, :1])


@torch.no_grad()
def test_logits_of_queries_after_a_cache(kind: str) -> None:
    prior = some(kind)
    codes = sequences(prior)
    caches = prior.empty_cache(), prior.empty_cache()
    last = torch.tensor([[0], [0]])
    for part in (codes[:, :4], codes[:, 4:7], codes[:, 7:8]):
        expected = prior(part, cache=caches[0])
        found = prior(part, cache=caches[1], query_index=last + part.shape[1] - 1)
        torch.testing.assert_close(found, expected[:, -1:])
        assert caches[0].length == caches[1].length


def test_a_code_changes_its_own_and_later_logits_only(kind: str) -> None:
    prior = some(kind)
    codes = sequences(prior, 1)
    before = prior(codes)
    for place in range(codes.shape[1]):
        changed = codes.clone()
        changed[0, place] = (changed[0, place] + 1) % prior.size
        difference = (prior(changed) - before).abs().amax(dim=(0, 2))
        assert (difference[:place] == 0).all(), f"code {place} is seen too early"
        assert (difference[place:] > 1e-4).all(), f"code {place} is not seen"


@examples(deadline=None, max_examples=25)
@given(st.sets(st.integers(1, 12)), st.sampled_from([(3, 4), (2, 3), (3, 1)]), st.sampled_from(sorted(PRIORS)))
def test_cached_pieces_give_the_logits_of_the_whole(cuts: set[int], grid: tuple[int, int], name: str) -> None:
    prior = some(name)
    grid = grid if prior.order == "raster" else prior.grid
    codes = sequences(prior, grid=grid)
    cache, pieces = prior.empty_cache(window=grid), []
    with torch.no_grad():
        whole = prior(codes, cache=NoCache(columns=grid[1]))
        for piece in torch.tensor_split(codes, sorted(cut for cut in cuts if cut < codes.shape[1]), dim=1):
            pieces.append(prior(piece, cache=cache))
    assert cache.length == codes.shape[1]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_a_cache_takes_its_memory_once_and_refuses_gradients(kind: str) -> None:
    prior = some(kind)
    codes, cache = sequences(prior), prior.empty_cache()
    with pytest.raises(AssertionError, match="no gradients"):
        prior(codes, cache=cache)
    with torch.no_grad():
        prior(codes[:, :3], cache=cache)
        places = {name: memory.data_ptr() for name, memory in cache.buffers.items()}
        prior(codes[:, 3:], cache=cache)
    assert len(places) == 4
    assert places == {name: memory.data_ptr() for name, memory in cache.buffers.items()}


def test_a_cache_follows_the_type_of_autocast(kind: str) -> None:
    prior = some(kind)
    codes, cache = sequences(prior), prior.empty_cache()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        whole = prior(codes)
        pieces = [prior(piece[:, None], cache=cache) for piece in codes.unbind(dim=1)]
    assert {memory.dtype for memory in cache.buffers.values()} == {torch.bfloat16}
    difference = torch.cat(pieces, dim=1).softmax(dim=2) - whole.softmax(dim=2)
    assert difference.abs().mean() < 0.02


@pytest.mark.parametrize("kind", ["transformer", "gpt"])
def test_the_width_of_the_grid_places_the_codes(kind: str) -> None:
    prior = some(kind, grid=(3, 4))
    codes = sequences(prior, grid=(2, 2))
    narrow, wide = prior(codes, cache=NoCache(columns=2)), prior(codes, cache=NoCache(columns=4))
    same = prior.prefix_length + 2  # prefix and first row stand where they stood
    torch.testing.assert_close(narrow[:, :same], wide[:, :same])
    assert (narrow[:, same:] - wide[:, same:]).abs().max() > 1e-3


@pytest.mark.parametrize("columns", [1, 4])
def test_codes_of_one_row_or_of_one_column_are_distinguished(columns: int) -> None:
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
    rotation = prior.rotation(prior.prefix_length, prior.prefix_length + 12, NoCache(columns=4))
    queries, keys = (apply_rotary(one.expand(12, 16), rotation).view(3, 4, 16) for one in (query, key))
    torch.testing.assert_close(queries.norm(dim=-1), query.norm().expand(3, 4))
    torch.testing.assert_close(queries[2, 1] @ keys[1, 0], queries[1, 3] @ keys[0, 2])
    assert torch.equal(queries[0, 0], query)
    assert len({round(float(queries[2, 3] @ keys[row, column]), 4) for row in range(3) for column in range(4)}) == 12


def test_sequences_that_do_not_fit_are_refused(kind: str) -> None:
    prior = some(kind)
    codes = sequences(prior)
    with pytest.raises(AssertionError, match="do not fit"):
        prior(torch.cat((codes, codes), dim=1))
    with pytest.raises(AssertionError, match="columns"):
        prior(codes, cache=NoCache(columns=5))


def test_an_image_in_a_batch_has_the_logits_it_has_alone(kind: str) -> None:
    prior = some(kind)
    codes = sequences(prior, 7)
    torch.testing.assert_close(prior(codes)[[3]], prior(codes[[3]]), atol=1e-5, rtol=1e-5)


def test_condition_codes_have_a_range_of_their_own_and_nothing_is_its_last() -> None:
    prior = small()
    joined = prior.join(torch.tensor([[0, 2]]), torch.tensor([[0, 10]]))
    assert joined.tolist() == [[11, 13, 0, 10]]
    empty = prior.null_prefix(3)
    assert empty.tolist() == [[3, 3]] * 3
    assert prior.join(empty, empty[:, :0]).max() == prior.embedding.num_embeddings - 1


def test_the_order_of_prefix_codes_matters(kind: str) -> None:
    prior = some(kind, layers=1)
    one, other = torch.tensor([[0, 1]]), torch.tensor([[1, 0]])
    last = [prior(prior.join(prefix, torch.tensor([[5]])))[:, -1] for prefix in (one, other)]
    assert (last[0] - last[1]).abs().max() > 1e-3


def test_every_weight_learns_from_the_first_step(kind: str) -> None:
    prior = fresh(kind)
    nll(prior, prior.null_prefix(2), torch.randint(11, (2, 3, 4))).mean().backward()  # type: ignore[no-untyped-call]
    for name, weight in prior.named_parameters():
        assert weight.grad is not None, name
        if not name.endswith("key.bias"):  # adds the same to all scores of a query
            assert weight.grad.abs().max() > 1e-8, name


@pytest.mark.parametrize("name", ["transformer", "gpt"])
def test_a_fresh_prior_knows_nothing(name: str) -> None:
    prior = fresh(
        name,
        codebook_size=64,
        grid=(4, 4),
        embed_dim=64,
        heads=4,
        **({"vocab_size": 64, "block_size": 17} if name == "gpt" else {}),
    )
    loss = nll(prior.eval(), prior.null_prefix(4), torch.randint(64, (4, 4, 4))).mean()
    assert loss.item() == pytest.approx(math.log(64), abs=0.15)


@pytest.mark.parametrize("grid", [(3, 4), (2, 3), (1, 1)])
@pytest.mark.parametrize("corrupted", [False, True])
def test_nlls_are_those_of_one_code_after_the_other(kind: str, grid: tuple[int, int], corrupted: bool) -> None:
    prior = some(kind)
    grid = grid if prior.order == "raster" else prior.grid
    codes, prefix = torch.randint(11, (2, *grid)), torch.tensor([[0, 3], [2, 1]])
    given_inputs = torch.randint(11, (2, *grid)) if corrupted else codes
    order = prior.sequence_order(grid, device=codes.device)
    with torch.no_grad():
        losses = nll(prior, prefix, codes, inputs=given_inputs) if corrupted else nll(prior, prefix, codes)
        for turn, place in enumerate(order.tolist()):
            inputs = given_inputs.flatten(1)[:, order[:turn]]
            logits = prior(prior.join(prefix, inputs), cache=NoCache(columns=grid[1]))[:, -1]
            truth = -logits.log_softmax(dim=1).gather(1, codes.flatten(1)[:, [place]])[:, 0]
            torch.testing.assert_close(losses.flatten(1)[:, place], truth, atol=1e-4, rtol=1e-5)
    assert losses.shape == codes.shape


def test_nlls_are_single_precision_at_least(kind: str) -> None:
    prefix, codes = torch.tensor([[0, 3]]), torch.randint(11, (1, 3, 4))
    single = nll(some(kind), prefix, codes)
    assert single.dtype == torch.float32
    double = nll(some(kind).double(), prefix, codes)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single)
    assert nll(some(kind).bfloat16(), prefix, codes).dtype == torch.float32


@pytest.mark.parametrize("name", ["transformer", "gpt spiral_out"])
def test_it_learns_a_few_images_by_heart(name: str) -> None:
    prior = fresh(name, prefix_length=1, embed_dim=64)
    codes, labels = torch.randint(11, (3, 3, 4)), torch.arange(3)[:, None]
    optimizer = torch.optim.AdamW(parameter_groups(prior, weight_decay=0.01), lr=5e-3, betas=(0.9, 0.95))
    for _ in range(80):
        optimizer.zero_grad()
        nll(prior, labels, codes).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    prior.eval()
    with torch.no_grad():
        assert nll(prior, labels, codes).mean() < 0.05
        first = prior.sequence_order(prior.grid, device=codes.device)[0]
        assert nll(prior, labels.roll(1), codes).flatten(1)[:, first].mean() > 1, "the label is not read"


def test_dropout_works_in_training_only() -> None:
    prior = small(dropout=0.5)
    codes = sequences(prior)
    assert torch.equal(prior(codes), prior(codes))
    prior.train()
    assert not torch.equal(prior(codes), prior(codes))


def test_matrices_decay_and_nothing_else(kind: str) -> None:
    prior = some(kind)
    names = {id(weight): name for name, weight in prior.named_parameters()}
    decayed, spared = (
        [names[id(weight)] for weight in group["params"]] for group in parameter_groups(prior, weight_decay=1)
    )
    matrices = {"project", "query", "key", "value", "out", "up", "down", "head"}
    assert {name.split(".")[-2] for name in decayed} <= matrices
    assert all(name.endswith("weight") for name in decayed)
    assert not [name for name in spared if name.split(".")[-2] in matrices and name.endswith("weight")]
    assert decayed == sorted(decayed)
    assert spared == sorted(spared)
    assert sorted(decayed + spared) == sorted(names.values())


def test_groups_of_parameters() -> None:
    mixed = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.Embedding(2, 2))
    mixed.register_parameter("gain", nn.Parameter(torch.ones(1, 2, 1, 1)))
    mixed[1].requires_grad_(False)
    decayed, spared = parameter_groups(mixed, weight_decay=0.1)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert decayed["params"] == [mixed[0].weight]
    assert [id(weight) for weight in spared["params"]] == [id(w) for w in (mixed[0].bias, mixed[2].weight, mixed.gain)]


# The transformer's own settings


def llamagen(weights: dict[str, Tensor], label: int, codes: Tensor, *, side: int, heads: int) -> Tensor:
    """LlamaGen's class-conditional GPT (arXiv 2406.06525, section 3.2) as its code has it, but for the cache.

    A label and image codes (T,) -> logits (T + 1, K). Neighboring numbers of a head are the parts of complex numbers,
    of which the first half turns by the row and the other half by the column; the label's are multiplied by zero.
    """
    width = weights["norm.weight"].numel()
    half = width // heads // 2
    frequencies = 1 / 10000 ** (torch.arange(0, half, 2)[: half // 2].float() / half)
    angles = torch.outer(torch.arange(side), frequencies)
    grid = torch.cat([angles[:, None].expand(-1, side, -1), angles[None].expand(side, -1, -1)], dim=-1).flatten(0, 1)
    turns = torch.cat([torch.zeros(1, half, dtype=torch.cfloat), torch.polar(torch.ones_like(grid), grid)])

    def normed(x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weights[f"{name}.weight"]

    def turned(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.view(len(x), heads, half, 2)) * turns[: len(x), None]
        return torch.view_as_real(pairs).flatten(2).transpose(0, 1)

    x = torch.cat((weights["cls_embedding.embedding_table.weight"][[label]], weights["tok_embeddings.weight"][codes]))
    for layer in ("layers.0", "layers.1"):
        both = normed(x, f"{layer}.attention_norm") @ weights[f"{layer}.attention.wqkv.weight"].T
        queries, keys, values = both.chunk(3, dim=1)
        scores = turned(queries) @ turned(keys).transpose(1, 2) / math.sqrt(width / heads)
        scores = scores.where(torch.ones(len(x), len(x)).tril().bool(), -torch.inf)
        seen = scores.softmax(dim=-1) @ values.view(len(x), heads, -1).transpose(0, 1)
        x = x + seen.transpose(0, 1).flatten(1) @ weights[f"{layer}.attention.wo.weight"].T
        read = normed(x, f"{layer}.ffn_norm")
        gate, value = (read @ weights[f"{layer}.feed_forward.{name}.weight"].T for name in ("w1", "w3"))
        x = x + (F.silu(gate) * value) @ weights[f"{layer}.feed_forward.w2.weight"].T
    return normed(x, "norm") @ weights["output.weight"].T


def test_llamagen_is_a_setting_of_the_transformer() -> None:
    """Weights that theirs and ours both take: queries and keys with even numbers of a head first, then odd ones."""
    prior = small(codebook_size=13, condition_size=5, prefix_length=1, grid=(3, 3), mlp_dim=48, **LLAMAGEN)
    state = prior.state_dict()
    state["prefix_positions.weight"].zero_()
    theirs = {
        "tok_embeddings.weight": state["embedding.weight"][:13],
        "cls_embedding.embedding_table.weight": state["embedding.weight"][13:],
        "norm.weight": state["norm.weight"],
        "output.weight": state["head.weight"],
    }
    for index in range(2):
        layer, block = f"layers.{index}", f"blocks.{index}"
        rows = (
            torch.arange(2 * 32).view(2, 2, 2, 8).transpose(2, 3).flatten()
        )  # (queries and keys, heads, halves, pairs)
        rows = torch.cat((rows, torch.arange(64, 96)))
        theirs[f"{layer}.attention.wqkv.weight"] = state[f"{block}.attention.project.weight"][rows]
        theirs[f"{layer}.attention.wo.weight"] = state[f"{block}.attention.out.weight"]
        theirs[f"{layer}.attention_norm.weight"] = state[f"{block}.attention_norm.weight"]
        theirs[f"{layer}.ffn_norm.weight"] = state[f"{block}.mlp_norm.weight"]
        gate, value = state[f"{block}.up.weight"].chunk(2)
        theirs[f"{layer}.feed_forward.w1.weight"], theirs[f"{layer}.feed_forward.w3.weight"] = gate, value
        theirs[f"{layer}.feed_forward.w2.weight"] = state[f"{block}.down.weight"]
    codes = torch.randint(13, (8,))
    with torch.no_grad():
        for label in (0, 5):  # the last one says "nothing"
            ours = prior(prior.join(torch.tensor([[label]]), codes[None]))[0]
            expected = llamagen(theirs, label, codes, side=3, heads=2)
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "gone"), [({"query_key_norm": False}, {"query_norm", "key_norm"}), ({"mlp_dim": 40}, set())]
)
def test_settings_change_the_weights_there_are(changes: dict[str, Any], gone: set[str]) -> None:
    names, changed = small().state_dict(), small(**changes).state_dict()
    assert {name.split(".")[-2] for name in names.keys() - changed.keys()} == gone
    assert changed.keys() <= names.keys()
    assert small(mlp_dim=40).state_dict()["blocks.0.down.weight"].shape == (32, 40)
    assert names["blocks.0.down.weight"].shape == (32, 96)


@pytest.mark.parametrize("changes", [{"rotary_base": 7}, {"norm_epsilon": 0.5}, {"prefix_rotation": "erased"}])
def test_settings_change_the_logits(changes: dict[str, Any]) -> None:
    codes = sequences(small())
    assert (small(**changes)(codes) - small()(codes)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook_size": 0}, "size = 0"),
        ({"prefix_length": 0}, "prefix_length = 0"),
        ({"heads": 3}, "heads = 3: the width 32 must be a multiple of 4 x heads"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"grid": [4, 0]}, "grid"),
        ({"head": 3}, "did you mean 'heads'"),
        ({"order": "zcurve"}, "order = 'zcurve': input should be 'raster', .*'z_curve'"),
        ({"rotary_base": 0}, "rotary_base = 0"),
        ({"norm_epsilon": -1}, "norm_epsilon = -1"),
        ({"prefix_rotation": "none"}, "prefix_rotation = 'none'"),
        ({"mlp_dim": -1}, "mlp_dim = -1"),
    ],
)
def test_settings_that_are_invalid_raise_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SmaltiError, match=message):
        small(**changes)


def test_settings_survive_a_file(kind: str) -> None:
    settings = some(kind).settings
    assert parse(type(settings), as_mapping(settings), where="file") == settings
