"""The losses: hand values, structure with random weights, and the published values of LPIPS."""

from __future__ import annotations

import copy
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.core.published_weights import WEIGHTS
from smalti.losses.adversarial import ADVERSARIAL, LeCam, adaptive_weight, lecam, ramp
from smalti.losses.perceptual import BACKBONES, SCALE, SHIFT, Backbone, Perceptual, perceptual
from smalti.losses.pixel import LABEL_LOSSES, PIXEL_LOSSES, cross_entropy

SHARED = Path(__file__).resolve().parents[3] / "shared"


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Images of uniform noise in [-1, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# --- adversarial losses --------------------------------------------------------------------------------------------

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
    losses = ADVERSARIAL[name]
    assert math.isclose(losses.discriminator(REAL, FAKE).item(), discriminator, rel_tol=1e-6)
    assert math.isclose(losses.generator(FAKE).item(), generator, rel_tol=1e-6)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_the_two_sides_of_a_game_pull_apart(name: str) -> None:
    losses = ADVERSARIAL[name]
    real, fake = (torch.zeros(2, 1, 3, 3, requires_grad=True) for _ in range(2))
    up, down = torch.autograd.grad(losses.discriminator(real, fake), (real, fake))
    (generator,) = torch.autograd.grad(losses.generator(fake), fake)
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


@pytest.mark.parametrize(("first", "other"), [(torch.float64, torch.float64), (torch.float32, torch.float64)])
def test_in_double_precision_the_game_is_exact(first: torch.dtype, other: torch.dtype) -> None:
    """A trajectory can only be repeated to 1e-9 where nothing on the way is rounded to single precision."""
    third = torch.tensor([1 / 3], dtype=first).double().item()
    weight = adaptive_weight(torch.tensor([1 / 3], dtype=first), torch.tensor([0.1, 0.7], dtype=other))
    assert weight.dtype == torch.float64
    assert math.isclose(weight.item(), third / (math.hypot(0.1, 0.7) + 1e-4), rel_tol=1e-14)

    real, fake = torch.tensor([0.1, 0.7], dtype=other), torch.tensor([-0.3], dtype=other)
    anchors = (
        LeCam.start()
        ._replace(real=torch.tensor(0.0, dtype=first))
        .update(real, fake)
        .update(real / 2, fake)
        .update(real / 3, fake)
    )
    assert (anchors.real.dtype, anchors.fake.dtype) == (torch.float64, torch.float64)
    assert math.isclose(anchors.real.item(), 0.4 * 11 / 18, rel_tol=1e-14)
    assert math.isclose(lecam(real, fake, anchors.real, anchors.fake).item(), lecam_by_hand(), rel_tol=1e-14)
    for losses in ADVERSARIAL.values():
        assert losses.discriminator(real, fake).dtype == losses.generator(fake).dtype == torch.float64


def lecam_by_hand() -> float:
    real, fake = 0.4 * 11 / 18, -0.3
    return ((0.1 - fake) ** 2 + (0.7 - fake) ** 2) / 2 + (real + 0.3) ** 2


# --- pixels and labels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "expected"), [("l1", [0.75, 0.0]), ("l2", [1.25, 0.0])])
def test_pixel_losses_are_means_of_each_image(name: str, expected: list[float]) -> None:
    images = torch.zeros(2, 1, 2, 2)
    others = images.clone()
    others[0] = torch.tensor([[[1.0, -2.0], [0.0, 0.0]]])
    assert PIXEL_LOSSES[name](images, others).tolist() == expected


def labels(*shape: int, seed: int = 0) -> Tensor:
    """One-hot maps of random labels, (B,C,H,W)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    return torch.nn.functional.one_hot(drawn, shape[1]).movedim(-1, 1).float()


def test_label_losses_have_their_hand_values() -> None:
    """An image of two pixels and two labels: the first pixel has label 0, the second label 1."""
    images = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    logits = torch.tensor([[[[2.0, 1.0]], [[-1.0, 3.0]]]])
    requested = softplus(-2) + softplus(1) + softplus(-1) + softplus(-3)
    assert math.isclose(PIXEL_LOSSES["bce"](images, logits).item(), requested / 4, rel_tol=1e-6)
    assert math.isclose(
        PIXEL_LOSSES["cross_entropy"](images, logits).item(), (softplus(-3) + softplus(-2)) / 2, rel_tol=1e-6
    )


@pytest.mark.parametrize("name", PIXEL_LOSSES)
def test_pixel_losses_score_each_image_by_itself(name: str) -> None:
    images, others = labels(3, 4, 5, 6), noise(3, 4, 5, 6, seed=1).requires_grad_()
    values = PIXEL_LOSSES[name](images, others)
    assert values.shape == (3,)
    torch.testing.assert_close(values[1:2], PIXEL_LOSSES[name](images[1:2], others[1:2]))
    (gradient,) = torch.autograd.grad(values[1], others)
    assert gradient[1].abs().max() > 0
    assert gradient[[0, 2]].eq(0).all()
    assert PIXEL_LOSSES[name](images.double(), others.double()).dtype == torch.float64


@pytest.mark.parametrize("name", LABEL_LOSSES)
def test_label_losses_pull_each_label_up_where_it_is(name: str) -> None:
    images, logits = labels(2, 4, 5, 6), noise(2, 4, 5, 6, seed=1).requires_grad_()
    (gradient,) = torch.autograd.grad(LABEL_LOSSES[name](images, logits).sum(), logits)
    assert (gradient[images == 1] < 0).all()
    assert (gradient[images == 0] > 0).all()
    sure = LABEL_LOSSES[name](images, 40 * images - 20)
    assert (sure < 1e-6).all()


def test_a_pixel_without_a_label_costs_no_cross_entropy() -> None:
    images, logits = labels(1, 3, 1, 4), noise(1, 3, 1, 4, seed=1)
    images[..., 2:] = 0.0
    torch.testing.assert_close(cross_entropy(images, logits), cross_entropy(images[..., :2], logits[..., :2]) / 2)


def test_cross_entropy_of_a_single_label_is_reported() -> None:
    with pytest.raises(SmaltiError, match=r"have 1 channel; use the pixel loss bce"):
        cross_entropy(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))


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


def test_a_distance_is_symmetric_and_zero_only_for_equal_images(random: Perceptual) -> None:
    x, y = noise(2, 3, 32, 40), noise(2, 3, 32, 40, seed=1)
    there = random(x, y)
    assert there.shape == (2,)
    assert (there > 0.01).all()
    torch.testing.assert_close(there, random(y, x))
    assert random(x, x).tolist() == [0.0, 0.0]


def test_a_distance_does_not_depend_on_the_batch(random: Perceptual) -> None:
    x, y = noise(3, 3, 32, 32), noise(3, 3, 32, 32, seed=1)
    torch.testing.assert_close(random(x, y)[1:2], random(x[1:2], y[1:2]), rtol=1e-4, atol=1e-6)


def test_only_the_second_image_gets_a_gradient(random: Perceptual) -> None:
    x, y = noise(1, 3, 32, 32).requires_grad_(), noise(1, 3, 32, 32, seed=1).requires_grad_()
    random(x, y).sum().backward()
    assert x.grad is None
    assert y.grad is not None
    assert y.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in random.parameters())


def test_a_kept_target_gives_the_same_distance(random: Perceptual) -> None:
    x, y = noise(2, 3, 32, 32), noise(2, 3, 32, 32, seed=1)
    kept = random.target(x)
    assert [each.shape[1] for each in kept] == list(random.backbone.widths)
    torch.testing.assert_close(random.distance(kept, random.features(y)), random(x, y))


def test_a_gray_image_is_its_three_equal_channels(random: Perceptual) -> None:
    x, y = noise(1, 1, 32, 32), noise(1, 1, 32, 32, seed=1)
    torch.testing.assert_close(random(x, y), random(x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)))


def test_where_nothing_is_felt_distance_and_gradient_are_zero() -> None:
    distance = Perceptual(BACKBONES["squeezenet"].build())
    for key, parameter in distance.backbone.named_parameters():
        parameter.fill_(-1.0 if key.endswith("bias") else 0.0)
    y = noise(1, 3, 32, 32).requires_grad_()
    value = distance(noise(1, 3, 32, 32, seed=1), y)
    (gradient,) = torch.autograd.grad(value.sum(), y)
    assert value.item() == 0.0
    assert gradient.eq(0).all()


def test_the_smallest_image_reaches_every_map_and_a_smaller_one_is_reported(random: Perceptual) -> None:
    side = random.backbone.smallest
    assert random(noise(1, 3, side, side), noise(1, 3, side, side, seed=1)).isfinite().all()
    with pytest.raises(RuntimeError):
        random.backbone(noise(1, 3, side - 1, side - 1))
    with pytest.raises(SmaltiError, match=f"{side - 1}x{side} are too small.*needs {side} pixels"):
        random(noise(1, 3, side - 1, side), noise(1, 3, side - 1, side))


def test_images_it_cannot_compare_are_reported(random: Perceptual) -> None:
    with pytest.raises(SmaltiError, match="1 or 3 channels, these have 4"):
        random(noise(1, 4, 32, 32), noise(1, 4, 32, 32))
    with pytest.raises(SmaltiError, match=r"of one shape.*\(1, 3, 32, 32\).*\(1, 3, 24, 25\)"):
        random(noise(1, 3, 32, 32), noise(1, 3, 24, 25))
    with pytest.raises(SmaltiError, match="did you mean 'vgg16'"):
        perceptual("vgg19")


def test_in_double_precision_the_distance_is_exact(random: Perceptual) -> None:
    """Against the definition, written out; the backbone and its constants follow `.double()`."""
    distance = copy.deepcopy(random).double()
    distance.linear.load_state_dict(
        {key: torch.rand_like(value) for key, value in distance.linear.state_dict().items()}
    )
    x, y = noise(2, 3, 32, 40).double(), noise(2, 3, 32, 40, seed=1).double()
    shift, scale = (torch.tensor(values).double().view(3, 1, 1) for values in (SHIFT, SCALE))
    expected = torch.zeros(2, dtype=torch.float64)
    for a, b, weight in zip(
        distance.backbone((x - shift) / scale), distance.backbone((y - shift) / scale), distance.linear, strict=True
    ):
        a, b = (each / ((each**2).sum(1, keepdim=True).sqrt() + 1e-10) for each in (a, b))
        expected += ((a - b) ** 2 * weight).sum(1).mean((1, 2))
    assert distance(x, y).dtype == torch.float64
    torch.testing.assert_close(distance(x, y), expected, rtol=1e-12, atol=0.0)


# --- the original's dropout ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noisy(random: Perceptual) -> Perceptual:
    distance = Perceptual(random.backbone, dropout=0.5)
    for weight in distance.linear:
        weight.uniform_(0.0, 1.0)
    return distance


def test_dropout_makes_training_noisy_around_the_same_mean(noisy: Perceptual) -> None:
    x, y = noise(1, 3, 32, 32), noise(1, 3, 32, 32, seed=1)
    target, features = noisy.target(x), noisy.features(y)
    exact = noisy.eval().distance(target, features)
    torch.testing.assert_close(noisy(x, y), exact)
    torch.manual_seed(0)
    draws = torch.stack([noisy.train().distance(target, features) for _ in range(200)])
    assert len(set(draws.flatten().tolist())) > 100
    assert abs(draws.mean() - exact.mean()) < 4 * draws.std() / math.sqrt(200)


@pytest.mark.parametrize("probability", [0.25, 0.5])
def test_each_squared_difference_is_struck_out_by_itself(probability: float) -> None:
    """One feature map of equal differences: what is left is a count, whose moments are the binomial's."""
    backbone = Backbone(torch.nn.Sequential(torch.nn.Identity()), taps=(0,), widths=(8,), smallest=1)
    distance = Perceptual(backbone, dropout=probability).train()
    ones, zeros = [torch.ones(1, 8, 20, 20)], [torch.zeros(1, 8, 20, 20)]
    torch.manual_seed(0)
    left = (
        torch.cat([distance.distance(ones, zeros) for _ in range(400)]) / 8
    )  # share that is left, scaled up to mean 1
    deviation = math.sqrt(probability / (1 - probability) / (8 * 20 * 20))
    assert abs(left.mean().item() - 1) < 4 * deviation / 20
    assert left.std().item() == pytest.approx(deviation, rel=0.15)
    counts = left * (1 - probability) * 8 * 20 * 20
    torch.testing.assert_close(counts, counts.round(), rtol=0.0, atol=2e-2)


def test_without_dropout_training_and_evaluation_are_alike(random: Perceptual) -> None:
    """And no random number is drawn, so that what else is random in training stays as it was."""
    x, y = noise(1, 3, 32, 32), noise(1, 3, 32, 32, seed=1)
    before = torch.get_rng_state()
    assert random.train()(x, y).equal(random.eval()(x, y))
    assert torch.get_rng_state().equal(before)
    random.train()


def test_under_autocast_only_the_backbone_is_in_half_precision(random: Perceptual) -> None:
    x, y = noise(1, 3, 32, 32), noise(1, 3, 32, 32, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = random(x, y)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, random(x, y), rtol=0.05, atol=0.0)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_published_linear_weights_fit(name: str) -> None:
    """The LPIPS files are small enough to state their shapes here; the trunks are checked when they are loaded."""
    assert {BACKBONES[name].weights, BACKBONES[name].linear} <= set(WEIGHTS)
    widths = {
        "squeezenet": (64, 128, 256, 384, 384, 512, 512),
        "vgg16": (64, 128, 256, 512, 512),
        "alexnet": (64, 192, 384, 256, 256),
    }
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
    assert perceptual("squeezenet", dropout=0.25).dropout == 0.25
    assert loaded.dropout == 0.0
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


def test_lpips_of_the_papers_example_images(published: Perceptual) -> None:
    folder = SHARED / "data" / "lpips_example"
    if not folder.is_dir():
        pytest.skip("the example images of LPIPS are not on this machine")

    def image(name: str) -> Tensor:
        pixels = np.asarray(Image.open(folder / f"{name}.png").convert("RGB"), dtype=np.float32)
        return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1

    reference = image("ex_ref")
    expected = torch.tensor([0.7112, 0.1479])
    others = torch.cat((image("ex_p0"), image("ex_p1")))
    torch.testing.assert_close(published(reference.expand(2, -1, -1, -1), others), expected, rtol=0.0, atol=1e-3)
