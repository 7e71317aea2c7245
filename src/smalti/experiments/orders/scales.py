"""What the experiment `orders` trains at each scale: plain values, to be changed here or with `--set`."""

from __future__ import annotations

from smalti.experiments.base import Scale


def _gpt(layers: int, width: int, heads: int) -> list[str]:
    # The paper's network: it learns a position for each turn of the sequence and knows nothing of rows and columns, so
    # that no order is nearer to it than another. The modern transformer knows where each code is, though not where
    # the next will be.
    sizes = f"layers: {layers}, embed_dim: {width}, heads: {heads}"
    dropouts = "embedding_dropout: 0.1, attention_dropout: 0.1, residual_dropout: 0.1"
    return [f"network={{name: gpt, {sizes}, {dropouts}}}"]


# Rates were looked for at tiny alone, with one seed, in raster order: 4.92 nats after 102,400 codes at 7e-4, 4.62 at
# 3e-3; higher ones were not tried. One rate serves all orders.
SCALES = {
    "tiny": Scale(
        about="512 codes, 8 x 8 an image, seven priors of 1.1 million parameters: ten minutes on two busy CPU cores",
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
            "prior": ["run.codes=102400", "optimizer.lr=3e-3", *_gpt(5, 128, 4)],
            "size": [64, 64],
            "copies": 2,
            "held_out": 0.15,
            "scenes": 960,
        },
    ),
    "small": Scale(
        about="1,024 codes, 8 x 8 an image, seven priors of 3.0 million parameters: an hour and a half and more "
        "on a CPU",
        data="a folder of some thousand photographs, seen at 64 pixels",
        renders_scenes=False,
        settings={
            "recipe": "small-64",
            "tokenizer": ["run.images=6000", "run.validate_every=1000", "run.checkpoint_every=1000"],
            "prior": ["run.codes=2000000", *_gpt(5, 208, 4)],
            "size": [64, 64],
            "copies": 4,
            "held_out": 0.05,
        },
    ),
    "full": Scale(
        about="1,024 codes, 16 x 16 an image, seven priors of 87 million parameters: days on a GPU; not run",
        data="ImageNet or another hundred thousand photographs, seen at 256 pixels",
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
            "prior": ["run.codes=500000000", "run.batch=64", "optimizer.lr=3e-4", *_gpt(12, 768, 12)],
            "size": [256, 256],
            "copies": 4,
            "held_out": 0.02,
            "samples": 16,
        },
    ),
}
