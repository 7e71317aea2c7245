"""The codebook that moves as a whole: what its layer starts from, what learns and what stays."""

from __future__ import annotations

import torch
from torch import Tensor

from smalti.tokenizer.quantizers import SimVQ, SimVQSettings
from tests import reference


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantizer(*, size: int = 12, fitted: bool = True, commitment: float = 0.25) -> SimVQ:
    torch.manual_seed(0)
    return SimVQ(SimVQSettings(codebook_size=size, codebook_dim=3, fitted=fitted, commitment=commitment))


def rows(features: Tensor) -> Tensor:
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def test_codes_are_the_nearest_of_the_layers_vectors() -> None:
    made, features = quantizer(commitment=0.3), drawn(2, 3, 4, 5)
    vectors = made.frozen @ made.linear.weight.T + made.linear.bias
    codes = reference.nearest(rows(features), vectors.detach())
    quantized = made(features)
    assert torch.equal(quantized.codes.flatten(), codes)
    torch.testing.assert_close(rows(quantized.latents), vectors[codes])
    torch.testing.assert_close(quantized.loss, 1.3 * (rows(features) - vectors[codes]).square().mean())


def test_one_feature_moves_every_code() -> None:
    """What the paper is about: with VQ only the code that is taken moves."""
    made = quantizer()
    before = made.vectors().detach()
    made(drawn(1, 3, 1, 1)).loss.backward()
    with torch.no_grad():
        for parameter in made.parameters():
            assert parameter.grad is not None
            parameter.sub_(parameter.grad, alpha=0.1)
    assert ((made.vectors() - before).norm(dim=1) > 1e-4).all()
    assert [name for name, _ in made.named_parameters()] == ["linear.weight", "linear.bias"]


def test_the_codes_begin_where_the_features_are() -> None:
    features = (drawn(400, 3) @ torch.tensor([[2.0, 0.5, 0.0], [0.0, 0.1, 0.3], [0.0, 0.0, 1.0]]) + 5).T.view(
        1, 3, 20, 20
    )
    made = quantizer(size=4000)
    assert made.init_features == 768
    frozen = made.frozen.clone()
    made.init_codebook(features, generator=torch.Generator())
    assert torch.equal(made.frozen, frozen)
    codes, flat = made.vectors().detach(), rows(features)
    torch.testing.assert_close(codes.mean(0), flat.mean(0), rtol=0.05, atol=0.05)
    torch.testing.assert_close(torch.cov(codes.T), torch.cov(flat.T, correction=0), rtol=0.1, atol=0.1)
    assert quantizer(fitted=False).init_features == 0


def test_nothing_is_mended() -> None:
    made, features = quantizer(), drawn(2, 3, 4, 5)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    assert made.update_codebook(features, made(features).codes, generator=torch.Generator()) == 0
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
