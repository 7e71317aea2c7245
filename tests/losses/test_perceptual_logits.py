"""The distance of logits: its networks in torchvision's form, its definition, and its place in the objective."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from smalti.core.errors import SmaltiError
from smalti.core.published_weights import WEIGHTS
from smalti.core.settings import parse
from smalti.evaluation.features import SqueezeNetFeatures
from smalti.losses import logits, objective
from smalti.losses.logits import CLASSIFIERS, LogitDistance, SqueezeNet, logit_distance
from smalti.losses.objective import ObjectiveSettings, ReconstructionLoss
from smalti.losses.resnet50 import ResNet50, StoredNorm

SHARED = Path(__file__).resolve().parents[3] / "shared"
MEAN, DEVIATION = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Images of uniform noise in [-1, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# --- ResNet-50 -----------------------------------------------------------------------------------------------------


def test_resnet_has_the_published_size_and_cost() -> None:
    """torchvision's page of the weights states 25,557,032 parameters and 4.09 billion products at 224 pixels."""
    with torch.device("meta"):
        network = ResNet50().requires_grad_(False)
        counter = FlopCounterMode(display=False)
        with counter:
            assert network(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
    assert sum(parameter.numel() for parameter in network.parameters()) == 25_557_032
    assert counter.get_total_flops() / 2 / 2 == pytest.approx(4.09e9, rel=2e-3)


def test_resnet_has_torchvisions_names() -> None:
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in ResNet50().state_dict().items()}
    assert len(shapes) == 53 * 5 + 2  # convolutions with their norms; the last layer's weight and bias
    for key, shape in {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_var": (64,),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer1.0.downsample.1.running_mean": (256,),
        "layer2.0.conv2.weight": (128, 128, 3, 3),
        "layer3.5.bn3.bias": (1024,),
        "layer4.2.conv3.weight": (2048, 512, 1, 1),
        "fc.weight": (1000, 2048),
    }.items():
        assert shapes[key] == shape
    assert not [key for key in shapes if "layer1.1.downsample" in key]


def test_the_stride_is_in_the_3x3_convolution() -> None:
    """The original paper has it in the 1x1 before; the published weights were trained with this."""
    with torch.device("meta"):
        strides = {name: layer.stride for name, layer in ResNet50().named_modules() if isinstance(layer, nn.Conv2d)}
    assert strides["layer3.0.conv1"] == (1, 1)
    assert {name for name, stride in strides.items() if stride == (2, 2)} == {
        "conv1",
        *(f"layer{k}.0.{part}" for k in (2, 3, 4) for part in ("conv2", "downsample.0")),
    }


def test_stored_statistics_are_used_in_training_too() -> None:
    norm = StoredNorm(2).train()
    with torch.no_grad():
        norm.running_mean.copy_(torch.tensor([1.0, -1.0]))
        norm.running_var.copy_(torch.tensor([4.0, 0.25]))
        norm.weight.copy_(torch.tensor([3.0, 1.0]))
        norm.bias.copy_(torch.tensor([0.5, 0.0]))
    x = noise(2, 2, 3, 3)
    expected = torch.stack(((x[:, 0] - 1) / 2 * 3 + 0.5, (x[:, 1] + 1) / 0.5), 1)
    torch.testing.assert_close(norm(x), expected, rtol=1e-4, atol=1e-4)
    assert norm.running_mean.tolist() == [1.0, -1.0]


# --- the distance --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params={source.build: name for name, source in CLASSIFIERS.items()}.values())
def distance(request: pytest.FixtureRequest) -> LogitDistance:
    """Over every kind of network, with random weights strong enough to reach the logits."""
    torch.manual_seed(0)
    network = CLASSIFIERS[request.param].build()
    for parameter in network.parameters():
        if parameter.ndim == 4:
            nn.init.kaiming_normal_(parameter)
    return LogitDistance(network).train()


def test_the_distance_is_its_definition(distance: LogitDistance) -> None:
    """Images in [0, 1], resized, scaled as torchvision does, one at a time."""
    x, y = noise(2, 3, 40, 64), noise(2, 3, 40, 64, seed=1)

    def named(image: Tensor) -> Tensor:
        resized = F.interpolate((image[None] + 1) / 2, (224, 224), mode="bilinear", antialias=True, align_corners=False)
        return distance.network((resized - MEAN) / DEVIATION)[0]  # type: ignore[no-any-return]

    expected = torch.stack([(named(a) - named(b)).square().mean() for a, b in zip(x, y, strict=True)])
    found = distance(x, y)
    assert found.shape == (2,)
    assert (found > 0).all()
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=0.0)
    assert distance(x, x).tolist() == [0.0, 0.0]


def test_only_the_second_image_gets_a_gradient(distance: LogitDistance) -> None:
    x, y = noise(1, 3, 32, 32).requires_grad_(), noise(1, 3, 32, 32, seed=1).requires_grad_()
    distance(x, y).sum().backward()
    assert x.grad is None
    assert y.grad is not None
    assert y.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in distance.parameters())


def test_a_gray_image_is_its_three_equal_channels(distance: LogitDistance) -> None:
    x, y = noise(1, 1, 32, 32), noise(1, 1, 32, 32, seed=1)
    expected = distance(x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1))
    torch.testing.assert_close(distance(x, y), expected, rtol=1e-3, atol=0.0)


def test_large_images_are_not_read_here_and_there(distance: LogitDistance) -> None:
    """Antialiased: of a fine chequerboard, what is seen is its mean."""
    fine = (torch.arange(896).view(-1, 1) + torch.arange(896)).remainder(2).mul(2).sub(1).expand(1, 3, -1, -1).float()
    gray = torch.zeros(1, 3, 896, 896)
    assert distance(fine, gray) < 1e-2 * distance(-torch.ones_like(gray), gray)


def test_under_autocast_the_difference_is_in_single_precision(distance: LogitDistance) -> None:
    x, y = noise(1, 3, 32, 32), noise(1, 3, 32, 32, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = distance(x, y)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, distance(x, y), rtol=0.1, atol=0.0)


def test_images_it_cannot_compare_are_reported(distance: LogitDistance) -> None:
    with pytest.raises(SmaltiError, match=r"1 or 3 channels, these have 4; set logits to none"):
        distance(noise(1, 4, 32, 32), noise(1, 4, 32, 32))
    with pytest.raises(SmaltiError, match=r"of one shape.*\(1, 3, 32, 32\).*\(1, 3, 24, 25\)"):
        distance(noise(1, 3, 32, 32), noise(1, 3, 24, 25))
    with pytest.raises(SmaltiError, match="did you mean 'resnet50'"):
        logit_distance("resnet5")


# --- published weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_files_in_torchvisions_layout_are_loaded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = CLASSIFIERS[name]
    assert source.weights in WEIGHTS
    stored = source.build().state_dict()
    file = {**stored, "layer1.0.bn1.num_batches_tracked": torch.zeros((), dtype=torch.int64)}

    def load(requested: str) -> dict[str, Tensor]:
        assert requested == source.weights
        return file

    monkeypatch.setattr(logits, "load_weights", load)
    loaded = logit_distance(name).network.state_dict()
    assert loaded.keys() == stored.keys()
    assert all(value.equal(stored[key]) for key, value in loaded.items())


@pytest.fixture(scope="module")
def published() -> LogitDistance:
    """SqueezeNet with its published weights, from `SMALTI_WEIGHTS` or the folder beside the repository."""
    folder = Path(os.environ.get("SMALTI_WEIGHTS") or SHARED / "data" / "weights")
    if not any((folder / file).is_file() for file in WEIGHTS["squeezenet1_1"].files):
        pytest.skip(f"set SMALTI_WEIGHTS to a folder that holds {WEIGHTS['squeezenet1_1'].files[0]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMALTI_WEIGHTS", str(folder))
        return logit_distance("squeezenet")


def test_squeezenets_logits_are_those_of_the_scores(published: LogitDistance) -> None:
    """The same network as in the evaluation, which was compared with torchvision's."""
    features = SqueezeNetFeatures()
    features.load_state_dict(published.network.state_dict())
    whole = torch.randint(256, (2, 3, 48, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    torch.testing.assert_close(published.logits(whole / 127.5 - 1), features(whole).logits, rtol=1e-3, atol=1e-3)


def test_what_is_displayed_counts_more_than_where_it_stands(published: LogitDistance) -> None:
    """An image moved by two pixels is nearer than one turned to its negative."""
    place = torch.linspace(-3, 3, 96)
    disc = (place.view(-1, 1).square() + place.square() < 2).float().mul(2).sub(1).expand(1, 3, -1, -1)
    moved, negative = disc.roll(2, dims=3), -disc
    assert published(disc, moved) < 0.2 * published(disc, negative)


# --- its place in the objective ------------------------------------------------------------------------------------


def test_the_settings_know_the_networks_of_the_tables() -> None:
    hints = get_type_hints(ObjectiveSettings)
    assert get_args(hints["logits"]) == tuple(objective.LOGITS) == ("none", *CLASSIFIERS)
    assert get_args(hints["perceptual"]) == tuple(objective.PERCEPTUAL)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_objective_adds_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    requested = []

    class Halves(nn.Module):
        def forward(self, images: Tensor, others: Tensor) -> Tensor:
            return others.new_tensor([4.0, 6.0])

    def build(name: str) -> Any:
        requested.append(name)
        return Halves()

    monkeypatch.setattr(objective, "logit_distance", build)
    values = {"perceptual": "none", "logits": name, "logits_weight": 0.5}
    score = ReconstructionLoss(parse(ObjectiveSettings, values, where="test"))
    result = score(torch.zeros(2, 3, 2, 2), torch.ones(2, 3, 2, 2))
    assert (result.pixel.item(), result.logits.item(), result.total.item()) == (1.0, 5.0, 3.5)
    assert requested == [name]
    ReconstructionLoss(parse(ObjectiveSettings, {**values, "logits_weight": 0}, where="test"))
    assert requested == [name]  # a weight of 0 loads no network


def test_label_maps_have_none() -> None:
    wrong = {"pixel": "bce", "perceptual": "none", "logits": "squeezenet", "adversarial": {"weight": 0}}
    with pytest.raises(SmaltiError, match=r"pixel = 'bce' .*logits = 'squeezenet'.*set perceptual and logits to none"):
        parse(ObjectiveSettings, wrong, where="here")


def test_squeezenet_counts_as_published() -> None:
    assert sum(parameter.numel() for parameter in SqueezeNet().parameters()) == 1_235_496
