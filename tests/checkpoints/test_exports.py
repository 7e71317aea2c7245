"""Tokenizers as graphs: what they give is what the tokenizer gives, at sizes that were never traced."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from smalti.checkpoints.exports import decoder_of, encoder_of, write_onnx, write_programs
from smalti.core.errors import SmaltiError
from smalti.prior import Transformer, TransformerSettings
from smalti.tokenizer.encoder import AutoencoderSettings
from smalti.tokenizer.quantizers import (
    EMASettings,
    FSQSettings,
    GumbelSettings,
    LFQSettings,
    QuantizerSettings,
    SimVQSettings,
    VQSettings,
)
from smalti.tokenizer.vqgan import VQGAN, VQGANSettings

SIZES = [(1, 2, 2), (3, 9, 4), (1, 80, 70)]
"""B, h, w; the last has more vectors than the search for codes takes at a time."""

pytestmark = pytest.mark.filterwarnings("default")  # PyTorch's exporters warn of their own insides


def tokenizer(quantizer: QuantizerSettings | None = None, *, width: int = 8) -> VQGAN:
    torch.manual_seed(0)
    autoencoder = AutoencoderSettings(
        patch_size=2,
        base_channels=width,
        channel_multipliers=(1, 1),
        res_blocks=1,
        attention_levels=(1,),
        latent_channels=8,
        zero_residuals=False,
    )
    model = VQGAN(
        VQGANSettings(autoencoder=autoencoder, quantizer=quantizer or VQSettings(codebook_size=2048, codebook_dim=4))
    )
    return model.eval().requires_grad_(False)


def random_images(model: VQGAN, size: tuple[int, int, int]) -> Tensor:
    B, h, w = size
    shape = (B, 3, h * model.factor, w * model.factor)
    return torch.rand(shape, generator=torch.Generator().manual_seed(h)) * 2 - 1


def agree(codes: Tensor, model: VQGAN, images: Tensor) -> bool:
    """Whether they are the model's codes of the images, but where rounding decides between two that are as near."""
    ours = model.encode(images).codes
    return codes.shape == ours.shape and float((codes == ours).float().mean()) > 0.999


def test_a_decoder_takes_codes_of_any_size() -> None:
    model = tokenizer()
    program = decoder_of(model)
    for size in SIZES:
        codes = torch.randint(2048, size, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(program.module()(codes), model.decode_codes(codes), rtol=1e-4, atol=1e-4)


def test_convolutions_of_our_own_stay_out_of_a_graph() -> None:
    program = decoder_of(tokenizer(width=64))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.conv2d.default" in called
    assert {name.partition(".")[0] for name in called} <= {"aten", "_operator", "<built-in function mul>"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "quantizer",
    [
        VQSettings(codebook_size=2048, codebook_dim=4),
        EMASettings(codebook_size=16, codebook_dim=4),
        SimVQSettings(codebook_size=16, codebook_dim=4),
        GumbelSettings(codebook_size=16, codebook_dim=4),
        FSQSettings(),
        LFQSettings(),
    ],
    ids=lambda quantizer: quantizer.name,
)
def test_an_encoder_takes_images_of_any_size(quantizer: QuantizerSettings) -> None:
    model = tokenizer(quantizer)
    program = encoder_of(model)
    for size in SIZES:
        images = random_images(model, size)
        assert agree(program.module()(images), model, images)


@pytest.mark.slow
def test_programs_are_read_by_pytorch_alone(tmp_path: Path) -> None:
    model = tokenizer()
    write_programs(model, None, None, tmp_path / "graphs", about={"data": "photos"})
    facts = json.loads((tmp_path / "graphs" / "tokenizer.json").read_text())
    assert facts["fingerprint"] == model.fingerprint()
    assert (facts["factor"], facts["codes"], facts["channels"], facts["about"]) == (4, 2048, 3, {"data": "photos"})
    encoder, decoder = (
        torch.export.load(tmp_path / "graphs" / f"{name}.pt2").module() for name in ("encoder", "decoder")
    )
    for size in SIZES:
        codes = encoder(random_images(model, size))
        assert agree(codes, model, random_images(model, size))
        torch.testing.assert_close(decoder(codes), model.decode_codes(codes), rtol=1e-4, atol=1e-4)


def runtime() -> Any:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    try:
        return importlib.import_module("onnxruntime")
    except Exception as error:  # a package that is half installed can raise anything
        pytest.skip(f"onnxruntime cannot be imported: {error}".split("\n")[0])


@pytest.mark.slow
@pytest.mark.parametrize("width", [8, 64])
def test_onnx_gives_what_the_tokenizer_gives(width: int, tmp_path: Path) -> None:
    engine, model = runtime(), tokenizer(width=width)
    write_onnx(model, None, None, tmp_path / "graphs", about={})
    encoder, decoder = (
        engine.InferenceSession(tmp_path / "graphs" / f"{name}.onnx") for name in ("encoder", "decoder")
    )
    for size in SIZES:
        images = random_images(model, size)
        ours = model.encode(images).codes
        (codes,) = encoder.run(["codes"], {"images": images.numpy()})
        assert agree(torch.from_numpy(codes), model, images)
        (decoded,) = decoder.run(["images"], {"codes": ours.numpy()})
        torch.testing.assert_close(torch.from_numpy(decoded), model.decode_codes(ours), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_what_onnx_cannot_say_is_reported(tmp_path: Path) -> None:
    runtime()
    with pytest.raises(SmaltiError, match=r"no operations for this encoder \(model\.quantizer\.name = 'lfq'\)"):
        write_onnx(tokenizer(LFQSettings()), None, None, tmp_path / "graphs", about={})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [write_programs, write_onnx])
def test_a_prior_is_no_graph(write: Any, tmp_path: Path) -> None:
    if write is write_onnx:
        runtime()
    prior = Transformer(TransformerSettings(codebook_size=4, embed_dim=16, heads=2, layers=1))
    with pytest.raises(SmaltiError, match="made of tokenizers alone"):
        write(tokenizer(), prior, None, tmp_path / "graphs", about={})
    assert not (tmp_path / "graphs").exists()


def test_without_its_packages_onnx_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(importlib.import_module("sys").modules, "onnx", None)
    with pytest.raises(SmaltiError, match=r"pip install 'smalti\[onnx\]'"):
        write_onnx(tokenizer(), None, None, tmp_path / "graphs", about={})
