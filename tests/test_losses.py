"""The losses: hand values, the paper's parameter counts, structure with random weights, and the original's numbers."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from smalti.errors import SmaltiError
from smalti.losses.adversarial import ADVERSARIAL, PIXEL_LOSSES, LeCam, adaptive_weight, lecam, ramp
from smalti.losses.discriminator import DISCRIMINATORS, NORMS, PatchDiscriminator, PatchSettings
from smalti.losses.perceptual import BACKBONES, Perceptual, perceptual
from smalti.weights import WEIGHTS

SHARED = Path(__file__).resolve().parents[1].parent / "shared"
GOLDEN = SHARED / "golden"
NORM_NAMES: list[Literal["batch", "group"]] = ["batch", "group"]


def golden(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    folder = GOLDEN / name
    if not folder.is_dir():
        pytest.skip(f"the golden numbers {name} are not on this machine")
    return load_file(folder / "data.safetensors"), json.loads((folder / "data.json").read_text())


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Pictures of uniform noise in [-1, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# --- the discriminator ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "count", "side"), [(3, 2_765_633, 30), (2, 663_361, 62)])
def test_the_papers_discriminators_have_their_size(layers: int, count: int, side: int) -> None:
    discriminator = PatchDiscriminator(PatchSettings(layers=layers, norm="batch"))
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == count
    with torch.device("meta"):
        assert PatchDiscriminator(PatchSettings(layers=layers))(torch.empty(1, 3, 256, 256)).shape == (1, 1, side, side)


@pytest.mark.parametrize("name", DISCRIMINATORS)
@pytest.mark.parametrize("norm", NORM_NAMES)
@pytest.mark.parametrize(("channels", "layers", "stem"), [(1, 1, 1), (3, 2, 2), (4, 3, 1), (3, 1, 4)])
def test_logits_have_the_documented_grid(
    name: str, norm: Literal["batch", "group"], channels: int, layers: int, stem: int
) -> None:
    settings = PatchSettings(channels=channels, width=8, layers=layers, norm=norm, stem=stem)
    logits = DISCRIMINATORS[name](settings)(noise(2, channels, 48, 64))
    factor = stem * 2**layers
    assert logits.shape == (2, 1, 48 // factor - 2, 64 // factor - 2)
    assert logits.isfinite().all()


def test_every_norm_of_the_table_is_tested() -> None:
    assert list(NORMS) == NORM_NAMES


def test_initial_weights_are_the_originals() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(PatchSettings(norm="batch"))
    state = discriminator.state_dict()
    assert math.isclose(state["main.5.weight"].std().item(), 0.02, rel_tol=0.02)
    assert abs(state["main.5.weight"].mean().item()) < 1e-3
    assert math.isclose(state["main.9.weight"].std().item(), 0.02, rel_tol=0.2)
    assert math.isclose(state["main.9.weight"].mean().item(), 1.0, rel_tol=0.01)
    assert state["main.9.bias"].eq(0).all()


def test_with_group_norm_a_logit_depends_on_its_picture_alone() -> None:
    pictures = noise(3, 3, 32, 32)
    for norm, alone in (("group", True), ("batch", False)):
        discriminator = PatchDiscriminator(PatchSettings(width=8, layers=2, norm=norm))  # type: ignore[arg-type]
        same = torch.allclose(discriminator(pictures)[:1], discriminator(pictures[:1]), atol=1e-6)
        assert same is alone


def test_the_smallest_picture_gives_one_logit_and_a_smaller_one_a_sentence() -> None:
    discriminator = PatchDiscriminator(PatchSettings(width=8, layers=2, stem=2))
    assert discriminator.smallest == 24
    assert discriminator(noise(1, 3, 24, 24)).shape == (1, 1, 1, 1)
    with pytest.raises(SmaltiError, match=r"24x22 are too small.*2 layers and stem 2.*24 pixels"):
        discriminator(noise(1, 3, 24, 22))


def test_other_pictures_than_those_it_was_made_for_are_told() -> None:
    discriminator = PatchDiscriminator(PatchSettings(width=8, layers=2, stem=2))
    with pytest.raises(SmaltiError, match=r"3 channels, these have 4.*set its channels to 4"):
        discriminator(noise(1, 4, 32, 32))
    with pytest.raises(SmaltiError, match="stem 2 does not divide pictures of 33x32"):
        discriminator(noise(1, 3, 33, 32))


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"width": 0}, {"stem": 0}, {"channels": 0}, {"norm": "layer"}])
def test_settings_that_make_no_discriminator_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PatchSettings(**wrong)


@pytest.mark.parametrize("name", ["bn3", "bn2"])
def test_discriminator_equals_the_originals(name: str) -> None:
    data, facts = golden(f"05_disc_{name}")
    params = facts["params"]
    settings = PatchSettings(channels=params["input_nc"], width=params["ndf"], layers=params["n_layers"], norm="batch")
    discriminator = PatchDiscriminator(settings)
    discriminator.load_state_dict({key: value for key, value in data.items() if key.startswith("main.")})

    def close(value: Tensor, key: str) -> None:
        tolerance = max(20 * facts["noise_fp32_vs_fp64"][key], 2e-6)
        torch.testing.assert_close(value, data[key], rtol=1e-4, atol=tolerance)

    x = data["in.x"].requires_grad_()
    close(discriminator.eval()(x), "out.eval")
    logits = discriminator.train()(x)
    close(logits, "out.train")
    logits.square().mean().backward()
    assert x.grad is not None
    close(x.grad, "out.train.grad_x")
    for key, parameter in discriminator.named_parameters():
        assert parameter.grad is not None
        close(parameter.grad, f"out.train.grad.{key}")
    close(discriminator(data["in.x2"]), "out.train2")
    state = discriminator.state_dict()
    for key in (key for key in data if key.startswith("out.state_after_train2.")):
        close(state[key.removeprefix("out.state_after_train2.")].to(data[key].dtype), key)
    close(discriminator.eval()(x), "out.eval_after")


# --- the adversarial game ------------------------------------------------------------------------------------------

REAL, FAKE = torch.tensor([[2.0, 0.5]]), torch.tensor([[-3.0, 0.0]])


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


@pytest.mark.parametrize(
    ("name", "discriminator", "generator"),
    [
        ("hinge", 0.5 * (0.25 + 0.5), 1.5),
        ("vanilla", 0.25 * (softplus(-2) + softplus(-0.5) + softplus(-3) + softplus(0)), 1.5),
        (
            "nonsaturating",
            0.25 * (softplus(-2) + softplus(-0.5) + softplus(-3) + softplus(0)),
            0.5 * (softplus(3) + softplus(0)),
        ),
    ],
)
def test_games_have_their_hand_values(name: str, discriminator: float, generator: float) -> None:
    game = ADVERSARIAL[name]
    assert math.isclose(game.discriminator(REAL, FAKE).item(), discriminator, rel_tol=1e-6)
    assert math.isclose(game.generator(FAKE).item(), generator, rel_tol=1e-6)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_the_two_sides_of_a_game_pull_apart(name: str) -> None:
    game = ADVERSARIAL[name]
    real, fake = (torch.zeros(2, 1, 3, 3, requires_grad=True) for _ in range(2))
    up, down = torch.autograd.grad(game.discriminator(real, fake), (real, fake))
    (generator,) = torch.autograd.grad(game.generator(fake), fake)
    assert (up < 0).all()
    assert (down > 0).all()
    assert (generator < 0).all()
    torch.testing.assert_close(up, -down)


def test_the_adaptive_weight_is_equation_7() -> None:
    reconstruction, adversarial = torch.tensor([3.0, 4.0]), torch.tensor([[0.0], [0.5]])
    assert math.isclose(adaptive_weight(reconstruction, adversarial).item(), 5 / (0.5 + 1e-4), rel_tol=1e-6)
    assert adaptive_weight(reconstruction, adversarial, limit=2.0).item() == 2.0
    assert adaptive_weight(reconstruction, torch.zeros(2)).item() == 1e4
    assert math.isclose(adaptive_weight(reconstruction, torch.zeros(2), epsilon=1.0).item(), 5.0)
    assert not adaptive_weight(reconstruction.requires_grad_(), adversarial).requires_grad


def test_the_adaptive_weight_keeps_small_half_precision_gradients() -> None:
    """Squares of half-precision gradients below 2e-4 are 0 in half precision."""
    small = torch.full((1000,), 1e-4, dtype=torch.float16)
    weight = adaptive_weight(small, small, epsilon=0.0)
    assert weight.dtype == torch.float32
    assert math.isclose(weight.item(), 1.0, rel_tol=1e-6)
    assert adaptive_weight(small.double(), small).dtype == torch.float64


def test_lecam_has_its_hand_value() -> None:
    # real - (-1) is 3 and 1.5; 1.5 - fake is 4.5 and 1.5
    value = lecam(REAL, FAKE, torch.tensor(1.5), torch.tensor(-1.0))
    assert math.isclose(value.item(), (9 + 2.25) / 2 + (20.25 + 2.25) / 2, rel_tol=1e-6)
    assert lecam(REAL, FAKE, torch.tensor(-4.0), torch.tensor(5.0)).item() == 0.0


def test_lecam_anchors_are_a_plain_mean_at_first_and_an_exponential_one_later() -> None:
    start = LeCam.start()
    first = start.update(torch.tensor([1.0, 3.0], requires_grad=True), torch.tensor([-1.0]), decay=0.5)
    assert (first.real.item(), first.fake.item(), first.updates.item()) == (2.0, -1.0, 1.0)
    assert not first.real.requires_grad
    assert (start.real.item(), start.updates.item()) == (0.0, 0.0)
    second = first.update(torch.tensor([4.0]), torch.tensor([0.0]), decay=0.5)
    assert (second.real.item(), second.fake.item()) == (3.0, -0.5)
    third = second.update(torch.tensor([5.0]), torch.tensor([0.0]), decay=0.5)
    assert (third.real.item(), third.fake.item()) == (4.0, -0.25)


def test_the_ramp_has_its_hand_values() -> None:
    assert [ramp(seen, start=10, length=20) for seen in (0, 10, 15, 30, 99)] == [0.0, 0.0, 0.25, 1.0, 1.0]
    assert [ramp(seen, start=10, length=0) for seen in (9, 10, 11)] == [0.0, 1.0, 1.0]


@given(st.floats(0, 1e9), st.floats(0, 1e9), st.floats(0, 1e6), st.floats(0, 1e6))
def test_the_ramp_stays_in_bounds_and_never_falls(a: float, b: float, start: float, length: float) -> None:
    low, high = (ramp(seen, start=start, length=length) for seen in sorted((a, b)))
    assert 0.0 <= low <= high <= 1.0


@pytest.mark.parametrize(("name", "expected"), [("l1", [0.75, 0.0]), ("l2", [1.25, 0.0])])
def test_pixel_losses_are_means_of_each_picture(name: str, expected: list[float]) -> None:
    images = torch.zeros(2, 1, 2, 2)
    others = images.clone()
    others[0] = torch.tensor([[[1.0, -2.0], [0.0, 0.0]]])
    assert PIXEL_LOSSES[name](images, others).tolist() == expected


# --- the perceptual distance ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=list(BACKBONES))
def random(request: pytest.FixtureRequest) -> Perceptual:
    """The distance over a backbone of random weights, strong enough to reach the deep maps; no file is needed."""
    torch.manual_seed(0)
    distance = Perceptual(BACKBONES[request.param].build())
    for parameter in distance.backbone.parameters():
        if parameter.ndim == 4:
            torch.nn.init.kaiming_normal_(parameter)
    return distance


def test_a_distance_is_symmetric_and_zero_only_for_equal_pictures(random: Perceptual) -> None:
    x, y = noise(2, 3, 24, 40), noise(2, 3, 24, 40, seed=1)
    there = random(x, y)
    assert there.shape == (2,)
    assert (there > 0.01).all()
    torch.testing.assert_close(there, random(y, x))
    assert random(x, x).tolist() == [0.0, 0.0]


def test_a_distance_does_not_depend_on_the_batch(random: Perceptual) -> None:
    x, y = noise(3, 3, 24, 24), noise(3, 3, 24, 24, seed=1)
    torch.testing.assert_close(random(x, y)[1:2], random(x[1:2], y[1:2]), rtol=1e-4, atol=1e-6)


def test_only_the_second_picture_gets_a_gradient(random: Perceptual) -> None:
    x, y = noise(1, 3, 24, 24).requires_grad_(), noise(1, 3, 24, 24, seed=1).requires_grad_()
    random(x, y).sum().backward()
    assert x.grad is None
    assert y.grad is not None
    assert y.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in random.parameters())


def test_a_kept_target_gives_the_same_distance(random: Perceptual) -> None:
    x, y = noise(2, 3, 24, 24), noise(2, 3, 24, 24, seed=1)
    kept = random.target(x)
    assert [each.shape[1] for each in kept] == list(random.backbone.widths)
    torch.testing.assert_close(random.distance(kept, random.features(y)), random(x, y))


def test_a_grey_picture_is_its_three_equal_channels(random: Perceptual) -> None:
    x, y = noise(1, 1, 24, 24), noise(1, 1, 24, 24, seed=1)
    torch.testing.assert_close(random(x, y), random(x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)))


def test_where_nothing_is_felt_distance_and_gradient_are_zero() -> None:
    distance = Perceptual(BACKBONES["squeezenet"].build())
    for key, parameter in distance.backbone.named_parameters():
        parameter.fill_(-1.0 if key.endswith("bias") else 0.0)
    y = noise(1, 3, 24, 24).requires_grad_()
    value = distance(noise(1, 3, 24, 24, seed=1), y)
    (gradient,) = torch.autograd.grad(value.sum(), y)
    assert value.item() == 0.0
    assert gradient.eq(0).all()


def test_the_smallest_picture_reaches_every_map_and_a_smaller_one_is_told(random: Perceptual) -> None:
    side = random.backbone.smallest
    assert random(noise(1, 3, side, side), noise(1, 3, side, side, seed=1)).isfinite().all()
    with pytest.raises(RuntimeError):
        random.backbone(noise(1, 3, side - 1, side - 1))
    with pytest.raises(SmaltiError, match=f"{side - 1}x{side} are too small.*needs {side} pixels"):
        random(noise(1, 3, side - 1, side), noise(1, 3, side - 1, side))


def test_pictures_it_cannot_compare_are_told(random: Perceptual) -> None:
    with pytest.raises(SmaltiError, match="1 or 3 channels, these have 4"):
        random(noise(1, 4, 24, 24), noise(1, 4, 24, 24))
    with pytest.raises(SmaltiError, match=r"of one shape.*\(1, 3, 24, 24\).*\(1, 3, 24, 25\)"):
        random(noise(1, 3, 24, 24), noise(1, 3, 24, 25))
    with pytest.raises(SmaltiError, match="did you mean 'vgg16'"):
        perceptual("vgg19")


def test_under_autocast_only_the_backbone_is_in_half_precision(random: Perceptual) -> None:
    x, y = noise(1, 3, 24, 24), noise(1, 3, 24, 24, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = random(x, y)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, random(x, y), rtol=0.05, atol=0.0)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_published_linear_weights_fit(name: str) -> None:
    """The LPIPS files are small enough to state their shapes here; the trunks are checked when they are loaded."""
    assert {BACKBONES[name].weights, BACKBONES[name].linear} <= set(WEIGHTS)
    widths = {"squeezenet": (64, 128, 256, 384, 384, 512, 512), "vgg16": (64, 128, 256, 512, 512)}
    assert [tuple(each.shape) for each in Perceptual(BACKBONES[name].build()).linear] == [
        (1, width, 1, 1) for width in widths[name]
    ]


def test_files_in_the_publishers_layout_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's file holds a classifier too; LPIPS numbers its linear layers with the dropout before them."""
    source = BACKBONES["squeezenet"]
    original = Perceptual(source.build())
    linear = {f"lin{k}.model.1.weight": torch.rand_like(value) for k, value in enumerate(original.linear)}
    trunk = {**original.backbone.state_dict(), "classifier.1.bias": torch.zeros(1000)}
    torch.save(trunk, tmp_path / WEIGHTS[source.weights].files[0])
    torch.save(linear, tmp_path / WEIGHTS[source.linear].files[0])
    monkeypatch.setenv("SMALTI_WEIGHTS", str(tmp_path))
    loaded = perceptual("squeezenet")
    assert all(loaded.linear[k].equal(linear[f"lin{k}.model.1.weight"]) for k in range(7))
    assert all(value.equal(trunk[key]) for key, value in loaded.backbone.state_dict().items())

    del linear["lin6.model.1.weight"]
    torch.save(linear, tmp_path / WEIGHTS[source.linear].files[0])
    with pytest.raises(SmaltiError, match="6 is missing"):
        perceptual("squeezenet")


@pytest.fixture(scope="module")
def published() -> Perceptual:
    """LPIPS over SqueezeNet with its published weights, from `SMALTI_WEIGHTS` or the folder beside the repository."""
    folder = Path(os.environ.get("SMALTI_WEIGHTS") or SHARED / "data" / "weights")
    for name in ("squeezenet1_1", "lpips-squeeze"):
        if not any((folder / file).is_file() for file in WEIGHTS[name].files):
            pytest.skip(f"set SMALTI_WEIGHTS to a folder that holds {WEIGHTS[name].files[0]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMALTI_WEIGHTS", str(folder))
        return perceptual("squeezenet")


def test_lpips_of_noise_is_the_published_value(published: Perceptual) -> None:
    generator = torch.Generator().manual_seed(42)
    x, y = (torch.rand(2, 3, 100, 100, generator=generator) * 2 - 1 for _ in range(2))
    torch.testing.assert_close(published(x, y), torch.tensor([0.10236, 0.09377]), rtol=0.0, atol=2e-5)


def test_lpips_of_the_papers_example_pictures(published: Perceptual) -> None:
    folder = SHARED / "data" / "lpips_example"
    if not folder.is_dir():
        pytest.skip("the example pictures of LPIPS are not on this machine")

    def picture(name: str) -> Tensor:
        pixels = np.asarray(Image.open(folder / f"{name}.png").convert("RGB"), dtype=np.float32)
        return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1

    reference = picture("ex_ref")
    expected = torch.tensor([0.7112, 0.1479])
    others = torch.cat((picture("ex_p0"), picture("ex_p1")))
    torch.testing.assert_close(published(reference.expand(2, -1, -1, -1), others), expected, rtol=0.0, atol=1e-3)


def _trunk_by_rule(distance: Perceptual) -> None:
    """Fill VGG16 with the golden numbers' random weights: the rule and the hashes are in their `vgg_rule.json`."""
    rule = json.loads((GOLDEN / "06_lpips" / "vgg_rule.json").read_text())
    state = {}
    for number, layer in enumerate(rule["layers"]):
        outputs, inputs = layer["shape"][:2]
        weight = np.random.default_rng(rule["seed"] + number).standard_normal(layer["shape"])
        bias = np.random.default_rng(rule["seed"] + 100 + number).standard_normal((outputs,))
        values = {
            "weight": (weight * np.sqrt(2 / (inputs * 9))).astype(np.float32),
            "bias": (bias * 0.05).astype(np.float32),
        }
        for kind, value in values.items():
            assert hashlib.sha256(value.tobytes()).hexdigest() == layer[f"{kind}_sha256"]
            state[f"features.{layer['features_index']}.{kind}"] = torch.from_numpy(value)
    distance.backbone.load_state_dict(state)


@pytest.mark.parametrize("pair", ["a", "b"])
def test_lpips_over_vgg16_equals_the_originals(pair: str) -> None:
    data, facts = golden("06_lpips")
    distance = Perceptual(BACKBONES["vgg16"].build())
    _trunk_by_rule(distance)
    distance.linear.load_state_dict({str(k): data[f"lin{k}.model.1.weight"] for k in range(5)})

    def close(value: Tensor, key: str) -> None:
        tolerance = max(20 * facts["noise_fp32_vs_fp64"][key], 1e-7)
        torch.testing.assert_close(value, data[key], rtol=1e-4, atol=tolerance)

    x, y = data[f"in.x_{pair}"], data[f"in.y_{pair}"].requires_grad_()
    value = distance(x, y)
    close(value.view(-1, 1, 1, 1), f"out.{pair}.lpips")
    (gradient,) = torch.autograd.grad(value.sum(), y)
    close(gradient, f"out.{pair}.grad_y")
    for k, (a, b) in enumerate(zip(distance.features(x), distance.features(y), strict=True)):
        layer = ((a - b).square() * distance.linear[k]).sum(1, keepdim=True).mean((2, 3), keepdim=True)
        close(layer, f"out.{pair}.layer{k}")
