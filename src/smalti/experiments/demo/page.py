"""The page the demo ends in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from smalti.core.version import __version__
from smalti.images.io import to_array
from smalti.reports.charts import Bars, Line, LinePlot, Reference
from smalti.reports.report import (
    Card,
    Cards,
    Commands,
    Comparison,
    EmbeddedImage,
    Images,
    Listing,
    Plots,
    Report,
    Section,
    Target,
    Text,
)
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


def write_page(
    out: Path,
    results: Results,
    *,
    seconds: Mapping[str, float],
    settings: tuple[TokenizerTraining, PriorTraining],
) -> None:
    """Write `out/report.html`."""
    Report(
        title="smalti demo",
        lead="In one run on this machine, a tokenizer learned a codebook from rendered landscapes, and a transformer "
        "learned to generate images from those codes. Everything on this page was computed on this machine.",
        blocks=[_cards(results.figures)],
        hero=[_image(images[0], f"a new landscape, {label}") for label, images in results.samples.items()],
        sections=[
            _scenes(settings[0]),
            _tokenizer(out, results),
            _prior(out, results.figures),
            _samples(results),
            _panoramas(results, settings[0]),
            _completions(results),
            _next(out),
            _made(seconds, settings),
        ],
        colophon=f"Made by smalti {__version__}. The figures stand in report.json beside this page.",
    ).write(out / "report.html")


def _image(image: Tensor, alt: str, caption: str = "") -> EmbeddedImage:
    return EmbeddedImage(to_array(image), alt, caption=caption)


def _cards(figures: Mapping[str, float]) -> Cards:
    entropy, likelihood = figures["code_entropy_nats"], figures["prior_nats"]
    below = 1 - likelihood / entropy
    chance, named = figures["class_chance"], figures["class_accuracy"]
    minutes, count = figures["seconds"] / 60, int(figures["held_out_images"])
    return Cards(
        [
            Card(
                f"Reconstruction of {count} held-out scenes",
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
            Card("Whole run", f"{minutes:.1f}", unit="minutes"),
        ]
    )


def _scenes(settings: TokenizerTraining) -> Section:
    height, width = settings.images.size
    shown = [paint(0, index, size=(2 * height, 2 * width)) for index in range(6)]
    labeled = [_colored(scene.segmentation) for scene in shown]
    return Section(
        "What it learned from",
        [
            Text(
                "Procedurally rendered landscapes in four seasons at three times of day. They come with exact "
                f"segmentation, depth, edges and boxes; here only the image and its class are used, at {height} x "
                f"{width} pixels."
            ),
            Comparison(
                [
                    (
                        "scene",
                        [
                            EmbeddedImage(scene.image, f"a rendered {scene.label}", caption=scene.label)
                            for scene in shown
                        ],
                    ),
                    ("labels", [EmbeddedImage(each, "its segmentation") for each in labeled]),
                ],
                caption="Scenes at twice the training size, and their labels: " + ", ".join(LABELS) + ".",
            ),
        ],
    )


def _colored(segmentation: Any) -> Any:
    return np.asarray(COLORS, dtype=np.uint8)[segmentation]


def _curve(lines: Sequence[Mapping[str, Any]], part: str, name: str) -> list[tuple[float, float]]:
    return [(line["seen"], line[name]) for line in lines if line["part"] == part and name in line]


def _tokenizer(out: Path, results: Results) -> Section:
    metrics = read_metrics(out / "tokenizer")
    shown = range(len(results.originals))
    used = sorted(results.counts.tolist(), reverse=True)
    plots = [
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
    return Section(
        "Stage 1: the tokenizer",
        [
            Text(
                "Each scene becomes a small grid of codes, one of a few hundred for each tile, and is painted "
                "back from them."
            ),
            Comparison(
                [
                    ("scene", [_image(results.originals[i], "a held-out scene") for i in shown]),
                    ("from codes", [_image(results.reconstructions[i], "the same from its codes") for i in shown]),
                ],
                caption="Held-out scenes above, what their codes keep of them below.",
            ),
            Plots(plots),
        ],
    )


def _prior(out: Path, figures: Mapping[str, float]) -> Section:
    metrics = read_metrics(out / "prior")
    plot = LinePlot(
        "Likelihood",
        [
            Line("training", _curve(metrics, "train", "nats")),
            Line("held-out scenes", _curve(metrics, "validation", "nats")),
        ],
        x_label="codes seen",
        y_label="nats per code",
        references=[Reference(figures["code_entropy_nats"], "entropy of single codes")],
    )
    return Section(
        "Stage 2: the prior",
        [
            Text(
                "A transformer reads a class and the codes generated so far, and says how likely each code is to "
                "come next. "
                "The fewer nats it needs, the more of a landscape's order it has learned."
            ),
            Plots([plot]),
        ],
    )


def _samples(results: Results) -> Section:
    rows = [
        (label, [_image(image, f"a sample of {label}") for image in images[:8]])
        for label, images in results.samples.items()
    ]
    steps = [_image(image, "a partially generated image") for image in results.intermediate]
    return Section(
        "New landscapes",
        [
            Comparison(rows, caption="Seeds 0 to 7 of every class, not chosen."),
            Images(steps, caption="One image after every second row of codes.", width=110),
        ],
    )


def _panoramas(results: Results, settings: TokenizerTraining) -> Section:
    height, width = settings.images.size
    images = [_image(image, f"a panorama, {label}", caption=label) for label, image in results.panoramas.items()]
    return Section(
        "Wider than anything it has seen",
        [
            Text(
                f"The prior was trained on {height} x {width} pixels. A window of that size slides over the grid "
                "of codes and "
                f"generates images of {height} x {4 * width}."
            ),
            Images(images, width=520),
        ],
    )


def _completions(results: Results) -> Section:
    shown = range(len(results.originals))
    return Section(
        "Completion",
        [
            Comparison(
                [
                    ("kept", [_image(results.kept[i], "the upper half of a held-out scene") for i in shown]),
                    ("completed", [_image(results.completions[i], "the half completed") for i in shown]),
                    ("the scene", [_image(results.originals[i], "the held-out scene") for i in shown]),
                ],
                caption="The upper half is kept, the lower half generated.",
            )
        ],
    )


def _next(out: Path) -> Section:
    return Section(
        "What to type next",
        [
            Commands(
                [
                    (f"smalti sample {out} --out samples --label winter-dusk -n 8", "More samples of one class."),
                    (
                        f"smalti sample {out} --out wide --label summer-day --size 128x512",
                        "A larger image, by the sliding window.",
                    ),
                    (
                        f"smalti complete {out} IMAGE --keep top-half --out completed",
                        "Keep the upper half of an image of yours.",
                    ),
                    ("smalti train tokenizer IMAGES --out runs/mine/tokenizer", "Your own images: a tokenizer ..."),
                    (
                        "smalti train prior IMAGES --tokenizer runs/mine/tokenizer --out runs/mine/prior",
                        "... and a prior; sub-folders become classes.",
                    ),
                    ("smalti sample runs/mine --out samples", "New images of your own kind."),
                ]
            )
        ],
    )


def _made(seconds: Mapping[str, float], settings: tuple[TokenizerTraining, PriorTraining]) -> Section:
    return Section(
        "How it was made",
        [
            Plots([Bars("Time", [(part, value) for part, value in seconds.items()], unit="s")]),
            Listing(as_yaml(settings[0]), caption="Settings of the tokenizer"),
            Listing(as_yaml(settings[1]), caption="Settings of the prior"),
        ],
    )
