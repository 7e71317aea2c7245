"""A transformer whose head is its embedding: one matrix, saved once, learned once, copied whole."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from smalti.prior import Transformer, TransformerSettings, nll, parameter_groups


def built(*, tied: bool) -> Transformer:
    torch.manual_seed(0)
    settings = TransformerSettings(
        codebook_size=11, condition_size=3, grid=(3, 3), layers=1, embed_dim=16, heads=2, tied=tied
    )
    return Transformer(settings)


def test_the_head_scores_by_embeddings() -> None:
    prior = built(tied=True).eval()
    features = torch.randn(2, 5, 16)
    assert torch.equal(prior.head(features), features @ prior.embedding.weight[:11].T)
    own, shared = (sum(each.numel() for each in built(tied=tied).parameters()) for tied in (False, True))
    assert own - shared == 11 * 16


def test_it_learns_and_copies_its_own_matrix(tmp_path: Path) -> None:
    prior = built(tied=True)
    average = copy.deepcopy(prior)
    assert sum(len(group["params"]) for group in parameter_groups(prior, weight_decay=0.1)) == len(
        list(prior.parameters())
    )
    optimizer = torch.optim.AdamW(parameter_groups(prior, weight_decay=0.1), lr=1e-2)
    codes = torch.randint(11, (4, 3, 3))
    losses = []
    for _ in range(30):
        loss = nll(prior, prior.null_prefix(4), codes).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    features = torch.randn(1, 16)
    # The copy reads its own embedding, not that of what it was copied from.
    assert torch.equal(average.head(features), features @ average.embedding.weight[:11].T)
    assert not torch.equal(average.head(features), prior.head(features))
    save_file(prior.state_dict(), tmp_path / "prior.safetensors")
    again = built(tied=True)
    again.load_state_dict(load_file(tmp_path / "prior.safetensors"))
    assert torch.equal(again.head(features), prior.head(features))
