"""The page of the experiment `transformer-vs-pixelsnail`: its table, curves over codes and over seconds, samples on the
way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smalti.core.version import __version__
from smalti.experiments.base import ExperimentRequest, StepResult
from smalti.experiments.page_parts import counted, learning, made, minutes, pixels, signed
from smalti.reports.charts import Bars
from smalti.reports.report import Card, Cards, EmbeddedImage, Images, Plots, Report, Section, Table, Text

PIXELSNAIL, SAME_STEPS, SAME_TIME = "pixelsnail", "transformer-steps", "transformer-time"
CONTENDERS = (SAME_STEPS, SAME_TIME, PIXELSNAIL)
"""In the order of the paper's columns."""
CALLED = {
    PIXELSNAIL: "PixelSNAIL",
    SAME_STEPS: "transformer, as many codes",
    SAME_TIME: "transformer, as long",
}
FAR = 0.15
"""Relative difference of training times above which the page reports it."""


def page(settings: Any, request: ExperimentRequest, done: Mapping[str, StepResult]) -> Report:
    """The finished steps of the experiment -> its page."""
    outcome = done["compare"].outcome
    rows = outcome["rows"]
    return Report(
        title="Transformer against PixelSNAIL",
        lead=f"Two priors with about as many parameters ({rows[SAME_STEPS]['parameters']:,} and "
        f"{rows[PIXELSNAIL]['parameters']:,}) on the codes of one tokenizer, evaluated on those of "
        f"{counted(outcome['images'], 'held-out crop')}.",
        blocks=[_cards(rows, done)],
        sections=[
            Section("Findings and limitations", [Text(_findings(rows)), Text(_limitations(rows))]),
            Section("Likelihood", [_bars(rows), _table(outcome)]),
            Section("On the way", [_curves(outcome, done)]),
            Section("Samples at the end", [_samples(done)]),
            made("transformer-vs-pixelsnail", settings, request, protocol={}),
        ],
        colophon=f"Made by smalti {__version__}. All figures stand in result.json beside this page.",
    )


def _cards(rows: Mapping[str, Mapping[str, Any]], done: Mapping[str, StepResult]) -> Cards:
    found = [Card(CALLED[name], f"{rows[name]['nats']:.3f}", unit="nats per code") for name in CONTENDERS]
    slower = pace(rows[PIXELSNAIL]) / pace(rows[SAME_STEPS])
    return Cards(
        [
            *found,
            Card("A code of training costs PixelSNAIL", f"{slower:.2f}", unit="times what it costs the transformer"),
            Card("Whole experiment", minutes(sum(each.seconds for each in done.values())), unit="minutes of work"),
        ]
    )


def pace(row: Mapping[str, Any]) -> float:
    """Seconds of training a code."""
    return float(row["seconds"]) / float(row["codes"])


def _findings(rows: Mapping[str, Mapping[str, Any]]) -> str:
    sentences = []
    for name, how in ((SAME_STEPS, "after as many codes"), (SAME_TIME, "after as long a time")):
        row = rows[name]
        gain = -row["over_pixelsnail"]
        verdict = "the transformer is better" if gain > 0 else "PixelSNAIL is better"
        if row["error"] is not None and abs(gain) < 2 * row["error"]:
            verdict = "the two do not differ significantly"
        error = "" if row["error"] is None else f" ± {row['error']:.3f}"
        sentences.append(
            f"{how[0].upper()}{how[1:]} {verdict}: {row['nats']:.3f} nats per code for the transformer, "
            f"{rows[PIXELSNAIL]['nats']:.3f} for PixelSNAIL, {abs(gain):.3f}{error} apart image by image."
        )
    sentences.append(
        "In the paper's table 1 the transformer is better by 0.07 to 0.26 nats in both columns of all data sets."
    )
    return " ".join(sentences)


def _limitations(rows: Mapping[str, Mapping[str, Any]]) -> str:
    sentences = [
        "Each was trained once, with one seed; standard errors are over images alone.",
        "Each is the model of its training that found the held-out codes likeliest, and these are the "
        "codes it is evaluated on: "
        "all gain alike by that, and a little.",
        "Neither was tuned beyond what the settings below say. Learning rates weigh much: what is best "
        "for one is not for the "
        "other, and at one rate for both the result can be the opposite.",
        "Equal are parameters, codes and time on this machine, not the work that a code takes; on a GPU "
        "the paces are others, "
        "and with them the second column.",
    ]
    far = rows[SAME_TIME]["seconds"] / rows[PIXELSNAIL]["seconds"] - 1
    if abs(far) > FAR:
        sentences.append(
            f"The pace of this machine changed on the way: the transformer that was to last as long took "
            f"{minutes(rows[SAME_TIME]['seconds'])} minutes, PixelSNAIL {minutes(rows[PIXELSNAIL]['seconds'])}."
        )
    return " ".join(sentences)


def _bars(rows: Mapping[str, Mapping[str, Any]]) -> Plots:
    likelihood = [(CALLED[name], float(rows[name]["nats"])) for name in CONTENDERS]
    return Plots([Bars("Held-out codes, lower is better", likelihood, unit="nats")])


def _table(outcome: Mapping[str, Any]) -> Table:
    rows = outcome["rows"]
    body: list[list[str | int | float]] = [
        [
            CALLED[name],
            row["parameters"],
            row["codes"],
            minutes(row["seconds"]),
            row["nats"],
            signed(row["over_pixelsnail"], row["error"]),
            f"{row['nats'] / max(outcome['code_entropy_nats'], 1e-9):.1%}",
            row["last_nats"],
        ]
        for name, row in ((name, rows[name]) for name in CONTENDERS)
    ]
    return Table(
        [
            "prior",
            "parameters",
            "codes seen",
            "minutes",
            "nats per code",
            "less PixelSNAIL's",
            "of entropy",
            "at the end",
        ],
        body,
        caption=f"Means over {counted(outcome['images'], 'held-out crop')}, of the model that each training has "
        "kept; the "
        "difference with its standard error; as a share of the entropy of single codes "
        f"({outcome['code_entropy_nats']:.3f} nats); "
        "and what the last model of the training had, as far as its validation looked. Minutes of "
        "training, as measured.",
    )


def _curves(outcome: Mapping[str, Any], done: Mapping[str, StepResult]) -> Plots:
    return learning(
        {CALLED[name]: done[f"prior-{name}"].outcome["curve"] for name in CONTENDERS},
        entropy=outcome["code_entropy_nats"],
        over={"codes": "Held-out codes over codes", "seconds": "Held-out codes over time"},
    )


def _samples(done: Mapping[str, StepResult]) -> Images:
    found = []
    for name in CONTENDERS:
        file = sorted((done[f"prior-{name}"].folder / "images").glob("*.png"))[-1]
        found.append(EmbeddedImage(pixels(file), f"samples of the {CALLED[name]}", caption=CALLED[name]))
    return Images(found, caption="Seeds from 0 on, not chosen; in one place the seed is the same.", width=400)
