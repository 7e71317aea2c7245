"""A small random pipeline with class labels, and its parts, for tests of generation, commands and the page."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from smalti.conditions.base import Condition
from smalti.conditions.labels import Labels
from smalti.core.settings import parse
from smalti.pipeline import Pipeline
from smalti.prior import Transformer, TransformerSettings
from smalti.prior_folder import save_prior
from smalti.tokenizer.vqgan import VQGAN, VQGANSettings

LABELS = Labels(["dawn", "dusk", "night"])


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Uniform in [-1, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def tokenizer(seed: int = 0, *, channels: int = 3) -> VQGAN:
    """A small random tokenizer, f = 4, 16 codes."""
    plain = {
        "autoencoder": {
            "channels": channels,
            "base_channels": 8,
            "channel_multipliers": [1],
            "patch_size": 4,
            "res_blocks": 1,
            "latent_channels": 4,
        },
        "quantizer": {"codebook_size": 16, "codebook_dim": 4},
    }
    torch.manual_seed(seed)
    return VQGAN(parse(VQGANSettings, plain, where="test"))


def prior(condition: Condition, *, order: str = "raster") -> Transformer:
    """A small random prior with a window of 3 x 4, and large weights, so that all that it reads shows in its codes."""
    plain = {
        "codebook_size": 16,
        "condition_size": condition.size,
        "prefix_length": condition.length,
        "grid": (3, 4),
        "layers": 1,
        "embed_dim": 16,
        "heads": 2,
        "order": order,
    }
    torch.manual_seed(1)
    made = Transformer(parse(TransformerSettings, plain, where="test"))
    with torch.no_grad():
        for weight in made.parameters():
            weight.normal_(0, 0.4) if weight.ndim == 2 else weight.uniform_(0.5, 1.5)
    return made


def pipeline(condition: Condition = LABELS, *, order: str = "raster") -> Pipeline:
    return Pipeline(tokenizer(), prior(condition, order=order), condition)


def written(folder: Path, condition: Condition = LABELS) -> Pipeline:
    """A pipeline, and its folder."""
    pipe = pipeline(condition)
    network = pipe.prior
    assert isinstance(network, Transformer)
    pipe.tokenizer.save_pretrained(folder / "tokenizer", about={})
    save_prior(network, condition, folder / "prior", fingerprint=pipe.tokenizer.fingerprint(), about={"seen": 7})
    return pipe
