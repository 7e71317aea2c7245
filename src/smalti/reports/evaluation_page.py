"""The page of a measurement: its scores and protocol, example images, codebook usage, and notes.

H W pixels, K size of the codebook, h w code grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml
from torch import Tensor

from smalti.evaluation.results import FEATURES, ExampleImage, Measured, format_score
from smalti.reports.charts import Bars, Histogram, Line, LinePlot, Logarithmic, Plot, Reference
from smalti.reports.report import (
    Block,
    Card,
    Cards,
    Comparison,
    EmbeddedImage,
    Images,
    Listing,
    Plots,
    Report,
    Section,
    Table,
    Text,
)

TITLES = {
    "tokenizer": "How well a tokenizer keeps images",
    "prior": "How likely a prior finds images",
    "folders": "One set of images against another",
}
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
WITH = {"tokenizer": "on", "prior": "on", "folders": "against"}
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
SETS = {"sample": "Samples", "reference": "Reference"}
FEATURE_NAMES = {"psnr", "ssim", "fid", "rfid", "sfid", "kid", "precision", "recall", "density", "coverage"}
DIFFERENCE = 4
"""Differences are shown so many times as large."""


def page(measured: Measured, plain: Mapping[str, Any]) -> Report:
    """A measurement, and the plain values of its `result.json` -> a page to look at."""
    data, made = plain["data"], plain["made"]
    images = data.get("images")
    count = "an unknown number of images" if images is None else f"{images:,} images"
    subject = _subject(measured, plain)
    return Report(
        title=TITLES[measured.kind],
        lead=f"{subject}, measured {WITH[measured.kind]} {count} of `{data['name']}`. The scores hold only "
        "together with "
        "the protocol at the end of this page.",
        blocks=[_cards(measured)],
        hero=[*_hero(measured)],
        sections=[*_sections(measured, plain)],
        colophon=f"Made by smalti {made['smalti']} with PyTorch {made['torch']} on {made['date']}. The figures "
        "stand in "
        "result.json beside this page.",
    )


def score_name(name: str) -> str:
    """A score's name in a result -> as it is written for people: `frechet_squeezenet` is "Frechet (SqueezeNet)"."""
    if name in NAMES:
        return NAMES[name]
    base, network, _ = name.partition("_squeezenet")
    words = base.replace("_", " ")
    return words[:1].upper() + words[1:] + (" (SqueezeNet)" if network else "")


def _subject(measured: Measured, plain: Mapping[str, Any]) -> str:
    if measured.kind == "folders":
        return f"{plain['samples']['images']:,} images of `{plain['samples']['name']}`"
    model = plain["model"]
    return f"The {measured.kind} `{model.get('name', model[measured.kind])}`"


def _hero(measured: Measured) -> Iterator[EmbeddedImage]:
    """Originals and reconstructions of middling quality, side by side; or samples."""
    samples = [shown for shown in measured.examples if shown.rank == "sample"]
    middling = [shown for shown in measured.examples if shown.rank == "median"]
    for shown in (samples or middling)[:8]:
        yield _image(shown.original, shown.name)
        if not samples:
            yield _image(shown.reconstruction, f"what the codes keep of {shown.name}")


def _cards(measured: Measured) -> Cards:
    chosen = [name for name in HEADLINES[measured.kind] if name in measured.scores][:4]
    if measured.kind == "tokenizer" and "codes_in_use" in measured.scores:
        chosen = [*chosen[:3], "codes_in_use"]
    return Cards(
        [Card(score_name(name), format_score(name, measured.scores[name]), unit=UNITS.get(name, "")) for name in chosen]
    )


def _sections(measured: Measured, plain: Mapping[str, Any]) -> Iterator[Section]:
    yield Section("All scores", [_scores(measured)])
    if measured.notes:
        yield Section("What to beware of", [Text("\n\n".join(_sentence(note) for note in measured.notes))])
    if measured.examples:
        yield from _images(measured)
    if measured.values:
        yield Section("Image by image", [Plots([*_distributions(measured)])])
    if measured.places is not None:
        yield _places(measured.places)
    if measured.counts is not None:
        yield _codes(measured.counts)
    yield _protocol(plain)


def _sentence(note: str) -> str:
    first, space, rest = note.partition(" ")
    named = first.rstrip(":,") in FEATURE_NAMES or "_" in first  # a score's name keeps its letters
    return (first if named else first[:1].upper() + first[1:]) + space + rest + ("" if note.endswith(".") else ".")


def _scores(measured: Measured) -> Table:
    rows, networks = [], {}
    for name, value in measured.scores.items():
        words, _, network = measured.definitions.get(name, "").partition(FEATURES)
        networks[network] = True
        shown = format_score(name, value, deviation=measured.deviations.get(name))
        rows.append((score_name(name), shown, f"{words} (`{name}`)"))
    caption = [f"Features: {network}." for network in networks if network]
    if measured.deviations:
        caption.append("± is the standard deviation over parts or subsets of the set, not the error of the mean.")
    return Table(["Score", "Value", "What it is"], rows, caption=" ".join(caption))


def _images(measured: Measured) -> Iterator[Section]:
    blocks: list[Block] = []
    for rank, words in RANKS[measured.kind].items():
        some = [shown for shown in measured.examples if shown.rank == rank]
        if some:
            blocks.append(_comparison(some, f"{words}."))
    if blocks:
        explained = Text(
            f"Chosen by rank, not by eye. A difference is the mean over colors of |original \u2212 reconstruction|, "
            f"{DIFFERENCE} times as large: white is {255 // DIFFERENCE} levels of 255 or more."
        )
        yield Section("Worst, median and best", [explained, *blocks])
    for rank, title in SETS.items():
        some = [shown for shown in measured.examples if shown.rank == rank]
        if some:
            images = [_image(shown.original, f"{rank} {shown.name}", _short(shown.name)) for shown in some]
            yield Section(title, [Images(images, caption="Spread evenly over the set, not chosen.", width=120)])


def _comparison(some: Sequence[ExampleImage], caption: str) -> Comparison:
    originals = [_image(shown.original, f"the original {shown.name}", _short(shown.name)) for shown in some]
    back = [_image(shown.reconstruction, f"its reconstruction, {shown.name}", _values(shown)) for shown in some]
    gaps = [_image(_difference(shown), f"the difference between {shown.name} and its reconstruction") for shown in some]
    rows = [("original", originals), ("reconstruction", back), ("difference", gaps)]
    if all(shown.reconstruction is shown.original for shown in some):
        rows = [
            (
                "from its codes",
                [replace(image, caption=_values(shown)) for image, shown in zip(originals, some, strict=True)],
            )
        ]
    small = min(shown.original.shape[0] for shown in some) < 128
    return Comparison(rows, caption=caption, scaling="pixelated" if small else "auto")


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


def _distributions(measured: Measured) -> Iterator[Plot]:
    for name, column in measured.values.items():
        known = column[~column.isnan()]
        unit = UNITS.get(name, score_name(name))
        yield Histogram(f"{score_name(name)} of each image", known.tolist(), x_label=unit, y_label="images")


def _places(places: Tensor) -> Section:
    """Mean nats at each place (h,w) -> a map of them, dark where codes are easy to guess."""
    low, high = float(places.min()), float(places.max())
    levels = ((places - low) / max(high - low, 1e-9) * 255).round().to(torch.uint8).numpy()
    each = -(-160 // max(levels.shape))
    enlarged = levels.repeat(each, 0).repeat(each, 1)
    shown = EmbeddedImage(enlarged, "a map of the mean nats of a code at each place of the grid")
    caption = f"Mean nats at each place of the grid: black {low:.2f}, white {high:.2f}."
    images = Images([shown], caption=caption, width=220, scaling="pixelated")
    return Section("Where codes are hard to guess", [images])


def _codes(counts: Tensor) -> Section:
    """How often each code occurred (K,) -> by rank, and what the most frequent ones take."""
    total, size = max(int(counts.sum()), 1), len(counts)
    ordered = counts.sort(descending=True).values
    used = ordered[ordered > 0]
    ranks = sorted({round(size ** (step / 400)) for step in range(401)} | {len(used)})
    points = [(float(rank), float(ordered[rank - 1])) for rank in ranks if rank <= len(used)]
    by_rank = LinePlot(
        "Codes by frequency",
        [Line("occurrences", points)],
        x_label="rank of the code",
        y_label="occurrences",
        scale=Logarithmic(),
        references=[Reference(total / size, "if all were equally frequent")],
    )
    shares = [
        (
            "the most frequent code" if count == 1 else f"the {count:,} most frequent",
            100 * float(ordered[:count].sum()) / total,
        )
        for count in dict.fromkeys((1, max(1, size // 100), max(1, size // 10), max(1, size // 2)))
    ]
    words = (
        f"{len(used):,} of {size:,} codes occur among {total:,}. A codebook is well used when the line is "
        "long and flat, "
        "and nowhere falls far below the dotted one."
    )
    return Section(
        "How the codes are used",
        [Text(words), Plots([by_rank, Bars("Share of all occurrences", shares, unit="%")])],
    )


def _protocol(plain: Mapping[str, Any]) -> Section:
    about = plain["protocol"].get("about", "")
    settings = {key: value for key, value in plain["protocol"].items() if key != "about"}
    parts = {key: plain[key] for key in ("data", "samples", "model", "networks") if plain[key]}
    blocks: list[Block] = [Text(about)] if about else []
    blocks += [
        Listing(_yaml(settings), caption="Settings: all that decides the scores"),
        Listing(_yaml(parts), caption="What was measured, with the fingerprints of all weights"),
    ]
    if plain["made"]["command"]:
        blocks.append(Listing(plain["made"]["command"], caption="The command"))
    return Section("Protocol", blocks)


def _yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, default_flow_style=None, width=100, allow_unicode=True).strip()
