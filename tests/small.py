"""Data and settings small enough to train on within a second, for the tests of training and of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from rich.console import Console

from smalti.training.config import PriorTraining, resolve
from smalti.training.runs import codes_of, train_prior

SIDE = 16
LABELS = ("light", "dark")

RECIPE: dict[str, Any] = {
    "about": "Small enough for tests.",
    "tokenizer": {
        "run": {
            "images": 48,
            "batch": 4,
            "log_every": 8,
            "validate_every": 16,
            "sample_every": 16,
            "checkpoint_every": 16,
            "tensorboard": False,
            "accelerator": "cpu",
        },
        "model": {
            "autoencoder": {
                "patch_size": 2,
                "base_channels": 8,
                "channel_multipliers": [1, 1],
                "res_blocks": 1,
                "latent_channels": 8,
            },
            "quantizer": {"codebook_size": 16, "codebook_dim": 4},
        },
        "objective": {
            "perceptual": "none",
            "adversarial": {"start": 0.3, "ramp": 0.2, "discriminator": {"base_channels": 8, "layers": 1}},
        },
        "images": {"size": [SIDE, SIDE], "validation": 0.2, "zoom": [1.0, 1.5]},
    },
    "prior": {
        "run": {
            "codes": 960,
            "batch": 4,
            "log_every": 64,
            "validate_every": 320,
            "sample_every": 320,
            "checkpoint_every": 320,
            "tensorboard": False,
            "accelerator": "cpu",
        },
        "network": {"layers": 1, "embed_dim": 16, "heads": 2, "dropout": 0.1},
        "encode": {"copies": 2, "images": {"size": [SIDE, SIDE], "validation": 0.2}},
    },
}


def write_images(folder: Path, *, count: int = 10) -> Path:
    """Light and dark gradients with some noise, one sub-folder each."""
    chance = np.random.RandomState(0)
    for place, label in enumerate(LABELS):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            ramp = np.linspace(0, 60 + 6 * number, SIDE + 4)[:, None, None] + np.zeros((1, SIDE + 4, 3))
            pixels = np.clip(200 * (1 - place) + ramp * (2 * place - 1) + chance.normal(0, 6, ramp.shape), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / label / f"{number:02d}.png")
    return folder


def write_recipe(path: Path) -> Path:
    """The small recipe as a YAML file."""
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def small_prior(folder: Path, out: str, *overrides: str) -> Path:
    """`images`, `tokenizer` and `small.yaml` in a folder -> a run of a prior in `out` there, on the codes in
    `codes`."""
    settings = resolve(PriorTraining, stage="prior", recipe=str(folder / "small.yaml"), overrides=overrides)
    shards = codes_of(
        folder / "images",
        folder / "tokenizer",
        folder / "codes",
        settings=settings,
        progress=lambda done, total: None,
    )
    train_prior(shards, folder / "tokenizer", folder / out, settings=settings, console=Console(quiet=True))
    return folder / out
