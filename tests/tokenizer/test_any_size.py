"""Images of any size through a tokenizer: which go by strips, that they are the same, and how far the work is told to
be."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.core.progress_callback import Progress, no_progress
from smalti.tokenizer.tiled import any_size
from smalti.tokenizer.tiled.any_size import (
    MAX_UNTILED_PIXELS,
    decode_of_any_size,
    decode_tiles,
    encode_of_any_size,
    tile_rows,
)
from smalti.tokenizer.tiled.tiled_layers import decode_tiled, features_tiled
from smalti.tokenizer.vqgan import VQGAN
from tests.tokenizer.test_tiled_layers import AUTOENCODERS, away, random_images
from tests.tokenizer.test_tokenizer import noise, small


class ProgressCalls:
    """Notes what a progress is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.calls.append((done, total))

    def ended(self, rows: int) -> bool:
        """Whether it went from little to all, never back."""
        counts = [done for done, _ in self.calls]
        return (
            counts == sorted(counts) and self.calls[-1] == (rows, rows) and {total for _, total in self.calls} == {rows}
        )


@pytest.fixture
def by_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small images are large, and strips have few rows."""
    monkeypatch.setattr(any_size, "MAX_UNTILED_PIXELS", 8 * 8 - 1)
    monkeypatch.setattr(any_size, "STRIP", 1)


@torch.no_grad()
def test_an_image_of_1024_pixels_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole is computed in float64: in float32 PyTorch's own GroupNorm (where there is no compiler for ours) is up
    to 5e-3 off where such a map lies channels last, so that it would be the whole that is wrong, and not its strips."""
    monkeypatch.setattr(any_size, "STRIP", 2**18)  # for the few channels here: strips of 124 rows
    model = small(patch_size=4, channel_multipliers=[1, 1], middle_attention=False)
    side = 1024 // model.factor
    exact = copy.deepcopy(model).double()
    images = random_images(model, (side, side + 1), batch=1)
    assert images.shape[2] * images.shape[3] > MAX_UNTILED_PIXELS
    calls = ProgressCalls()
    quantized = encode_of_any_size(model, images, progress=calls)
    assert calls.ended(1024)
    assert away(exact.features(images.double()), features_of(model, images, rows=124)) < 1e-4
    truth = exact.decode(exact.latents_of(quantized.codes))
    calls = ProgressCalls()
    assert away(decode_of_any_size(model, model.latents_of(quantized.codes), progress=calls), truth) < 1e-4
    assert calls.ended(1024)
    assert len(list(decode_tiles(model, quantized.latents))) == 9  # of 124 rows


def features_of(model: VQGAN, images: Tensor, *, rows: int, progress: Progress = no_progress) -> Tensor:
    """Before codes are chosen."""
    return features_tiled(
        model, lambda first, last: images[:, :, first:last], images.shape[2], rows=rows, progress=progress
    )


@torch.no_grad()
def test_small_images_take_the_way_of_the_whole() -> None:
    model = small()
    images, calls = random_images(model, (3, 4), batch=3), ProgressCalls()
    whole = model.encode(images)
    for one, other in zip(whole, encode_of_any_size(model, images), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(decode_of_any_size(model, whole.latents, progress=calls), model.decode(whole.latents))
    assert calls.calls == [(12, 12)]
    assert len(list(decode_tiles(model, whole.latents))) == 1


@pytest.mark.usefixtures("by_strips")
@torch.no_grad()
def test_large_images_are_taken_one_by_one() -> None:
    model = copy.deepcopy(small()).double()
    images = random_images(model, (5, 4), batch=3).double()
    whole, calls, batches = model.encode(images), ProgressCalls(), set()
    quantized = encode_of_any_size(model, images)
    assert torch.equal(quantized.codes, whole.codes)
    assert away(quantized.latents, whole.latents) < 1e-12
    assert abs(quantized.loss - whole.loss) < 1e-12
    hook = model.decoder.conv_out.register_forward_hook(lambda module, given, made: batches.add(made.shape[0]))
    assert away(decode_of_any_size(model, whole.latents, progress=calls), model.decode(whole.latents)) < 1e-12
    hook.remove()
    assert batches == {1, 3}  # 3 is the whole
    assert calls.ended(3 * 20)


@pytest.mark.usefixtures("by_strips")
def test_neither_way_takes_gradients() -> None:
    model = small()
    for grid in ((1, 1), (3, 4)):
        quantized = encode_of_any_size(model, random_images(model, grid))
        assert not quantized.latents.requires_grad
        assert not decode_of_any_size(model, quantized.latents).requires_grad


@pytest.mark.usefixtures("by_strips")
def test_images_that_do_not_fit_are_reported_as_ever() -> None:
    with pytest.raises(SmaltiError, match=r"takes images of shape \(B, 3, H, W\)"):
        encode_of_any_size(small(), torch.zeros(3, 8, 8))
    with pytest.raises(SmaltiError, match="an image of 42 rows cannot be cut into tiles of 4"):
        encode_of_any_size(small(), torch.zeros(1, 3, 42, 40))
    with pytest.raises(SmaltiError, match="code 16 is outside the codebook"):
        small().latents_of(torch.full((1, 2, 2), 16))


@pytest.mark.parametrize(("width", "rows"), [(64, 2**26 // (4 * 128 * 64)), (4096, 32), (20000, 8)])
def test_rows_of_a_strip(width: int, rows: int) -> None:
    autoencoder: dict[str, Any] = {
        "patch_size": 1,
        "base_channels": 64,
        "channel_multipliers": [1, 2],
        "middle_attention": False,
    }
    assert tile_rows(small(**autoencoder), width) == rows
    assert tile_rows(small(**{**autoencoder, "patch_size": 2}), 2 * width) == 2 * rows
    assert tile_rows(small(**{**autoencoder, "base_channels": 8, "decoder_base_channels": 64}), width) == rows
    assert tile_rows(small(**{**autoencoder, "decoder_base_channels": 8}), width) == rows


@pytest.mark.parametrize(("autoencoder", "grid"), AUTOENCODERS)
@torch.no_grad()
def test_all_work_is_counted(autoencoder: dict[str, Any], grid: tuple[int, int]) -> None:
    model = small(**autoencoder)
    for rows in (1, 5, 1000):
        images, calls = random_images(model, grid), ProgressCalls()
        features = features_of(model, images, rows=rows, progress=calls)
        assert calls.ended(images.shape[2])
        calls = ProgressCalls()
        for _ in decode_tiled(model, features, rows=rows, progress=calls):
            pass
        assert calls.ended(images.shape[2])


@torch.no_grad()
def test_half_of_the_work_is_reported_as_half() -> None:
    """One level, no attention, one row at a time: half of the multiplications are half of the calls, of each layer."""
    model = small(patch_size=1, channel_multipliers=[1], middle_attention=False, latent_channels=8)
    calls = ProgressCalls()
    for _ in decode_tiled(model, noise(1, 4, 40, 3), rows=40, progress=calls):
        pass
    weights = [each.numel() for each in model.decoder.parameters() if each.dim() == 4]
    done = torch.tensor(weights).cumsum(0) * 40 // sum(weights)
    assert sorted({count for count, _ in calls.calls}) == sorted(set(done.tolist()))
