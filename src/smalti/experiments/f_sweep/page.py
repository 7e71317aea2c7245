"""The page of the experiment `f-sweep`: curves over f, reconstructions, and images generated at each f."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from smalti.core.version import __version__
from smalti.experiments.base import ExperimentRequest, StepResult
from smalti.experiments.page_parts import counted, made, minutes, not_measured, pixels, remarks, side_by_side
from smalti.experiments.sampling import MIN_SAMPLES
from smalti.experiments.tokenizer_comparison import HEADS, LPIPS, Compared
from smalti.reports.charts import Bars, Line, Linear, LinePlot, Logarithmic, Plot, Reference, Scale
from smalti.reports.report import Block, Card, Cards, Comparison, EmbeddedImage, Plots, Report, Section, Table, Text

LINEAR = Linear()


class _Entry(NamedTuple):
    """All that was done at one f."""

    f: int
    measured: Compared
    prior: Mapping[str, Any]
    samples: StepResult


def page(settings: Any, request: ExperimentRequest, done: Mapping[str, StepResult]) -> Report:
    """The finished steps of the experiment -> its page."""
    names = [step.removeprefix("samples-") for step in done if step.startswith("samples-")]
    found = sorted((_one(name, done) for name in names), key=lambda one: one.f)
    h, w = settings.window
    H, W = settings.size
    return Report(
        title="How large should a tile be",
        lead=f"Tokenizers with tiles of {', '.join(str(one.f) for one in found)} pixels a side and "
        f"{settings.codebook:,} codes "
        f"each; priors of one size, which see {h} x {w} codes at once; images of {H} x {W} pixels, "
        "generated with the sliding window.",
        blocks=[_cards(found, done)],
        hero=[image for one in reversed(found[-2:]) for image in _generated_images(one, 4)],
        sections=[
            Section("Findings and limitations", [Text(_findings(found)), Text(_limitations(settings, found))]),
            Section("Laid, from the smallest tile to the largest", [_rows(found, settings)]),
            Section(
                "Reconstructed",
                side_by_side([(f"f {one.f}", one.measured) for one in found]),
            ),
            Section("Over f", [_curves(found), _table(found), *remarks([one.measured for one in found])]),
            Section("How the priors learned", [_learning(found)]),
            made("f-sweep", settings, request, protocol=found[0].measured.outcome["result"]["protocol"]),
        ],
        colophon=f"Made by smalti {__version__}. All figures stand in result.json beside this page.",
    )


def _one(name: str, done: Mapping[str, StepResult]) -> _Entry:
    measured = done[f"measure-{name}"]
    compared = Compared(name, measured.folder, measured.outcome)
    return _Entry(measured.outcome["factor"], compared, done[f"prior-{name}"].outcome, done[f"samples-{name}"])


def _cards(found: Sequence[_Entry], done: Mapping[str, StepResult]) -> Cards:
    small, large = found[0], found[-1]
    faster = small.samples.outcome["seconds_per_image"] / large.samples.outcome["seconds_per_image"]
    return Cards(
        [
            Card(f"f {small.f} keeps", f"{small.measured.scores['psnr']:.2f}", unit="dB PSNR"),
            Card(f"f {large.f} keeps", f"{large.measured.scores['psnr']:.2f}", unit="dB PSNR"),
            Card(
                "Codes of an image",
                f"{small.samples.outcome['codes']:,} to {large.samples.outcome['codes']:,}",
            ),
            Card(f"Generation at f {large.f} is faster", f"{faster:.0f}", unit=f"times than at f {small.f}"),
            Card("Whole experiment", minutes(sum(each.seconds for each in done.values())), unit="minutes of work"),
        ]
    )


def _findings(found: Sequence[_Entry]) -> str:
    small, large = found[0], found[-1]
    sentences = [
        f"From f {small.f} to f {large.f} the PSNR of reconstructions goes from "
        f"{small.measured.scores['psnr']:.2f} to "
        f"{large.measured.scores['psnr']:.2f} dB, while a prior that needs "
        f"{small.prior['nats_per_pixel']:.3f} nats per pixel at "
        f"f {small.f} needs {large.prior['nats_per_pixel']:.4f} at f {large.f}. A window of the prior "
        "covers the whole image at "
        "the largest f that was trained and a small part of it at the smallest; whether the rows below "
        "lose the composition "
        "toward small f, as in the paper's figure, is for the eye."
    ]
    if all("frechet" in one.samples.outcome for one in found):
        best = min(found, key=lambda one: one.samples.outcome["frechet"])
        sentences.append(f"By the Frechet distance of the samples in SqueezeNet's features f {best.f} is best.")
    return " ".join(sentences)


def _limitations(settings: Any, found: Sequence[_Entry]) -> str:
    sentences = [
        "Each was trained once, with one seed, tokenizers on the same number of images and priors on the "
        "same number of codes. "
        "With the same layers but another number of levels the tokenizers differ in size, and the palette "
        "of f 1 has no network.",
        "Nats per pixel are those of codes: at a larger f they leave out what the decoder adds, so that "
        "they fall whatever the "
        "prior has learned.",
        "Details of reconstructions bound those of samples from above.",
    ]
    if settings.samples < MIN_SAMPLES:
        sentences.append(
            f"No Frechet distance of the samples is given: {counted(settings.samples, 'image')} for each f are too few."
        )
    elif settings.samples < 2048:
        sentences.append(f"A Frechet distance over {settings.samples:,} images is biased and noisy; it ranks, at best.")
    return " ".join([*sentences, *not_measured(found[0].measured)])


def _generated_images(one: _Entry, count: int) -> list[EmbeddedImage]:
    files = sorted((one.samples.folder / "samples").glob("*.png"))[:count]
    return [EmbeddedImage(pixels(file), f"an image generated at f {one.f}, seed {int(file.stem)}") for file in files]


def _rows(found: Sequence[_Entry], settings: Any) -> Comparison:
    h, w = settings.window
    return Comparison(
        [
            (f"f {one.f}: a window of {h * one.f} x {w * one.f} pixels", _generated_images(one, settings.shown))
            for one in found
        ],
        caption="Seeds from 0 on, not chosen. In a column nothing but the seed is the same.",
    )


def _curves(found: Sequence[_Entry]) -> Plots:
    def over_f(title: str, unit: str, value: Callable[[_Entry], float], scale: Scale = LINEAR) -> Plot:
        points = [(math.log2(one.f), value(one)) for one in found]
        return LinePlot(title, [Line("", points)], x_label="log2 f", y_label=unit, scale=scale)

    plots = [over_f("Reconstruction: PSNR, higher is better", "dB", lambda one: one.measured.scores["psnr"])]
    if all(LPIPS in one.measured.scores for one in found):
        plots.append(over_f("Reconstruction: LPIPS, lower is better", "LPIPS", lambda one: one.measured.scores[LPIPS]))
    plots += [
        over_f("Prior: nats per code", "nats", lambda one: one.prior["nats_per_code"]),
        over_f("Prior: nats per pixel", "nats", lambda one: one.prior["nats_per_pixel"], Logarithmic()),
    ]
    if all("frechet" in one.samples.outcome for one in found):
        plots.append(
            over_f("Samples: Frechet distance, lower is better", "Frechet", lambda one: one.samples.outcome["frechet"])
        )
    times = [(f"f {one.f}", one.samples.outcome["seconds_per_image"]) for one in found]
    plots.append(Bars("Generating an image", times, unit="s"))
    return Plots(plots, caption="log2 f: 0 stands for single pixels, 4 for tiles of 16 x 16.")


def _table(found: Sequence[_Entry]) -> Block:
    scores = [name for name in HEADS if any(name in one.measured.scores for one in found)]
    head = [
        "f",
        "bits per pixel",
        *(HEADS[name] for name in scores),
        "in use",
        "nats per code",
        "of entropy",
        "nats per pixel",
    ]
    rows: list[list[str | int | float]] = [
        [
            one.f,
            one.measured.outcome["bits_per_pixel"],
            *(one.measured.scores.get(name, math.nan) for name in scores),
            f"{one.measured.scores['codes_in_use']:.1%}",
            one.prior["nats_per_code"],
            f"{one.prior['nats_per_code'] / max(one.prior['code_entropy_nats'], 1e-9):.0%}",
            one.prior["nats_per_pixel"],
            one.samples.outcome["codes"],
            one.samples.outcome["seconds_per_image"],
            one.samples.outcome.get("frechet", math.nan),
        ]
        for one in found
    ]
    return Table(
        [*head, "codes generated", "seconds", "samples' Frechet"],
        rows,
        caption="Reconstruction of held-out images: means of PSNR in dB, SSIM, LPIPS over SqueezeNet, and the "
        "Frechet distance "
        "in SqueezeNet's features. Nats: of held-out codes, and as a share of the entropy of single "
        "codes. Codes generated, and seconds "
        "an image, among those generated together.",
    )


def _learning(found: Sequence[_Entry]) -> Plots:
    lines = [Line(f"f {one.f}", [(point["codes"], point["nats"]) for point in one.prior["curve"]]) for one in found]
    entropies = [one.prior["code_entropy_nats"] for one in found]
    references = [Reference(max(entropies), "largest entropy of single codes")]
    return Plots(
        [LinePlot("Held-out codes", lines, x_label="codes seen", y_label="nats per code", references=references)],
        caption="Lines that still fall say that more training would help.",
    )
