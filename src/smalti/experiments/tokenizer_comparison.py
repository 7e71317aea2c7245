"""Tokenizers that were measured on the same images: their scores, and how far they are apart image by image."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, final

LPIPS = "lpips_squeezenet"
FEATURES = "reconstruction_frechet_squeezenet"
SCORE_HEADERS = {"psnr": "PSNR", "ssim": "SSIM", LPIPS: "LPIPS", FEATURES: "Frechet"}
"""Scores of the table, in order."""


@final
@dataclass(frozen=True)
class MeasuredTokenizer:
    """One tokenizer, measured."""

    name: str
    folder: Path
    outcome: Mapping[str, Any]

    @property
    def scores(self) -> Mapping[str, float]:
        """The means over all images, and the scores of the set."""
        scores: Mapping[str, float] = self.outcome["result"]["scores"]
        return scores

    @property
    def kind(self) -> str:
        """Its f and K, in words."""
        return f"f{self.outcome['factor']}, K {self.outcome['codes']:,}"

    @cached_property
    def columns(self) -> dict[str, list[float]]:
        """Its values on each image, by score; NaN where there is none."""
        with (self.folder / "images.csv").open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        scores = [name for name in lines[0] if name != "image"]
        return {name: [float(line[name] or "nan") for line in lines] for name in scores}


def measured_on(tokenizer: MeasuredTokenizer) -> int:
    """How many images it was measured on; the same ones for all."""
    count: int = tokenizer.outcome["result"]["data"]["images"]
    return count


class Difference(NamedTuple):
    """How much better one tokenizer is than another on the same images."""

    mean: float
    error: float
    """Standard error of the mean, over images."""
    above: int
    """On how many images the value is larger."""
    images: int


def difference(values: Sequence[float], others: Sequence[float]) -> Difference:
    """Values of two tokenizers on the same images -> the first's less the other's. NaN pairs are left out."""
    gains = [a - b for a, b in zip(values, others, strict=True) if not (math.isnan(a) or math.isnan(b))]
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
    return Difference(statistics.fmean(gains), error, sum(gain > 0 for gain in gains), len(gains))


def with_error(gain: Difference) -> str:
    """A difference in dB with its standard error, where there is one."""
    mean = f"{gain.mean:.2f}".replace("-", "\u2212")
    return mean if math.isnan(gain.error) else f"{mean} ± {gain.error:.2f}"
