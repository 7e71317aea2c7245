"""What the demo found, as the values of its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from smalti.images.io import to_array
from smalti.reports.charts import Bars, Line, LinePlot, Reference
from smalti.reports.report import Card, Comparison, EmbeddedImage, Target
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
        "hero": [_image(images[0], f"a new landscape, {label}") for label, images in results.samples.items()],
        "scenes": _scenes(tokenizer.images.size),
        "reconstructions": _compared(
            ("scene", results.originals, "a held-out scene"),
            ("from codes", results.reconstructions, "the same from its codes"),
        ),
        "tokenizer_plots": _tokenizer_plots(read_metrics(out / "tokenizer"), results.counts),
        "prior_plots": [_likelihood(read_metrics(out / "prior"), results.figures["code_entropy_nats"])],
        "samples": Comparison(
            [
                (label, [_image(image, f"a sample of {label}") for image in images[:8]])
                for label, images in results.samples.items()
            ]
        ),
        "intermediate": [_image(image, "a partially generated image") for image in results.intermediate],
        "panoramas": [
            _image(image, f"a panorama, {label}", caption=label) for label, image in results.panoramas.items()
        ],
        "completions": _compared(
            ("kept", results.kept, "the upper half of a held-out scene"),
            ("completed", results.completions, "the half completed"),
            ("the scene", results.originals, "the held-out scene"),
        ),
        "times": [Bars("Time", list(seconds.items()), unit="s")],
        "tokenizer_settings": as_yaml(tokenizer),
        "prior_settings": as_yaml(prior),
    }


def _image(image: Tensor, alt: str, caption: str = "") -> EmbeddedImage:
    return EmbeddedImage(to_array(image), alt, caption=caption)


def _compared(*rows: tuple[str, Tensor, str]) -> Comparison:
    """Rows of a name, images (B,C,H,W), and what they show."""
    return Comparison([(name, [_image(image, alt) for image in images]) for name, images, alt in rows])


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


def _curve(lines: Sequence[Mapping[str, Any]], part: str, name: str) -> list[tuple[float, float]]:
    return [(line["seen"], line[name]) for line in lines if line["part"] == part and name in line]


def _tokenizer_plots(metrics: Sequence[Mapping[str, Any]], counts: Tensor) -> list[LinePlot]:
    used = sorted(counts.tolist(), reverse=True)
    return [
        LinePlot(
            "Reconstruction error",
            [Line("training", _curve(metrics, "train", "pixel"))],
            x_label="images seen",
            y_label="mean absolute error",
        ),
        LinePlot(
            "Held-out scenes",
            [Line("PSNR", _curve(metrics, "validation", "psnr"))],
            x_label="images seen",
            y_label="dB",
            references=[Reference(20.0, "target")],
        ),
        LinePlot(
            "Codes in use",
            [
                Line("training, last codes", _curve(metrics, "train", "codes_in_use")),
                Line("held-out scenes", _curve(metrics, "validation", "codes_in_use")),
            ],
            x_label="images seen",
            y_label="share of the codebook",
        ),
        LinePlot(
            "How often each code is used",
            [Line("codes of the held-out scenes", [(rank, count) for rank, count in enumerate(used, 1)])],
            x_label="code, most used first",
            y_label="times",
        ),
    ]


def _likelihood(metrics: Sequence[Mapping[str, Any]], entropy: float) -> LinePlot:
    return LinePlot(
        "Likelihood",
        [
            Line("training", _curve(metrics, "train", "nats")),
            Line("held-out scenes", _curve(metrics, "validation", "nats")),
        ],
        x_label="codes seen",
        y_label="nats per code",
        references=[Reference(entropy, "entropy of single codes")],
    )
