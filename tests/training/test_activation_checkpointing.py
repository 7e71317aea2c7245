"""Parts of a batch, blocks that are computed again, blocks that are compiled: other memory and time, the same
training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from smalti.core.errors import SmaltiError
from smalti.core.settings import parse
from smalti.data.sources import open_source
from smalti.prior import (
    GPT,
    GPTSettings,
    PixelSNAIL,
    PixelSNAILSettings,
    Prior,
    Transformer,
    TransformerSettings,
    nll,
)
from smalti.tokenizer.vqgan import VQGAN, VQGANSettings
from smalti.training.activation_checkpointing import check_compiler, recompute, tokenizer_blocks, tokenizer_stages
from smalti.training.config import TokenizerTraining, resolve
from smalti.training.optimizer_step import mean_of_parts
from smalti.training.runs import train_tokenizer
from smalti.training.stage1 import TokenizerStage
from tests.small import small_prior, write_images, write_recipe

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("blockwise")
    write_images(path / "images")
    write_recipe(path / "small.yaml")
    return path


def settings_of(folder: Path, *overrides: str) -> TokenizerTraining:
    return resolve(TokenizerTraining, stage="tokenizer", recipe=str(folder / "small.yaml"), overrides=overrides)


# --- parts of a batch -------------------------------------------------------------------------------------------------


def steps(folder: Path, *overrides: str) -> tuple[TokenizerStage, list[dict[str, Any]]]:
    """Four steps of a stage -> it, and what they gave."""
    settings = settings_of(folder, "quantize_from=0", "optimizer.warmup=0", *overrides)
    stage = TokenizerStage(settings, open_source(folder / "images"), fabric=Fabric(accelerator="cpu"), about={})
    batches = stage.batches(0)
    values: list[dict[str, Any]] = []
    for seen in range(0, 16, 4):
        generator = torch.Generator().manual_seed(seen)
        values.append(stage.step(next(batches), seen=seen, count=4, generator=generator))
    return stage, values


@pytest.mark.parametrize("start", ["objective.adversarial.start=0", "objective.adversarial.weight=0"])
def test_two_parts_of_two_are_a_batch_of_four(start: str, folder: Path) -> None:
    """Losses, norms, codes and anchors. Not the adaptive weight, of which each part has its own, nor LeCam's loss,
    which each part takes with anchors that it has moved by itself."""
    given = (start, "objective.adversarial.weighting=fixed", "objective.adversarial.lecam=0")
    (whole, expected), (parts, found) = steps(folder, *given), steps(folder, *given, "run.accumulate=2")
    for a, b in zip(expected, found, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {
            "lecam"
        }:  # Adam turns the rounding of a gradient near 0 into a step, which norms show first
            relative = 1e-3 if "norm" in name else 1e-4
            assert float(b[name]) == pytest.approx(float(a[name]), rel=relative, abs=2e-5), name
    assert {name: float(found[0][name]) for name in found[0].keys() - {"lecam"}} == pytest.approx(
        {name: float(expected[0][name]) for name in expected[0].keys() - {"lecam"}}, rel=1e-5, abs=1e-6
    )
    for name, value in whole.lecam_ema._asdict().items():
        torch.testing.assert_close(parts.lecam_ema._asdict()[name], value, rtol=1e-4, atol=1e-5)
    ours, theirs = parts.tokenizer.quantizer.state_dict(), whole.tokenizer.quantizer.state_dict()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_numbers_of_parts_become_those_of_the_whole() -> None:
    parts = [
        {"pixel": torch.tensor(1.0)},
        {"pixel": torch.tensor(2.0), "r1": torch.tensor(3.0)},
    ]
    assert mean_of_parts(parts) == {"pixel": 1.5, "r1": 3.0}
    assert mean_of_parts(parts[:1]) is parts[0]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["run.accumulate=3"], r"run: batch = 4 cannot be cut into accumulate = 3 equal parts"),
        (
            ["run.accumulate=2", "objective.adversarial.updates=alternating"],
            r"run.accumulate = 2 and objective.adversarial.updates = alternating.*set updates to simultaneous",
        ),
    ],
)
def test_parts_that_cannot_be(overrides: list[str], sentence: str, folder: Path) -> None:
    with pytest.raises(SmaltiError, match=sentence):
        settings_of(folder, *overrides)


def prior_run(folder: Path, out: str, *overrides: str) -> dict[str, Tensor]:
    if not (folder / "tokenizer").is_dir():
        train_tokenizer(
            folder / "images", folder / "tokenizer", settings=settings_of(folder, "run.images=16"), console=QUIET
        )
    small_prior(folder, out, *overrides)
    return load_file(folder / out / "model" / "model.safetensors")


@pytest.mark.parametrize("order", ["raster", "any"])
def test_a_prior_in_parts_and_computed_again(folder: Path, order: str) -> None:
    """Without dropout, which would draw other numbers for parts."""
    given = ("network.dropout=0", "condition_dropout=0", f"network.order={order}")
    whole = prior_run(folder, f"whole-{order}", *given)
    parts = prior_run(folder, f"parts-{order}", *given, "run.accumulate=2")
    again = prior_run(folder, f"again-{order}", *given, "run.recompute=true")
    assert whole.keys() == parts.keys() == again.keys()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=1e-4, msg=name)
        torch.testing.assert_close(again[name], value, rtol=0, atol=0, msg=name)


# --- computed again ---------------------------------------------------------------------------------------------------


def tokenizer(**autoencoder: Any) -> VQGAN:
    torch.manual_seed(0)
    small = {
        "base_channels": 8,
        "channel_multipliers": [1, 2],
        "res_blocks": 1,
        "latent_channels": 8,
        "attention_levels": [1],
        **autoencoder,
    }
    values = {"autoencoder": {"zero_residuals": False, **small}, "quantizer": {"codebook_size": 16, "codebook_dim": 4}}
    return VQGAN(parse(VQGANSettings, values, where="test"))


def gradients(model: VQGAN) -> dict[str, Tensor]:
    torch.manual_seed(1)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    reconstructions, quantized = model(images)
    torch.autograd.backward(reconstructions.square().mean() + quantized.loss)
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_what_is_computed_again_has_the_same_gradients(dropout: float) -> None:
    """With dropout too: it draws the same numbers again."""
    plain, again = tokenizer(dropout=dropout), tokenizer(dropout=dropout)
    recompute(tokenizer_blocks(again))
    expected, found = gradients(plain), gradients(again)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_what_is_computed_again_is_not_kept() -> None:
    """Fewer numbers are saved for the backward pass."""

    def kept(model: VQGAN) -> int:
        sizes = []

        def note(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model(torch.zeros(2, 3, 32, 32))
        return sum(sizes)

    plain, again = tokenizer(), tokenizer()
    recompute(tokenizer_blocks(again))
    assert kept(again) < kept(plain) / 2


def test_names_copies_and_fingerprints_stay() -> None:
    plain, again = tokenizer(), tokenizer()
    recompute(tokenizer_blocks(again))
    assert again.state_dict().keys() == plain.state_dict().keys()
    assert again.fingerprint() == plain.fingerprint()
    copied = copy.deepcopy(again)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    assert copied.fingerprint() == plain.fingerprint()  # the copy computes with its own weights
    assert torch.equal(copied(torch.zeros(1, 3, 16, 16))[0], plain(torch.zeros(1, 3, 16, 16))[0])


PRIORS: dict[str, Prior] = {
    "transformer": Transformer(
        TransformerSettings(codebook_size=16, prefix_length=1, grid=(4, 4), layers=2, embed_dim=16, heads=2)
    ),
    "gpt": GPT(
        GPTSettings(codebook_size=16, vocab_size=20, prefix_length=1, grid=(4, 4), layers=2, embed_dim=16, heads=2)
    ),
    "pixelsnail": PixelSNAIL(
        PixelSNAILSettings(codebook_size=16, prefix_length=1, grid=(4, 4), layers=2, embed_dim=16, heads=2)
    ),
}


@pytest.mark.parametrize("name", sorted(PRIORS))
def test_blocks_of_a_prior_are_computed_again(name: str) -> None:
    plain, again = copy.deepcopy(PRIORS[name]), copy.deepcopy(PRIORS[name])
    blocks = again.blocks
    assert isinstance(blocks, nn.ModuleList)
    recompute(blocks)
    codes, prefix = torch.arange(16).view(1, 4, 4), torch.zeros(1, 1, dtype=torch.int64)
    for prior in (plain, again):
        torch.manual_seed(0)
        torch.autograd.backward(nll(prior, prefix, codes).mean())
    for a, b in zip(plain.parameters(), again.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or (b.grad is not None and torch.equal(a.grad, b.grad))


def test_a_run_that_computes_again_is_the_same_run(folder: Path) -> None:
    outs = [("plain", "run.recompute=false"), ("again", "run.recompute=true")]
    for out, given in outs:
        settings = settings_of(folder, "run.images=32", given)
        train_tokenizer(folder / "images", folder / f"run-{out}", settings=settings, console=QUIET)
    one, other = (load_file(folder / f"run-{out}" / "model" / "model.safetensors") for out, _ in outs)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


# --- compiled ---------------------------------------------------------------------------------------------------------


def test_no_compiler_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(function: Any) -> Any:
        raise RuntimeError("\nNo working C++ compiler found in ['g++']\nmore")

    monkeypatch.setattr("torch.compile", missing)
    with pytest.raises(
        SmaltiError, match=r"nothing can be compiled for cpu here \(No working C\+\+ compiler found in \["
    ):
        check_compiler(torch.device("cpu"))


def test_the_last_layer_and_the_codebook_are_not_compiled() -> None:
    model = tokenizer()
    inside = {id(module) for stage in tokenizer_stages(model) for module in stage.modules()}
    assert id(model.decoder.conv_out) not in inside
    assert id(model.quantizer) not in inside
    assert {id(block) for block in tokenizer_blocks(model)} <= inside


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns of parts of PyTorch
@pytest.mark.parametrize("recomputed", ["false", "true"])
def test_a_compiled_run_is_the_same_run(recomputed: str, folder: Path) -> None:
    for out in ("false", "true"):
        given = (f"run.compile={out}", f"run.recompute={recomputed}", "run.images=16", "objective.adversarial.start=0")
        train_tokenizer(
            folder / "images", folder / f"{recomputed}-{out}", settings=settings_of(folder, *given), console=QUIET
        )
    one, other = (
        load_file(folder / f"{recomputed}-{out}" / "model" / "model.safetensors") for out in ("false", "true")
    )
    assert one.keys() == other.keys()
    close = [torch.allclose(one[name], other[name], rtol=1e-3, atol=2e-3) for name in one]
    assert all(close), [name for name, is_close in zip(one, close, strict=True) if not is_close]
    VQGAN.from_pretrained(folder / f"{recomputed}-true")
