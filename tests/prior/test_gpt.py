"""smalti.prior.gpt and attention: what the paper's transformer is beyond what every prior must be (test_prior.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor, nn

from smalti.conditions.base import constant_prefix
from smalti.core.errors import SmaltiError
from smalti.core.settings import parse
from smalti.generation.code_sampler import Sampler
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import GenerationRequest, unknown_codes
from smalti.prior import GPT, GPTSettings, NoCache
from smalti.prior.attention import attend


def fresh(**changes: Any) -> GPT:
    """A small GPT as it is before training."""
    torch.manual_seed(0)
    values = {"vocab_size": 14, "codebook_size": 11, "prefix_length": 3, "grid": (3, 4), "block_size": 14}
    values |= {"layers": 2, "embed_dim": 32, "heads": 4, **changes}
    return GPT(parse(GPTSettings, values, where="test"))


def small(**changes: Any) -> GPT:
    """A small GPT with large weights, so that all that it reads shows in its logits."""
    prior = fresh(**changes)
    with torch.no_grad():
        for weight in prior.parameters():
            weight.normal_(0, 0.3) if weight.ndim == 2 else weight.uniform_(0.5, 1.5)
    return prior.eval()


def some_codes(prior: GPT, *, batch: int = 2, count: int | None = None) -> Tensor:
    """Random codes of the whole vocabulary, as many as there are to read."""
    count = prior.prefix_length + prior.grid[0] * prior.grid[1] - 1 if count is None else count
    return torch.randint(prior.settings.vocab_size, (batch, count), generator=torch.Generator().manual_seed(1))


def plain(prior: GPT, codes: Tensor, visible: Tensor, *, positions: Tensor) -> Tensor:
    """The network written out for one sequence (T,), of which (T, T) tells what sees what -> logits (T, V)."""
    w: dict[str, Tensor] = dict(prior.state_dict())

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def normed(x: Tensor, name: str) -> Tensor:
        centered = x - x.mean(dim=1, keepdim=True)
        even = centered / (centered.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
        return even * w[f"{name}.weight"] + w[f"{name}.bias"]

    heads = prior.settings.heads
    x = w["embedding.weight"][codes] + w["positions.weight"][positions]
    for block in (f"blocks.{index}" for index in range(prior.settings.layers)):
        read = normed(x, f"{block}.attention_norm")
        parts = [linear(read, f"{block}.attention.{name}").chunk(heads, dim=1) for name in ("query", "key", "value")]
        seen = []
        for query, key, value in zip(*parts, strict=True):
            scores = (query @ key.T / query.shape[1] ** 0.5).where(visible, -torch.inf)
            seen.append(scores.softmax(dim=1) @ value)
        x = x + linear(torch.cat(seen, dim=1), f"{block}.attention.out")
        hidden = linear(normed(x, f"{block}.mlp_norm"), f"{block}.up")
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        x = x + linear(hidden, f"{block}.down")
    return normed(x, "norm") @ w["head.weight"].T


@pytest.mark.parametrize("unmasked", [0, 1, 2, 3])
def test_logits_are_those_of_the_network_written_out(unmasked: int) -> None:
    prior = small(unmasked=unmasked)
    codes = some_codes(prior)
    count = codes.shape[1]
    visible = torch.ones(count, count).tril().bool()
    visible[:unmasked, :unmasked] = True
    with torch.no_grad():
        for ours, one in zip(prior(codes), codes, strict=True):
            expected = plain(prior, one, visible, positions=torch.arange(count))
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("grid", [(3, 4), (2, 4), (3, 2), (2, 3), (1, 1)])
def test_a_code_has_the_position_of_its_row_and_column_in_the_whole_window(grid: tuple[int, int]) -> None:
    """In a narrower window the original reads the codes as if they filled the rows of the whole one."""
    prior = small()
    rows, columns = grid
    codes = some_codes(prior, batch=1, count=3 + rows * columns - 1)
    positions = [0, 1, 2, *(3 + row * 4 + column for row in range(rows) for column in range(columns))][:-1]
    visible = torch.ones(len(positions), len(positions)).tril().bool()
    with torch.no_grad():
        ours = prior(codes, cache=NoCache(columns=columns))[0]
        expected = plain(prior, codes[0], visible, positions=torch.tensor(positions))
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@examples(max_examples=40)
@given(st.integers(0, 5), st.integers(1, 5), st.integers(0, 7))
def test_attention_is_the_plain_formula(before: int, new: int, unmasked: int) -> None:
    """Softmax of scores over the root of d, with the mask written out (arXiv 1706.03762, equation 1)."""
    count = before + new
    queries, keys, values = torch.randn(3, 2, 3, count, 4)
    visible = torch.ones(count, count).tril().bool()
    if before == 0:
        visible[:unmasked, :unmasked] = True
    scores = (queries @ keys.transpose(2, 3) / 2).where(visible, -torch.inf)
    truth = scores.softmax(dim=3) @ values
    seen = attend(queries[:, :, before:], keys, values, dropout=0.0, unmasked=unmasked)
    torch.testing.assert_close(seen, truth[:, :, before:])


@torch.no_grad()
def test_the_beginning_sees_itself_wholly_only_when_it_comes_at_once() -> None:
    prior, masked = small(unmasked=3), small()
    codes = some_codes(prior)
    whole, cache = prior(codes), prior.empty_cache()
    pieces = [prior(piece, cache=cache) for piece in (codes[:, :5], codes[:, 5:9], codes[:, 9:])]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-5)
    cache = prior.empty_cache()
    singly = torch.cat([prior(code[:, None], cache=cache) for code in codes.unbind(1)], dim=1)
    torch.testing.assert_close(singly, masked(codes), atol=1e-5, rtol=1e-5)
    assert (singly - whole).abs().max() > 1e-2


def test_vectors_can_be_read_in_place_of_codes() -> None:
    prior = small()
    codes = some_codes(prior)
    embeddings, expected = prior.embedding(codes), prior(codes)
    prior.embedding = nn.Identity()  # type: ignore[assignment]
    assert torch.equal(prior(embeddings), expected)
    assert not torch.equal(prior(embeddings + 0.1), expected)


def test_condition_and_image_codes_share_their_numbers() -> None:
    prior = small()
    assert prior.join(torch.tensor([[0, 13, 2]]), torch.tensor([[0, 10]])).tolist() == [[0, 13, 2, 0, 10]]


def test_codes_of_the_condition_alone_are_never_generated() -> None:
    prior = small()
    state = prior.state_dict()
    state["head.weight"][11:] = 100 * state["norm.bias"]  # their logits are above all others
    prefix = torch.tensor([[0, 13, 2]])
    logits = prior(prior.join(prefix, prefix[:, :0]))
    assert logits.shape == (1, 3, 14)
    assert logits[0, -1].argmax() >= 11
    last = prior(prefix, query_index=torch.tensor([[2]]))
    torch.testing.assert_close(last, logits[:, -1:])
    known, seeds = unknown_codes(1, (3, 4)), torch.tensor([0])
    generated = final_codes(
        generate(prior, GenerationRequest(constant_prefix(prefix), sampler=Sampler(), seeds=seeds, known=known))
    )
    assert generated.max() < 11


def test_the_start_code_says_nothing() -> None:
    assert small(start_code=13).null_prefix(2).tolist() == [[13, 13, 13]] * 2


def test_a_conditioned_prior_has_no_empty_condition() -> None:
    prior = small()
    with pytest.raises(SmaltiError, match=r"was not trained unconditionally; .* guidance at 1"):
        prior.null_prefix(1)
    values: dict[str, Any] = {"seeds": torch.tensor([0]), "known": unknown_codes(1, (3, 4))}
    with pytest.raises(SmaltiError, match="was not trained unconditionally"):
        generate(
            prior, GenerationRequest(constant_prefix(torch.zeros(1, 3).long()), sampler=Sampler(guidance=2), **values)
        )


# As it begins


def test_it_begins_as_the_original_does() -> None:
    prior = fresh(vocab_size=500, embed_dim=64)
    for name, weight in prior.state_dict().items():
        if name == "positions.weight" or name.endswith("bias"):
            assert (weight == 0).all(), name
        elif weight.ndim == 1:
            assert (weight == 1).all(), name
        else:
            assert weight.std().item() == pytest.approx(0.02, rel=0.1), name
            assert weight.mean().item() == pytest.approx(0, abs=0.002), name


@pytest.mark.parametrize(
    ("vocabulary", "block", "layers", "heads", "width", "count"),
    [
        (1024, 512, 24, 16, 1024, 304_932_864),
        (8192, 348, 40, 16, 1408, 975_876_352),
        (8192, 348, 36, 16, 1536, 1_045_638_144),
        (16384, 256, 48, 24, 1536, 1_410_640_896),
        (1024, 256, 24, 16, 1664, 801_798_400),
    ],
)
def test_the_published_models_have_as_many_parameters(
    vocabulary: int, block: int, layers: int, heads: int, width: int, count: int
) -> None:
    settings = GPTSettings(
        vocab_size=vocabulary, codebook_size=vocabulary, block_size=block, layers=layers, heads=heads, embed_dim=width
    )
    with torch.device("meta"):
        prior = GPT(settings)
    assert sum(parameter.numel() for parameter in prior.parameters()) == count


@pytest.mark.parametrize("kind", ["embedding", "attention", "residual"])
def test_each_dropout_works_in_training_only(kind: str) -> None:
    prior = small(**{f"{kind}_dropout": 0.5})
    codes = some_codes(prior)
    assert torch.equal(prior(codes), prior(codes))
    prior.train()
    assert not torch.equal(prior(codes), prior(codes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook_size": 15}, "size = 15 image codes are more than the vocabulary = 14"),
        (
            {"block_size": 13},
            "block = 13 positions are too few for prefix = 3 and a grid of 3 x 4 codes, .* make it 14",
        ),
        ({"heads": 5}, "width = 32 is not a multiple of heads = 5"),
        ({"unmasked": 4}, "unmasked = 4 reaches beyond the prefix = 3"),
        ({"start_code": 14}, "start = 14 is not in the vocabulary, 0 to 13"),
        ({"start_code": -1}, "start_code = -1"),
        ({"attention_dropout": 1.0}, r"attention_dropout = 1\.0"),
        ({"order": "spiral"}, "order = 'spiral': input should be 'raster', .*'spiral_out'"),
        ({"positions": 3}, "unknown key 'positions'"),
    ],
)
def test_settings_that_are_invalid_raise_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SmaltiError, match=message):
        small(**changes)
