"""A tiny random pipeline with the conditions and the image size of the bundled model, for the examples of the
documentation."""

from __future__ import annotations

from typing import Any

import torch

from smalti.conditions.composite import CompositeCondition
from smalti.conditions.labels import Labels
from smalti.conditions.spatial import SpatialCondition, SpatialConditionSettings
from smalti.conditions.text import text_condition, train_vocabulary
from smalti.core.settings import parse
from smalti.pipeline import Pipeline
from smalti.prior import Transformer, TransformerSettings
from smalti.scenes.scene_classes import CLASSES, LABELS
from smalti.tokenizer.vqgan import VQGAN, VQGANSettings


def tiny_tokenizer(channels: int = 3) -> VQGAN:
    """f = 8, 16 codes."""
    plain = {
        "autoencoder": {
            "channels": channels,
            "patch_size": 4,
            "base_channels": 8,
            "channel_multipliers": [1, 1],
            "res_blocks": 1,
            "latent_channels": 4,
        },
        "quantizer": {"codebook_size": 16, "codebook_dim": 4},
    }
    torch.manual_seed(0)
    return VQGAN(parse(VQGANSettings, plain, where="test"))


def tiny_pipeline() -> Pipeline:
    """128 x 128 pixels in any order, conditioned on any of class, text and segmentation, or on nothing."""
    maps = {"kind": "segmentation", "key": "segmentation", "grid": (16, 16), "names": LABELS}
    condition = CompositeCondition(
        [
            Labels(CLASSES),
            text_condition(train_vocabulary(["a house by a lake"], max_size=300), length=8),
            SpatialCondition(parse(SpatialConditionSettings, maps, where="test"), tiny_tokenizer(len(LABELS))),
        ]
    )
    sizes: dict[str, Any] = {
        "codebook_size": 16,
        "condition_size": condition.size,
        "prefix_length": condition.length,
        "grid": (16, 16),
        "maps": condition.maps,
        "order": "any",
    }
    settings = parse(TransformerSettings, {**sizes, "layers": 1, "embed_dim": 16, "heads": 2}, where="test")
    return Pipeline(tiny_tokenizer(), Transformer(settings), condition)
