"""The experiment `modern-vs-reference`: smalti's modern training against the original's, for the same time on the same
machine.

Both tokenizers have about as many parameters, and are evaluated on the same images, which neither has seen. Variants
that take back a single modern choice are trained for the same time, to show what each choice contributes.

H W pixels, f = H/h, K size of the codebook.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from smalti.core.errors import SmaltiError
from smalti.core.settings import Positive, settings
from smalti.experiments import steps
from smalti.experiments.base import Experiment, ExperimentRequest, Step, StepContext, StepResult
from smalti.experiments.equal_time import (
    WeightCounts,
    at_nominal_length,
    check_parameter_counts,
    pace_step,
    reached,
    timed_tokenizer,
    weights,
)
from smalti.experiments.modern.findings import MODERN, REFERENCE, findings
from smalti.experiments.steps import ImageSource, Variation, check_overrides_used, check_unique_names
from smalti.experiments.tokenizer_comparison import FEATURES, LPIPS, SCORE_HEADERS, MeasuredTokenizer, difference
from smalti.experiments.tokenizer_measurement import TokenizerMeasurement
from smalti.model_loading import load_tokenizer
from smalti.training.config import TokenizerTraining


@settings
class ContenderSettings:
    """A way of training."""

    recipe: str
    changes: tuple[str, ...] = ()
    """`a.b=c` over the recipe."""


@settings
class ImageSetSettings:
    """Images of one kind at one size, on which all are trained and compared."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    data: str | None = None
    """A folder, a .txt list or a .zip file; None: what is given with --data, or else rendered scenes."""
    size: tuple[Positive, Positive]
    """(H,W) that all are trained on and measured at."""
    changes: tuple[str, ...] = ()
    """`a.b=c` over all trainings on it, such as another batch at another size."""


@settings
class ModernSettings:
    """What is compared, on what, and for how long."""

    reference: ContenderSettings
    modern: ContenderSettings
    without: tuple[Variation, ...] = ()
    """Single changes away from modern."""
    sets: Annotated[tuple[ImageSetSettings, ...], Field(min_length=1)]
    minutes: Annotated[float, Field(gt=0)]
    """How long each is trained, by the clock, without looking at held-out images and saving."""
    pace_seconds: Annotated[float, Field(gt=0)] = 10.0
    """How long the pace of each is taken before."""
    parameters_within: Annotated[float, Field(ge=0)] = 0.1
    """How far the numbers of parameters may differ, as a fraction of modern's."""
    missing_weights: Literal["leave_out", "refuse"] = "refuse"
    """If the published weights of a perceptual loss are unavailable, all trainings run without it."""
    held_out: Annotated[float, Field(gt=0, lt=1)]
    """Fraction of the images that trainings do not see, and on which their tokenizers are measured."""
    images: Positive
    """How many are measured at most, evenly spread."""
    shown: Positive
    """How many of those are set side by side."""
    scenes: Positive = 480
    """How many scenes are rendered, where no images are given."""


def plan(chosen: ModernSettings, request: ExperimentRequest) -> list[Step]:
    """Scenes where they are wanted; then for each set of images the pace, the training and the measuring of each, one
    after the other, and the comparison of all."""
    check_overrides_used(request, trains=("tokenizer",))
    check_unique_names([each.name for each in chosen.sets], what="sets of images")
    check_unique_names([MODERN, REFERENCE, *(each.name for each in chosen.without)], what="trainings")
    sizes = [each.size for each in chosen.sets if each.data is None and request.data is None]
    found: list[Step] = []
    if sizes:
        largest = max(height for height, _ in sizes), max(width for _, width in sizes)
        found.append(steps.scenes(count=chosen.scenes, size=largest))
    for each in chosen.sets:
        found += _on(each, chosen, request)
    return found


def _on(given: ImageSetSettings, chosen: ModernSettings, request: ExperimentRequest) -> list[Step]:
    """All that is done on one set of images."""
    images = ImageSource.of(Path(given.data) if given.data else request.data)
    how = TokenizerMeasurement.of(
        "modern-vs-reference",
        size=given.size,
        count=chosen.images,
        held_out=chosen.held_out,
        shown=chosen.shown,
    )
    trainings = _trainings(given, chosen, request, without_perceptual=LPIPS in how.missing)
    sizes = {name: weights(training) for name, training in trainings.items()}
    check_parameter_counts(
        {name: each.tokenizer for name, each in sizes.items()},
        like=MODERN,
        within=chosen.parameters_within,
        change="change the width of one of them (model.autoencoder.base_channels)",
    )
    found: list[Step] = []
    for name, training in trainings.items():
        called = f"{given.name}-{name}"
        found += [
            pace_step(called, images=images, training=training, seconds=chosen.pace_seconds),
            timed_tokenizer(called, images=images, training=training, minutes=chosen.minutes),
            how.step(
                called,
                images=images,
                described={},
                after=(f"tokenizer-{called}",),
                load=_loading(f"tokenizer-{called}"),
            ),
        ]
    return [*found, _comparing(given.name, sizes, images)]


def _loading(step: str) -> Any:
    return lambda context: load_tokenizer(context.before[step].folder)


def _trainings(
    given: ImageSetSettings, chosen: ModernSettings, request: ExperimentRequest, *, without_perceptual: bool
) -> dict[str, TokenizerTraining]:
    """All that are trained on a set, by name."""
    fixed = [f"images.size={list(given.size)}", f"images.validation={chosen.held_out}"]
    if without_perceptual and chosen.missing_weights == "leave_out":
        fixed.append("objective.perceptual=none")
    modern = chosen.modern
    ways = {
        REFERENCE: (chosen.reference, ()),
        MODERN: (modern, ()),
        **{each.name: (modern, each.changes) for each in chosen.without},
    }
    return {
        name: at_nominal_length(
            steps.varied_tokenizer(
                way.recipe,
                shared=[*way.changes, *given.changes],
                overrides=_unpaced(request.of("tokenizer")),
                changes=[*changes, *fixed],
            )
        )
        for name, (way, changes) in ways.items()
    }


def _unpaced(overrides: Sequence[str]) -> Sequence[str]:
    """Raise `SmaltiError` for a length: the clock decides it."""
    for override in overrides:
        if override.partition("=")[0] == "run.images":
            raise SmaltiError(f"--set tokenizer.{override}: each training lasts as long as the others; set minutes")
    return overrides


def _comparing(name: str, sizes: Mapping[str, WeightCounts], images: ImageSource) -> Step:
    """The step that sets the figures of one set of images side by side: nothing is computed but from them."""

    def work(context: StepContext) -> dict[str, Any]:
        return compared_all(name, list(sizes), context.before)

    after = [f"{part}-{name}-{each}" for each in sizes for part in ("pace", "tokenizer", "measure")]
    return Step(name=f"compare-{name}", settings={}, work=work, after=(*images.after, *after))


class _Trained(NamedTuple):
    """What is known of one training."""

    pace: Mapping[str, Any]
    run: Mapping[str, Any]
    tokenizer: MeasuredTokenizer


def compared_all(name: str, names: Sequence[str], done: Mapping[str, StepResult]) -> dict[str, Any]:
    """The steps of a set of images -> what is in its tables, as plain values.

    `metric` is the score whose curve is followed: LPIPS, or PSNR where its weights are missing. `reached` is the second
    at which a training was as good as the reference at its end, `share` that as a fraction of the reference's time.
    """
    found = {
        each: _Trained(
            done[f"pace-{name}-{each}"].outcome,
            done[f"tokenizer-{name}-{each}"].outcome,
            MeasuredTokenizer(each, done[f"measure-{name}-{each}"].folder, done[f"measure-{name}-{each}"].outcome),
        )
        for each in names
    }
    metric = LPIPS if all(LPIPS in point for each in found.values() for point in each.run["curve"]) else "psnr"
    reference = found[REFERENCE].run
    target = reference["curve"][-1][metric]
    rows = {}
    for each, trained in found.items():
        second = reached(trained.run["curve"], metric, target=target)
        rows[each] = {
            "parameters": trained.pace["tokenizer"],
            "discriminator_parameters": trained.pace["discriminator"],
            "seconds": trained.run["seconds"],
            "images": trained.run["images"],
            **{
                score: trained.tokenizer.scores[score]
                for score in (*SCORE_HEADERS, "codes_in_use")
                if score in trained.tokenizer.scores
            },
            "reached": second,
            "share": None if second is None else second / reference["seconds"],
            "over_modern": _differences(trained.tokenizer, found[MODERN].tokenizer),
        }
    return {"metric": metric, "target": target, "threads": found[MODERN].pace["threads"], "rows": rows}


def _differences(tokenizer: MeasuredTokenizer, other: MeasuredTokenizer) -> dict[str, list[float]]:
    """Scores of single images -> mean difference and its standard error."""
    shared = [
        score for score in SCORE_HEADERS if score != FEATURES and score in tokenizer.columns and score in other.columns
    ]
    return {
        score: list(difference(tokenizer.columns[score], other.columns[score])[:2])
        for score in shared
        if len(tokenizer.columns[score]) > 1
    }


MODERN_VS_REFERENCE = Experiment(
    name="modern-vs-reference",
    about="is the modern way of training better than the original's in the same time, and which of its choices pay",
    takes_models=False,
    settings=ModernSettings,
    scales_file=Path(__file__).with_name("scales.yaml"),
    plan=plan,
    findings=findings,
    page="experiments/modern/page.html",
    brings_images=lambda chosen: all(each.data is not None for each in chosen.sets),
)
