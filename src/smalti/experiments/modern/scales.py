"""What the experiment `modern-vs-reference` trains at each scale: plain values, to be changed here or with `--set`."""

from __future__ import annotations

from itertools import chain
from typing import Any

from smalti.experiments.base import Scale

CONSTANT = [
    f"{which}.{key}" for which in ("optimizer", "discriminator_optimizer") for key in ("warmup=0", "final_lr=1")
]
UNCLIPPED = ["optimizer.grad_clip=0", "discriminator_optimizer.grad_clip=0"]
AUTOENCODER = {
    "patch_size": 1,
    "base_channels": 40,
    "channel_multipliers": [1, 1, 2, 4],
    "res_blocks": 2,
    "attention_levels": [3],
}

LARGE_BATCH = 16
"""Of the scale full."""


def rates(batch: int) -> list[str]:
    """The original's learning rates: a base rate times the batch."""
    rate = 4.5e-6 * batch
    return [f"optimizer.lr={rate:.3g}", f"discriminator_optimizer.lr={rate:.3g}"]


def without(batch: int = 4) -> dict[str, list[str]]:
    """Name -> the change away from the recipe small-64, back to the original's choice as the recipe small-reference has
    it.

    "reference-our-rate" is all of them but the rate and its course, for the original's rate is made for days.
    """
    changes = {
        "codes-not-normalized": ["model.quantizer.l2_normalize=false"],
        "codes-wide": ["model.quantizer.codebook_dim=64"],
        "no-kmeans": ["model.quantizer.kmeans_iterations=0"],
        "no-restart": ["model.quantizer.dead_code_threshold=0"],
        "reference-codebook": [
            "model.quantizer.l2_normalize=false",
            "model.quantizer.codebook_dim=64",
            "model.quantizer.kmeans_iterations=0",
            "model.quantizer.dead_code_threshold=0",
            "model.quantizer.beta_on=codebook",
            "quantize_from=0",
        ],
        "codes-at-once": ["quantize_from=0"],
        "late-discriminator": ["objective.adversarial.discriminator_from_start=false"],
        "discriminator-at-half": ["objective.adversarial.start=0.5"],
        "no-ramp": ["objective.adversarial.ramp=0"],
        "no-lecam": ["objective.adversarial.lecam=0"],
        "alternating": ["objective.adversarial.updates=alternating"],
        "batch-norm": ["objective.adversarial.discriminator.norm=batch"],
        "discriminator-stem": ["objective.adversarial.discriminator.patch_size=1"],
        "adversarial-weight": ["objective.adversarial.weight=0.8"],
        "perceptual-weight": ["objective.perceptual_weight=1"],
        "perceptual-dropout": ["objective.perceptual_dropout=0.5"],
        "no-average": ["run.ema_half_life=0"],
        "constant-rate": CONSTANT,
        "no-clipping": UNCLIPPED,
        "reference-rate": rates(batch),
        "reference-betas": ["optimizer.betas=[0.5, 0.9]", "discriminator_optimizer.betas=[0.5, 0.9]"],
        "usual-residuals": ["model.autoencoder.zero_residuals=false"],
        "reference-pyramid": [f"model.autoencoder.{key}={value}" for key, value in AUTOENCODER.items()],
    }
    everything_else = {name: each for name, each in changes.items() if name not in ("reference-rate", "constant-rate")}
    return {**changes, "reference-our-rate": list(dict.fromkeys(chain(*everything_else.values())))}


def _variations(*names: str, batch: int = 4) -> list[dict[str, Any]]:
    known = without(batch)
    return [{"name": name, "changes": known[name]} for name in names or known]


SCALES = {
    "tiny": Scale(
        about="both, and two single changes, for a minute each: six to seven minutes on two CPU cores",
        data="the embedded scenes at 64 pixels",
        renders_scenes=True,
        settings={
            "reference": {"recipe": "small-reference"},
            "modern": {"recipe": "small-64"},
            "without": _variations("reference-codebook", "reference-pyramid"),
            "sets": [{"name": "scenes-64", "size": [64, 64]}],
            "minutes": 1.0,
            "pace_seconds": 8.0,
            "missing_weights": "leave_out",
            "held_out": 0.15,
            "images": 64,
            "shown": 6,
        },
    ),
    "small": Scale(
        about="both, and six single changes, for nine minutes each: an hour and a half on two CPU cores",
        data="a folder of some thousand photographs, seen at 64 pixels",
        renders_scenes=False,
        settings={
            "reference": {"recipe": "small-reference"},
            "modern": {"recipe": "small-64"},
            "without": _variations(
                "reference-codebook",
                "reference-pyramid",
                "reference-rate",
                "no-average",
                "alternating",
                "usual-residuals",
            ),
            "sets": [{"name": "images-64", "size": [64, 64]}],
            "minutes": 9.0,
            "pace_seconds": 20.0,
            "held_out": 0.05,
            "images": 256,
            "shown": 8,
        },
    ),
    "full": Scale(
        about="both, and all single changes, for an hour and a half each at two sizes: three days on a GPU; has "
        "not been run",
        data="ten thousand photographs and more, seen at 64 and at 128 pixels",
        renders_scenes=False,
        settings={
            "reference": {
                "recipe": "small-reference",
                "changes": [f"run.batch={LARGE_BATCH}", *rates(LARGE_BATCH)],
            },
            "modern": {"recipe": "small-64", "changes": [f"run.batch={LARGE_BATCH}"]},
            "without": _variations(batch=LARGE_BATCH),
            "sets": [{"name": "images-64", "size": [64, 64]}, {"name": "images-128", "size": [128, 128]}],
            "minutes": 90.0,
            "pace_seconds": 60.0,
            "held_out": 0.05,
            "images": 5000,
            "shown": 12,
        },
    ),
}
