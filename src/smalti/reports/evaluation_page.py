"""The page of a measurement: its scores and protocol, example images, codebook usage, and notes.

H W pixels, K size of the codebook, h w code grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import yaml
from torch import Tensor

from smalti.evaluation.results import FEATURES, ExampleImage, Measured, format_score
from smalti.reports.charts import Bars, Histogram, Line, LinePlot, Reference
from smalti.reports.report import Card, Comparison, EmbeddedImage, Table

NAMES = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "lpips_squeezenet": "LPIPS (SqueezeNet)",
    "lpips_vgg16": "LPIPS (VGG16)",
    "lpips_alexnet": "LPIPS (AlexNet)",
    "codes_in_use": "Codes in use",
    "perplexity": "Perplexity of codes",
    "nats_per_code": "Likelihood",
    "bits_per_pixel": "Bits per pixel",
    "entropy_nats_per_code": "Entropy of single codes",
    "below_entropy": "Below that entropy",
    "fid": "FID",
    "rfid": "rFID",
    "sfid": "sFID",
    "kid": "KID",
}
UNITS = {
    "psnr": "dB",
    "nats_per_code": "nats per code",
    "bits_per_pixel": "bits, of the codes",
    "entropy_nats_per_code": "nats per code",
}
HEADLINES = {
    "tokenizer": ("rfid", "reconstruction_frechet_squeezenet", "lpips_vgg16", "lpips_squeezenet", "psnr", "ssim"),
    "prior": ("nats_per_code", "below_entropy", "bits_per_pixel", "fid", "frechet_squeezenet"),
    "folders": ("fid", "frechet_squeezenet", "kid", "kernel_squeezenet", "precision", "precision_squeezenet", "recall",
                "recall_squeezenet"),
}  # fmt: skip
RANKS = {
    "tokenizer": {
        "worst": "The worst reconstructions",
        "median": "Reconstructions around the median",
        "best": "The best reconstructions",
    },
    "prior": {
        "worst": "The least likely images",
        "median": "Images around the median",
        "best": "The most likely images",
    },
    "folders": {},
}
FEATURE_NAMES = {"psnr", "ssim", "fid", "rfid", "sfid", "kid", "precision", "recall", "density", "coverage"}
DIFFERENCE = 4
"""Differences are shown so many times as large."""
TEMPLATE = "reports/evaluation.html"


class _Ranked(NamedTuple):
    """Images of one rank."""

    words: str
    comparison: Comparison
    scaling: str


class _CodeUse(NamedTuple):
    """How often codes occurred."""

    used: int
    size: int
    total: int
    charts: Sequence[LinePlot | Bars]


class _NatsMap(NamedTuple):
    """A map of the mean nats at each place, with its darkest and brightest value."""

    image: EmbeddedImage
    low: float
    high: float


def page_values(measured: Measured, plain: Mapping[str, Any]) -> dict[str, Any]:
    """A measurement, and the plain values of its `result.json` -> the values of `TEMPLATE`."""
    return {
        "kind": measured.kind,
        **{key: plain[key] for key in ("data", "samples", "model", "made")},
        "cards": _cards(measured),
        "hero": _hero(measured),
        "scores": _scores(measured),
        "networks": _networks(measured),
        "deviations": measured.deviations,
        "notes": [_sentence(note) for note in measured.notes],
        "ranked": _ranked(measured),
        "difference": DIFFERENCE,
        "sample_images": _images_of_rank(measured, "sample"),
        "reference_images": _images_of_rank(measured, "reference"),
        "distributions": _distributions(measured),
        "nats_map": None if measured.nats_per_position is None else _nats_map(measured.nats_per_position),
        "codes": None if measured.counts is None else _codes(measured.counts),
        "about": plain["protocol"].get("about", ""),
        "protocol": _yaml({key: value for key, value in plain["protocol"].items() if key != "about"}),
        "parts": _yaml({key: plain[key] for key in ("data", "samples", "model", "networks") if plain[key]}),
    }


def score_name(name: str) -> str:
    """A score's name in a result -> as it is written for people: `frechet_squeezenet` is "Frechet (SqueezeNet)"."""
    if name in NAMES:
        return NAMES[name]
    base, network, _ = name.partition("_squeezenet")
    words = base.replace("_", " ")
    return words[:1].upper() + words[1:] + (" (SqueezeNet)" if network else "")


def _hero(measured: Measured) -> list[EmbeddedImage]:
    """Originals and reconstructions of middling quality, side by side; or samples."""
    samples = [shown for shown in measured.examples if shown.rank == "sample"]
    if samples:
        return [_image(shown.original, shown.name) for shown in samples[:8]]
    found = []
    for shown in [shown for shown in measured.examples if shown.rank == "median"][:8]:
        found.append(_image(shown.original, shown.name))
        found.append(_image(shown.reconstruction, f"what the codes keep of {shown.name}"))
    return found


def _cards(measured: Measured) -> list[Card]:
    chosen = [name for name in HEADLINES[measured.kind] if name in measured.scores][:4]
    if measured.kind == "tokenizer" and "codes_in_use" in measured.scores:
        chosen = [*chosen[:3], "codes_in_use"]
    return [
        Card(score_name(name), format_score(name, measured.scores[name]), unit=UNITS.get(name, "")) for name in chosen
    ]


def _sentence(note: str) -> str:
    first, space, rest = note.partition(" ")
    named = first.rstrip(":,") in FEATURE_NAMES or "_" in first  # a score's name keeps its letters
    return (first if named else first[:1].upper() + first[1:]) + space + rest + ("" if note.endswith(".") else ".")


def _scores(measured: Measured) -> Table:
    rows = []
    for name, value in measured.scores.items():
        words = measured.definitions.get(name, "").partition(FEATURES)[0]
        shown = format_score(name, value, deviation=measured.deviations.get(name))
        rows.append((score_name(name), shown, f"{words} (`{name}`)"))
    return Table(["Score", "Value", "What it is"], rows)


def _networks(measured: Measured) -> list[str]:
    """The feature networks that the definitions of the scores name."""
    named = [measured.definitions.get(name, "").partition(FEATURES)[2] for name in measured.scores]
    return [network for network in dict.fromkeys(named) if network]


def _ranked(measured: Measured) -> list[_Ranked]:
    found = []
    for rank, words in RANKS[measured.kind].items():
        some = [shown for shown in measured.examples if shown.rank == rank]
        if some:
            small = min(shown.original.shape[0] for shown in some) < 128
            found.append(_Ranked(words, _comparison(some), "pixelated" if small else "auto"))
    return found


def _images_of_rank(measured: Measured, rank: str) -> list[EmbeddedImage]:
    some = [shown for shown in measured.examples if shown.rank == rank]
    return [_image(shown.original, f"{rank} {shown.name}", _short(shown.name)) for shown in some]


def _comparison(some: Sequence[ExampleImage]) -> Comparison:
    originals = [_image(shown.original, f"the original {shown.name}", _short(shown.name)) for shown in some]
    if all(shown.reconstruction is shown.original for shown in some):
        named = [replace(image, caption=_values(shown)) for image, shown in zip(originals, some, strict=True)]
        return Comparison([("from its codes", named)])
    back = [_image(shown.reconstruction, f"its reconstruction, {shown.name}", _values(shown)) for shown in some]
    gaps = [_image(_difference(shown), f"the difference between {shown.name} and its reconstruction") for shown in some]
    return Comparison([("original", originals), ("reconstruction", back), ("difference", gaps)])


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"…{name[-27:]}"


def _values(shown: ExampleImage) -> str:
    order = sorted(shown.values.items(), key=lambda item: not item[0].startswith(("lpips", "psnr", "nats")))
    return ", ".join(f"{score_name(name)} {value:.3g} {UNITS.get(name, '')}".strip() for name, value in order[:2])


def _difference(shown: ExampleImage) -> npt.NDArray[np.uint8]:
    apart = np.abs(shown.original.astype(np.int16) - shown.reconstruction.astype(np.int16)).mean(2)
    levels: npt.NDArray[np.uint8] = (DIFFERENCE * apart).clip(0, 255).astype(np.uint8)
    return levels


def _image(pixels: npt.NDArray[np.uint8], alt: str, caption: str = "") -> EmbeddedImage:
    return EmbeddedImage(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels, alt, caption=caption)


def _distributions(measured: Measured) -> list[Histogram]:
    return [
        Histogram(
            f"{score_name(name)} of each image",
            column[~column.isnan()].tolist(),
            x_label=UNITS.get(name, score_name(name)),
            y_label="images",
        )
        for name, column in measured.values.items()
    ]


def _nats_map(nats: Tensor) -> _NatsMap:
    """Mean nats at each position (h,w) -> a map of them, dark where codes are easy to guess."""
    low, high = float(nats.min()), float(nats.max())
    levels = ((nats - low) / max(high - low, 1e-9) * 255).round().to(torch.uint8).numpy()
    each = -(-160 // max(levels.shape))
    enlarged = levels.repeat(each, 0).repeat(each, 1)
    return _NatsMap(EmbeddedImage(enlarged, "a map of the mean nats of a code at each place of the grid"), low, high)


def _codes(counts: Tensor) -> _CodeUse:
    """How often each code occurred (K,) -> by rank, and what the most frequent ones take."""
    total, size = max(int(counts.sum()), 1), len(counts)
    ordered = counts.sort(descending=True).values
    used = ordered[ordered > 0]
    ranks = sorted({round(size ** (step / 400)) for step in range(401)} | {len(used)})
    by_rank = LinePlot(
        "Codes by frequency",
        [Line("occurrences", [(float(rank), float(ordered[rank - 1])) for rank in ranks if rank <= len(used)])],
        x_label="rank of the code",
        y_label="occurrences",
        scale="log",
        references=[Reference(total / size, "if all were equally frequent")],
    )
    shares = [
        (
            "the most frequent code" if count == 1 else f"the {count:,} most frequent",
            100 * float(ordered[:count].sum()) / total,
        )
        for count in dict.fromkeys((1, max(1, size // 100), max(1, size // 10), max(1, size // 2)))
    ]
    return _CodeUse(len(used), size, total, [by_rank, Bars("Fraction of all occurrences", shares, unit="%")])


def _yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, default_flow_style=None, width=100, allow_unicode=True).strip()
