"""The experiment `quantizers`: reconstruction quality, code usage and training speed of each quantizer.

All tokenizers are trained on the same number of images with the same settings except the quantizer, and with equal or
nearly equal codebook sizes.

H W pixels, K size of the codebook, D dimension of a code.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from smalti.core.settings import Positive, settings
from smalti.experiments import steps
from smalti.experiments.base import Experiment, ExperimentRequest, Step, StepContext
from smalti.experiments.equal_time import at_nominal_length, pace_step
from smalti.experiments.quantizers.findings import findings
from smalti.experiments.steps import ImageSource, Variation, check_overrides_used, check_unique_names
from smalti.experiments.tokenizer_measurement import TokenizerMeasurement
from smalti.model_loading import load_tokenizer


@settings
class QuantizersSettings:
    """The quantizers to compare, and the images."""

    recipe: str
    training: tuple[str, ...] = ()
    """`a.b=c` over the recipe, for all."""
    quantizers: Annotated[tuple[Variation, ...], Field(min_length=1)]
    size: tuple[Positive, Positive]
    """(H,W) of the images that all are trained on and measured at, and of rendered scenes."""
    pace_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Seconds for which the training speed of each is measured."""
    held_out: Annotated[float, Field(gt=0, lt=1)]
    """Fraction of the images that trainings do not see, and on which their tokenizers are measured."""
    images: Positive
    """The most images that are measured, evenly spread."""
    shown: Positive
    """How many of those the page shows side by side."""
    scenes: Positive = 480
    """How many scenes are rendered if no images are given."""


def plan(chosen: QuantizersSettings, request: ExperimentRequest) -> list[Step]:
    """Render scenes if no images are given; then for each quantizer measure its speed, train, and evaluate."""
    check_overrides_used(request, trains=("tokenizer",))
    check_unique_names([each.name for each in chosen.quantizers], what="quantizers")
    images = ImageSource.of(request.data)
    measurement = TokenizerMeasurement.of(
        "quantizers", size=chosen.size, count=chosen.images, held_out=chosen.held_out, shown=chosen.shown
    )
    planned_steps = [] if request.data else [steps.scenes(count=chosen.scenes, size=chosen.size)]
    fixed = [f"images.size={list(chosen.size)}", f"images.validation={chosen.held_out}"]
    for each in chosen.quantizers:
        training = steps.varied_tokenizer(
            chosen.recipe, shared=chosen.training, overrides=request.of("tokenizer"), changes=[*each.changes, *fixed]
        )
        planned_steps += [
            pace_step(each.name, images=images, training=at_nominal_length(training), seconds=chosen.pace_seconds),
            steps.tokenizer(f"tokenizer-{each.name}", images=images, training=training),
            measurement.step(
                each.name,
                images=images,
                described={},
                after=(f"tokenizer-{each.name}",),
                load=_loading(f"tokenizer-{each.name}"),
            ),
        ]
    return planned_steps


def _loading(step: str) -> Callable[[StepContext], Any]:
    return lambda context: load_tokenizer(context.before[step].folder)


QUANTIZERS_COMPARED = Experiment(
    name="quantizers",
    about="what each quantizer keeps of images, how it uses its codes, and how fast it trains",
    takes_models=False,
    settings=QuantizersSettings,
    scales_file=Path(__file__).with_name("scales.yaml"),
    plan=plan,
    findings=findings,
    page="experiments/quantizers/page.html",
)
