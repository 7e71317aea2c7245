"""What the experiment `f-sweep` found, as the values of its page: curves over f, reconstructions, samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from smalti.experiments.base import ExperimentRequest, StepResult
from smalti.experiments.page_parts import not_measured, pixels, protocol, remarks, side_by_side, whole_experiment
from smalti.experiments.sampling import MIN_SAMPLES
from smalti.experiments.tokenizer_comparison import HEADS, LPIPS, Compared
from smalti.reports.charts import Bars, Line, LinePlot, Plot, Reference, Scale
from smalti.reports.report import Card, Comparison, EmbeddedImage, Table


class _Entry(NamedTuple):
    """All that was done at one f."""

    f: int
    measured: Compared
    prior: Mapping[str, Any]
    samples: StepResult

    @property
    def psnr(self) -> float:
        """Of its reconstructions, in dB."""
        return self.measured.scores["psnr"]


def findings(settings: Any, request: ExperimentRequest, done: Mapping[str, StepResult]) -> dict[str, Any]:
    """The finished steps of the experiment -> the values of its page."""
    names = [step.removeprefix("samples-") for step in done if step.startswith("samples-")]
    found = sorted((_one(name, done) for name in names), key=lambda one: one.f)
    scored = [one for one in found if "frechet" in one.samples.outcome]
    return {
        "found": found,
        "small": found[0],
        "large": found[-1],
        "best": min(scored, key=lambda one: one.samples.outcome["frechet"]) if len(scored) == len(found) else None,
        "min_samples": MIN_SAMPLES,
        "not_measured": not_measured(found[0].measured),
        "cards": _cards(found, done),
        "hero": [image for one in reversed(found[-2:]) for image in _generated(one, 4)],
        "generated": _rows(found, settings),
        "side_by_side": side_by_side([(f"f {one.f}", one.measured) for one in found]),
        "curves": _curves(found),
        "table": _table(found),
        "remarks": remarks([one.measured for one in found]),
        "learning": [_learning(found)],
        "protocol": protocol(found[0].measured),
    }


def _one(name: str, done: Mapping[str, StepResult]) -> _Entry:
    measured = done[f"measure-{name}"]
    compared = Compared(name, measured.folder, measured.outcome)
    return _Entry(measured.outcome["factor"], compared, done[f"prior-{name}"].outcome, done[f"samples-{name}"])


def _cards(found: Sequence[_Entry], done: Mapping[str, StepResult]) -> list[Card]:
    small, large = found[0], found[-1]
    faster = small.samples.outcome["seconds_per_image"] / large.samples.outcome["seconds_per_image"]
    return [
        Card(f"f {small.f} keeps", f"{small.psnr:.2f}", unit="dB PSNR"),
        Card(f"f {large.f} keeps", f"{large.psnr:.2f}", unit="dB PSNR"),
        Card("Codes of an image", f"{small.samples.outcome['codes']:,} to {large.samples.outcome['codes']:,}"),
        Card(f"Generating at f {large.f} is faster", f"{faster:.0f}", unit=f"times than at f {small.f}"),
        whole_experiment(done),
    ]


def _generated(one: _Entry, count: int) -> list[EmbeddedImage]:
    files = sorted((one.samples.folder / "samples").glob("*.png"))[:count]
    return [EmbeddedImage(pixels(file), f"an image generated at f {one.f}, seed {int(file.stem)}") for file in files]


def _rows(found: Sequence[_Entry], settings: Any) -> Comparison:
    h, w = settings.window
    return Comparison(
        [(f"f {one.f}: a window of {h * one.f} x {w * one.f} pixels", _generated(one, settings.shown)) for one in found]
    )


def _curves(found: Sequence[_Entry]) -> list[Plot]:
    def over_f(title: str, unit: str, value: Callable[[_Entry], float], scale: Scale = "linear") -> Plot:
        points = [(math.log2(one.f), value(one)) for one in found]
        return LinePlot(title, [Line("", points)], x_label="log2 f", y_label=unit, scale=scale)

    plots = [over_f("Reconstruction: PSNR, higher is better", "dB", lambda one: one.psnr)]
    if all(LPIPS in one.measured.scores for one in found):
        plots.append(over_f("Reconstruction: LPIPS, lower is better", "LPIPS", lambda one: one.measured.scores[LPIPS]))
    plots += [
        over_f("Prior: nats per code", "nats", lambda one: one.prior["nats_per_code"]),
        over_f("Prior: nats per pixel", "nats", lambda one: one.prior["nats_per_pixel"], "log"),
    ]
    if all("frechet" in one.samples.outcome for one in found):
        plots.append(
            over_f("Samples: Frechet distance, lower is better", "Frechet", lambda one: one.samples.outcome["frechet"])
        )
    times = [(f"f {one.f}", one.samples.outcome["seconds_per_image"]) for one in found]
    return [*plots, Bars("Generating an image", times, unit="s")]


def _table(found: Sequence[_Entry]) -> Table:
    scores = [name for name in HEADS if any(name in one.measured.scores for one in found)]
    head = ["f", "bits per pixel", *(HEADS[name] for name in scores), "in use", "nats per code", "of entropy"]
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
    return Table([*head, "nats per pixel", "codes generated", "seconds", "samples' Frechet"], rows)


def _learning(found: Sequence[_Entry]) -> LinePlot:
    lines = [Line(f"f {one.f}", [(point["codes"], point["nats"]) for point in one.prior["curve"]]) for one in found]
    references = [Reference(max(one.prior["code_entropy_nats"] for one in found), "largest unigram entropy")]
    return LinePlot("Held-out codes", lines, x_label="codes seen", y_label="nats per code", references=references)
