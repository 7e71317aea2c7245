"""The experiment `quantizers`: features become codes in many ways; what each keeps, how it uses its codes, and what it
costs.

All are trained on the same number of images by the same settings but for the quantizer, with as many codes or nearly
so.

H W pixels, K size of the codebook, D dimension of a code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import Field

from smalti.core.settings import Positive, settings
from smalti.experiments import steps
from smalti.experiments.base import Experiment, ExperimentRequest, Scale, Step, StepContext
from smalti.experiments.equal_time import nominal, pace
from smalti.experiments.quantizers.page import page
from smalti.experiments.steps import Images, Variation, refuse_idle, refuse_twins
from smalti.experiments.tokenizer_measurement import TokenizerMeasurement
from smalti.model_loading import load_tokenizer


@settings
class QuantizersSettings:
    """What is compared, and on what."""

    recipe: str
    training: tuple[str, ...] = ()
    """`a.b=c` over the recipe, for all."""
    quantizers: Annotated[tuple[Variation, ...], Field(min_length=1)]
    size: tuple[Positive, Positive]
    """(H,W) of the images that all are trained on and measured at, and of rendered scenes."""
    pace_seconds: Annotated[float, Field(gt=0)] = 5.0
    """How long the pace of each is taken."""
    held_out: Annotated[float, Field(gt=0, lt=1)]
    """Share of the images that trainings do not see, and on which their tokenizers are measured."""
    images: Positive
    """How many are measured at most, evenly spread."""
    shown: Positive
    """How many of those are set side by side."""
    scenes: Positive = 480
    """How many scenes are rendered, where no images are given."""


def plan(chosen: QuantizersSettings, request: ExperimentRequest) -> list[Step]:
    """Scenes where no images are given; then for each quantizer its training, its pace and its measuring."""
    refuse_idle(request, trains=("tokenizer",))
    refuse_twins([each.name for each in chosen.quantizers], what="quantizers")
    images = Images.of(request.data)
    how = TokenizerMeasurement.of(
        "quantizers", size=chosen.size, count=chosen.images, held_out=chosen.held_out, shown=chosen.shown
    )
    found = [] if request.data else [steps.scenes(count=chosen.scenes, size=chosen.size)]
    fixed = [f"images.size={list(chosen.size)}", f"images.validation={chosen.held_out}"]
    for each in chosen.quantizers:
        training = steps.varied(
            chosen.recipe, shared=chosen.training, overrides=request.of("tokenizer"), changes=[*each.changes, *fixed]
        )
        found += [
            pace(each.name, images=images, training=nominal(training), seconds=chosen.pace_seconds),
            steps.tokenizer(f"tokenizer-{each.name}", images=images, training=training),
            how.step(
                each.name,
                images=images,
                described={},
                after=(f"tokenizer-{each.name}",),
                load=_loading(f"tokenizer-{each.name}"),
            ),
        ]
    return found


def _loading(step: str) -> Callable[[StepContext], Any]:
    return lambda place: load_tokenizer(place.before[step].folder)


def _all(*, size: int, levels: Sequence[int]) -> list[dict[str, Any]]:
    """One of each quantizer with `size` codes, for FSQ the product of `levels`: plain values of variations."""
    bits = size.bit_length() - 1
    reference = (
        f"name: vq, codebook_size: {size}, codebook_dim: 256, l2_normalize: false, kmeans_iterations: 0, "
        "dead_code_threshold: 0, beta_on: codebook"
    )
    changes = {
        "vq-reference": [f"model.quantizer={{{reference}}}", "quantize_from=0"],
        "vq": [f"model.quantizer={{name: vq, codebook_size: {size}, codebook_dim: 8}}"],
        "vq-rotation": [f"model.quantizer={{name: vq, codebook_size: {size}, codebook_dim: 8, gradient: rotation}}"],
        "ema": [f"model.quantizer={{name: ema, codebook_size: {size}, codebook_dim: 8}}"],
        "gumbel": [f"model.quantizer={{name: gumbel, codebook_size: {size}, codebook_dim: 64}}"],
        "fsq": [f"model.quantizer={{name: fsq, levels: {list(levels)}}}"],
        "lfq": [f"model.quantizer={{name: lfq, codebook_dim: {bits}}}"],
        "simvq": [f"model.quantizer={{name: simvq, codebook_size: {size}, codebook_dim: 8}}"],
    }
    return [{"name": name, "changes": change} for name, change in changes.items()]


QUANTIZERS_COMPARED = Experiment(
    about="what each quantizer keeps of images, how it uses its codes, and how fast it trains",
    takes_models=False,
    settings=QuantizersSettings,
    scales={
        "tiny": Scale(
            about="eight quantizers of 512 codes, 1,000 images each: six to seven minutes on two CPU cores",
            data="the embedded scenes at 64 pixels",
            renders_scenes=True,
            settings={
                "recipe": "demo",
                "training": [
                    "run.images=1000",
                    "run.log_every=100",
                    "run.validate_every=200",
                    "run.sample_every=1000",
                    "run.checkpoint_every=500",
                    "run.tensorboard=false",
                    "model.autoencoder.base_channels=64",
                    "objective.adversarial.weight=0",
                ],
                "quantizers": _all(size=512, levels=(8, 8, 8)),
                "size": [64, 64],
                "held_out": 0.15,
                "images": 64,
                "shown": 6,
                "pace_seconds": 3.0,
            },
        ),
        "small": Scale(
            about="eight quantizers of 1,024 codes (FSQ 1,000), 6,000 images each: an hour and a half on two CPU cores",
            data="a folder of some thousand photographs, seen at 64 pixels",
            renders_scenes=False,
            settings={
                "recipe": "small-64",
                "training": ["run.images=6000", "run.validate_every=1000", "run.checkpoint_every=1000"],
                "quantizers": _all(size=1024, levels=(8, 5, 5, 5)),
                "size": [64, 64],
                "held_out": 0.05,
                "images": 256,
                "shown": 8,
            },
        ),
        "full": Scale(
            about="eight quantizers of 1,024 codes, a million images each: two days on a GPU; has not been run",
            data="ImageNet's training images (ILSVRC 2012), seen at 128 pixels",
            renders_scenes=False,
            settings={
                "recipe": "small-64",
                "training": [
                    "run.images=1000000",
                    "run.batch=32",
                    "run.log_every=3200",
                    "run.validate_every=50000",
                    "run.sample_every=50000",
                    "run.checkpoint_every=50000",
                    "model.autoencoder.base_channels=128",
                    "model.autoencoder.res_blocks=2",
                ],
                "quantizers": _all(size=1024, levels=(8, 5, 5, 5)),
                "size": [128, 128],
                "held_out": 0.01,
                "images": 10000,
                "shown": 12,
            },
        ),
    },
    plan=plan,
    page=page,
)
