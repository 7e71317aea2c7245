"""What the demo found, as the values of its page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from smalti.reports.charts import Bars
from smalti.reports.report import Card, Comparison, EmbeddedImage, Target
from smalti.reports.stage_parts import compared, embedded, likelihood_plot, tokenizer_plots
from smalti.scenes.scene_classes import COLORS, LABELS, paint
from smalti.training.config import PriorTraining, TokenizerTraining, as_yaml
from smalti.training.run_folder import read_metrics


class Results(NamedTuple):
    """What the demo found, in numbers and images (B,C,H,W) in [-1,1]."""

    figures: dict[str, float]
    counts: Tensor
    originals: Tensor
    reconstructions: Tensor
    samples: dict[str, Tensor]
    panoramas: dict[str, Tensor]
    intermediate: list[Tensor]
    kept: Tensor
    completions: Tensor


def findings(
    out: Path,
    results: Results,
    *,
    seconds: Mapping[str, float],
    tokenizer: TokenizerTraining,
    prior: PriorTraining,
) -> dict[str, Any]:
    """A finished demo folder, its results, the seconds of each part and the settings -> the values of the page."""
    return {
        "out": out,
        "size": tokenizer.images.size,
        "labels": LABELS,
        "cards": _cards(results.figures),
        "hero": [embedded(images[0], f"a new landscape, {label}") for label, images in results.samples.items()],
        "scenes": _scenes(tokenizer.images.size),
        "reconstructions": compared(
            ("scene", results.originals, "a held-out scene"),
            ("from codes", results.reconstructions, "the same from its codes"),
        ),
        "tokenizer_plots": tokenizer_plots(
            read_metrics(out / "tokenizer"), results.counts, held_out="held-out scenes", psnr_target=20.0
        ),
        "prior_plots": [
            likelihood_plot(
                read_metrics(out / "prior"), results.figures["code_entropy_nats"], held_out="held-out scenes"
            )
        ],
        "samples": Comparison(
            [
                (label, [embedded(image, f"a sample of {label}") for image in images[:8]])
                for label, images in results.samples.items()
            ]
        ),
        "intermediate": [embedded(image, "a partially generated image") for image in results.intermediate],
        "panoramas": [
            embedded(image, f"a panorama, {label}", caption=label) for label, image in results.panoramas.items()
        ],
        "completions": compared(
            ("kept", results.kept, "the upper half of a held-out scene"),
            ("completed", results.completions, "the half completed"),
            ("the scene", results.originals, "the held-out scene"),
        ),
        "times": [Bars("Time", list(seconds.items()), unit="s")],
        "tokenizer_settings": as_yaml(tokenizer),
        "prior_settings": as_yaml(prior),
    }


def _cards(figures: Mapping[str, float]) -> list[Card]:
    entropy, likelihood = figures["code_entropy_nats"], figures["prior_nats"]
    below = 1 - likelihood / entropy
    chance, named = figures["class_chance"], figures["class_accuracy"]
    return [
        Card(
            f"Reconstruction of {int(figures['held_out_images'])} held-out scenes",
            f"{figures['psnr']:.2f}",
            unit="dB PSNR",
            target=Target("at least 20 dB", reached=figures["psnr"] >= 20),
        ),
        Card(
            "Codes in use",
            f"{figures['codes_in_use']:.0%}",
            unit="of the codebook",
            target=Target("at least 60 %", reached=figures["codes_in_use"] >= 0.6),
        ),
        Card(
            f"Prior, below the {entropy:.2f} nats of single codes",
            f"{below:.0%}",
            unit=f"({likelihood:.2f} nats per code)",
            target=Target("at least 25 %", reached=below >= 0.25),
        ),
        Card(
            "Samples whose class a classifier names",
            f"{named:.0%}",
            unit=f"(chance {chance:.0%}, real scenes {figures['class_accuracy_of_real']:.0%})",
            target=Target("three times chance", reached=named >= 3 * chance),
        ),
        Card("Whole run", f"{figures['seconds'] / 60:.1f}", unit="minutes"),
    ]


def _scenes(size: tuple[int, int]) -> Comparison:
    H, W = size
    shown = [paint(0, index, size=(2 * H, 2 * W)) for index in range(6)]
    colors = np.asarray(COLORS, dtype=np.uint8)
    scenes = [EmbeddedImage(scene.image, f"a rendered {scene.label}", caption=scene.label) for scene in shown]
    labels = [EmbeddedImage(colors[scene.segmentation], "its segmentation") for scene in shown]
    return Comparison([("scene", scenes), ("labels", labels)])
