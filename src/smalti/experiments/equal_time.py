"""Trainings of equal wall time: measure the speed of each, derive its length in images, train, and read its curve.

A learning-rate schedule must know its end, so a training cannot simply be stopped when its time is over. Its speed is
measured first, and its length in images follows; the time it really took is in its outcome. Steps run one after
the other, never two at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import torch

from smalti.core.errors import SmaltiError
from smalti.core.progress import say
from smalti.core.settings import as_mapping
from smalti.data.sources import open_source
from smalti.experiments.base import Step, StepContext
from smalti.experiments.steps import ImageSource, decisive_settings
from smalti.experiments.tokenizer_comparison import LPIPS
from smalti.losses.discriminator import DISCRIMINATORS
from smalti.tokenizer.vqgan import VQGAN
from smalti.training.config import RunSettings, TokenizerTraining
from smalti.training.pace import NOMINAL, measure_tokenizer_pace
from smalti.training.run_folder import read_metrics
from smalti.training.runs import train_tokenizer

R = TypeVar("R", bound=RunSettings)

POINTS = 12
"""How often a training looks at held-out images ..."""
VALIDATION_IMAGES = 64
"""... and at how many of them, at most."""
SAVED = 3
"""How often it saves its state."""


class WeightCounts(NamedTuple):
    """How many numbers a training learns."""

    tokenizer: int
    discriminator: int


def weights(training: TokenizerTraining) -> WeightCounts:
    """A training -> the parameters of its networks, without making them; no discriminator where it is not played
    against."""
    discriminator_settings = replace(
        training.objective.adversarial.discriminator, channels=training.model.autoencoder.channels
    )
    with torch.device("meta"):
        networks = VQGAN(training.model), DISCRIMINATORS[discriminator_settings.name](discriminator_settings)
    tokenizer, discriminator = (sum(each.numel() for each in network.parameters()) for network in networks)
    return WeightCounts(tokenizer, discriminator if training.objective.adversarial.weight else 0)


def check_parameter_counts(found: Mapping[str, int], *, like: str, within: float, change: str) -> None:
    """Raise `SmaltiError` if one has more or fewer parameters than that called `like`, beyond a fraction of them.
    `change`: what a person can do about it, besides setting `parameters_within`."""
    wanted = found[like]
    for name, count in found.items():
        if abs(count / wanted - 1) > within:
            raise SmaltiError(
                f"{name} has {count:,} parameters and {like} {wanted:,}: {count / wanted - 1:+.0%}, where {within:.0%} "
                f"is allowed; {change}, or set parameters_within"
            )


def at_nominal_length(training: TokenizerTraining) -> TokenizerTraining:
    """A training as all of its kind are, whatever their length: what decides its pace, and is in the keys of
    steps."""
    return _with_length(training, NOMINAL)


def with_duration(training: TokenizerTraining, *, minutes: float, seconds_per_image: float) -> TokenizerTraining:
    """A training -> the same with as many images, in whole batches, as go into `minutes`."""
    batches = max(math.floor(60 * minutes / seconds_per_image / training.run.batch), 1)
    return _with_length(training, batches * training.run.batch)


def _with_length(training: TokenizerTraining, length: int) -> TokenizerTraining:
    looked_at = min(training.images.validation_images, VALIDATION_IMAGES)
    images = replace(training.images, validation_images=looked_at)
    return replace(training, run=with_length(training.run, length), images=images)


def with_length(run: R, length: int) -> R:
    """A run -> the same with a total of `length`. It validates right after each report, which is when the clock is
    read."""
    every = math.ceil(length / POINTS)
    return replace(
        run.with_total(length),
        log_every=every,
        validate_every=every,
        checkpoint_every=math.ceil(length / SAVED),
        sample_every=length,
        tensorboard=False,
    )


def pace_step(name: str, *, images: ImageSource, training: TokenizerTraining, seconds: float) -> Step:
    """The step that takes the pace of a training, by `seconds` of steps. `training` is `at_nominal_length`."""

    def work(context: StepContext) -> dict[str, Any]:
        say(context.console, f"measuring the training speed of {name}")
        return {
            "seconds_per_image": measure_tokenizer_pace(training, open_source(images.path(context)), seconds=seconds),
            **weights(training)._asdict(),
            "threads": torch.get_num_threads(),
        }

    settings = {**images.described, "training": decisive_settings(as_mapping(training)), "seconds": seconds}
    return Step(name=f"pace-{name}", settings=settings, work=work, after=images.after)


def timed_tokenizer(name: str, *, images: ImageSource, training: TokenizerTraining, minutes: float) -> Step:
    """The step that trains a tokenizer for `minutes`, by the pace of the step before it; its folder is a run folder.

    `training` is `at_nominal_length`.
    """

    def work(context: StepContext) -> dict[str, Any]:
        planned = context.before[f"pace-{name}"].outcome
        run = with_duration(training, minutes=minutes, seconds_per_image=planned["seconds_per_image"])
        train_tokenizer(images.path(context), context.folder, settings=run, console=context.console)
        points = tokenizer_curve(read_metrics(context.folder))
        return {"images": run.run.images, "seconds": points[-1]["seconds"], "curve": points}

    settings = {**images.described, "training": decisive_settings(as_mapping(training)), "minutes": minutes}
    return Step(name=f"tokenizer-{name}", settings=settings, work=work, after=(*images.after, f"pace-{name}"))


def tokenizer_curve(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Lines of a tokenizer's metrics -> what it reached on held-out images, after how many seconds of training."""
    found = []
    for seconds, line in validations(lines):
        scores = {"psnr": line["psnr"], **({LPIPS: line["perceptual"]} if "perceptual" in line else {})}
        found.append({"seconds": seconds, "images": line["seen"], **scores})
    return found


def validations(lines: Sequence[Mapping[str, Any]]) -> Iterator[tuple[float, Mapping[str, Any]]]:
    """Lines of a run's metrics -> those of its validations, each after the seconds of training before it.

    The clock of a run continues while it looks at held-out data; that time is taken off again. It is between the line
    of a report and the validation after it.
    """
    reported, looking = 0.0, 0.0
    for line in lines:
        if line["part"] == "validation":
            yield round(reported - looking, 3), line
            looking += line["elapsed"] - reported
        reported = line["elapsed"]


def reached(points: Sequence[Mapping[str, float]], score: str, *, target: float) -> float | None:
    """A curve -> the second at which its score first was as good as `target`, straight between its points; None:
    never."""
    sign = -1 if score == LPIPS else 1
    before: Mapping[str, float] | None = None
    for point in points:
        gap = sign * (target - point[score])
        if gap <= 0:
            if before is None:
                return point["seconds"]
            share = sign * (target - before[score]) / (sign * (point[score] - before[score]))
            return before["seconds"] + share * (point["seconds"] - before["seconds"])
        before = point
    return None
