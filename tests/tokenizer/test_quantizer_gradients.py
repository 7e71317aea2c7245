"""How gradients pass a choice: the straight-through estimator and the rotation trick, against rotations put together by
hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from smalti.tokenizer.quantizers import VQ, VQSettings
from smalti.tokenizer.quantizers.gradient_estimators import GRADIENTS, rotated, straight_through
from tests import reference


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", GRADIENTS)
def test_the_value_is_what_was_chosen(name: str) -> None:
    features, chosen = drawn(40, 6), drawn(40, 6, seed=1)
    torch.testing.assert_close(GRADIENTS[name](features, chosen), chosen, rtol=0, atol=1e-6)


def test_a_straight_gradient_is_left_as_it_is() -> None:
    features, gradient = drawn(5, 3).requires_grad_(), drawn(5, 3, seed=1)
    (found,) = torch.autograd.grad((straight_through(features, drawn(5, 3, seed=2)) * gradient).sum(), features)
    assert torch.equal(found, gradient)


@given(seed=st.integers(0, 10**6), dimension=st.integers(2, 9))
def test_a_rotated_gradient_is_turned_as_the_code_to_the_feature(seed: int, dimension: int) -> None:
    # In double precision: where feature and code are nearly opposite, rounding is magnified a thousandfold.
    features, chosen, gradient = (drawn(3, dimension, seed=seed + place).double() for place in range(3))
    features.requires_grad_()
    (found,) = torch.autograd.grad((rotated(features, chosen) * gradient).sum(), features)
    wanted = [reference.turned(*each) for each in zip(features.detach(), chosen, gradient, strict=True)]
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-6, atol=1e-6)


def test_angles_to_the_code_become_angles_to_the_feature() -> None:
    """Figure 1 of the paper: a gradient along the code pushes the feature along itself, whatever is between them."""
    features, chosen = drawn(20, 4).requires_grad_(), drawn(20, 4, seed=1)
    gradient = drawn(20, 4, seed=2)
    (found,) = torch.autograd.grad((rotated(features, chosen) * gradient).sum(), features)
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(cosine(found, features), cosine(gradient, chosen), rtol=1e-4, atol=1e-4)
    lengths = gradient.norm(dim=1) * chosen.norm(dim=1) / features.norm(dim=1)
    torch.testing.assert_close(found.norm(dim=1), lengths, rtol=1e-4, atol=1e-4)


def test_nothing_turns_where_the_feature_lies_on_its_code() -> None:
    features, gradient = drawn(4, 3).requires_grad_(), drawn(4, 3, seed=1)
    (found,) = torch.autograd.grad((rotated(features, features.detach()) * gradient).sum(), features)
    torch.testing.assert_close(found, gradient)


def test_opposite_and_missing_directions_give_numbers() -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).requires_grad_()
    chosen = torch.tensor([[-2.0, 0.0], [1.0, 1.0]])
    latents = rotated(features, chosen)
    torch.testing.assert_close(latents, chosen)
    (found,) = torch.autograd.grad(latents.sum(), features)
    assert torch.isfinite(found).all()


def test_the_setting_turns_the_gradient_and_nothing_else() -> None:
    features = drawn(2, 3, 4, 5).requires_grad_()
    results, gradients = [], []
    for name in GRADIENTS:
        torch.manual_seed(0)
        made = VQ(VQSettings(codebook_size=7, codebook_dim=3, l2_normalize=False, gradient=name))  # type: ignore[arg-type]
        with torch.no_grad():
            made.codebook.copy_(drawn(7, 3, seed=1))
        results.append(made(features))
        gradients.append(torch.autograd.grad((results[-1].latents * drawn(2, 3, 4, 5, seed=2)).sum(), features)[0])
    assert torch.equal(results[0].codes, results[1].codes)
    assert torch.equal(results[0].loss, results[1].loss)
    torch.testing.assert_close(results[0].latents, results[1].latents)
    assert (gradients[0] - gradients[1]).abs().max() > 0.1
