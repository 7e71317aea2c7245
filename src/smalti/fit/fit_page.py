"""The values of the report page of a fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from smalti.data.loader import Crops, evenly_spaced_batch
from smalti.data.sources import Source
from smalti.data.splits import split_crops
from smalti.fit.check_text import advice, check_rows
from smalti.fit.fit_plan import Plan
from smalti.fit.fit_request import FitState
from smalti.fit.fit_results import FitResults
from smalti.fit.found_conditions import FoundCondition
from smalti.images.io import to_tensor
from smalti.reports.charts import Bars
from smalti.reports.report import Card, Comparison, Table
from smalti.reports.stage_parts import compared, embedded, likelihood_plot, tokenizer_plots
from smalti.training.config import as_yaml
from smalti.training.run_folder import read_metrics

EXAMPLES = 8
HELD_OUT = "held-out images"


def page_values(
    out: Path,
    state: FitState,
    plan: Plan,
    *,
    conditions: Sequence[FoundCondition],
    results: FitResults,
    source: Source,
) -> dict[str, Any]:
    """A finished fit, its decisions, settings, conditions, results and images -> the values of its page."""
    size = plan.tokenizer.images.size
    figures = results.figures
    captions = results.captions
    return {
        "out": out,
        "name": Path(state.request.images).name,
        "size": size,
        "conditions": [each.name for each in conditions],
        "cards": _cards(figures),
        "hero": [
            embedded(image, f"a generated image, {text}") for image, text in zip(results.samples, captions, strict=True)
        ],
        "check": Table(["", "found"], check_rows(state.inspection, state.found, chosen=conditions, size=size)),
        "advice": advice(state.inspection, state.found, size=size),
        "examples": [embedded(image, "an image of the data set") for image in _examples(plan, source)],
        "reconstructions": compared(
            ("image", results.originals, "a held-out image"),
            ("from codes", results.reconstructions, "the same from its codes"),
        ),
        "tokenizer_plots": tokenizer_plots(read_metrics(out / "tokenizer"), results.counts, held_out=HELD_OUT),
        "prior_plots": [likelihood_plot(read_metrics(out / "prior"), figures["code_entropy_nats"], held_out=HELD_OUT)],
        "samples": _samples(results),
        "panorama": [embedded(results.panorama, "a panorama by the sliding window")],
        "panorama_conditioned": results.panorama_conditioned,
        "wide": (results.panorama.shape[1], results.panorama.shape[2]),
        "completions": compared(
            ("kept", results.kept, "what is kept of a held-out image"),
            ("completed", results.completed, "the rest generated"),
            ("the image", results.complete, "the held-out image"),
        ),
        "hole": results.hole,
        "times": [Bars("Time", list(state.seconds.items()), unit="s")],
        "commands": _commands(out, state, conditions, source),
        "tokenizer_settings": as_yaml(plan.tokenizer),
        "map_settings": {name: as_yaml(each) for name, each in plan.maps.items()},
        "prior_settings": as_yaml(plan.prior),
    }


def _cards(figures: Mapping[str, float]) -> list[Card]:
    entropy, nats = figures["code_entropy_nats"], figures["prior_nats"]
    below = 1 - nats / entropy if entropy else 0.0
    held_out = int(figures["held_out_images"])
    return [
        Card(f"Reconstruction of {held_out:,} {HELD_OUT}", f"{figures['psnr']:.2f}", unit="dB PSNR"),
        Card("Codes in use", f"{figures['codes_in_use']:.0%}", unit="of the codebook"),
        Card(
            f"Prior, below the {entropy:.2f} nats of single codes", f"{below:.0%}", unit=f"({nats:.2f} nats per code)"
        ),
        Card("Whole run", f"{figures['seconds'] / 60:.1f}", unit="minutes"),
    ]


def _examples(plan: Plan, source: Source) -> Tensor:
    training: Crops = split_crops(
        source, plan.tokenizer.images, channels=plan.tokenizer.model.autoencoder.channels, seed=plan.tokenizer.run.seed
    )[0]
    return evenly_spaced_batch(training, EXAMPLES).images


def _samples(results: FitResults) -> Comparison:
    """The samples in rows of eight, each below its condition, where that is an image."""
    rows = []
    shown = [
        embedded(image, f"a generated image, {text}", caption=text)
        for image, text in zip(results.samples, results.captions, strict=True)
    ]
    previews = [
        embedded(_resized(to_tensor(pixels), results.samples.shape[2:]), "the condition") for pixels in results.previews
    ]
    for first in range(0, len(shown), EXAMPLES):
        if previews:
            rows.append(("condition", previews[first : first + EXAMPLES]))
        rows.append(("samples", shown[first : first + EXAMPLES]))
    return Comparison(rows)


def _resized(image: Tensor, size: Sequence[int]) -> Tensor:
    """(3,H',W') -> (3,H,W), each pixel repeated."""
    return F.interpolate(image[None], size=tuple(size), mode="nearest-exact")[0]


def _commands(
    out: Path, state: FitState, conditions: Sequence[FoundCondition], source: Source
) -> list[tuple[str, str]]:
    """What to type next, and what it is for."""
    condition = {
        "labels": f" --label {source.labels[0]!r}" if source.labels else "",
        "text": ' --text "..."',
        "layout": " --layout objects.json",
        "segmentation": " --segmentation MAP.png",
        "depth": " --depth MAP.png",
    }
    options = "".join(condition[each.name] for each in conditions)
    return [
        (f"smalti sample {out} --out samples -n 16{options}", "More images."),
        (f"smalti complete {out} IMAGE --mask MASK.png --out completed", "Complete an image of yours."),
        (f"smalti web {out}", "A page to generate, inpaint and outpaint."),
        (f"smalti info {out}", "What was trained, and on what."),
    ]
