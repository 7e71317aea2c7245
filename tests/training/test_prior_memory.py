"""How much memory the paper's prior takes, of which the figures in docs/scale.md are made: built without memory."""

from __future__ import annotations

import torch

from smalti.core.settings import parse
from smalti.prior.gpt import GPT, GPTSettings

GIB = 2**30
PAPER = {
    "vocab_size": 16_384,
    "codebook_size": 16_384,
    "grid": [16, 16],
    "block_size": 256,
    "layers": 48,
    "embed_dim": 1536,
    "heads": 16,
}
"""The transformer of the original for ImageNet: 1.4 billion weights (cin_transformer of taming-transformers)."""


def bytes_per_rank(settings: dict[str, object], ranks: int) -> tuple[int, int]:
    """Settings of a prior in float32 -> the bytes of what each of several ranks keeps under FSDP (its part of weights,
    gradients and both moments of Adam), and of the largest block, which is gathered whole while it computes."""
    with torch.device("meta"):
        prior = GPT(parse(GPTSettings, settings, where="test"))
    weights = sum(weight.numel() for weight in prior.parameters())
    block = max(sum(weight.numel() for weight in block.parameters()) for block in prior.blocks)
    return -(-4 * 4 * weights // ranks), 4 * block


def test_the_papers_prior_in_parts() -> None:
    alone, block = bytes_per_rank(PAPER, 1)
    assert round(alone / 16 / 1e9, 2) == 1.41
    assert round(alone / GIB, 1) == 21.0
    assert round(block / GIB, 2) == 0.11
    assert [round(bytes_per_rank(PAPER, ranks)[0] / GIB, 1) for ranks in (2, 4, 8, 64)] == [10.5, 5.3, 2.6, 0.3]
