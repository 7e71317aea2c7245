"""Parts of pages about a tokenizer and its prior: images under one another, curves of both trainings.

B batch, C channels, H W pixels, K size of the codebook.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from smalti.images.io import to_array
from smalti.reports.charts import Line, LinePlot, Reference
from smalti.reports.report import Comparison, EmbeddedImage


def embedded(image: Tensor, alt: str, caption: str = "") -> EmbeddedImage:
    """An image (C,H,W) in [-1,1], what it shows, and its caption -> a part of a page."""
    return EmbeddedImage(to_array(image), alt, caption=caption)


def compared(*rows: tuple[str, Tensor, str]) -> Comparison:
    """Rows of a name, images (B,C,H,W), and what they show."""
    return Comparison([(name, [embedded(image, alt) for image in images]) for name, images, alt in rows])


def _curve(lines: Sequence[Mapping[str, Any]], part: str, name: str) -> list[tuple[float, float]]:
    return [(line["seen"], line[name]) for line in lines if line["part"] == part and name in line]


def tokenizer_plots(
    metrics: Sequence[Mapping[str, Any]], counts: Tensor, *, held_out: str, psnr_target: float | None = None
) -> list[LinePlot]:
    """The metrics of a tokenizer's run and how often it used each code (K,) -> its charts.

    `held_out`: what held-out images are called, such as "held-out scenes".
    """
    used = sorted(counts.tolist(), reverse=True)
    return [
        LinePlot(
            "Reconstruction error",
            [Line("training", _curve(metrics, "train", "pixel"))],
            x_label="images seen",
            y_label="mean absolute error",
        ),
        LinePlot(
            held_out.capitalize(),
            [Line("PSNR", _curve(metrics, "validation", "psnr"))],
            x_label="images seen",
            y_label="dB",
            references=[] if psnr_target is None else [Reference(psnr_target, "target")],
        ),
        LinePlot(
            "Codes in use",
            [
                Line("training, last codes", _curve(metrics, "train", "codes_in_use")),
                Line(held_out, _curve(metrics, "validation", "codes_in_use")),
            ],
            x_label="images seen",
            y_label="share of the codebook",
        ),
        LinePlot(
            "How often each code is used",
            [Line(f"codes of the {held_out}", [(rank, count) for rank, count in enumerate(used, 1)])],
            x_label="code, most used first",
            y_label="times",
        ),
    ]


def likelihood_plot(metrics: Sequence[Mapping[str, Any]], entropy: float, *, held_out: str) -> LinePlot:
    """The metrics of a prior's run and the unigram entropy in nats -> the chart of its likelihood."""
    return LinePlot(
        "Likelihood",
        [
            Line("training", _curve(metrics, "train", "nats")),
            Line(held_out, _curve(metrics, "validation", "nats")),
        ],
        x_label="codes seen",
        y_label="nats per code",
        references=[Reference(entropy, "unigram entropy")],
    )
