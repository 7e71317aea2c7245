"""The experiment `transformer-vs-pixelsnail`: the paper's table 1. Which prior finds the same codes likelier?

One tokenizer, one set of codes. PixelSNAIL and the transformer, with about as many parameters, are trained on as many
codes; then the transformer once more, for as long by the clock as PixelSNAIL took. All are evaluated on the same
held-out codes.

H W pixels, f = H/h, h w grid of codes, K size of the codebook, B batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from smalti.core.settings import Positive, as_mapping, settings
from smalti.data.code_shards import open_codes
from smalti.experiments import prior_steps, steps
from smalti.experiments.base import Experiment, ExperimentRequest, Step, StepContext
from smalti.experiments.equal_time import check_parameter_counts, with_length
from smalti.experiments.pixelsnail.findings import CONTENDERS, PIXELSNAIL, SAME_STEPS, SAME_TIME, findings
from smalti.experiments.steps import ImageSource, check_overrides_used
from smalti.training.config import PriorTraining


@settings
class PixelSNAILExperimentSettings:
    """What is compared, and on what."""

    recipe: str
    """Of the tokenizer and of the priors."""
    tokenizer: tuple[str, ...] = ()
    """`a.b=c` over the recipe, for the tokenizer."""
    prior: tuple[str, ...] = ()
    """`a.b=c` over the recipe, for both priors. `run.codes` is how many codes PixelSNAIL sees, and the transformer at
    first."""
    transformer: tuple[str, ...]
    """`a.b=c` over that, for the transformer: its network, and what else it needs."""
    pixelsnail: tuple[str, ...]
    """Likewise for PixelSNAIL."""
    parameters_within: Annotated[float, Field(ge=0)] = 0.05
    """How far the numbers of parameters may differ, as a fraction of PixelSNAIL's."""
    size: tuple[Positive, Positive]
    """(H,W) of all images."""
    copies: Positive
    """Crops of each training image that the priors are trained on the codes of."""
    held_out_copies: Positive = 1
    """Likewise of each held-out image."""
    held_out: Annotated[float, Field(gt=0, lt=1)]
    """Fraction of the images that trainings do not see."""
    scenes: Positive = 480
    """How many scenes are rendered, where no images are given."""


def plan(chosen: PixelSNAILExperimentSettings, request: ExperimentRequest) -> list[Step]:
    """Scenes where no images are given; the tokenizer, its codes, the three trainings, and the comparison."""
    check_overrides_used(request, trains=("tokenizer", "prior"))
    images = ImageSource.of(request.data)
    tokenizer = prior_steps.tokenizer_training(
        chosen.recipe, chosen.tokenizer, request, size=chosen.size, held_out=chosen.held_out
    )
    varied = {PIXELSNAIL: chosen.pixelsnail, SAME_STEPS: chosen.transformer, SAME_TIME: chosen.transformer}
    trainings = {
        name: prior_steps.prior_training(chosen.recipe, chosen.prior, request, changes=changes)
        for name, changes in varied.items()
    }
    read = prior_steps.codes_of_images(tokenizer)
    sizes = {name: prior_steps.parameters(training, read) for name, training in trainings.items()}
    check_parameter_counts(
        sizes,
        like=PIXELSNAIL,
        within=chosen.parameters_within,
        change="change network.embed_dim or network.layers of one of them (settings transformer, pixelsnail)",
    )
    found = [] if request.data else [steps.scenes(count=chosen.scenes, size=chosen.size)]
    return [
        *found,
        steps.tokenizer("tokenizer", images=images, training=tokenizer),
        prior_steps.codes(
            images,
            grid=read.grid,
            size=chosen.size,
            held_out=chosen.held_out,
            copies=(chosen.copies, chosen.held_out_copies),
        ),
        prior_steps.prior(PIXELSNAIL, trainings[PIXELSNAIL]),
        prior_steps.prior(SAME_STEPS, trainings[SAME_STEPS]),
        _timed_prior(SAME_TIME, trainings[SAME_TIME]),
        _comparing(sizes),
    ]


def _timed_prior(name: str, training: PriorTraining) -> Step:
    """The step that trains the transformer over as many codes as it would have seen in the time that PixelSNAIL took.

    A schedule has to know where it ends, so that the pace must be known before: it is that of the training before.
    """

    def work(context: StepContext) -> dict[str, Any]:
        shards = open_codes(context.before["codes"].folder / "codes")
        batch = training.run.batch * math.prod(shards.meta.grid)
        pace = context.before[f"prior-{SAME_STEPS}"].outcome
        seen = pace["codes"] * context.before[f"prior-{PIXELSNAIL}"].outcome["seconds"] / pace["seconds"]
        length = max(round(seen / batch), 1) * batch
        return prior_steps.trained(context, replace(training, run=with_length(training.run, length)))

    settings = {"training": steps.decisive_settings(as_mapping(training))}
    after = ("tokenizer", "codes", f"prior-{PIXELSNAIL}", f"prior-{SAME_STEPS}")
    return Step(name=f"prior-{name}", settings=settings, work=work, after=after)


def _comparing(sizes: Mapping[str, int]) -> Step:
    """The step that measures the likelihood of each held-out image under all priors, with the exported model of each
    training."""

    def work(context: StepContext) -> dict[str, Any]:
        values = {
            name: [float(each.mean()) for each in prior_steps.validation_nll(context, name)] for name in CONTENDERS
        }
        rows = {
            name: {
                "parameters": sizes[name],
                **prior_steps.row(
                    context.before[f"prior-{name}"].outcome, values[name], over=PIXELSNAIL, others=values[PIXELSNAIL]
                ),
            }
            for name in CONTENDERS
        }
        entropy = context.before[f"prior-{PIXELSNAIL}"].outcome["code_entropy_nats"]
        return {"images": len(values[PIXELSNAIL]), "code_entropy_nats": entropy, "rows": rows}

    after = ("codes", *(f"prior-{name}" for name in CONTENDERS))
    return Step(name="compare", settings={"parameters": dict(sizes)}, work=work, after=after)


TRANSFORMER_VS_PIXELSNAIL = Experiment(
    name="transformer-vs-pixelsnail",
    about="which prior finds the same codes likelier at equal steps and in equal time: the paper's table 1",
    takes_models=False,
    settings=PixelSNAILExperimentSettings,
    scales_file=Path(__file__).with_name("scales.yaml"),
    plan=plan,
    findings=findings,
    page="experiments/pixelsnail/page.html",
)
