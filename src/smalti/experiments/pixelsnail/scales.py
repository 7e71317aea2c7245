"""What the experiment `transformer-vs-pixelsnail` trains at each scale: plain values, to be changed here or with
`--set`."""

from __future__ import annotations

from smalti.experiments.base import Scale


def _transformer(layers: int, width: int, heads: int) -> list[str]:
    return [f"network={{name: transformer, layers: {layers}, embed_dim: {width}, heads: {heads}, dropout: 0.1}}"]


def _pixelsnail(layers: int, residuals: int, width: int, heads: int) -> list[str]:
    sizes = f"layers: {layers}, res_blocks: {residuals}, embed_dim: {width}, heads: {heads}"
    return [f"network={{name: pixelsnail, {sizes}, dropout: 0.1}}"]


# Rates were looked for one seed each, on 102,400 codes of scenes, four of PixelSNAIL's and three of the transformer's.
# PixelSNAIL's nats: 4.78 at 7e-4 (after 94,208 codes, where that run ended), 4.14 at 1.5e-3, 3.69 at 3e-3, 3.40 at 6e-3
# (the last with biases that start by chance, the others at 0); higher ones were not tried. The transformer's: 4.10 at
# the recipe's 1.5e-3, 4.07 at 2e-3, 4.12 at 3e-3. One rate for both would decide the comparison. Those of small and
# full were not looked for.
SCALES = {
    "tiny": Scale(
        about="512 codes, 8 x 8 an image, priors of 1.1 million parameters: seven to nine minutes on two CPU cores",
        data="the embedded scenes at 64 pixels",
        renders_scenes=True,
        settings={
            "recipe": "demo",
            "tokenizer": [
                "run.images=1000",
                "run.log_every=100",
                "run.validate_every=500",
                "run.sample_every=1000",
                "run.checkpoint_every=500",
                "run.tensorboard=false",
                "model.autoencoder.base_channels=64",
                "objective.adversarial.weight=0",
            ],
            "prior": ["run.codes=204800"],
            "transformer": _transformer(3, 160, 4),
            "pixelsnail": [*_pixelsnail(2, 2, 112, 4), "optimizer.lr=6e-3"],
            "size": [64, 64],
            "copies": 8,
            "held_out": 0.15,
            "scenes": 640,
        },
    ),
    "small": Scale(
        about="1,024 codes, 8 x 8 an image, priors of 3.5 million parameters: an hour and a half and more on a CPU",
        data="a folder of some thousand photographs, seen at 64 pixels",
        renders_scenes=False,
        settings={
            "recipe": "small-64",
            "tokenizer": ["run.images=6000", "run.validate_every=1000", "run.checkpoint_every=1000"],
            "prior": ["run.codes=3000000"],
            "transformer": _transformer(5, 224, 4),
            "pixelsnail": [*_pixelsnail(4, 2, 144, 4), "optimizer.lr=3e-3"],
            "size": [64, 64],
            "copies": 8,
            "held_out": 0.05,
        },
    ),
    "full": Scale(
        about="1,024 codes, 16 x 16 an image, priors of 85 million parameters, the paper's smallest: days on a "
        "GPU; not run",
        data="ImageNet's animals (RIN of the paper) or another hundred thousand photographs, seen at 256 pixels",
        renders_scenes=False,
        settings={
            "recipe": "small-64",
            "tokenizer": [
                "run.images=1000000",
                "run.batch=16",
                "run.log_every=3200",
                "run.validate_every=50000",
                "run.sample_every=50000",
                "run.checkpoint_every=50000",
                "model.autoencoder.base_channels=128",
                "model.autoencoder.channel_multipliers=[1, 1, 2]",
                "model.autoencoder.res_blocks=2",
            ],
            "prior": ["run.codes=1000000000", "run.batch=64", "optimizer.lr=3e-4"],
            "transformer": _transformer(12, 768, 12),
            "pixelsnail": _pixelsnail(8, 5, 384, 8),
            "size": [256, 256],
            "copies": 8,
            "held_out": 0.02,
        },
    ),
}
