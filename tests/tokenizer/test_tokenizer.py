"""The tokenizer: shapes of every pyramid, its blocks, its errors, its fingerprint and its model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.core.files import write_json
from smalti.core.settings import parse
from smalti.tokenizer.blocks import AttentionBlock, Downsample, Upsample, as_channels_last, group_norm, plus, swish
from smalti.tokenizer.decoder import Decoder, SmoothOutput
from smalti.tokenizer.encoder import AutoencoderSettings
from smalti.tokenizer.vqgan import VQGAN, VQGANSettings
from tests import reference


def small(quantizer: dict[str, Any] | None = None, **autoencoder: Any) -> VQGAN:
    """A small random tokenizer, f = 4, 16 codes, whose codes are spread over its random features."""
    fixed = {
        "base_channels": 8,
        "channel_multipliers": [1, 2],
        "patch_size": 2,
        "res_blocks": 1,
        "latent_channels": 6,
        "zero_residuals": False,
    }
    plain = {
        "autoencoder": {**fixed, **autoencoder},
        "quantizer": {"codebook_size": 16, "codebook_dim": 4, **(quantizer or {})},
    }
    torch.manual_seed(0)
    tokenizer = VQGAN(parse(VQGANSettings, plain, where="test"))
    factor = tokenizer.factor
    with torch.no_grad():
        images = noise(4, tokenizer.settings.autoencoder.channels, 4 * factor, 4 * factor, seed=1)
        tokenizer.quantizer.init_codebook(tokenizer.features(images), generator=seeded(0))
    return tokenizer.eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Uniform in [-1, 1]."""
    return torch.rand(*shape, generator=seeded(seed)) * 2 - 1


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the pyramid ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("autoencoder", "size", "factor"),
    [
        ({"patch_size": 1, "channel_multipliers": [1], "channels": 1}, (3, 5), 1),
        ({"patch_size": 1, "channel_multipliers": [1, 2, 1], "channels": 3}, (12, 8), 4),
        ({"patch_size": 2, "channel_multipliers": [1, 2], "channels": 5}, (8, 12), 4),
        ({"patch_size": 4, "channel_multipliers": [2, 1], "channels": 3}, (16, 8), 8),
        ({"patch_size": 3, "channel_multipliers": [1, 1], "channels": 1}, (6, 12), 6),
        ({"patch_size": 1, "channel_multipliers": [1, 1, 1], "attention_levels": [0, 2]}, (8, 4), 4),
        (
            {"patch_size": 2, "channel_multipliers": [1, 1], "attention_levels": [1], "res_blocks": 2, "dropout": 0.5},
            (4, 4),
            4,
        ),
        ({"patch_size": 1, "channel_multipliers": [1, 2], "convolutional_resampling": False}, (6, 10), 2),
        ({"patch_size": 2, "channel_multipliers": [1, 1, 2], "latent_channels": 1, "base_channels": 12}, (8, 24), 8),
        (
            {
                "patch_size": 2,
                "channel_multipliers": [1, 2],
                "decoder_base_channels": 16,
                "decoder_res_blocks": 3,
                "attention_levels": [0],
            },
            (8, 4),
            4,
        ),
        (
            {
                "patch_size": 1,
                "channel_multipliers": [2, 1],
                "decoder_base_channels": 8,
                "base_channels": 16,
                "decoder_res_blocks": 1,
            },
            (4, 6),
            2,
        ),
    ],
)
def test_shapes_of_every_pyramid(autoencoder: dict[str, Any], size: tuple[int, int], factor: int) -> None:
    tokenizer = small(**autoencoder)
    channels = tokenizer.settings.autoencoder.channels
    images = noise(2, channels, *size)
    reconstructions, quantized = tokenizer(images)
    grid = (size[0] // factor, size[1] // factor)
    assert tokenizer.factor == factor
    assert reconstructions.shape == images.shape
    assert quantized.latents.shape == (2, 4, *grid)
    assert quantized.codes.shape == (2, *grid)
    assert quantized.codes.dtype == torch.int64
    assert quantized.loss.shape == ()
    (reconstructions.square().mean() + quantized.loss).backward()
    without = [name for name, parameter in tokenizer.named_parameters() if parameter.grad is None]
    assert not without


def test_the_decoder_has_a_width_and_a_depth_of_its_own() -> None:
    """By default those of the paper; said in numbers they are the same network, weight for weight."""
    default, message = small(), small(decoder_base_channels=8, decoder_res_blocks=2)
    assert default.settings.autoencoder.decoder_base_channels == default.settings.autoencoder.decoder_res_blocks == 0
    assert {name: weight.shape for name, weight in message.state_dict().items()} == {
        name: weight.shape for name, weight in default.state_dict().items()
    }
    assert message.fingerprint() == default.fingerprint()
    other = small(decoder_base_channels=24, decoder_res_blocks=4)
    ours, theirs = default.encoder.state_dict(), other.encoder.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    last = {name: len(weight) for name, weight in other.decoder.state_dict().items() if name.endswith("3.norm2.weight")}
    assert last == {"stages.0.blocks.3.norm2.weight": 24, "stages.1.blocks.3.norm2.weight": 48}
    assert not [name for name in other.decoder.state_dict() if ".blocks.4." in name]


@pytest.mark.parametrize(("channels", "size"), [(8, (3, 5)), (16, (1, 1)), (8, (4, 2))])
def test_upsampling_in_one_step_is_upsampling_and_then_convolving(channels: int, size: tuple[int, int]) -> None:
    """Values and gradients, at the borders too."""
    torch.manual_seed(0)
    upsample = Upsample(channels, convolution=True).double()
    assert isinstance(upsample.convolution, torch.nn.Conv2d)
    weight, bias = upsample.convolution.weight, upsample.convolution.bias
    assert bias is not None
    inputs = [noise(2, channels, *size, seed=seed).double().requires_grad_() for seed in (1, 1)]
    requested = noise(2, channels, 2 * size[0], 2 * size[1], seed=2).double()
    both = []
    for x, made in zip(
        inputs, (upsample(inputs[0]), reference.upsampled(inputs[1], weight) + bias.view(-1, 1, 1)), strict=True
    ):
        both.append((made, *torch.autograd.grad((made * requested).sum(), (x, weight, bias))))
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_swish_writes_over_its_input_only_where_no_gradient_requests_it() -> None:
    kept = noise(4, seed=3).requires_grad_()
    before = kept.detach().clone()
    made = swish(kept)
    assert torch.equal(kept, before)
    spent = before.clone()
    assert swish(spent) is spent
    assert torch.equal(spent, made)
    torch.testing.assert_close(made, before * before.sigmoid())


@pytest.mark.parametrize("request_for", [(True, False), (False, True), (False, False)])
def test_a_sum_writes_over_its_branch_only_where_no_gradient_requests_it(request_for: tuple[bool, bool]) -> None:
    branch, shortcut = (noise(4, seed=3 + number).requires_grad_(asks) for number, asks in enumerate(request_for))
    before = branch.detach().clone()
    made = plus(branch, shortcut)
    assert torch.equal(made, before + shortcut)
    assert (made is branch) == (not any(request_for))
    assert torch.equal(branch, before) == any(request_for)


def test_attention_stands_where_it_is_requested() -> None:
    tokenizer = small(channel_multipliers=[1, 1, 1], attention_levels=[1], res_blocks=2)
    names = [name for name, module in tokenizer.named_modules() if isinstance(module, AttentionBlock)]
    assert names == [
        "encoder.stages.1.attentions.0",
        "encoder.stages.1.attentions.1",
        "encoder.middle.1",
        "decoder.middle.1",
        "decoder.stages.1.attentions.0",
        "decoder.stages.1.attentions.1",
        "decoder.stages.1.attentions.2",
    ]


def test_the_middle_may_have_no_attention() -> None:
    tokenizer = small(middle_attention=False)
    assert not any(isinstance(module, AttentionBlock) for module in tokenizer.modules())
    assert tokenizer(noise(1, 3, 8, 8))[0].shape == (1, 3, 8, 8)


def test_attention_is_the_formula() -> None:
    torch.manual_seed(0)
    block, x = AttentionBlock(8), noise(2, 8, 3, 5)
    h = block.norm(x)
    query, key, value = (part(h).flatten(2).transpose(1, 2) for part in (block.query, block.key, block.value))
    weights = torch.softmax(query @ key.transpose(1, 2) / 8**0.5, dim=2)
    expected = x + block.out((weights @ value).transpose(1, 2).view(2, 8, 3, 5))
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-6)


def test_resampling_is_padded_right_and_below() -> None:
    torch.manual_seed(0)
    down = Downsample(1, convolution=True)
    (_, convolution) = down.resample if isinstance(down.resample, torch.nn.Sequential) else (None, None)
    assert isinstance(convolution, torch.nn.Conv2d)
    torch.nn.init.ones_(convolution.weight)
    assert convolution.bias is not None
    torch.nn.init.zeros_(convolution.bias)
    assert down(torch.ones(1, 1, 4, 4)).tolist() == [[[[9.0, 6.0], [6.0, 4.0]]]]
    x = noise(1, 2, 4, 6)
    plain = Downsample(2, convolution=False)
    torch.testing.assert_close(plain(x)[0, 1, 1, 2], x[0, 1, 2:4, 4:6].mean())
    assert torch.equal(Upsample(2, convolution=False)(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_norms_have_as_many_groups_as_fit() -> None:
    assert [group_norm(channels).num_groups for channels in (8, 12, 32, 48, 128)] == [8, 4, 32, 16, 32]
    assert group_norm(8).eps == 1e-6


def test_blocks_begin_as_their_shortcuts_where_requested() -> None:
    """Then dropout, which acts inside the blocks, changes nothing before the first step; and every block still
    learns."""
    tokenizer, images = small(dropout=0.5, zero_residuals=True).train(), noise(1, 3, 8, 8)
    assert torch.equal(tokenizer.features(images), tokenizer.features(images))
    tokenizer.features(images).sum().backward()  # type: ignore[no-untyped-call]
    last = [weight for name, weight in tokenizer.encoder.named_parameters() if name.endswith("convolution2.weight")]
    assert last
    assert all(not weight.any() and weight.grad is not None and weight.grad.any() for weight in last)


def test_dropout_belongs_to_training() -> None:
    tokenizer, images = small(dropout=0.5), noise(1, 3, 8, 8)
    assert torch.equal(tokenizer.features(images), tokenizer.features(images))
    tokenizer.train()
    assert not torch.equal(tokenizer.features(images), tokenizer.features(images))


def test_the_memory_layout_changes_no_value() -> None:
    tokenizer, images = small(), noise(2, 3, 8, 8)
    before = tokenizer(images)[0]
    as_channels_last(tokenizer)
    assert tokenizer.decoder.last_layer.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(tokenizer(images)[0], before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"channel_multipliers": [1, 0]},
            r"autoencoder\.channel_multipliers\.1 = 0: input should be greater than or equal to 1",
        ),
        ({"channel_multipliers": []}, r"autoencoder\.channel_multipliers = \[\]"),
        ({"attention_levels": [2]}, r"autoencoder\.attention_levels = \[2\]: there are the levels 0 to 1"),
        ({"attention_levels": [-1]}, r"autoencoder\.attention_levels = \[-1\]: there are the levels 0 to 1"),
        ({"base_channels": 4}, r"autoencoder\.base_channels = 4: input should be greater than or equal to 8"),
        (
            {"decoder_base_channels": 4},
            r"autoencoder\.decoder_base_channels = 4: a width is 8 channels or more; 0 takes the encoder's",
        ),
        (
            {"decoder_res_blocks": -1},
            r"autoencoder\.decoder_res_blocks = -1: input should be greater than or equal to 0",
        ),
    ],
)
def test_autoencoders_that_cannot_be_built_are_reported(change: dict[str, Any], sentence: str) -> None:
    """An attention level that the pyramid does not have was once ignored, a width of 0 a traceback."""
    with pytest.raises(SmaltiError, match=sentence):
        small(**change)


# --- the whole, and on disk ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalized", [True, False])
def test_codes_say_all_that_the_decoder_reads(normalized: bool) -> None:
    tokenizer, images = small({"l2_normalize": normalized}), noise(2, 3, 8, 12)
    codes = tokenizer.encode(images).codes
    assert len(torch.unique(codes)) > 1
    torch.testing.assert_close(tokenizer.decode_codes(codes), tokenizer(images)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((1, 4, 8, 8), r"takes images of shape \(B, 3, H, W\), got \(1, 4, 8, 8\)"),
        ((3, 8, 8), r"takes images of shape \(B, 3, H, W\), got \(3, 8, 8\)"),
        ((1, 3, 9, 14), r"9 x 14 \(height x width\) cannot be cut into tiles of 4 pixels; crop it to 8 x 12"),
        ((1, 3, 0, 8), r"0 x 8 \(height x width\) cannot be cut"),
    ],
)
def test_images_that_do_not_fit_are_reported(shape: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(SmaltiError, match=sentence):
        small().encode(torch.zeros(shape))


@pytest.mark.parametrize("code", [-1, 16, 99])
def test_codes_outside_the_codebook_are_reported(code: int) -> None:
    with pytest.raises(SmaltiError, match=rf"code {code} is outside the codebook, whose codes are 0 to 15"):
        small().decode_codes(torch.tensor([[[0, code]]]))


@pytest.mark.parametrize("stem", [1, 2])
def test_a_tokenizer_comes_back_bit_for_bit(tmp_path: Path, stem: int) -> None:
    tokenizer, images = (
        small(patch_size=stem, attention_levels=[0], decoder_base_channels=16, decoder_res_blocks=1),
        noise(2, 3, 8, 8),
    )
    as_channels_last(tokenizer)
    tokenizer.save_pretrained(tmp_path, about={})
    again = VQGAN.from_pretrained(str(tmp_path))
    assert again.settings == tokenizer.settings
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    for (name, a), (other, b) in zip(again.state_dict().items(), tokenizer.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b)
    assert again.fingerprint() == tokenizer.fingerprint()
    as_channels_last(again)
    assert torch.equal(again(images)[0], tokenizer(images)[0])


def test_a_model_from_before_a_setting_was_there_comes_back(tmp_path: Path) -> None:
    """Its config.json lacks the settings that are new, whose defaults are the networks of that time."""
    small().save_pretrained(tmp_path, about={})
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("decoder_base_channels", "decoder_res_blocks"):
        del config["settings"]["autoencoder"][name]
    write_json(tmp_path / "config.json", config)
    assert VQGAN.from_pretrained(tmp_path).fingerprint() == small().fingerprint()


def test_the_fingerprint_is_of_what_codes_depend_on() -> None:
    tokenizer = small()
    before = tokenizer.fingerprint()
    assert before == small().fingerprint()
    tokenizer.get_buffer("quantizer.use").add_(1.0)
    assert tokenizer.fingerprint() == before
    seen = {before, small({"commitment": 0.5}).fingerprint()}
    for name, parameter in tokenizer.named_parameters():
        with torch.no_grad():
            parameter.view(-1)[0] += 1e-3
        assert tokenizer.fingerprint() not in seen, f"{name} does not count"
        seen.add(tokenizer.fingerprint())


def test_damaged_tokenizers_are_reported(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path, about={})
    config = json.loads((tmp_path / "config.json").read_text())
    weights = (tmp_path / "model.safetensors").read_bytes()

    write_json(tmp_path / "config.json", {**config, "settings": {"autoencoder": {"base_chanels": 8}}})
    with pytest.raises(SmaltiError, match=r"unknown key 'autoencoder\.base_chanels'; did you mean 'base_channels'\?"):
        VQGAN.from_pretrained(tmp_path)
    write_json(tmp_path / "config.json", {**config, "settings": {"autoencoder": {"base_channels": 16}}})
    with pytest.raises(SmaltiError, match=r"does not fit its config\.json: \d+ tensors differ, first "):
        VQGAN.from_pretrained(tmp_path)
    write_json(tmp_path / "config.json", {**config, "kind": "prior"})
    with pytest.raises(SmaltiError, match="holds a prior, a tokenizer is needed here"):
        VQGAN.from_pretrained(tmp_path)
    write_json(tmp_path / "config.json", {"_class_name": "VQModel", "act_fn": "silu"})
    with pytest.raises(SmaltiError, match="was not written by smalti"):
        VQGAN.from_pretrained(tmp_path)
    write_json(tmp_path / "config.json", config)
    (tmp_path / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(SmaltiError, match=r"model\.safetensors is damaged or truncated"):
        VQGAN.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights)
    VQGAN.from_pretrained(tmp_path)


def test_images_begin_without_a_checkerboard() -> None:
    """The pixels of one square of the stem begin equal: each starts from the same weights."""
    tokenizer = small(patch_size=4, channel_multipliers=[1, 1])
    image = tokenizer.decode_codes(torch.arange(4).view(1, 2, 2))
    squares = image.view(1, 3, 4, 4, 4, 4)  # rows of squares, rows in one, columns of squares, columns in one
    assert torch.equal(squares, squares[:, :, :, :1, :, :1].expand_as(squares))


# --- smooth output ---------------------------------------------------------------------------------------------------


def smooth_output(stem: int) -> AutoencoderSettings:
    values = {
        "patch_size": stem,
        "base_channels": 16,
        "channel_multipliers": [1, 1],
        "res_blocks": 1,
        "output_channels": 8,
        "latent_channels": 8,
    }
    return parse(AutoencoderSettings, values, where="test")


@pytest.mark.parametrize("stem", [2, 4, 8])
def test_a_smooth_output_begins_without_a_hatch(stem: int) -> None:
    """An even map becomes an even image: away from the borders no pixel knows its place in a square of the stem."""
    torch.manual_seed(0)
    decoder = Decoder(smooth_output(stem))
    grid = 2 * (SmoothOutput.REACH + 2)
    image = decoder.conv_out(torch.ones(1, 16, grid, grid))
    assert image.shape == (1, 3, grid * stem, grid * stem)
    border = (SmoothOutput.REACH + 1) * stem
    inside = image[..., border:-border, border:-border]
    torch.testing.assert_close(inside, inside[..., :1, :1].expand_as(inside), rtol=1e-5, atol=1e-6)


def test_a_smooth_output_sees_as_far_as_it_says() -> None:
    decoder = Decoder(smooth_output(8))
    for side in (12, 13):
        x = torch.zeros(1, 16, side, side, requires_grad=True)
        row = side // 2
        torch.autograd.backward(decoder.conv_out(x)[0, :, row * 8 : row * 8 + 8].sum())
        assert x.grad is not None
        seen = x.grad.abs().sum((0, 1, 3)).nonzero().flatten()
        assert int(seen.min()) >= row - SmoothOutput.REACH
        assert int(seen.max()) <= row + SmoothOutput.REACH


def test_a_stem_of_1_needs_no_doublings() -> None:
    plain, smooth = (
        Decoder(
            parse(
                AutoencoderSettings, {"patch_size": 1, "base_channels": 16, "output_channels": channels}, where="test"
            )
        )
        for channels in (0, 8)
    )
    assert smooth.state_dict().keys() == plain.state_dict().keys()


def test_the_last_layer_of_a_smooth_output_makes_the_channels() -> None:
    decoder = Decoder(smooth_output(4))
    assert decoder.last_layer.shape == (3, 8, 3, 3)
    assert decoder(torch.zeros(1, 8, 2, 3)).shape == (1, 3, 16, 24)


@pytest.mark.parametrize("stem", [3, 6])
def test_smooth_doublings_lead_to_powers_of_two(stem: int) -> None:
    with pytest.raises(SmaltiError, match=f"patch_size is {stem}"):
        parse(AutoencoderSettings, {"patch_size": stem, "output_channels": 8}, where="test")
