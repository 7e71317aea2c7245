"""The networks that see images: InceptionV3 as used for FID, SqueezeNet as its stand-in, and their one form."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import final

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from smalti.core.errors import SmaltiError
from smalti.core.published_weights import WEIGHTS
from smalti.evaluation.features import (
    NETWORKS,
    SCORES,
    EfficientNetFeatures,
    FeatureNetwork,
    InceptionFeatures,
    NetworkOutput,
    SqueezeNetFeatures,
    feature_network,
)
from smalti.evaluation.inception import BlockA, BlockE, InceptionV3, Unit, resize_like_tensorflow
from smalti.images.resizing import center_crop

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Images of uniform noise, uint8."""
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def shake(module: nn.Module) -> None:
    """Give every weight a value of its own that keeps features in range."""
    chance = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=chance)
        elif tensor.ndim > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=chance)
        else:
            tensor.normal_(0.1 if name.endswith(("bias", "mean")) else 1, 0.1, generator=chance)


# --- the resize of TensorFlow 1 ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 10, 20], [0, 6, 12, 18, 20]),  # read at 0, 0.6, 1.2, 1.8, 2.4; nothing lies beyond the last pixel
        ([0, 10, 20, 30], [0, 20]),  # every other pixel, and no mean of two
        ([0, 10, 20, 30, 40], [0, 50 / 3, 100 / 3]),
        ([7], [7, 7, 7]),
        ([3, 1, 4, 1], [3, 1, 4, 1]),
    ],
)
@pytest.mark.parametrize("side", [0, 1])
def test_resize_by_hand(values: list[float], expected: list[float], side: int) -> None:
    shape = [1, 1, 1, 1]
    shape[2 + side] = len(values)
    size = (1, len(expected)) if side else (len(expected), 1)
    found = resize_like_tensorflow(torch.tensor(values, dtype=torch.float32).view(shape), size)
    assert found.shape == (1, 1, *size)
    assert found.flatten().tolist() == pytest.approx(expected, rel=1e-6)


def test_both_sides_are_resized_of_every_image_and_channel() -> None:
    """A plane stays one where it is read inside: value = 3 row + 5 column."""
    plane = 3 * torch.arange(8.0)[:, None] + 5 * torch.arange(6.0)
    found = resize_like_tensorflow(torch.stack((plane, 2 * plane))[None].expand(2, -1, -1, -1), (16, 9))
    expected = 3 * torch.arange(16)[:, None] * 8 / 16 + 5 * torch.arange(9) * 6 / 9
    assert found.shape == (2, 2, 16, 9)
    torch.testing.assert_close(found[1, 1, :14, :7], 2 * expected[:14, :7])


# --- InceptionV3 ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception() -> InceptionV3:
    network = InceptionV3()
    shake(network)
    return network


def test_the_network_has_its_size() -> None:
    with torch.device("meta"):
        network = InceptionV3()
    state = network.state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == 23_885_392
    assert len(state) == 94 * 5 + 2
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert state["Mixed_6c.branch7x7dbl_4.conv.weight"].shape == (160, 160, 7, 1)
    assert state["Mixed_7a.branch7x7x3_2.conv.weight"].shape == (192, 192, 1, 7)
    assert state["fc.weight"].shape == (1008, 2048)


@torch.no_grad()
def test_a_unit_is_convolution_normalization_and_rectifier() -> None:
    unit = Unit(5, 4, (3, 1), padding="same", stride=2)
    shake(unit)
    x = torch.randn(2, 5, 9, 8, generator=torch.Generator().manual_seed(0))
    norm = unit.bn
    expected = F.conv2d(x, unit.conv.weight, stride=2, padding=(1, 0))
    expected = F.batch_norm(expected, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-3).relu()
    torch.testing.assert_close(unit(x), expected, rtol=1e-4, atol=1e-5)
    assert (expected == 0).any()


def test_mean_pooling_leaves_the_border_out() -> None:
    """Of an even map all means are the same, at the border too; zeros taken in would darken it."""
    block = BlockA(8, pool=4)
    shake(block)
    pooled = block(torch.ones(1, 8, 5, 5))[:, -4:]
    torch.testing.assert_close(pooled, pooled[:, :, 2:3, 2:3].expand_as(pooled))
    assert pooled.any()


def test_the_last_block_pools_by_maximum() -> None:
    """As the graph of 2015 does; the block before it takes means."""
    spike = torch.zeros(1, 1, 3, 3)
    spike[0, 0, 1, 1] = 9.0
    with torch.device("meta"):
        network = InceptionV3()
    pools = [block.pool(spike)[0, 0, 1, 1].item() for block in (network.Mixed_7b, network.Mixed_7c)]
    assert pools == [1.0, 9.0]
    assert isinstance(network.Mixed_7c, BlockE)


def test_taps_are_what_they_say(inception: InceptionV3) -> None:
    """`spatial` is 7 channels of the first branch of Mixed_6d, in the order row, column, channel."""
    seen: list[Tensor] = []
    handle = inception.Mixed_6d.branch1x1.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        taps = inception(noise(1, 3, 20, 33))
    finally:
        handle.remove()
    assert [tuple(tap.shape) for tap in taps] == [(1, n) for n in (64, 192, 768, 2048, 2023, 1008, 1008)]
    assert all(tap.dtype == torch.float32 and tap.isfinite().all() for tap in taps)
    torch.testing.assert_close(taps.logits, inception.fc(taps.pool2048), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(taps.logits_unbiased, taps.logits - inception.fc.bias, rtol=1e-4, atol=1e-4)
    assert inception.fc.bias.abs().min() > 0
    assert seen[0].shape == (1, 192, 17, 17)
    for row, column, channel in ((0, 0, 0), (0, 0, 6), (3, 16, 2), (16, 16, 6)):
        assert taps.spatial[0, (row * 17 + column) * 7 + channel] == seen[0][0, channel, row, column]


# --- the one form --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> SqueezeNetFeatures:
    network = SqueezeNetFeatures()
    shake(network)
    return network


def test_every_network_of_the_table_is_tested() -> None:
    assert sorted(NETWORKS) == ["efficientnet", "inception", "squeezenet"]


@pytest.mark.parametrize("build", [InceptionFeatures, SqueezeNetFeatures, EfficientNetFeatures.published])
def test_what_is_seen_has_the_stated_shapes(build: Callable[[], FeatureNetwork]) -> None:
    network = build()
    seen = network(noise(1, 3, 40, 30).float() / 127.5 - 1)
    assert seen.features.shape == (1, network.width)
    assert seen.spatial.shape == (1, network.spatial_width)
    assert seen.logits.shape == (1, network.classes)
    assert all(each.dtype == torch.float32 and each.isfinite().all() for each in seen)
    assert network.weights in WEIGHTS or isinstance(network, EfficientNetFeatures)
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_squeezenet_sees_the_means_and_places_of_its_last_map(small: SqueezeNetFeatures) -> None:
    """With an image of the size that it was trained on, by torchvision's recipe."""
    images = noise(2, 3, 224, 224)
    mean, deviation = (torch.tensor(each).view(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    last = small.features((images / 255 - mean) / deviation)
    seen = small(images)
    torch.testing.assert_close(seen.features, last.mean((2, 3)))
    torch.testing.assert_close(seen.logits, small.classifier[1](last).relu().mean((2, 3)))
    for row, column, channel in ((0, 0, 0), (0, 0, 6), (3, 12, 2), (12, 12, 6)):
        torch.testing.assert_close(seen.spatial[1, (row * 13 + column) * 7 + channel], last[1, channel, row, column])
    assert (last[:, :7] > 0).any()


def test_squeezenet_antialiases() -> None:
    """Stripes of two pixels, where the network sees one in four, are gray to it; without antialiasing all would be
    black."""
    stripes = torch.tensor([255, 0, 0, 255], dtype=torch.uint8).repeat(224).expand(1, 3, 224, -1)
    network = SqueezeNetFeatures()
    shake(network)
    gray = torch.full((1, 3, 224, 224), 128, dtype=torch.uint8)
    middle = slice(7 * 4, 7 * 9)  # away from the border, where the stripes do not cancel
    found, expected = network(stripes).spatial.view(13, -1)[6], network(gray).spatial.view(13, -1)[6]
    torch.testing.assert_close(found[middle], expected[middle], rtol=0.05, atol=0.05)


def test_all_forms_of_an_image_are_seen_alike(small: SqueezeNetFeatures) -> None:
    levels = noise(1, 1, 33, 20)
    expected = small(levels).features
    floats = levels.float() / 127.5 - 1
    for same in (levels.expand(-1, 3, -1, -1), floats, floats.double() + 1e-4, floats.expand(-1, 3, -1, -1)):
        torch.testing.assert_close(small(same).features, expected)
    torch.testing.assert_close(small(3 * floats).features, small((3 * floats).clamp(-1, 1)).features)
    assert not small(255 - levels).features.allclose(expected)


@final
class Probe(FeatureNetwork):
    """Sees nothing, and notes the precision that it would compute in."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[object] = []

    def extract(self, images: Tensor) -> NetworkOutput:
        self.notes += [
            torch.backends.cudnn.allow_tf32,
            torch.get_float32_matmul_precision(),
            torch.is_autocast_enabled("cpu"),
        ]
        return NetworkOutput(images, images, images)


def test_the_callers_precision_is_not_that_of_scores() -> None:
    probe = Probe()
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            probe(noise(1, 3, 4, 4))
        assert torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])
    assert probe.notes == [False, "highest", False]


def test_autocast_changes_nothing(small: SqueezeNetFeatures) -> None:
    images = noise(1, 3, 24, 24)
    expected = small(images).features
    with torch.autocast("cpu", torch.bfloat16):
        assert small(images).features.equal(expected)


def test_precision_is_the_callers_again_after_an_error(small: SqueezeNetFeatures) -> None:
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    with pytest.raises(RuntimeError):
        small(noise(1, 3, 0, 0))
    assert before == (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision())
    with pytest.raises(SmaltiError, match="images of 1 or 3 channels, these have 4"):
        small(noise(1, 4, 24, 24))


def test_names_of_scores_cannot_be_mixed_up() -> None:
    """FID is of one network; the stand-in's names say what they are."""
    real, stand_in = InceptionFeatures.names, SqueezeNetFeatures.names
    assert set(real) == set(stand_in) == set(SCORES)
    assert not set(real.values()) & set(stand_in.values())
    assert real["frechet"] == "fid"
    assert stand_in["frechet"] == "frechet_squeezenet"
    assert all(name.endswith("squeezenet") and "fid" not in name for name in stand_in.values())


def test_a_fingerprint_is_of_the_weights() -> None:
    first, second = SqueezeNetFeatures(), SqueezeNetFeatures()
    shake(first)
    assert first.fingerprint() != second.fingerprint()
    second.load_state_dict(first.state_dict())
    assert first.fingerprint() == second.fingerprint()
    assert len(first.fingerprint()) == 16
    second.get_parameter("classifier.1.bias")[7] += 1e-3
    assert first.fingerprint() != second.fingerprint()


def test_published_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The conversion of Inception's weights counts batches beside them; either of its two names will do."""
    original = InceptionV3()
    shake(original)
    state = original.state_dict()
    counted = {f"{key.removesuffix('.weight')}.num_batches_tracked" for key in state if key.endswith("bn.weight")}
    path = tmp_path / WEIGHTS["inception-fid"].files[1]
    torch.save({**state, **{key: torch.tensor(0) for key in counted}}, path)
    monkeypatch.setenv("SMALTI_WEIGHTS", str(tmp_path))
    loaded = feature_network("inception")
    images = noise(1, 3, 16, 16)
    seen, taps = loaded(images), original(images)
    assert seen.features.equal(taps.pool2048)
    assert seen.spatial.equal(taps.spatial)
    assert seen.logits.equal(taps.logits_unbiased)

    torch.save({key: value for key, value in state.items() if key != "fc.bias"}, path)
    with pytest.raises(SmaltiError, match=r"fc\.bias is missing"):
        feature_network("inception")


def test_networks_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SmaltiError, match="unknown feature network 'incepton'; did you mean 'inception'"):
        feature_network("incepton")
    monkeypatch.setenv("SMALTI_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("SMALTI_CACHE", str(tmp_path))
    monkeypatch.setenv("SMALTI_OFFLINE", "1")
    with pytest.raises(SmaltiError, match=r"weights-inception-2015-12-05-6726825d\.pth is needed .* put it"):
        feature_network("inception")


# --- SqueezeNet with its published weights -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> FeatureNetwork:
    """From the folder `SMALTI_WEIGHTS`, or the one beside the repository."""
    folder = Path(os.environ.get("SMALTI_WEIGHTS") or DATA / "weights")
    if not any((folder / file).is_file() for file in WEIGHTS["squeezenet1_1"].files):
        pytest.skip(f"set SMALTI_WEIGHTS to a folder that holds {WEIGHTS['squeezenet1_1'].files[0]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMALTI_WEIGHTS", str(folder))
        return feature_network("squeezenet")


def photos(every: int) -> tuple[Tensor, Tensor]:
    """Every so many photos, as ImageNet's networks are tested, (N,3,224,224) uint8, and their classes (N,)."""
    paths = sorted((DATA / "imagenet_sample").glob("*.jpg"))[::every]
    if not paths:
        pytest.skip("the sample of ImageNet is not on this machine")
    images = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        size = tuple(round(256 * side / min(image.size)) for side in image.size)
        resized = image.resize((size[0], size[1]), Image.Resampling.BILINEAR)
        images.append(torch.from_numpy(center_crop(np.array(resized), (224, 224)).copy()).permute(2, 0, 1))
    return torch.stack(images), torch.tensor([int(path.name.split("_")[0]) for path in paths])


def accuracy(network: FeatureNetwork, every: int) -> tuple[float, float]:
    """Top-1 and top-5 in percent."""
    images, classes = photos(every)
    best = torch.cat([network(part).logits.topk(5).indices for part in torch.split(images, 25)])
    right = best == classes[:, None]
    return 100 * float(right[:, 0].double().mean()), 100 * float(right.any(1).double().mean())


def test_squeezenet_knows_most_photos(published: FeatureNetwork) -> None:
    first, fifth = accuracy(published, 14)
    assert first > 50
    assert fifth > 72


@pytest.mark.slow
def test_squeezenet_is_as_accurate_as_was_measured(published: FeatureNetwork) -> None:
    """65.7 % and 85.6 % of the 700 photos, as the notes beside the weights say: one photo is 0.14 %."""
    first, fifth = accuracy(published, 1)
    assert first == pytest.approx(65.7, abs=0.2)
    assert fifth == pytest.approx(85.6, abs=0.2)
