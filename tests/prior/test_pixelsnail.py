"""smalti.prior.pixelsnail: the interface of priors, convolutions against PyTorch's, and a run from codes to samples."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from smalti.conditions.labels import Labels
from smalti.core.errors import SmaltiError
from smalti.core.settings import as_mapping, parse
from smalti.generation.code_sampler import Sampler
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import GenerationRequest, unknown_codes
from smalti.hub.pretrained import find_model
from smalti.model_loading import load_tokenizer
from smalti.pipeline import Pipeline
from smalti.prior import NoCache, PixelSNAIL, PixelSNAILSettings, nll, parameter_groups
from smalti.prior.pixelsnail_layers import (
    CausalConv,
    GatedResBlock,
    GridPositions,
    PointwiseConv,
    kernel_offsets,
    shifted,
)
from smalti.prior_folder import load_prior
from smalti.training.config import PriorTraining, TokenizerTraining, resolve
from smalti.training.prior_networks import CodesRead, PixelSNAILNetwork, build_network
from smalti.training.runs import train_tokenizer
from tests import reference
from tests.experiment_helpers import QUIET
from tests.small import small_prior, write_images, write_recipe

K, C = 11, 4


def fresh(**changes: Any) -> PixelSNAIL:
    """A small one as it is before training."""
    torch.manual_seed(0)
    values = {
        "codebook_size": K,
        "condition_size": C,
        "prefix_length": 2,
        "grid": (3, 4),
        "layers": 2,
        "res_blocks": 1,
        "embed_dim": 16,
    }
    return PixelSNAIL(parse(PixelSNAILSettings, {**values, "heads": 2, **changes}, where="test"))


def small(**changes: Any) -> PixelSNAIL:
    """A small one with large weights, so that all that it reads shows in its logits."""
    prior = fresh(**changes)
    with torch.no_grad():
        for weight in prior.parameters():
            weight.normal_(0, 0.3)
    return prior.eval()


def sequences(prior: PixelSNAIL, batch: int = 2, *, grid: tuple[int, int] | None = None) -> Tensor:
    """Random prefix and all image codes of a grid but the last, joined."""
    rows, columns = grid or prior.grid
    generator = torch.Generator().manual_seed(1)
    prefix = torch.randint(C, (batch, prior.prefix_length), generator=generator)
    return prior.join(prefix, torch.randint(K, (batch, rows * columns - 1), generator=generator))


SHAPES: list[tuple[int, tuple[int, int], tuple[int, int]]] = [
    (1, (3, 4), (3, 4)),
    (2, (3, 4), (3, 4)),
    (12, (3, 4), (3, 4)),
    (2, (3, 4), (2, 3)),
    (12, (3, 4), (2, 2)),
    (2, (3, 4), (3, 1)),
    (3, (1, 4), (1, 4)),
    (2, (4, 1), (4, 1)),
]
"""Prefix codes, the prior's window, and the grid that is read: the same, or narrower."""


@pytest.fixture(params=SHAPES, ids=str)
def shape(request: pytest.FixtureRequest) -> tuple[int, tuple[int, int], tuple[int, int]]:
    found: tuple[int, tuple[int, int], tuple[int, int]] = request.param
    return found


@pytest.mark.parametrize("kernel", [2, 3])
def test_a_code_changes_its_own_and_later_logits_only(
    shape: tuple[int, tuple[int, int], tuple[int, int]], kernel: int
) -> None:
    """Of a prefix as long as the grid, each code is told at its own place: others see it through that."""
    prefix, window, grid = shape
    prior = small(prefix_length=prefix, grid=window, kernel_size=kernel).double()
    codes, context = sequences(prior, 1, grid=grid), NoCache(columns=grid[1])
    with torch.no_grad():
        before = prior(codes, cache=context)
        for place in range(codes.shape[1]):
            changed = codes.clone()
            first, count = (K, C) if place < prefix else (0, K)
            changed[0, place] = first + (changed[0, place] - first + 1) % count
            difference = (prior(changed, cache=context) - before).abs().amax(dim=(0, 2))
            assert (difference[:place] == 0).all(), f"code {place} is seen too early"
            inputs = prefix - 1
            if place >= prefix:
                inputs = place
            elif prefix == window[0] * window[1]:  # a map
                row, column = divmod(place, window[1])
                inputs += row * grid[1] + column if row < grid[0] and column < grid[1] else codes.shape[1]
            assert (difference[:inputs] == 0).all()
            assert (difference[inputs:] > 1e-9).all(), f"code {place} is not seen"


@examples(deadline=None, max_examples=40)
@given(st.sets(st.integers(1, 22)), st.sampled_from(SHAPES), st.integers(2, 3))
def test_cached_pieces_give_the_logits_of_the_whole(
    cuts: set[int], shape: tuple[int, tuple[int, int], tuple[int, int]], kernel: int
) -> None:
    prefix, window, grid = shape
    prior = small(prefix_length=prefix, grid=window, kernel_size=kernel).double()
    codes, cache, pieces = sequences(prior, grid=grid), prior.empty_cache(window=grid), []
    with torch.no_grad():
        whole = prior(codes, cache=NoCache(columns=grid[1]))
        for piece in torch.tensor_split(codes, sorted(cut for cut in cuts if cut < codes.shape[1]), dim=1):
            pieces.append(prior(piece, cache=cache))
    assert cache.length == codes.shape[1]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)


def test_a_narrower_window_stands_at_the_left_of_the_whole() -> None:
    """Its first row is read as that of the whole one; what is below stands elsewhere in the sequence."""
    prior = small()
    codes = sequences(prior, grid=(2, 2))
    narrow, wide = prior(codes, cache=NoCache(columns=2)), prior(codes, cache=NoCache(columns=4))
    same = (
        prior.prefix_length + 1
    )  # up to the code before the last of the first row; the next place is below or beside it
    torch.testing.assert_close(narrow[:, :same], wide[:, :same])
    assert (narrow[:, same:] - wide[:, same:]).abs().max() > 1e-3


def test_a_code_more_costs_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = small()
    codes, cache, read = sequences(prior), prior.empty_cache(), []
    with torch.no_grad():
        prior(codes[:, :6], cache=cache)
        apply = F.linear

        def linear(x: Tensor, *others: Any) -> Tensor:
            read.append(x.shape[1])
            return apply(x, *others)

        monkeypatch.setattr(F, "linear", linear)
        prior(codes[:, 6:7], cache=cache)
    assert set(read) == {1}
    assert len(read) > 10


def test_a_cache_refuses_gradients_and_follows_autocast() -> None:
    prior = small()
    codes, cache = sequences(prior), prior.empty_cache()
    with pytest.raises(AssertionError, match="no gradients"):
        prior(codes, cache=cache)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        whole = prior(codes)
        cache = prior.empty_cache()
        pieces = [prior(piece[:, None], cache=cache) for piece in codes.unbind(dim=1)]
    kept = {name: memory.dtype for name, memory in cache.buffers.items()}
    assert kept.pop("codes") == torch.int64
    attended = {dtype for name, dtype in kept.items() if name.endswith(("keys", "values"))}
    assert attended == {torch.bfloat16}
    assert set(kept.values()) == {torch.bfloat16, torch.float32}, "what convolutions read is kept as it is"
    difference = torch.cat(pieces, dim=1).softmax(dim=2) - whole.softmax(dim=2)
    assert difference.abs().mean() < 0.02


def test_sequences_that_do_not_fit_are_refused() -> None:
    prior = small()
    codes = sequences(prior)
    with pytest.raises(AssertionError, match="do not fit"):
        prior(torch.cat((codes, codes), dim=1))
    with pytest.raises(AssertionError, match="columns"):
        prior(codes, cache=NoCache(columns=5))


# --- the layers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(4, 5), (1, 3), (3, 1), (2, 2)])
@pytest.mark.parametrize("kernel", [2, 3])
def test_it_is_a_down_right_convolution(grid: tuple[int, int], kernel: int) -> None:
    """PyTorch's own, on the map with zeros above it and at its left."""
    torch.manual_seed(0)
    layer = CausalConv(6, 3, offsets=kernel_offsets(kernel), behind=0, name="layer")
    x = torch.randn(2, 6, *grid)
    places = GridPositions.of(0, grid[0] * grid[1], grid=grid, cache=NoCache(columns=grid[1]), like=x)
    ours = layer(x.flatten(2).transpose(1, 2), places)
    weight = layer.project.weight.view(3, kernel, kernel, 6).flip(1, 2).permute(0, 3, 1, 2)
    truth = F.conv2d(F.pad(x, (kernel - 1, 0, kernel - 1, 0)), weight, layer.project.bias)
    torch.testing.assert_close(ours, truth.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("grid", [(4, 5), (1, 3), (3, 1), (2, 2)])
def test_the_first_layer_is_the_two_shifted_convolutions_of_the_paper(grid: tuple[int, int]) -> None:
    """Three codes of the row above and the one at the left, whose embeddings come one place later."""
    prior = small(grid=grid)
    x = torch.randn(2, 16, *grid)
    places = GridPositions.of(0, grid[0] * grid[1], grid=grid, cache=NoCache(columns=grid[1]), like=x)
    before = F.pad(x.flatten(2).transpose(1, 2), (0, 0, 1, 0))[:, :-1]
    ours = prior.first(before, places)
    above_left, above, above_right, left = prior.first.project.weight.chunk(4, dim=1)
    expected = torch.zeros(2, 16, *grid)
    for row in range(grid[0]):
        for column in range(grid[1]):
            for weight, up, back in ((above_left, 1, 1), (above, 1, 0), (above_right, 1, -1), (left, 0, 1)):
                if row - up >= 0 and 0 <= column - back < grid[1]:
                    expected[:, :, row, column] += x[:, :, row - up, column - back] @ weight.T
    expected += prior.first.project.bias[:, None, None]
    torch.testing.assert_close(ours, expected.flatten(2).transpose(1, 2), atol=1e-4, rtol=1e-4)


def test_earlier_looks_back_over_the_beginning() -> None:
    x = torch.arange(1.0, 6.0)[None, :, None]
    for by in range(8):
        for count in range(6):
            truth = [float(place - by + 1) if place >= by else 0.0 for place in range(5 - count, 5)]
            assert shifted(x, by, count=count)[0, :, 0].tolist() == truth


def test_the_gate_opens_for_half_of_the_numbers() -> None:
    """x + a sigmoid(b)."""
    torch.manual_seed(0)
    block = GatedResBlock(PointwiseConv(4, 6), PointwiseConv(6, 8), dropout=0.0)
    x = torch.randn(2, 3, 4)
    places = GridPositions.of(0, 3, grid=(1, 3), cache=NoCache(columns=3), like=x)
    both = block.outer.project(F.elu(block.inner.project(F.elu(x))))
    torch.testing.assert_close(block(x, places), x + both[..., :4] * both[..., 4:].sigmoid())


# --- prefix and likelihood --------------------------------------------------------------------------------------------


def test_condition_codes_have_a_range_of_their_own_and_nothing_is_its_last() -> None:
    prior = small()
    assert prior.join(torch.tensor([[0, 2]]), torch.tensor([[0, 10]])).tolist() == [[K, K + 2, 0, 10]]
    empty = prior.null_prefix(3)
    assert empty.tolist() == [[C, C]] * 3
    assert prior.join(empty, empty[:, :0]).max() == prior.embedding.num_embeddings - 1


def test_the_order_of_prefix_codes_matters() -> None:
    prior = small(prefix_length=3)
    one, other = torch.tensor([[0, 1, 1]]), torch.tensor([[1, 0, 1]])
    last = [prior(prior.join(prefix, torch.tensor([[5]])))[:, -1] for prefix in (one, other)]
    assert (last[0] - last[1]).abs().max() > 1e-3


@pytest.mark.parametrize("grid", [(3, 4), (2, 3), (1, 1)])
def test_nlls_are_those_of_one_code_after_the_other(grid: tuple[int, int]) -> None:
    prior = small().double()
    codes, prefix = torch.randint(K, (2, *grid)), torch.tensor([[0, 3], [2, 1]])
    with torch.no_grad():
        losses = nll(prior, prefix, codes)
        for turn in range(grid[0] * grid[1]):
            inputs = codes.flatten(1)[:, :turn]
            logits = prior(prior.join(prefix, inputs), cache=NoCache(columns=grid[1]))[:, -1]
            truth = -logits.log_softmax(dim=1).gather(1, codes.flatten(1)[:, [turn]])[:, 0]
            torch.testing.assert_close(losses.flatten(1)[:, turn], truth)


@pytest.mark.parametrize("prefix", [1, 2, 12])
def test_every_weight_learns_from_the_first_step(prefix: int) -> None:
    prior = fresh(prefix_length=prefix)
    nll(prior, prior.null_prefix(2), torch.randint(K, (2, 3, 4))).mean().backward()  # type: ignore[no-untyped-call]
    for name, weight in prior.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 1e-9, name


def test_a_fresh_one_knows_nothing() -> None:
    prior = fresh(codebook_size=64, embed_dim=64).eval()
    loss = nll(prior, prior.null_prefix(4), torch.randint(64, (4, 3, 4))).mean()
    assert loss.item() == pytest.approx(math.log(64), abs=0.15)


@pytest.mark.parametrize("prefix", [1, 12])
def test_it_learns_a_few_images_by_heart(prefix: int) -> None:
    prior = fresh(prefix_length=prefix, embed_dim=32)
    codes, inputs = torch.randint(K, (3, 3, 4)), torch.arange(3)[:, None].expand(-1, prefix)
    optimizer = torch.optim.AdamW(parameter_groups(prior, weight_decay=0.01), lr=5e-3, betas=(0.9, 0.95))
    for _ in range(80):
        optimizer.zero_grad()
        nll(prior, inputs, codes).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    prior.eval()
    with torch.no_grad():
        assert nll(prior, inputs, codes).mean() < 0.05
        assert nll(prior, inputs.roll(1, 0), codes)[:, 0, 0].mean() > 1, "the condition is not read"


def test_dropout_works_in_training_only() -> None:
    prior = small(dropout=0.5)
    codes = sequences(prior)
    assert torch.equal(prior(codes), prior(codes))
    prior.train()
    assert not torch.equal(prior(codes), prior(codes))


def test_matrices_decay_and_nothing_else() -> None:
    prior = fresh()
    decayed, spared = ({id(weight) for weight in group["params"]} for group in parameter_groups(prior, weight_decay=1))
    for name, weight in prior.named_parameters():
        matrix = weight.ndim == 2 and not name.startswith(("embedding", "prefix_gains"))
        assert (id(weight) in decayed, id(weight) in spared) == (matrix, not matrix), name


# --- sampling ---------------------------------------------------------------------------------------------------------

SAMPLERS = {"plain": Sampler(), "guided": Sampler(guidance=1.7, top_k=7), "unconditional": Sampler(guidance=0)}


def sample_codes(prior: PixelSNAIL, prefix: Tensor, known: Tensor, *, sampler: Sampler) -> Tensor:
    seeds = torch.arange(len(known))
    return final_codes(generate(prior, GenerationRequest(lambda _: prefix, known, seeds=seeds, sampler=sampler)))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("grid", [(3, 4), (3, 2), (5, 6)])
@pytest.mark.parametrize("count", [1, 12])
def test_images_are_those_of_the_slow_loop(name: str, grid: tuple[int, int], count: int) -> None:
    """The window itself, a narrower one, and one that slides; with some codes known."""
    prior, generator = small(prefix_length=count), torch.Generator().manual_seed(3)
    known = torch.randint(K, (2, *grid), generator=generator)
    known[torch.rand(known.shape, generator=generator) < 0.7] = -1
    prefix = torch.randint(C, (2, count), generator=generator)
    codes = sample_codes(prior, prefix, known, sampler=SAMPLERS[name])
    assert torch.equal(codes[known >= 0], known[known >= 0])
    for item, row in enumerate(codes):
        assert torch.equal(row, reference.sampled(prior, prefix[item], known[item], sampler=SAMPLERS[name], seed=item))


def test_guidance_reads_the_empty_prefix() -> None:
    prior, known = small(), unknown_codes(1, (3, 4))
    for label in (0, 1):
        forgotten = sample_codes(prior, torch.full((1, 2), label), known, sampler=SAMPLERS["unconditional"])
        assert torch.equal(forgotten, sample_codes(prior, prior.null_prefix(1), known, sampler=SAMPLERS["plain"]))
    guided = [sample_codes(prior, torch.zeros(1, 2).long(), known, sampler=Sampler(guidance=g)) for g in (1.0, 3.0)]
    assert not torch.equal(*guided)


# --- settings, files, training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 18}, "the width 18 must be a multiple of 2 x heads"),
        ({"order": "z_curve"}, "support the order raster only, not z_curve; use another network"),
        ({"order": "zcurve"}, "order = 'zcurve'"),
        ({"kernel_size": 1}, "kernel_size = 1"),
        ({"layers": 0}, "layers = 0"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"res_block": 3}, "did you mean 'res_blocks'"),
    ],
)
def test_settings_that_are_invalid_raise_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SmaltiError, match=message):
        fresh(**changes)


def test_settings_survive_a_file() -> None:
    settings = fresh().settings
    assert parse(PixelSNAILSettings, as_mapping(settings), where="file") == settings


def test_it_is_built_for_the_codes_that_it_reads() -> None:
    read = CodesRead(size=19, grid=(2, 3), condition_size=5, prefix=6)
    network = PixelSNAILNetwork(layers=1, res_blocks=3, embed_dim=16, heads=2, kernel_size=3, dropout=0.2)
    prior, vocabulary = build_network(network, read)
    assert isinstance(prior, PixelSNAIL)
    expected = {**as_mapping(network), "codebook_size": 19, "grid": (2, 3), "condition_size": 5, "prefix_length": 6}
    assert prior.settings == PixelSNAILSettings(**expected)
    assert vocabulary == 19
    with pytest.raises(SmaltiError, match=r"network: order = 'random': .* support the order raster only"):
        build_network(PixelSNAILNetwork(order="random"), read)


def test_a_pipeline_with_it_is_saved_and_comes_back(home: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(home / "tokenizer")
    prior = small(codebook_size=16, condition_size=2, prefix_length=1, grid=(4, 4))
    pipeline = Pipeline(tokenizer, prior, Labels(("light", "dark")))
    pipeline.save_pretrained(tmp_path / "saved", about={})
    again = Pipeline.from_pretrained(tmp_path / "saved")
    assert isinstance(again.prior, PixelSNAIL)
    for size in (None, (24, 20), (8, 12)):
        ours, theirs = (each.sample(2, seed=3, size=size, label="dark", guidance=2.0) for each in (pipeline, again))
        assert torch.equal(ours, theirs)
    known = unknown_codes(1, (4, 4)).index_fill(1, torch.arange(2), 5)
    kept = final_codes(generate(again.prior, again.request(known, conditions={"label": "light"}, seed=1)))
    assert (kept[0, :2] == 5).all()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a recipe and a tokenizer."""
    path = tmp_path_factory.mktemp("pixelsnail")
    write_images(path / "images")
    write_recipe(path / "small.yaml")
    training = resolve(
        TokenizerTraining, stage="tokenizer", recipe=str(path / "small.yaml"), overrides=["run.images=16"]
    )
    train_tokenizer(path / "images", path / "tokenizer", settings=training, console=QUIET)
    return path


def test_the_recipes_of_the_transformer_train_it_too(home: Path) -> None:
    """The name of the network alone makes the difference: it takes the transformer's words."""
    run = small_prior(home, "run", "network.name=pixelsnail")
    prior, condition = load_prior(find_model(run, kind="prior"))
    assert isinstance(prior, PixelSNAIL)
    assert isinstance(condition, Labels)
    assert (prior.settings.layers, prior.settings.embed_dim, prior.settings.dropout) == (1, 16, 0.1)
    before = fresh(codebook_size=16, condition_size=2, prefix_length=1, grid=(4, 4), layers=1, res_blocks=2)
    assert all(not torch.equal(a, b) for a, b in zip(prior.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("given", ["run.accumulate=2", "run.recompute=true"])
def test_parts_and_what_is_computed_again_change_nothing(home: Path, given: str) -> None:
    fixed = ("network.name=pixelsnail", "network.dropout=0", "condition_dropout=0", "run.codes=320")
    plain, other = (
        load_prior(find_model(small_prior(home, out, *fixed, *more), kind="prior"))[0]
        for out, more in (("plain", ()), (given, (given,)))
    )
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], weight, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("recipe", ["demo", "small"])
def test_recipes_take_it_by_its_name(recipe: str) -> None:
    training = resolve(PriorTraining, stage="prior", recipe=recipe, overrides=["network.name=pixelsnail"])
    assert isinstance(training.network, PixelSNAILNetwork)
