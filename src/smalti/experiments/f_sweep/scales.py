"""What the experiment `f-sweep` trains at each scale: plain values, to be changed here or with `--set`."""

from __future__ import annotations

from typing import Any

from smalti.experiments.base import Scale

_SHAPES = {2: (2, [1]), 4: (4, [1]), 8: (4, [1, 2]), 16: (4, [1, 2, 2])}
"""f -> stem and multipliers."""
_TOKENIZERS: list[dict[str, Any]] = [
    {
        "name": f"f{f}",
        "changes": [
            f"model.autoencoder.patch_size={stem}",
            f"model.autoencoder.channel_multipliers={channel_multipliers}",
        ],
    }
    for f, (stem, channel_multipliers) in _SHAPES.items()
]
# Attention over all codes of an image would be most of the work at f 2, where there are thousands.
_ALIKE = ["model.autoencoder.middle_attention=false", "run.tensorboard=false"]

SCALES = {
    "tiny": Scale(
        about="f 1 to 16 with 256 codes, windows of 8 x 8 codes: seven minutes on two CPU cores",
        data="the embedded scenes at 128 pixels",
        renders_scenes=True,
        settings={
            "recipe": "demo",
            "tokenizer": [
                *_ALIKE,
                "run.images=600",
                "run.log_every=100",
                "run.validate_every=300",
                "run.sample_every=600",
                "run.checkpoint_every=300",
                "model.autoencoder.base_channels=48",
                "objective.adversarial.weight=0",
            ],
            "prior": [
                "run.codes=204800",
                "run.log_every=20480",
                "run.validate_every=51200",
                "run.sample_every=204800",
                "run.checkpoint_every=51200",
                "run.tensorboard=false",
                "network.layers=2",
                "network.embed_dim=128",
            ],
            "tokenizers": _TOKENIZERS,
            "codebook": 256,
            "window": [8, 8],
            "size": [128, 128],
            "crop": [64, 64],
            "copies": 8,
            "samples": 4,
            "held_out": 0.15,
            "images": 40,
            "shown": 4,
        },
    ),
    "small": Scale(
        about="f 1 to 16 with 512 codes, windows of 8 x 8 codes: less than an hour on two CPU cores",
        data="a folder of some thousand photographs of one kind, seen at 128 pixels",
        renders_scenes=False,
        settings={
            "recipe": "small-64",
            "tokenizer": [
                *_ALIKE,
                "run.images=2400",
                "run.validate_every=600",
                "run.sample_every=2400",
                "run.checkpoint_every=600",
                "model.autoencoder.base_channels=64",
            ],
            "prior": [
                "run.codes=1000000",
                "run.sample_every=1000000",
                "network.layers=3",
                "network.embed_dim=160",
            ],
            "tokenizers": _TOKENIZERS,
            "codebook": 512,
            "window": [8, 8],
            "size": [128, 128],
            "crop": [64, 64],
            "copies": 8,
            "samples": 16,
            "held_out": 0.05,
            "images": 128,
            "shown": 8,
        },
    ),
    "full": Scale(
        about="f 1 to 16 with 1,024 codes, windows of 16 x 16 codes: days on a GPU; has not been run",
        data="FFHQ or CelebA-HQ, seen at 256 pixels",
        renders_scenes=False,
        settings={
            "recipe": "small-64",
            "tokenizer": [
                *_ALIKE,
                "run.images=1000000",
                "run.batch=16",
                "run.validate_every=50000",
                "run.sample_every=50000",
                "run.checkpoint_every=50000",
                "model.autoencoder.base_channels=128",
                "model.autoencoder.res_blocks=2",
            ],
            "prior": [
                "run.codes=500000000",
                "run.batch=64",
                "run.validate_every=20000000",
                "run.sample_every=100000000",
                "run.checkpoint_every=20000000",
                "network.layers=12",
                "network.embed_dim=768",
                "network.heads=12",
            ],
            "tokenizers": _TOKENIZERS,
            "codebook": 1024,
            "window": [16, 16],
            "size": [256, 256],
            "crop": [128, 128],
            "copies": 16,
            "samples": 2048,
            "held_out": 0.02,
            "images": 1000,
            "shown": 8,
        },
    ),
}
