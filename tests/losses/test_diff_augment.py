"""DiffAugment: what each policy does, that one draw serves both images, and that gradients pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from smalti.losses.diff_augment import Augmentation, change_color, cut_out, draw_augmentation, translate


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Images of uniform noise in [-1, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def drawn(batch: int = 4, seed: int = 0) -> Augmentation:
    """A draw of all policies."""
    generator = torch.Generator().manual_seed(seed)
    return draw_augmentation(("color", "translation", "cutout"), batch, generator=generator)


def test_the_middle_of_every_draw_changes_no_color_and_no_place() -> None:
    images = noise(2, 3, 16, 16)
    torch.testing.assert_close(change_color(images, torch.full((2, 3), 0.5)), images)
    assert translate(images, torch.full((2, 2), 0.5)).equal(images)


def test_color_changes_are_those_of_their_names() -> None:
    images = noise(1, 3, 8, 8)
    brighter = change_color(images, torch.tensor([[1.0, 0.5, 0.5]]))
    torch.testing.assert_close(brighter, images + 0.5)
    gray = change_color(images, torch.tensor([[0.5, 0.0, 0.5]]))
    torch.testing.assert_close(gray, images.mean(1, keepdim=True).expand_as(images))
    flatter = change_color(images, torch.tensor([[0.5, 0.5, 0.0]]))
    torch.testing.assert_close(flatter, images / 2 + images.mean() / 2)


def test_a_translation_moves_and_fills_with_zeros() -> None:
    images = noise(1, 3, 16, 16)
    moved = translate(images, torch.tensor([[0.0, 0.999]]))  # 2 pixels down (the window begins above), 2 left
    assert moved[:, :, 2:, :-2].equal(images[:, :, :-2, 2:])
    assert moved[:, :, :2].eq(0).all()
    assert moved[:, :, :, -2:].eq(0).all()


@pytest.mark.parametrize("corner", [(0.0, 0.0), (0.5, 0.5), (0.999, 0.3)])
def test_a_cutout_is_a_square_of_half_the_side(corner: tuple[float, float]) -> None:
    mask = cut_out(torch.ones(1, 1, 16, 16), torch.tensor([corner]))[0, 0]
    missing = mask.eq(0)
    rows, columns = missing.any(1).sum(), missing.any(0).sum()
    assert missing.sum() == rows * columns
    assert 1 <= rows <= 8
    assert 1 <= columns <= 8


def test_one_draw_serves_both_and_each_image_has_its_own() -> None:
    augment, image = drawn(), noise(1, 3, 16, 16).expand(4, -1, -1, -1)
    first, again = augment(image), augment(image.clone())
    assert first.equal(again)
    assert len({tuple(each.flatten().tolist()) for each in first}) == 4


def test_parts_of_a_draw_are_those_of_the_whole() -> None:
    augment, images = drawn(6), noise(6, 3, 16, 16)
    whole = augment(images)
    assert torch.cat([augment.part(slice(0, 2))(images[:2]), augment.part(slice(2, 6))(images[2:])]).equal(whole)
    assert augment.part(slice(1, None, 2))(images[1::2]).equal(whole[1::2])


def test_gradients_pass() -> None:
    images = noise(2, 3, 16, 16).double().requires_grad_()
    assert torch.autograd.gradcheck(drawn(2, 1), (images,))


def test_nothing_is_drawn_without_policies() -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    images = noise(2, 3, 16, 16)
    assert draw_augmentation((), 2, generator=generator)(images) is images
    assert generator.get_state().equal(before)
