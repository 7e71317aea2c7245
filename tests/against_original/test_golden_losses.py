"""The losses against the original's numbers: discriminators, LPIPS, every logged term of both losses, label maps.

Each needs no tokenizer: reconstructions are taken from the golden numbers. The adaptive weight of a whole decoder, and
what training makes of all of it, is compared with the tokenizer's tests.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.core.settings import parse
from smalti.losses import objective
from smalti.losses.adversarial import ADVERSARIAL, adaptive_weight, ramp
from smalti.losses.objective import ObjectiveSettings, ReconstructionLoss, balanced_gradient
from smalti.losses.patch_discriminator import PatchDiscriminator, PatchSettings
from tests.golden import Golden, fixtures, number_of, random_lpips, random_vgg

pytestmark = pytest.mark.golden

DTYPES = [torch.float32, torch.float64]


class Checks:
    """Compares with one folder's numbers, and knows which of them were never compared."""

    def __init__(self, path: Path) -> None:
        self.golden = Golden.read(path)
        self.done: set[str] = set()

    def __call__(self, key: str, actual: Tensor) -> None:
        self.golden.check(key, actual)
        self.done.add(key)
        expected = self.golden[key]
        if expected.is_floating_point() and expected.numel() > 1:  # gradients are small: by their own measure too
            error = (actual.detach().double() - expected.double()).abs().max().item()
            noise = self.golden.facts.get("noise_fp32_vs_fp64", {}).get(key, 0.0)
            assert error <= 1e-4 * expected.abs().max().item() + 20 * noise, f"{key}: off by {error}"

    def left(self, pattern: str = "") -> set[str]:
        """The outputs not compared so far whose names match."""
        return {key for key in self.golden.tensors if key.startswith("out.") and re.search(pattern, key)} - self.done


def discriminator(
    params: Mapping[str, Any], weights: Mapping[str, Tensor], *, dtype: torch.dtype
) -> PatchDiscriminator:
    """The original's arguments, without the prefix of the loss, and its weights -> ours in training mode."""
    settings = PatchSettings(
        channels=params.get("in_channels", 3),
        base_channels=params.get("ndf", 64),
        layers=params.get("num_layers", 3),
        norm="act" if params.get("use_actnorm") else "batch",
    )
    made = PatchDiscriminator(settings)
    made.load_state_dict(weights)
    return made.to(dtype).train()


def of_loss(params: Mapping[str, Any]) -> dict[str, Any]:
    """The discriminator's arguments among those of the original's loss."""
    return {key.removeprefix("disc_"): value for key, value in params.items()}


def settings_of(params: Mapping[str, Any]) -> ObjectiveSettings:
    """The arguments of the original's loss -> ours."""
    values = {
        "perceptual": "vgg16",
        "perceptual_weight": params.get("perceptual_weight", 1.0),
        "codebook_weight": params.get("codebook_weight", 1.0),
        "adversarial": {"weight": params.get("disc_weight", 1.0), "loss": params.get("disc_loss", "hinge")},
    }
    return parse(ObjectiveSettings, values, where="the golden numbers")


def factor(params: Mapping[str, Any], step: int) -> float:
    """The original's `disc_factor` at a step."""
    return float(params.get("disc_factor", 1.0) * ramp(step, start=params["disc_start"], length=0))


# --- 05: the discriminators ----------------------------------------------------------------------------------------


def check_states(check: Checks, states: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Running statistics and ActNorm's scales after each training pass.

    Some golden numbers were copied after the later pass: the count of batches that lies beside BatchNorm's statistics
    tells.
    """
    for key in check.left(r"^out\.state_after_"):
        after, name = key.removeprefix("out.state_after_").split(".", 1)
        count = f"{name.rpartition('.')[0]}.num_batches_tracked"
        if f"out.state_after_{after}.{count}" in check.golden:
            seen = check.golden[f"out.state_after_{after}.{count}"]
            (after,) = (each for each, state in states.items() if state[count].equal(seen))
        check(key, states[after][name])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", fixtures("05_"))
def test_discriminators(path: Path, dtype: torch.dtype) -> None:
    """Evaluation, training, training, evaluation: ActNorm sets its scales in the second, BatchNorm moves in both."""
    check = Checks(path)
    params = check.golden.facts["params"]
    params = {**params, "in_channels": params["input_nc"], "num_layers": params["n_layers"]}
    ours = discriminator(params, check.golden.weights(), dtype=dtype)
    x, x2 = check.golden["in.x"].to(dtype).requires_grad_(), check.golden["in.x2"].to(dtype)

    check("out.eval", ours.eval()(x))
    logits = ours.train()(x)
    check("out.train", logits)
    logits.square().mean().backward()
    assert x.grad is not None
    check("out.train.grad_x", x.grad)
    for key, parameter in ours.named_parameters():
        assert parameter.grad is not None
        check(f"out.train.grad.{key}", parameter.grad)
    states = {"train": {key: value.clone() for key, value in ours.state_dict().items()}}
    check("out.train2", ours(x2))
    states["train2"] = ours.state_dict()
    check_states(check, states)
    check("out.eval_after", ours.eval()(x))
    assert not check.left()
    assert logits.dtype == x.grad.dtype == dtype


# --- 06: LPIPS -----------------------------------------------------------------------------------------------------


def test_the_random_trunk_is_the_one_meant() -> None:
    rule = json.loads((number_of("06_") / "vgg_rule.json").read_text("utf-8"))
    tensors = random_vgg(rule["seed"])
    hashes = {
        f"features.{layer['features_index']}.{kind}": layer[f"{kind}_sha256"]
        for layer in rule["layers"]
        for kind in ("weight", "bias")
    }
    assert {key: hashlib.sha256(tensors[key].numpy().tobytes()).hexdigest() for key in tensors} == hashes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", fixtures("06_"))
def test_lpips(path: Path, dtype: torch.dtype) -> None:
    check = Checks(path)
    distance = random_lpips(check.golden, "", dtype=dtype)
    pairs = {match[1] for key in check.golden.tensors if (match := re.match(r"in\.x_(\w+)$", key))}
    assert pairs
    for pair in sorted(pairs):
        x, y = (check.golden[f"in.{side}_{pair}"].to(dtype) for side in "xy")
        y.requires_grad_()
        value = distance(x, y)
        check(f"out.{pair}.lpips", value.view(-1, 1, 1, 1))
        check(f"out.{pair}.grad_y", torch.autograd.grad(value.sum(), y)[0])
        for k, (a, b) in enumerate(zip(distance.target(x), distance.features(y), strict=True)):
            layer = ((a - b).square() * distance.linear[k]).sum(1, keepdim=True).mean((2, 3), keepdim=True)
            check(f"out.{pair}.layer{k}", layer)
        for k, activations in enumerate(distance.backbone((x - distance.shift) / distance.scale)):
            if f"out.{pair}.feat{k}_mean_per_channel" in check.golden:
                check(f"out.{pair}.feat{k}_mean_per_channel", activations.mean((0, 2, 3)))
    assert not check.left()


# --- 07a: both losses of the whole objective, from the reconstructions on ---------------------------------------------


class Case:
    """One variant of the full loss on the golden images and their reconstructions."""

    def __init__(self, check: Checks, variant: str, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
        facts = check.golden.facts
        self.params = {**facts["params"]["lossconfig"]["params"], **facts["variants"].get(variant, {})}
        self.settings = settings_of(self.params)
        self.weights = check.golden.weights("loss.discriminator.")
        self.images, self.reconstructions = (check.golden[key].to(dtype) for key in ("in.x", "out.xrec"))
        network = random_lpips(check.golden, "loss.perceptual_loss.", dtype=dtype)
        monkeypatch.setitem(objective.PERCEPTUAL, "vgg16", lambda dropout: network)
        with torch.no_grad():
            self.found = ReconstructionLoss(self.settings)(self.images, self.reconstructions)
        self.game = ADVERSARIAL[self.settings.adversarial.loss]
        self.dtype = dtype

    def network_(self) -> PatchDiscriminator:
        """A discriminator with the stored weights: every case of the golden numbers starts from them."""
        return discriminator(of_loss(self.params), self.weights, dtype=self.dtype)


def check_generator(check: Checks, case: Case, *, name: str, log: str, network_: PatchDiscriminator) -> None:
    """The autoencoder's loss and its logged terms; the adaptive weight and the codebook's loss are taken as logged."""
    found = case.found
    generator = case.game.generator(network_(case.reconstructions))
    check(f"{log}.nll_loss", found.total)
    check(f"{log}.rec_loss", found.total)
    check(f"{log}.p_loss", found.perceptual.view(check.golden[f"{log}.p_loss"].shape))
    check(f"{log}.g_loss", generator)
    strength, weight, codebook = (
        check.golden[f"{log}.{term}"].to(case.dtype) for term in ("disc_factor", "d_weight", "quant_loss")
    )
    total = found.total + weight * strength * generator + case.settings.codebook_weight * codebook
    check(f"{log}.total_loss", total)
    check(f"{name}.loss", total)
    check_state(check, name, network_)


def check_discriminator(
    check: Checks, case: Case, *, name: str, log: str, strength: float, network_: PatchDiscriminator
) -> None:
    """The discriminator's loss, its logged terms and gradients: real images first, then reconstructions,
    each by itself."""
    real, fake = network_(case.images), network_(case.reconstructions)
    loss = strength * case.game.discriminator(real, fake)
    check(f"{log}.disc_loss", loss)
    check(f"{name}.loss", loss)
    check(f"{log}.logits_real", real.mean())
    check(f"{log}.logits_fake", fake.mean())
    prefix = f"{name}.grad.loss.discriminator."
    named = dict(network_.named_parameters())
    for key in check.left(rf"^{re.escape(prefix)}"):
        (gradient,) = torch.autograd.grad(loss, named[key.removeprefix(prefix)], retain_graph=True)
        check(key, gradient)
    check_state(check, name, network_)


def check_state(check: Checks, name: str, network_: PatchDiscriminator) -> None:
    """What a case's forward passes have made of the discriminator's running statistics."""
    prefix = f"{name}.state_after.loss.discriminator."
    state = network_.state_dict()
    for key in check.left(rf"^{re.escape(prefix)}"):
        check(key, state[key.removeprefix(prefix)])


def steps_of(check: Checks, variant: str) -> list[int]:
    """The global steps at which a variant was evaluated."""
    pattern = rf"out\.{re.escape(variant)}\.step(\d+)\."
    return sorted({int(match[1]) for key in check.golden.tensors if (match := re.match(pattern, key))})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", fixtures("07a_"))
def test_every_term_of_both_losses(path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    check = Checks(path)
    variants = check.golden.facts["variants"]
    for variant in variants:
        case = Case(check, variant, monkeypatch, dtype)
        for step in steps_of(check, variant):
            name, strength = f"out.{variant}.step{step}", factor(case.params, step)
            autoencoder, critic = f"{name}.opt0", f"{name}.opt1"
            check(f"{autoencoder}.log.train.disc_factor", torch.tensor(strength))
            check_generator(check, case, name=autoencoder, log=f"{autoencoder}.log.train", network_=case.network_())
            check_discriminator(
                check, case, name=critic, log=f"{critic}.log.train", strength=strength, network_=case.network_()
            )
    assert any(steps_of(check, variant) for variant in variants)
    # What is left hangs on the tokenizer: its gradients, its codebook loss, and the adaptive weight at its last layer.
    of_tokenizer = r"^out\.xrec$|^out\.validation\.|\.opt0\.grad\.|\.quant_loss$|\.d_weight$"
    assert not {key for key in check.left() if not re.search(of_tokenizer, key)}


@pytest.mark.parametrize("path", fixtures("07a_"))
def test_the_losses_of_validation(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = Checks(path)
    case = Case(check, "validation", monkeypatch, torch.float32)
    network_ = case.network_().eval()
    name = "out.validation"
    with torch.no_grad():
        check_generator(check, case, name=f"{name}.opt0", log=f"{name}.opt0.log.val", network_=network_)
        strength = check.golden[f"{name}.opt0.log.val.disc_factor"].item()
        check_discriminator(
            check, case, name=f"{name}.opt1", log=f"{name}.opt1.log.val", strength=strength, network_=network_
        )
    assert check.golden[f"{name}.opt0.log.val.d_weight"].item() == 0.0  # no gradient is asked for in validation
    assert {key.rsplit(".", 1)[-1] for key in check.left(r"^out\.validation\.")} == {
        "quant_loss",
        "d_weight",
        "disc_factor",
    }


@pytest.mark.parametrize("path", fixtures("07a_"))
def test_the_adaptive_weight_is_the_ratio_of_the_golden_gradients(path: Path) -> None:
    """While the discriminator is off, the last layer's gradient is that of the nll; what comes with it is its own,
    weighted."""
    check = Checks(path)
    params = check.golden.facts["params"]["lossconfig"]["params"]
    compared = 0
    for variant, changes in check.golden.facts["variants"].items():
        strengths = {step: factor({**params, **changes}, step) for step in steps_of(check, variant)}
        off = [step for step, strength in strengths.items() if strength == 0]
        for step in (step for step, strength in strengths.items() if strength > 0 and off):
            last = "opt0.grad.decoder.conv_out.weight"
            reconstruction_gradient = check.golden[f"out.{variant}.step{off[0]}.{last}"].double()
            both = check.golden[f"out.{variant}.step{step}.{last}"].double()
            logged = check.golden[f"out.{variant}.step{step}.opt0.log.train.d_weight"].double()
            adversarial_gradient = (both - reconstruction_gradient) / (logged * strengths[step])
            weight = adaptive_weight(reconstruction_gradient, adversarial_gradient) * {**params, **changes}.get(
                "disc_weight", 1.0
            )
            torch.testing.assert_close(weight, logged, rtol=1e-3, atol=0.0)
            compared += 1
    assert compared


@pytest.mark.parametrize("path", fixtures("07a_"))
def test_dropout_has_the_statistics_of_the_original(path: Path) -> None:
    """30 draws of the original against 100 of ours; with whole channels struck out the deviation would be many times
    it."""
    check = Checks(path)
    note = check.golden.facts["dropout_note"]
    distance = random_lpips(check.golden, "loss.perceptual_loss.", dtype=torch.float32, dropout=0.5)
    target = distance.target(check.golden["in.x"])
    with torch.no_grad():
        features = distance.features(check.golden["out.xrec"])
        torch.manual_seed(0)
        draws = torch.stack([distance.train().distance(target, features).mean() for _ in range(100)])
    assert abs(draws.mean().item() - note["mean"]) < 5 * note["std"] / 30**0.5
    assert 0.6 < draws.std().item() / note["std"] < 1.6


# --- 07c: a conditional discriminator with ActNorm -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", fixtures("07c_"))
def test_a_conditional_loss(path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of both losses, since the decoder is one convolution here; the codebook's loss is a vector."""
    check = Checks(path)
    params = check.golden.facts["params"]
    settings, strength = settings_of(params), factor(params, params["disc_start"])
    network = random_lpips(check.golden, "perceptual_loss.", dtype=dtype)
    monkeypatch.setitem(objective.PERCEPTUAL, "vgg16", lambda dropout: network)
    score = ReconstructionLoss(settings)
    network_ = discriminator(of_loss(params), check.golden.weights("discriminator."), dtype=dtype)
    game = ADVERSARIAL[settings.adversarial.loss]
    images, features, last, condition, codebook = (
        check.golden[f"in.{name}"].to(dtype) for name in ("x", "feat", "last", "cond", "codebook_loss")
    )
    reconstructions = F.conv2d(features, last.requires_grad_(), padding=1).tanh()
    check("out.xrec", reconstructions)

    fake_images = reconstructions.detach().requires_grad_()
    found = score(images, fake_images)
    balanced = balanced_gradient(
        reconstructions,
        fake_images,
        distance=found.total,
        fake=network_(torch.cat((fake_images, condition), 1)),
        last_layer=last,
        settings=settings.adversarial,
        strength=strength,
    )
    log = "out.opt0.log.train"
    check("out.opt0.grad_last", torch.autograd.grad(reconstructions, last, balanced.gradient)[0])
    check(f"{log}.quant_loss", codebook.mean())
    check(f"{log}.nll_loss", found.total)
    check(f"{log}.rec_loss", found.total)
    check(f"{log}.p_loss", found.perceptual)
    check(f"{log}.d_weight", balanced.weight / strength)
    check(f"{log}.disc_factor", torch.tensor(strength))
    check(f"{log}.g_loss", balanced.generator)
    total = found.total + balanced.weight * balanced.generator + settings.codebook_weight * codebook.mean()
    check(f"{log}.total_loss", total)
    check("out.opt0.loss", total)

    network_ = discriminator(of_loss(params), check.golden.weights("discriminator."), dtype=dtype)  # starts anew
    real, fake = (network_(torch.cat((each, condition), 1)) for each in (images, reconstructions.detach()))
    loss = strength * game.discriminator(real, fake)
    check("out.opt1.loss", loss)
    check("out.opt1.log.train.disc_loss", loss)
    check("out.opt1.log.train.logits_real", real.mean())
    check("out.opt1.log.train.logits_fake", fake.mean())
    assert not check.left()


# --- 04: label maps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", fixtures("04_"))
def test_the_loss_of_label_maps(path: Path) -> None:
    check = Checks(path)
    values = {"pixel": "bce", "perceptual": "none", "adversarial": {"weight": 0}}
    params = check.golden.facts["params"]["lossconfig"]["params"]
    settings = parse(ObjectiveSettings, {**values, "codebook_weight": params.get("codebook_weight", 1.0)}, where="here")
    found = ReconstructionLoss(settings)(check.golden["in.segmentation"].movedim(-1, 1), check.golden["out.dec"])
    check("out.log.train.bce_loss", found.total)
    total = found.total + settings.codebook_weight * check.golden["out.log.train.quant_loss"]
    check("out.log.train.total_loss", total)
    check("out.loss", total)
