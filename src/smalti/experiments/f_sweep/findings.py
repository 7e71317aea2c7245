"""What the experiment `f-sweep` found, as the values of its page: curves over f, reconstructions, samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from smalti.experiments.base import ExperimentRequest, StepResult
from smalti.experiments.page_parts import not_measured, pixels, protocol, remarks, side_by_side, whole_experiment
from smalti.experiments.sampling import MIN_SAMPLES
from smalti.experiments.tokenizer_comparison import LPIPS, SCORE_HEADERS, MeasuredTokenizer
from smalti.reports.charts import Bars, Line, LinePlot, Plot, Reference, Scale
from smalti.reports.report import Card, Comparison, EmbeddedImage, Table


class _Entry(NamedTuple):
    """All that was done at one f."""

    f: int
    measured: MeasuredTokenizer
    prior: Mapping[str, Any]
    samples: StepResult

    @property
    def psnr(self) -> float:
        """Of its reconstructions, in dB."""
        return self.measured.scores["psnr"]


def findings(settings: Any, request: ExperimentRequest, done: Mapping[str, StepResult]) -> dict[str, Any]:
    """The finished steps of the experiment -> the values of its page."""
    names = [step.removeprefix("samples-") for step in done if step.startswith("samples-")]
    entries = sorted((_entry(name, done) for name in names), key=lambda entry: entry.f)
    scored = [entry for entry in entries if "frechet" in entry.samples.outcome]
    return {
        "entries": entries,
        "small": entries[0],
        "large": entries[-1],
        "best": min(scored, key=lambda entry: entry.samples.outcome["frechet"])
        if len(scored) == len(entries)
        else None,
        "min_samples": MIN_SAMPLES,
        "not_measured": not_measured(entries[0].measured),
        "cards": _cards(entries, done),
        "hero": [image for entry in reversed(entries[-2:]) for image in _generated(entry, 4)],
        "generated": _rows(entries, settings),
        "side_by_side": side_by_side([(f"f {entry.f}", entry.measured) for entry in entries]),
        "curves": _curves(entries),
        "table": _table(entries),
        "remarks": remarks([entry.measured for entry in entries]),
        "learning": [_learning(entries)],
        "protocol": protocol(entries[0].measured),
    }


def _entry(name: str, done: Mapping[str, StepResult]) -> _Entry:
    measured = done[f"measure-{name}"]
    compared = MeasuredTokenizer(name, measured.folder, measured.outcome)
    return _Entry(measured.outcome["factor"], compared, done[f"prior-{name}"].outcome, done[f"samples-{name}"])


def _cards(entries: Sequence[_Entry], done: Mapping[str, StepResult]) -> list[Card]:
    small, large = entries[0], entries[-1]
    faster = small.samples.outcome["seconds_per_image"] / large.samples.outcome["seconds_per_image"]
    return [
        Card(f"f {small.f} keeps", f"{small.psnr:.2f}", unit="dB PSNR"),
        Card(f"f {large.f} keeps", f"{large.psnr:.2f}", unit="dB PSNR"),
        Card("Codes of an image", f"{small.samples.outcome['codes']:,} to {large.samples.outcome['codes']:,}"),
        Card(f"Generating at f {large.f} is faster", f"{faster:.0f}", unit=f"times than at f {small.f}"),
        whole_experiment(done),
    ]


def _generated(entry: _Entry, count: int) -> list[EmbeddedImage]:
    files = sorted((entry.samples.folder / "samples").glob("*.png"))[:count]
    return [EmbeddedImage(pixels(file), f"an image generated at f {entry.f}, seed {int(file.stem)}") for file in files]


def _rows(entries: Sequence[_Entry], settings: Any) -> Comparison:
    h, w = settings.window
    return Comparison(
        [
            (f"f {entry.f}: a window of {h * entry.f} x {w * entry.f} pixels", _generated(entry, settings.shown))
            for entry in entries
        ]
    )


def _curves(entries: Sequence[_Entry]) -> list[Plot]:
    def over_f(title: str, unit: str, value: Callable[[_Entry], float], scale: Scale = "linear") -> Plot:
        points = [(math.log2(entry.f), value(entry)) for entry in entries]
        return LinePlot(title, [Line("", points)], x_label="log2 f", y_label=unit, scale=scale)

    plots = [over_f("Reconstruction: PSNR, higher is better", "dB", lambda entry: entry.psnr)]
    if all(LPIPS in entry.measured.scores for entry in entries):
        plots.append(
            over_f("Reconstruction: LPIPS, lower is better", "LPIPS", lambda entry: entry.measured.scores[LPIPS])
        )
    plots += [
        over_f("Prior: nats per code", "nats", lambda entry: entry.prior["nats_per_code"]),
        over_f("Prior: nats per pixel", "nats", lambda entry: entry.prior["nats_per_pixel"], "log"),
    ]
    if all("frechet" in entry.samples.outcome for entry in entries):
        plots.append(
            over_f(
                "Samples: Frechet distance, lower is better", "Frechet", lambda entry: entry.samples.outcome["frechet"]
            )
        )
    times = [(f"f {entry.f}", entry.samples.outcome["seconds_per_image"]) for entry in entries]
    return [*plots, Bars("Generating an image", times, unit="s")]


def _table(entries: Sequence[_Entry]) -> Table:
    scores = [name for name in SCORE_HEADERS if any(name in entry.measured.scores for entry in entries)]
    head = ["f", "bits per pixel", *(SCORE_HEADERS[name] for name in scores), "in use", "nats per code", "of entropy"]
    rows: list[list[str | int | float]] = [
        [
            entry.f,
            entry.measured.outcome["bits_per_pixel"],
            *(entry.measured.scores.get(name, math.nan) for name in scores),
            f"{entry.measured.scores['codes_in_use']:.1%}",
            entry.prior["nats_per_code"],
            f"{entry.prior['nats_per_code'] / max(entry.prior['code_entropy_nats'], 1e-9):.0%}",
            entry.prior["nats_per_pixel"],
            entry.samples.outcome["codes"],
            entry.samples.outcome["seconds_per_image"],
            entry.samples.outcome.get("frechet", math.nan),
        ]
        for entry in entries
    ]
    return Table([*head, "nats per pixel", "codes generated", "seconds", "samples' Frechet"], rows)


def _learning(entries: Sequence[_Entry]) -> LinePlot:
    lines = [
        Line(f"f {entry.f}", [(point["codes"], point["nats"]) for point in entry.prior["curve"]]) for entry in entries
    ]
    references = [Reference(max(entry.prior["code_entropy_nats"] for entry in entries), "largest unigram entropy")]
    return LinePlot("Held-out codes", lines, x_label="codes seen", y_label="nats per code", references=references)
