"""The original's run folders, read as a user would: folder in, codes, images and samples out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from smalti.checkpoints.formats import FORMATS, read_foreign
from smalti.checkpoints.pickles import read_tensors
from smalti.checkpoints.taming import find
from smalti.conditions.base import constant_prefix
from smalti.generation.code_sampler import Sampler
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import GenerationRequest, unknown_codes
from smalti.losses.patch_discriminator import PatchDiscriminator, PatchSettings
from smalti.pipeline import Pipeline
from smalti.prior import nll
from smalti.tokenizer.quantizers import Gumbel
from tests.golden import FOLDER, Golden, prefix_of

pytestmark = pytest.mark.golden

RUNS = FOLDER / "09_runs"
EXPECTED = sorted(path.stem.removeprefix("expected_") for path in RUNS.glob("expected_*.json"))
MISSING = [pytest.param("", marks=pytest.mark.skip("no golden numbers 09_runs on this machine"))]


def stages(*, prior: bool) -> list[Any]:
    """The runs with a transformer, or those without."""
    with_prior = [
        name
        for name in EXPECTED
        if "out.logits" in (golden := Golden.read(RUNS, name=f"expected_{name}")) and "out.target" in golden
    ]
    return [name for name in EXPECTED if (name in with_prior) == prior] or MISSING


def of(name: str) -> tuple[Golden, Path]:
    golden = Golden.read(RUNS, name=f"expected_{name}")
    return golden, RUNS / golden.facts["run"]


@pytest.mark.parametrize("name", stages(prior=False))
def test_tokenizer_runs(name: str) -> None:
    golden, run = of(name)
    tokenizer = read_foreign(run).tokenizer
    assert tokenizer is not None
    features = tokenizer.features(golden["in.x"].float())
    if isinstance(tokenizer.quantizer, Gumbel):
        golden.check("out.prequant", features)
        golden.check("out.logits", tokenizer.quantizer.logits(features))
        noise = -golden["in.exponential"].float().log()
        quantized = tokenizer.quantizer.sample(features, noise, temperature=1.0, hard=True)
        golden.check("out.kl", quantized.loss)
        golden.check("out.indices", quantized.codes)
    else:
        quantized = tokenizer.quantizer(features)
        golden.check("out.codebook_loss", quantized.loss)
        golden.check("out.indices", quantized.codes.flatten())
    golden.check("out.quant", quantized.latents)
    golden.check("out.dec", tokenizer.decode(quantized.latents))


@pytest.mark.parametrize("name", stages(prior=False))
def test_their_discriminators_have_our_names(name: str) -> None:
    golden, run = of(name)
    if "out.disc_logits" not in golden:
        pytest.skip("this run has no expected logits")
    found = find(run)
    assert found is not None
    loss = found.model.params["lossconfig"]["params"]
    settings = PatchSettings(base_channels=loss["disc_ndf"], layers=loss["disc_num_layers"], norm="batch")
    critic = PatchDiscriminator(settings).eval()
    prefix = "loss.discriminator."
    weights = read_tensors(found.weights)
    critic.load_state_dict(
        {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    )
    golden.check("out.disc_logits", critic(golden["in.x"].float()))


@pytest.mark.parametrize("name", stages(prior=True))
def test_pipelines_on_run_folders(name: str) -> None:
    golden, run = of(name)
    pipeline = Pipeline.from_pretrained(run)
    assert list(pipeline.prior.grid) == golden.facts["latent_grid"]
    images = golden["in.x"].float()
    codes = pipeline.encode(images)
    golden.check("out.z_indices", codes.flatten(1))
    golden.check("out.quant_z", pipeline.tokenizer.encode(images).latents)
    golden.check("out.decoded", pipeline.tokenizer.decode_codes(codes))
    prefix = prefix_of(pipeline, golden.tensors.get("in.c", images), len(images))
    golden.check("out.c_indices", prefix)
    prior = pipeline.prior.requires_grad_(True)
    logits = prior(prior.join(prefix, codes.flatten(1)[:, :-1]))[:, prefix.shape[1] - 1 :]
    golden.check("out.logits", logits)
    loss = nll(prior, prefix, codes).mean()
    golden.check("out.loss", loss)
    loss.backward()  # type: ignore[no-untyped-call]
    for key, place in (("head.weight", "head.weight"), ("tok_emb.weight", "embedding.weight")):
        gradient = prior.get_parameter(place).grad
        assert gradient is not None
        golden.check(f"out.grad.transformer.{key}", gradient)
    known, seeds = unknown_codes(len(images), prior.grid), torch.arange(len(images))
    generated = final_codes(
        generate(
            prior,
            GenerationRequest(constant_prefix(prefix), sampler=Sampler(temperature=0.0), seeds=seeds, known=known),
        )
    )
    golden.check("out.sample_full_greedy", generated.flatten(1))


@pytest.mark.parametrize("name", EXPECTED or MISSING)
def test_runs_go_round(name: str, tmp_path: Path) -> None:
    """Read, written in the original's layout, and read again: the same weights, and the same names in the file."""
    _, run = of(name)
    first = read_foreign(run)
    FORMATS["taming"].write(first.tokenizer, first.prior, first.condition, tmp_path / "run", about=first.about)
    again = read_foreign(tmp_path / "run")
    for before, after in ((first.tokenizer, again.tokenizer), (first.prior, again.prior)):
        assert (before is None) == (after is None)
        if before is not None and after is not None:
            assert before.settings == after.settings
            for key, tensor in before.state_dict().items():
                assert torch.equal(tensor, after.state_dict()[key]), key
    found = find(run)
    assert found is not None
    theirs = {key for key in read_tensors(found.weights) if not key.startswith("loss.")}
    assert read_tensors(tmp_path / "run" / "checkpoints" / "last.ckpt").keys() == theirs


@pytest.mark.parametrize("name", EXPECTED or MISSING)
def test_a_single_checkpoint_needs_its_settings_nearby_it(name: str, tmp_path: Path) -> None:
    _, run = of(name)
    shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "model.ckpt")
    (config,) = run.glob("configs/*project.yaml")
    shutil.copy(config, tmp_path / "model.yaml")
    alone, folder = read_foreign(tmp_path / "model.ckpt"), read_foreign(run)
    assert alone.tokenizer is not None
    assert folder.tokenizer is not None
    assert alone.tokenizer.fingerprint() == folder.tokenizer.fingerprint()
