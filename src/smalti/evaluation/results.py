"""Results: scores with everything that they depend on, as JSON; and the comparison of two of them.

A claim about quality is a file that says what was measured, how, of what, with which weights and which program.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.core.files import read_json, write_json, write_text
from smalti.core.settings import flattened
from smalti.core.version import __version__

FORMAT = 1

RESULT, VALUES, REPORT = "result.json", "images.csv", "report.html"
"""The files in the folder of a result: the scores, the values of single images, and the page."""

DEFINITIONS: dict[str, str] = {
    "psnr": "peak signal-to-noise ratio in dB, of 8-bit levels; mean over images",
    "ssim": "structural similarity, 11x11 Gaussian window, each channel; mean over images",
    "ms_ssim": "structural similarity over five scales; mean over images",
    "lpips_squeezenet": "perceptual distance LPIPS 0.1 over SqueezeNet 1.1; mean over images",
    "lpips_vgg16": "perceptual distance LPIPS 0.1 over VGG16; mean over images",
    "lpips_alexnet": "perceptual distance LPIPS 0.1 over AlexNet; mean over images",
    "hatch": "energy at the period of the decoder's squares over that around it, divided by that of the "
    "originals; 1 means no pattern",
    "codes_in_use": "share of the codebook's codes that occur at least once in all images together",
    "perplexity": "exp(entropy in nats) of single codes over all images together, not a mean over batches: the "
    "number of equally frequent codes that would be as hard to guess",
    "nats_per_code": "negative log-likelihood of a code given its condition and the codes before it; mean over codes",
    "bits_per_pixel": "nats per code / ln 2 x codes / pixels: bits of the code grid for each pixel of the image; "
    "not the likelihood of the pixels themselves",
    "entropy_nats_per_code": "entropy in nats of single codes of the images measured: what knowing frequencies "
    "alone gives",
    "below_entropy": "1 - nats per code / unigram entropy",
}
"""Definitions of scores; feature scores also name their network."""

FEATURE_DEFINITIONS: dict[str, str] = {
    "frechet": "Frechet distance",
    "spatial_frechet": "Frechet distance of spatial features",
    "kernel": "kernel distance, mean over subsets",
    "score": "exp of the mean divergence of an image's classes from all images', mean over parts",
    "precision": "share of samples within the reach of the reference",
    "recall": "share of the reference within the reach of samples",
    "density": "number of reference neighborhoods a sample is in, over that expected",
    "coverage": "share of reference neighborhoods that hold a sample",
}

FEATURES = ", in the features of "
"""Separates a score's definition from its network."""


class ExampleImage(NamedTuple):
    """An example (H,W,C) uint8 and its reconstruction; the same array without one."""

    rank: str
    """"worst", "median" or "best"; "sample" or "reference" for members of sets."""
    name: str
    values: dict[str, float]
    original: npt.NDArray[np.uint8]
    reconstruction: npt.NDArray[np.uint8]


@final
@dataclass(frozen=True, kw_only=True)
class Measured:
    """A measurement. `result.json` holds all but the last five fields."""

    kind: str
    """"tokenizer", "prior" or "folders"."""
    scores: dict[str, float]
    definitions: dict[str, str]
    deviations: dict[str, float] = field(default_factory=dict)
    """Standard deviations over parts or subsets of those scores that are means of such; not errors of the mean."""
    protocol: dict[str, Any]
    networks: dict[str, str] = field(default_factory=dict)
    """Networks used by the scores -> the fingerprints of their weights."""
    data: dict[str, Any]
    """What was measured on, or what with: name, identity, N, sizes, how many were left out."""
    model: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)
    """Of two sets: the samples, as `data`; with the sampler's settings where they are known."""
    notes: tuple[str, ...] = ()
    """Sentences for the reader of the scores."""
    names: tuple[str, ...] = ()
    values: dict[str, Tensor] = field(default_factory=dict)
    """Of each image, (N,) each, NaN where there is none; `names` are the images'."""
    counts: Tensor | None = None
    """How often each code occurred, (K,) int64."""
    examples: tuple[ExampleImage, ...] = ()
    nats_per_position: Tensor | None = None
    """Of a prior: mean nats at each position of the grid, (h,w)."""


def as_plain(measured: Measured, *, command: str = "", model: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A measurement -> the plain values of its `result.json`. `model` adds to what is known of the model."""
    return {
        "smalti": FORMAT,
        "kind": measured.kind,
        "scores": measured.scores,
        "deviations": measured.deviations,
        "definitions": measured.definitions,
        "protocol": measured.protocol,
        "networks": measured.networks,
        "data": measured.data,
        "samples": measured.samples,
        "model": {**measured.model, **(model or {})},
        "notes": list(measured.notes),
        "made": {
            "smalti": __version__,
            "torch": torch.__version__,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": command,
        },
    }


def check_folder(folder: Path) -> None:
    """Raise `SmaltiError` if results would replace files in `folder` that are not results of `smalti evaluate`."""
    if (folder / RESULT).exists():
        try:
            read_result(folder)
        except SmaltiError as error:
            raise SmaltiError(f"{error}, and would be replaced by one; choose another --out") from error
        return
    for name in (VALUES, REPORT):
        if (folder / name).exists():
            raise SmaltiError(f"{folder / name} exists without a result of `smalti evaluate`; choose another --out")


def write_result(folder: Path, plain: Mapping[str, Any], measured: Measured) -> None:
    """Write `result.json` and, where there are values of single images, `images.csv` into `folder`."""
    write_json(folder / RESULT, dict(plain))
    if measured.values:
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        writer.writerow(["image", *measured.values])
        columns = [each.tolist() for each in measured.values.values()]
        for name, *row in zip(measured.names, *columns, strict=True):
            writer.writerow([name, *("" if math.isnan(value) else f"{value:.6g}" for value in row)])
        write_text(folder / VALUES, buffer.getvalue().encode("utf-8", "replace").decode())


def read_result(path: Path) -> dict[str, Any]:
    """A `result.json`, or a folder that holds one -> its plain values. Raises `SmaltiError` for other files."""
    file = path / RESULT if path.is_dir() else path
    values = read_json(file)
    if not isinstance(values, dict) or not isinstance(values.get("smalti"), int) or "scores" not in values:
        raise SmaltiError(f"{file} is not a result of `smalti evaluate`")
    if values["smalti"] > FORMAT:
        raise SmaltiError(f"{file} was written by a newer smalti (format {values['smalti']}); update smalti to read it")
    return values


class ScorePair(NamedTuple):
    """One score of two results."""

    score: str
    first: float
    second: float


def compare_results(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[ScorePair]:
    """Two results as plain values -> pairs of the scores that both have.

    Raises `SmaltiError` naming the first differences where they were not measured alike: protocol, weights, data and
    numbers of images; for priors also the tokenizer, since nats of other codes are other nats.
    """
    if first["kind"] != second["kind"]:
        raise SmaltiError(f"a result of {first['kind']} cannot be compared with one of {second['kind']}")
    a, b = dict(_comparable(first)), dict(_comparable(second))
    weights_keys = {key for key in {**a, **b} if key.startswith("weights of ") and not (key in a and key in b)}
    different = [key for key in {**a, **b} if key not in weights_keys and a.get(key) != b.get(key)]
    if different:
        listed = "; ".join(f"{key} is {a.get(key)!r} in one and {b.get(key)!r} in the other" for key in different[:3])
        more = f"; and {len(different) - 3} more" if len(different) > 3 else ""
        raise SmaltiError(f"these results cannot be compared; they differ: {listed}{more}")
    scores, others = first["scores"], second["scores"]
    both = [name for name in scores if name in others]
    if not both:
        raise SmaltiError("these results have no score in common")
    return [ScorePair(name, scores[name], others[name]) for name in both]


def _comparable(result: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What must agree, by its dotted name."""
    for key, value in flattened(result["protocol"]):
        # What is shown does not change a score, and what is missing is not compared.
        if key not in ("about", "examples", "missing"):
            yield f"protocol.{key}", list(value) if isinstance(value, tuple) else value
    for name, fingerprint in sorted(result["networks"].items()):
        yield f"weights of {name}", fingerprint
    for key in ("identity", "images"):
        yield f"data.{key}", result["data"].get(key)
    yield "samples.images", result["samples"].get("images")
    if result["kind"] == "prior":
        yield "tokenizer", result["model"].get("tokenizer")


def format_score(name: str, value: float, *, deviation: float | None = None) -> str:
    """A score -> its text: fractions in percent, others to four digits, with the deviation if any."""
    if name in ("codes_in_use", "below_entropy"):
        return f"{value:.1%}"
    shown = f"{value:.4g}"
    return shown if deviation is None else f"{shown} ± {deviation:.2g}"
