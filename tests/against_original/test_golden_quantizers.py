"""The original's quantizers against ours: values, codes and gradients of its golden numbers, without encoder and
decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from smalti.core.settings import parse
from smalti.tokenizer.quantizers import VQ, Gumbel, GumbelSettings, Quantized, RemapSettings, VQSettings
from smalti.tokenizer.quantizers.gumbel import warmup_cosine
from tests.golden import Golden, fixtures

pytestmark = pytest.mark.golden

ORIGINAL = {"l2_normalize": False, "kmeans_iterations": 0, "dead_code_threshold": 0.0}
"""What the original's nearest-code quantizer does without."""


def vq(weight: Tensor, *, used: Tensor | None = None, **changes: Any) -> VQ:
    """A quantizer with this codebook (K, D), and this table of codes where one is given."""
    plain = {"codebook_size": weight.shape[0], "codebook_dim": weight.shape[1], **ORIGINAL, **changes}
    made = VQ(parse(VQSettings, plain, where="golden"))
    state = {**made.state_dict(), "codebook": weight}
    made.load_state_dict(state if used is None else {**state, "table.used": used})
    return made


# --- nearest codes alone --------------------------------------------------------------------------------------------

BETA_ON = {"v1": "codebook", "v2_legacy": "codebook", "v2_fixed": "commitment", "v2_sane": "commitment"}
"""Where each variant's beta stands."""


@pytest.mark.parametrize("variant", BETA_ON)
@pytest.mark.parametrize("folder", fixtures("01c_"))
def test_nearest_codes(folder: Path, variant: str) -> None:
    golden = Golden.read(folder)
    numbers = golden.facts["params"]
    made = vq(golden.weights("embedding.")["weight"], commitment=numbers["beta"], beta_on=BETA_ON[variant])
    assert tuple(made.codebook.shape) == (numbers["n_e"], numbers["e_dim"])
    features = golden["in.z"].float().requires_grad_()
    quantized = made(features)
    (quantized.loss + (quantized.latents * golden["in.wq"].float()).sum()).backward()
    assert features.grad is not None
    assert made.codebook.grad is not None
    codes = quantized.codes
    found = {
        "quant": quantized.latents,
        "loss": quantized.loss,
        "indices": codes.view(golden[f"out.{variant}.indices"].shape),
        "grad_z": features.grad,
        "grad_embedding": made.codebook.grad,
    }
    if variant == "v1":
        one_hot = F.one_hot(codes.flatten(), made.size).float()
        share = one_hot.mean(0)
        found |= {"onehot": one_hot, "perplexity": torch.exp(-(share * torch.log(share + 1e-10)).sum())}
    outputs = {key.removeprefix(f"out.{variant}.") for key in golden.tensors if key.startswith(f"out.{variant}.")}
    assert set(found) == outputs
    for name, value in found.items():
        golden.check(f"out.{variant}.{name}", value)


# --- the Gumbel-softmax ---------------------------------------------------------------------------------------------


def gumbel(golden: Golden, **changes: Any) -> Gumbel:
    numbers, weights = golden.facts["params"], golden.weights("quantize.")
    plain = {
        "codebook_size": numbers["n_embed"],
        "codebook_dim": numbers["embed_dim"],
        "kl_weight": numbers.get("kl_weight", 1e-8),
    }
    made = Gumbel(parse(GumbelSettings, {**plain, **changes}, where="golden"))
    names = {"projection.weight": "proj.weight", "projection.bias": "proj.bias", "codebook": "embed.weight"}
    made.load_state_dict({ours: weights[theirs] for ours, theirs in names.items()})
    return made


def gumbel_variants(golden: Golden) -> dict[str, tuple[float, bool]]:
    """Variant -> (temperature, hard), from names such as `train_soft_T09`: only training without straight-through is
    soft."""
    names = {key.split(".")[1] for key in golden.tensors if key.startswith("out.") and key.endswith(".quant")}
    digits = {name: name.rpartition("_T")[2] for name in names}
    return {name: (float(f"{d[0]}.{d[1:]}0"), not name.startswith("train_soft")) for name, d in digits.items()}


@pytest.mark.parametrize("folder", fixtures("02_"))
def test_gumbel_codes_with_given_noise(folder: Path) -> None:
    golden = Golden.read(folder)
    made, features, noise = gumbel(golden), golden["out.z"].float(), -golden["in.exponential"].float().log()
    golden.check("out.logits", made.logits(features))
    variants = gumbel_variants(golden)
    assert {hard for _, hard in variants.values()} == {True, False}
    for variant, (temperature, hard) in variants.items():
        quantized = made.sample(features, noise, temperature=temperature, hard=hard)
        golden.check(f"out.{variant}.quant", quantized.latents)
        golden.check(f"out.{variant}.indices", quantized.codes)
        golden.check(f"out.{variant}.kl" if f"out.{variant}.kl" in golden else "out.kl", quantized.loss)


@pytest.mark.parametrize("folder", fixtures("02_"))
def test_gumbel_evaluation(folder: Path) -> None:
    golden = Golden.read(folder)
    features = golden["out.z"].float()
    for noisy in (False, True):
        made = gumbel(golden, noisy=noisy)
        quantized = made(features)
        golden.check("out.kl", quantized.loss)
        assert torch.equal(quantized.codes, golden["out.logits"].argmax(1)) != noisy
        golden.check("out.entry", made.lookup(golden["in.codes"]))


@pytest.mark.parametrize("folder", fixtures("02_"))
def test_temperatures(folder: Path) -> None:
    facts = Golden.read(folder).facts
    original = facts["params"]["temperature_scheduler_config"]["params"]
    for numbers, values in (
        (original, facts["temperature_schedule"]),
        (facts["warmup_cosine"]["params"], facts["warmup_cosine"]["values"]),
    ):
        plan = {"start": numbers["lr_start"], "peak": numbers["lr_max"], "end": numbers["lr_min"]}
        plan |= {"warmup": numbers["warm_up_steps"], "decay": numbers["max_decay_steps"]}
        for step, value in values:
            assert warmup_cosine(step, **plan) == pytest.approx(value, rel=1e-12)


# --- code tables ----------------------------------------------------------------------------------------------------


def flat(codes: Tensor) -> Tensor:
    return codes.flatten()


@pytest.mark.parametrize("folder", fixtures("03_"))
def test_a_table_of_all_codes_in_use(folder: Path) -> None:
    golden = Golden.read(folder)
    weights = golden.weights("quantize.")
    used = weights["used"]
    made = vq(weights["embedding.weight"], used=used, beta_on="codebook", remap={"used": len(used)})
    assert made.size == len(used)
    quantized: Quantized = made(golden["in.z"].float())
    assert torch.equal(flat(quantized.codes), flat(golden["out.full.indices"]))
    golden.check("out.full.quant", quantized.latents)
    golden.check("out.full.loss", quantized.loss)
    small = golden["in.codes_small"]
    assert torch.equal(flat(made.table.inside(small)), flat(golden["out.full.unmapped"]))
    golden.check("out.full.entry", made.lookup(small))


@pytest.mark.parametrize("folder", fixtures("03_"))
def test_a_table_of_some_codes(folder: Path) -> None:
    golden = Golden.read(folder)
    weight, used = golden.weights("quantize.")["embedding.weight"], golden["in.used_partial"]
    variants = golden.facts["variants"]
    assert len(variants) >= 4
    for variant, about in variants.items():
        remap = RemapSettings(used=len(used), unknown=about["unknown_index"])
        made = vq(weight, used=used, remap=remap)
        assert made.size == about["re_embed"]
        codes, expected = made(golden["in.z"].float()).codes, golden[f"out.{variant}.indices"]
        if about.get("sane_index_shape"):
            assert codes.shape == expected.shape
        assert (codes >= 0).all()
        assert (codes < made.size).all()
        known = golden[f"out.{variant}.known_mask"] if f"out.{variant}.known_mask" in golden else torch.ones(1).bool()
        assert torch.equal(torch.where(known, flat(codes), -1), torch.where(known, flat(expected), -1))
        if f"out.{variant}.unmapped" in golden:
            assert torch.equal(flat(made.table.inside(codes)), flat(golden[f"out.{variant}.unmapped"]))
        if f"out.{variant}.entry" in golden:
            golden.check(f"out.{variant}.entry", made.lookup(codes))
    assert torch.equal(flat(vq(weight)(golden["in.z"].float()).codes), flat(golden["in.raw_indices"]))
