"""What the experiment `window` trains at each scale: plain values, to be changed here or with `--set`."""

from __future__ import annotations

from smalti.experiments.base import Scale


def _networks(layers: int, width: int, heads: int) -> dict[str, list[str]]:
    sizes = f"layers: {layers}, embed_dim: {width}, heads: {heads}, dropout: 0.1"
    return {
        "transformer": [f"network={{name: transformer, {sizes}}}"],
        "neighborhood": [f"network={{name: neighborhood, radius: 4, {sizes}}}"],
    }


# Attention over all codes of an image would be most of the tokenizer's work at f 4.
_TOKENIZER = ["model.autoencoder.channel_multipliers=[1]", "model.autoencoder.middle_attention=false"]
_QUIET = ["run.tensorboard=false"]

SCALES = {
    "tiny": Scale(
        about="windows of 8 x 8 of 256 codes, panoramas of 16 x 64, five priors of 0.7 million parameters: "
        "seven minutes on two "
        "CPU cores",
        data="the embedded scenes at 64 x 256 pixels",
        renders_scenes=True,
        settings={
            "recipe": "demo",
            "tokenizer": [
                *_TOKENIZER,
                *_QUIET,
                "run.images=2400",
                "run.log_every=100",
                "run.validate_every=1200",
                "run.sample_every=2400",
                "run.checkpoint_every=1200",
                "model.autoencoder.base_channels=48",
                "model.quantizer.codebook_size=256",
                "objective.adversarial.weight=0",
            ],
            "prior": ["run.codes=245760", "run.validate_every=61440", "run.sample_every=245760", *_QUIET],
            **_networks(3, 128, 4),
            "window": [8, 8],
            "sizes": [[16, 16], [16, 64]],
            "whole": [[16, 16], [16, 64]],
            "size": [64, 256],
            "crop": [64, 64],
            "copies": 8,
            "held_out": 0.15,
            "images": 24,
            "samples": 8,
            "shown": 3,
            "scene_network_steps": 150,
            "scenes": 480,
        },
    ),
    "small": Scale(
        about="windows of 16 x 16 of 512 codes, panoramas of 32 x 128, five priors of 3.5 million parameters: "
        "hours on two CPU "
        "cores; has not been run",
        data="the embedded scenes at 128 x 512 pixels",
        renders_scenes=True,
        settings={
            "recipe": "demo",
            "tokenizer": [*_TOKENIZER, "run.images=6000", "run.validate_every=1000", "run.checkpoint_every=1000"],
            "prior": ["run.codes=4000000", "run.validate_every=400000", "run.sample_every=4000000"],
            **_networks(5, 224, 4),
            "window": [16, 16],
            "sizes": [[32, 32], [32, 128]],
            "whole": [[32, 32]],
            "size": [128, 512],
            "crop": [64, 64],
            "copies": 8,
            "held_out": 0.1,
            "images": 48,
            "samples": 16,
            "shown": 3,
            "scene_network_steps": 400,
            "scenes": 1600,
        },
    ),
    "full": Scale(
        about="windows of 16 x 16 of 1,024 codes, images of up to 64 x 64, six priors of 38 million parameters: "
        "days on a GPU; "
        "has not been run",
        data="the embedded scenes at 512 x 512 pixels",
        renders_scenes=True,
        settings={
            "recipe": "demo",
            "tokenizer": [
                "run.images=400000",
                "run.batch=16",
                "run.log_every=4000",
                "run.validate_every=20000",
                "run.sample_every=100000",
                "run.checkpoint_every=20000",
                "model.autoencoder.base_channels=128",
                "model.quantizer.codebook_size=1024",
            ],
            "prior": [
                "run.codes=500000000",
                "run.batch=64",
                "run.validate_every=20000000",
                "run.sample_every=100000000",
                "run.checkpoint_every=20000000",
                "optimizer.lr=3e-4",
            ],
            **_networks(12, 512, 8),
            "window": [16, 16],
            "sizes": [[32, 32], [64, 64]],
            "whole": [[32, 32], [64, 64]],
            "size": [512, 512],
            "crop": [128, 128],
            "copies": 16,
            "held_out": 0.02,
            "images": 200,
            "samples": 64,
            "shown": 4,
            "scene_network_steps": 3000,
            "scenes": 20000,
        },
    ),
}
