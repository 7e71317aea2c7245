"""Decoding and encoding strip by strip: equal to the whole image, in bounded memory, with and without files."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from smalti.core.errors import SmaltiError
from smalti.tokenizer.blocks import Downsample, Upsample, group_norm
from smalti.tokenizer.tiled import tiled_layers
from smalti.tokenizer.tiled.feature_maps import MapStorageSettings, gathered, joined_moments, moments_of
from smalti.tokenizer.tiled.tiled_layers import _Walk, decode_tiled, encode_tiled, features_tiled
from smalti.tokenizer.tiled.tiled_progress import MultiplicationCounter
from smalti.tokenizer.vqgan import VQGAN
from tests.tokenizer.test_tokenizer import noise, small

AUTOENCODERS: list[tuple[dict[str, Any], tuple[int, int]]] = [
    ({"patch_size": 1, "channel_multipliers": [1, 2], "channels": 1}, (7, 3)),
    ({"patch_size": 1, "channel_multipliers": [1, 1, 2], "attention_levels": [1, 2], "res_blocks": 2}, (3, 5)),
    (
        {
            "patch_size": 1,
            "channel_multipliers": [2, 1],
            "base_channels": 32,
            "convolutional_resampling": False,
            "attention_levels": [0],
        },
        (6, 2),
    ),
    ({"patch_size": 2, "channel_multipliers": [1, 2], "channels": 1, "middle_attention": False}, (1, 4)),
    (
        {"patch_size": 2, "channel_multipliers": [1, 2, 1], "base_channels": 12, "convolutional_resampling": False},
        (5, 3),
    ),
    ({"patch_size": 3, "channel_multipliers": [1], "channels": 3}, (9, 2)),
    (
        {
            "patch_size": 2,
            "channel_multipliers": [1, 2],
            "decoder_base_channels": 24,
            "decoder_res_blocks": 1,
            "attention_levels": [1],
        },
        (4, 3),
    ),
]
"""Settings, and a code grid (h, w)."""
NOTHING, ALL = 0, 2**40
"""Bytes of a map that is kept in memory."""
STRIPS = ((1, ALL), (2, NOTHING), (3, NOTHING), (8, ALL), (1000, NOTHING))
"""Rows of a strip, and what is kept."""
Read = Callable[[int, int], Tensor]


def wide(model: VQGAN) -> VQGAN:
    """A copy in float64."""
    return copy.deepcopy(model).double()


def reader(images: Tensor) -> Read:
    return lambda first, last: images[:, :, first:last]


def random_images(model: VQGAN, grid: tuple[int, int], *, batch: int = 2) -> Tensor:
    """Neither small values nor an even brightness: statistics of a strip are not those of the whole."""
    h, w = grid
    images = noise(batch, model.settings.autoencoder.channels, h * model.factor, w * model.factor, seed=2)
    return (images + torch.linspace(-1, 1, images.shape[2])[:, None]) / 2


def decoded(model: VQGAN, latents: Tensor, *, rows: int, memory_limit: int) -> Tensor:
    return torch.cat(list(decode_tiled(model, latents, rows=rows, memory_limit=memory_limit)), 2)


def away(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).abs().max())


# --- as from the whole image -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("autoencoder", "grid"), AUTOENCODERS)
@torch.no_grad()
def test_strips_are_the_whole_image(autoencoder: dict[str, Any], grid: tuple[int, int]) -> None:
    model = small(**autoencoder)
    exact, images = wide(model), random_images(model, grid)
    latents = model.encode(images).latents
    # The truth is the whole image in float64: where variances are small, the whole image in float32 is no closer to it.
    exact_image, features = exact.decode(latents.double()), exact.features(images.double())
    before = latents.clone(), images.clone()
    for rows, memory_limit in STRIPS:
        assert away(decoded(model, latents, rows=rows, memory_limit=memory_limit), exact_image) < 1e-5
        assert away(decoded(exact, latents.double(), rows=rows, memory_limit=memory_limit), exact_image) < 1e-12
        given = features_tiled(model, reader(images), images.shape[2], rows=rows, memory_limit=memory_limit)
        assert away(given, features) < 1e-5
        given = features_tiled(exact, reader(images.double()), images.shape[2], rows=rows, memory_limit=memory_limit)
        assert away(given, features) < 1e-12
    assert torch.equal(before[0], latents)
    assert torch.equal(before[1], images)


@given(
    h=st.integers(1, 9),
    w=st.integers(2, 4),
    batch=st.integers(1, 3),
    rows=st.integers(1, 40),
    memory_limit=st.sampled_from([NOTHING, 2000, ALL]),
)
@settings(max_examples=12, deadline=None)
@torch.no_grad()
def test_strips_of_any_size_are_the_whole_image(h: int, w: int, batch: int, rows: int, memory_limit: int) -> None:
    model = wide(small(patch_size=1, channel_multipliers=[1, 2], attention_levels=[1]))
    images = random_images(model, (h, w), batch=batch).double()
    whole = model.encode(images)
    quantized = encode_tiled(model, reader(images), images.shape[2], rows=rows, memory_limit=memory_limit)
    assert torch.equal(quantized.codes, whole.codes)
    assert away(quantized.latents, whole.latents) < 1e-12
    assert (
        away(decoded(model, whole.latents, rows=rows, memory_limit=memory_limit), model.decode(whole.latents)) < 1e-12
    )


@torch.no_grad()
def test_queries_of_attention_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wide(small(patch_size=1, channel_multipliers=[1, 2], attention_levels=[1]))
    latents = noise(2, 4, 5, 3).double()
    monkeypatch.setattr(tiled_layers, "SCORES", 2 * 15 * 4)  # four queries, of batch 2 with 15 keys
    sizes = []
    attend = F.scaled_dot_product_attention

    def spy(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        sizes.append((query.shape[2], key.shape[2]))
        return attend(query, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", spy)
        image = decoded(model, latents, rows=3, memory_limit=NOTHING)
    assert away(image, model.decode(latents)) < 1e-12
    assert {keys for _, keys in sizes} == {15}
    assert {queries for queries, _ in sizes} == {4, 1, 2}  # 3 rows of 3: 4 + 4 + 1; the other 2 of 3: 4 + 2


@torch.no_grad()
def test_half_precision_goes_through_files() -> None:
    model = small().bfloat16()
    latents = noise(2, 4, 5, 3).bfloat16()
    given = decoded(model, latents, rows=4, memory_limit=NOTHING)
    assert given.dtype == torch.bfloat16
    assert torch.equal(given, decoded(model, latents, rows=4, memory_limit=ALL))
    assert away(given, model.decode(latents)) < 0.1


@pytest.mark.parametrize(
    ("stem", "rows", "heights"),
    [(1, 8, [8, 8, 4]), (1, 20, [20]), (1, 99, [20]), (2, 7, [6, 6, 6, 2]), (2, 1, [2] * 10), (4, 6, [4] * 5)],
)
def test_heights_of_strips(stem: int, rows: int, heights: list[int]) -> None:
    model = small(patch_size=stem, channel_multipliers=[1])
    latents = noise(1, 4, 20 // stem, 3)
    strips = list(decode_tiled(model, latents, rows=rows))
    assert [strip.shape[2] for strip in strips] == heights
    assert {strip.shape[:2] + strip.shape[3:] for strip in strips} == {(1, 3, 3 * stem)}
    assert not any(strip.requires_grad for strip in strips)  # though the weights do


# --- group statistics ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heights", [[1, 5, 2, 4], [12], [1] * 12])
@torch.no_grad()
def test_group_statistics_from_strips(heights: list[int]) -> None:
    # A mean far from zero: sums of squares would lose the variance in float32, and much of it in float64.
    before = noise(2, 12, 12, 5).double() + 1e6 * torch.arange(12.0).view(12, 1, 1) + torch.linspace(0, 3, 12)[:, None]
    x = before.clone()
    norm = group_norm(12).double()
    torch.nn.init.uniform_(norm.weight)
    torch.nn.init.uniform_(norm.bias)
    norm.num_groups = 3
    scale, shift = joined_moments(map(moments_of, torch.split(x, heights, 2))).affine(norm)
    assert torch.equal(x, before)
    groups = x.view(2, 3, -1)
    truth = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, correction=0, keepdim=True) + norm.eps).sqrt()
    truth = truth.view_as(x) * norm.weight[:, None, None] + norm.bias[:, None, None]
    assert away(scale * x + shift, truth) < 1e-9


def test_spread_of_one_channel_far_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smalti.tokenizer.tiled.feature_maps.PIECE", 7)  # a piece is a row
    x = noise(1, 2, 9, 5).double()
    moments = joined_moments([moments_of((x + 1e7)[:, :, :4]), moments_of((x + 1e7)[:, :, 4:])])
    assert moments.positions == 45
    assert torch.allclose(moments.squares / 45, x.var((2, 3), correction=0), rtol=1e-7)
    assert torch.allclose(moments.mean - 1e7, x.mean((2, 3)), rtol=0, atol=1e-8)


# --- memory and files ----------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the bytes of the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        for tensor in given if isinstance(given, tuple | list) else [given]:
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return given


@pytest.mark.parametrize("stem", [1, 2])
@torch.no_grad()
def test_no_map_is_made_whole(stem: int) -> None:
    # Without attention and without the upsampled kernels, strips of the highest level are the largest there is.
    model = small(patch_size=stem, channel_multipliers=[1, 2], middle_attention=False, convolutional_resampling=False)
    images = random_images(model, (32, 8), batch=1)
    squares = images.shape[3] // stem
    latents = noise(1, 4, 32, 8)
    rows = 4
    row = squares * 16  # numbers at the highest level, where the first block has the width of the level below
    strip, whole = (rows + 2) * row * 8, 64 * row * 4  # bytes; moments are taken in float64
    with Largest() as largest:
        for _ in decode_tiled(model, latents, rows=rows * stem, memory_limit=NOTHING):
            pass
    assert largest.bytes <= strip
    with Largest() as largest:
        model.decode(latents)
    assert largest.bytes >= whole

    requested: list[tuple[int, int]] = []

    def read(first: int, last: int) -> Tensor:
        requested.append((first, last))
        return images.narrow(2, first, last - first)

    with Largest() as largest:
        features_tiled(model, read, images.shape[2], rows=rows * stem, memory_limit=NOTHING)
    assert largest.bytes <= strip
    assert requested == sorted(requested)
    assert (requested[0][0], requested[-1][1]) == (0, images.shape[2])
    assert max(last - first for first, last in requested) == (rows + 2) * stem


@pytest.mark.parametrize(
    ("layer", "requested", "gives"),
    [
        (Downsample(8, convolution=True), 5, 2),
        (Downsample(8, convolution=False), 5, 2),
        (Upsample(8, convolution=True), 4, 4),
        (torch.nn.Conv2d(8, 8, 3, padding=1), 6, 4),
    ],
)
@torch.no_grad()
def test_strips_are_small_on_both_sides_of_a_layer(
    layer: torch.nn.Module, requested: int, gives: int, tmp_path: Path
) -> None:
    x, heights = noise(1, 8, 20, 4), []

    def read(first: int, last: int) -> Tensor:
        heights.append(last - first)
        return x[:, :, first:last]

    reported: list[tuple[int, int]] = []
    counter = MultiplicationCounter(1000, rows=10, progress=lambda done, total: reported.append((done, total)))
    made = list(_Walk(4, MapStorageSettings(memory_limit=ALL, folder=tmp_path), counter).strips(layer, read, 20))
    assert len(reported) == len(made)
    assert (max(heights), max(strip.shape[2] for strip in made)) == (requested, gives)
    assert away(torch.cat(made, 2), layer(x)) < 1e-6


@torch.no_grad()
def test_maps_within_what_is_kept_need_no_file(tmp_path: Path) -> None:
    model, latents = small(), noise(1, 4, 4, 3)
    nowhere = tmp_path / "nowhere"
    # Of float32: H/s x W/s x width of the level below, for the first block of the highest level.
    largest = 8 * 6 * 16 * 4
    assert len(list(decode_tiled(model, latents, rows=8, memory_limit=largest, folder=nowhere))) == 2
    for memory_limit in (largest - 1, 0):
        with pytest.raises(SmaltiError, match=r"bytes cannot be kept in .*nowhere.*give another folder"):
            next(decode_tiled(model, latents, rows=8, memory_limit=memory_limit, folder=nowhere))
    with pytest.raises(SmaltiError, match="nowhere"):
        encode_tiled(model, reader(noise(1, 3, 16, 12)), 16, rows=8, memory_limit=0, folder=nowhere)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are counted in /proc")
def test_files_are_closed_also_where_strips_are_not_all_taken(tmp_path: Path) -> None:
    def files() -> int:
        return sum(os.path.realpath(f"/proc/self/fd/{name}").startswith(str(tmp_path)) for name in fds())

    def fds() -> Iterator[str]:
        yield from os.listdir("/proc/self/fd")

    model, latents = small(), noise(1, 4, 4, 3)
    strips = decode_tiled(model, latents, rows=4, memory_limit=NOTHING, folder=tmp_path)
    next(strips)
    assert files() == 1  # the last map: the others are gone
    assert not list(tmp_path.iterdir())  # without a name: nothing stays behind a process that is killed
    del strips
    assert files() == 0


def test_a_map_may_be_overwritten_while_it_is_read(tmp_path: Path) -> None:
    x = noise(2, 3, 7, 4)
    for memory_limit in (NOTHING, ALL):
        x_map = gathered(iter(torch.split(x, 2, 2)), 7, MapStorageSettings(memory_limit=memory_limit, folder=tmp_path))
        assert torch.equal(x_map.read(0, 7), x)
        doubled = x_map.overwritten(x_map.read(first, min(first + 3, 7)) * 2 for first in (0, 3, 6))
        assert torch.equal(doubled.read(0, 7), x * 2)
        assert torch.equal(doubled.read(5, 6), x[:, :, 5:6] * 2)
        assert torch.allclose(doubled.moments.mean, 2 * x.double().mean((2, 3)))


# --- errors --------------------------------------------------------------------------------------------------------


def test_wrong_sizes_are_reported() -> None:
    model = small()
    images = noise(1, 3, 8, 8)
    with pytest.raises(SmaltiError, match="strips of 0 rows"):
        decode_tiled(model, noise(1, 4, 2, 2), rows=0)
    with pytest.raises(SmaltiError, match="strips of -1 rows"):
        encode_tiled(model, reader(images), 8, rows=-1)
    for height in (0, 6):
        with pytest.raises(SmaltiError, match=f"an image of {height} rows cannot be cut into tiles of 4"):
            encode_tiled(model, reader(images), height, rows=4)
    with pytest.raises(SmaltiError, match="6 pixels wide cannot be cut into tiles of 4"):
        encode_tiled(model, reader(images[..., :6]), 8, rows=4)
    with pytest.raises(SmaltiError, match=r"\(B, 3, 2, W\) was requested, and got \(1, 1, 2, 8\)"):
        encode_tiled(model, reader(images[:, :1]), 8, rows=8)
    with pytest.raises(SmaltiError, match=r"\(B, 3, 8, W\) was requested, and got \(1, 3, 6, 8\)"):
        encode_tiled(model, reader(images[:, :, :6]), 8, rows=8)
