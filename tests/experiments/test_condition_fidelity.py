"""How far images show what they were told: each measure on images of which the answer is known, and the scene
network."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from smalti.data.annotations.objects import ObjectAnnotation
from smalti.experiments import condition_fidelity
from smalti.experiments.condition_fidelity import ComparedImages, f_score, mean_iou, rank_correlation
from smalti.experiments.scene_network import KnownScenes, SceneNetwork, ScenePrediction, predict, train_scene_network
from smalti.scenes.painter import CLASSES, LABELS

SIDE = 16


class Seeing(torch.nn.Module):
    """A judge that reads labels, depth and class off the three channels of an image: red is the label, green the
    depth."""

    def forward(self, images: Tensor) -> ScenePrediction:
        labels = ((images[:, 0] + 1) * 4).round().long()  # -1 -> 0 ... 1 -> 8
        logits = torch.nn.functional.one_hot(labels, len(LABELS)).movedim(-1, 1).float()
        classes = torch.nn.functional.one_hot(labels[:, 0, 0], len(CLASSES)).float()
        return ScenePrediction(logits, images[:, 1:2], classes)


def painted(labels: Tensor, depths: Tensor) -> Tensor:
    """Labels (B,H,W) and depths (B,1,H,W) -> the images in which `Seeing` sees them."""
    return torch.stack([labels / 4 - 1.0, depths[:, 0], torch.zeros_like(depths[:, 0])], dim=1)


@pytest.fixture
def compared() -> ComparedImages:
    """Told images show what they should, those unconditional another scene's, and the real ones half of it."""
    chance = torch.Generator().manual_seed(0)
    labels = torch.randint(len(LABELS), (4, SIDE, SIDE), generator=chance)
    depths = torch.rand(4, 1, SIDE, SIDE, generator=chance) * 2 - 1
    conditioned = painted(labels, depths)
    half = torch.where(torch.arange(SIDE) < SIDE // 2, conditioned, conditioned.roll(1, 0))
    known = KnownScenes(conditioned, labels[:, 0, 0], labels, depths)
    return ComparedImages(conditioned, conditioned.roll(1, 0), half, known, [], Seeing())  # type: ignore[arg-type]


def test_labels_that_are_displayed(compared: ComparedImages) -> None:
    found = condition_fidelity.labels(compared)
    assert found.conditioned == 1.0
    assert 0.3 < found.real < 0.6
    assert found.unconditional < 0.2
    assert found.score == pytest.approx(1 / found.real)


def test_depths_that_are_displayed(compared: ComparedImages) -> None:
    found = condition_fidelity.depths(compared)
    assert found.conditioned == found.score == pytest.approx(1)
    assert found.real == pytest.approx(0.5, abs=0.1)
    assert abs(found.unconditional) < 0.15
    upside_down = compared._replace(known=compared.known._replace(depths=-compared.known.depths))
    assert condition_fidelity.depths(upside_down).conditioned == pytest.approx(-1)


def test_classes_that_are_displayed(compared: ComparedImages) -> None:
    found = condition_fidelity.classes(compared)
    assert found.conditioned == found.score == 1
    assert found.unconditional < 1


def test_edges_that_are_displayed(compared: ComparedImages) -> None:
    found = condition_fidelity.edge_maps(compared)
    assert found.conditioned == 1
    assert found.score == pytest.approx(1 / found.unconditional)


def test_smaller_images_are_compared(compared: ComparedImages) -> None:
    brighter = compared._replace(
        conditioned=compared.conditioned + 0.2 * (compared.conditioned < 0.8), known=compared.known
    )
    flat = torch.zeros_like(compared.conditioned)
    same = brighter._replace(conditioned=flat + 0.2, known=compared.known._replace(images=flat))
    # A difference of a tenth of the range is 20 dB, whatever the size.
    assert condition_fidelity.smaller(same, times=4).conditioned == pytest.approx(20, abs=1e-4)
    checked = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(SIDE // 2, SIDE // 2).expand_as(flat) * 0.5
    seen = same._replace(conditioned=checked, known=same.known)
    assert (
        condition_fidelity.smaller(seen, times=2).conditioned > 60
    )  # what is lost in the smaller image does not count


def test_boxes_that_show_their_class() -> None:
    house = LABELS.index("house")
    labels = torch.zeros(1, SIDE, SIDE, dtype=torch.long)
    labels[0, 8:12, 4:8] = house
    depths = torch.zeros(1, 1, SIDE, SIDE)
    shown, empty = painted(labels, depths), painted(torch.zeros_like(labels), depths)
    listed = [
        [
            ObjectAnnotation("house", (0.25, 0.5, 0.25, 0.25), keypoints=((0.3, 0.5),)),
            ObjectAnnotation("tree", (0.0, 0.0, 0.2, 0.2)),
        ]
    ]
    known = KnownScenes(shown, torch.zeros(1, dtype=torch.long), labels, depths)
    compared = ComparedImages(shown, empty, shown, known, listed, Seeing())  # type: ignore[arg-type]
    all_of_them = condition_fidelity.boxes(compared, names=LABELS, only=lambda annotation: True)
    assert (all_of_them.conditioned, all_of_them.unconditional) == (0.5, 0.0)  # the house, not the tree
    houses = condition_fidelity.boxes(compared, names=LABELS, only=lambda annotation: bool(annotation.keypoints))
    assert houses.conditioned == 1.0
    assert houses.score >= 2


def test_what_is_above_and_below(compared: ComparedImages) -> None:
    labels = torch.zeros(2, 12, 6, dtype=torch.long)
    labels[:, 6:] = LABELS.index("water")
    right = painted(labels, torch.zeros(2, 1, 12, 6))
    found = condition_fidelity.heights(compared._replace(conditioned=right, real=right, unconditional=right.flip(2)))
    assert (found.conditioned, found.score, found.unconditional) == (1, 1, 0)


def test_intersection_over_union() -> None:
    wanted = torch.tensor([[[0, 0, 1, 1]]])
    assert mean_iou(torch.tensor([[[0, 0, 1, 1]]]), wanted) == 1
    assert mean_iou(torch.tensor([[[0, 1, 1, 1]]]), wanted) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert mean_iou(torch.tensor([[[2, 2, 2, 2]]]), wanted) == 0  # a label that is not asked for is not counted again


def test_ranks() -> None:
    one = torch.tensor([3.0, 1.0, 2.0, 10.0])
    assert float(rank_correlation(one, one.exp())) == pytest.approx(1)
    assert float(rank_correlation(one, -one)) == pytest.approx(-1)
    # By hand: ranks 1 2.5 2.5 4 against 1 2 3 4.
    tied = rank_correlation(torch.tensor([0.0, 5.0, 5.0, 9.0]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert float(tied) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert float(rank_correlation(one, torch.ones(4))) == 0


def test_edges_may_be_a_pixel_off() -> None:
    wanted = torch.zeros(1, 8, 8, dtype=torch.bool)
    wanted[0, 3] = True
    assert f_score(wanted.roll(1, 1), wanted) == 1
    assert f_score(wanted.roll(2, 1), wanted) == 0
    both = wanted | wanted.roll(4, 1)
    assert f_score(both, wanted) == pytest.approx(2 * 0.5 / 1.5)
    assert f_score(torch.zeros_like(wanted), wanted) == 0


def test_the_discriminator_learns_what_is_seen() -> None:
    chance = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (24, 2, 2), generator=chance).repeat_interleave(8, 1).repeat_interleave(8, 2)
    depths = (labels / 2 - 0.5).unsqueeze(1).float()
    images = torch.stack([labels == each for each in range(3)], dim=1) * 2.0 - 1
    known = KnownScenes(images, labels[:, 0, 0], labels, depths)
    done: list[int] = []
    network = train_scene_network(known, labels=3, classes=3, steps=40, progress=lambda now, total: done.append(now))
    prediction = predict(network, images)
    assert (prediction.labels.argmax(1) == labels).float().mean() > 0.95
    assert (prediction.depths - depths).abs().mean() < 0.2
    assert prediction.classes.shape == (24, 3)
    assert done == list(range(1, 41))
    torch.manual_seed(1)
    again = train_scene_network(known, labels=3, classes=3, steps=2, progress=lambda now, total: None)
    other = train_scene_network(known, labels=3, classes=3, steps=2, progress=lambda now, total: None)
    assert all(torch.equal(one, two) for one, two in zip(again.parameters(), other.parameters(), strict=True))
    assert isinstance(network, SceneNetwork)
    assert not network.training
