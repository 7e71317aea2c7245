"""A recipe, the images' conditions and a time -> the settings of all trainings.

f = H/h, h w grid of codes, P prefix codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from smalti.core.errors import SmaltiError
from smalti.fit.fit_request import FitRequest
from smalti.fit.found_conditions import FoundCondition
from smalti.training.config import PriorTraining, TokenizerTraining, read_recipe, resolve
from smalti.training.prior_networks import CodesRead
from smalti.training.stage2 import VALIDATION_IMAGES

T = TypeVar("T", TokenizerTraining, PriorTraining)

MAP_SHARE = 0.5
"""Images that the tokenizer of a map sees, as a fraction of those that the images' tokenizer sees: maps are
easier."""
TIME_SHARES = {"tokenizer": 0.5, "map": 0.1}
"""Fractions of the time for the tokenizer and for that of each map; the prior gets the rest."""
RESULTS_SHARE = 0.04
"""Fraction of the time for samples and the page."""
ENCODING_COST = 0.15
"""The time to encode a crop, as a fraction of the time in which the tokenizer trains on it."""
MAX_ENCODING_SHARE = 0.15
"""The largest fraction of the time for encoding; to keep it, fewer crops of each image are encoded."""
REFUSED_ENCODING_SHARE = 0.4
"""If encoding each image once takes a larger fraction of the time, the time is refused as too short."""
MIN_STEPS = 20
"""A training with fewer steps is refused: it would learn nothing."""
NUM_REPORTS, NUM_CHECKPOINTS = 50, 12
"""How often a training whose length follows from the time reports metrics and saves its state, ..."""
MAX_VALIDATIONS, VALIDATION_COST = 8, 0.5
"""... and how often it validates at most; all validations together read at most this fraction of the number of images
that it trains on."""
CONDITION_CODES = 1024
PREFIX_CODES = {"labels": 1, "text": 64, "layout": 91}
"""Numbers of condition codes that are assumed before encoding, to estimate times."""


class Plan(NamedTuple):
    """The settings of a fit."""

    tokenizer: TokenizerTraining
    maps: Mapping[str, TokenizerTraining]
    """The tokenizer of each condition that is a map, by the condition's name."""
    prior: PriorTraining

    def tokenizers(self) -> dict[str, TokenizerTraining]:
        """Step -> training, of the images first."""
        return {"tokenizer": self.tokenizer, **{map_step(name): each for name, each in self.maps.items()}}


def map_step(name: str) -> str:
    """The name of a condition -> the step that trains its tokenizer."""
    return f"tokenizer-{name}"


def make_plan(request: FitRequest, conditions: Sequence[FoundCondition]) -> Plan:
    """The command's options and the conditions to train on -> the settings of all trainings.

    Raises `SmaltiError` for an unknown recipe or setting, and for settings that cannot go together.
    """
    tokenizer = resolve(
        TokenizerTraining, stage="tokenizer", recipe=request.recipe, overrides=request.stage_overrides("tokenizer")
    )
    maps = {each.name: _map_training(request, tokenizer, each) for each in conditions if each.has_tokenizer}
    return Plan(tokenizer, maps, _prior_training(request, tokenizer, conditions))


def _prior_training(
    request: FitRequest, tokenizer: TokenizerTraining, conditions: Sequence[FoundCondition]
) -> PriorTraining:
    overrides = request.stage_overrides("prior")
    for override in overrides:
        if override.partition("=")[0] == "condition":
            raise SmaltiError(
                f"--set prior.{override}: conditions are those that are found; leave some out with --without"
            )
    network = (read_recipe(request.recipe).get("prior") or {}).get("network", {})
    given = {override.partition("=")[0] for override in overrides}
    any_order = network.get("name", "transformer") == "transformer" and "order" not in network
    size, validation = list(tokenizer.images.size), tokenizer.images.validation
    changes = [
        f"encode.images.size={size}",
        f"encode.images.validation={validation}",
        f"condition={','.join(each.name for each in conditions) or 'unconditional'}",
        *(["network.order=any"] if any_order and not given & {"network", "network.name"} else []),
    ]
    return resolve(PriorTraining, stage="prior", recipe=request.recipe, overrides=[*changes, *overrides])


def _map_training(request: FitRequest, tokenizer: TokenizerTraining, condition: FoundCondition) -> TokenizerTraining:
    """The training of a map's tokenizer: as that of the images, without networks that look at images (arXiv
    2012.09841, section 3.2)."""
    labels = condition.name == "segmentation"
    unlabeled = "null" if condition.unlabeled is None else condition.unlabeled
    length = max(math.ceil(MAP_SHARE * tokenizer.run.images), 1)
    changes = [
        f"run.images={length}",
        f"images.size={list(tokenizer.images.size)}",
        f"images.file_type={'labels' if labels else 'depth'}",
        f"images.unlabeled={unlabeled}",
        f"model.autoencoder.channels={condition.channels if labels else 1}",
        # In place of the recipe's, whose other terms look at images.
        f"objective={{pixel: {'cross_entropy' if labels else 'l1'}, perceptual: none, adversarial: {{weight: 0.0, "
        "discriminator: {name: patch, base_channels: 8, layers: 1}}}",
    ]
    return resolve(
        TokenizerTraining,
        stage="tokenizer",
        recipe=request.recipe,
        overrides=[*request.stage_overrides("tokenizer"), *changes],
    )


def codes_read(plan: Plan, conditions: Sequence[FoundCondition]) -> CodesRead:
    """An estimate, before the images are encoded, of the codes that the prior will read; enough to measure its pace."""
    f, (height, width) = plan.tokenizer.model.autoencoder.factor, plan.tokenizer.images.size
    grid = height // f, width // f
    lengths = [PREFIX_CODES.get(each.name, math.prod(grid)) for each in conditions]
    prefix = sum(lengths)
    size = plan.tokenizer.model.quantizer.size
    return CodesRead(size=size, grid=grid, condition_size=CONDITION_CODES if conditions else 0, prefix=max(prefix, 1))


class Paces(NamedTuple):
    """Measured speed of the trainings."""

    tokenizers: Mapping[str, float]
    """Step -> seconds per image."""
    prior: float
    """Seconds per code."""


class FitSchedule(NamedTuple):
    """The lengths of the trainings, and how long all steps are expected to take."""

    lengths: dict[str, int]
    copies: int
    estimates: dict[str, float]


def schedule(plan: Plan, paces: Paces, *, images: int, seconds: float | None) -> FitSchedule:
    """The plan, the speed of this machine, the number of images, and the time for the whole fit (None: the recipe's
    lengths) -> the lengths of all trainings.

    Raises `SmaltiError` for a time in which too little can be learned.
    """
    per_crop = ENCODING_COST * sum(paces.tokenizers.values())
    copies = plan.prior.encode.copies
    lengths = {name: training.run.images for name, training in plan.tokenizers().items()}
    lengths["prior"] = plan.prior.run.codes
    if seconds is not None:
        copies = max(min(copies, math.floor(MAX_ENCODING_SHARE * seconds / (per_crop * images))), 1)
        for name, training in plan.tokenizers().items():
            share = TIME_SHARES["tokenizer" if name == "tokenizer" else "map"]
            lengths[name] = _whole_batches(share * seconds / paces.tokenizers[name], training.run.batch)
    codes = per_crop * images * copies
    if seconds is not None and codes > REFUSED_ENCODING_SHARE * seconds:
        raise SmaltiError(
            f"--time: to encode {images:,} images takes about {codes / 60:.0f} minutes of {seconds / 60:.0f} on this "
            f"machine; give {math.ceil(codes / REFUSED_ENCODING_SHARE / 60)} minutes or more, or fewer images"
        )
    estimates = {name: lengths[name] * pace for name, pace in paces.tokenizers.items()}
    estimates["codes"] = codes
    if seconds is None:
        estimates["prior"] = lengths["prior"] * paces.prior
        estimates["results"] = RESULTS_SHARE * sum(estimates.values())
    else:
        estimates["results"] = RESULTS_SHARE * seconds
        estimates["prior"] = seconds - sum(estimates.values())
        lengths["prior"] = prior_length(plan.prior, estimates["prior"], paces.prior, codes_per_image(plan))
        _check_long_enough(plan, lengths, seconds)
    return FitSchedule(lengths, copies, {name: round(value, 2) for name, value in estimates.items()})


def codes_per_image(plan: Plan) -> int:
    """Codes per image."""
    return math.prod(codes_read(plan, ()).grid)


def prior_length(training: PriorTraining, seconds: float, pace: float, per_image: int) -> int:
    """The time for the training of a prior, its seconds per code and the codes per image -> the codes that it sees."""
    step = training.run.batch * per_image
    return _whole_batches(seconds / pace, step)


def _whole_batches(count: float, batch: int) -> int:
    return max(math.floor(count / batch), 1) * batch


def _check_long_enough(plan: Plan, lengths: Mapping[str, int], seconds: float) -> None:
    """Raise `SmaltiError` if the tokenizer or the prior would make too few steps."""
    steps = {
        "tokenizer": lengths["tokenizer"] / plan.tokenizer.run.batch,
        "prior": lengths["prior"] / (plan.prior.run.batch * codes_per_image(plan)),
    }
    for name, count in steps.items():
        if count < MIN_STEPS:
            needed = math.ceil(seconds * MIN_STEPS / count / 60)
            raise SmaltiError(
                f"--time: in {seconds:.0f} seconds this machine makes {count:.0f} step{'s' * (count != 1)} of the "
                f"{name}, which teach nothing; give {needed} minutes or more, or a smaller recipe"
            )


def with_lengths(plan: Plan, lengths: Mapping[str, int], *, copies: int, images: int) -> Plan:
    """The plan with other lengths of its trainings and crops of each of the `images`, 0 for those of the recipe.

    A training with another length than in the recipe reports, validates and saves as often as that length needs.
    """
    maps = {name: _tokenizer_with_length(each, lengths[map_step(name)], images) for name, each in plan.maps.items()}
    prior = replace(plan.prior, encode=replace(plan.prior.encode, copies=copies or plan.prior.encode.copies))
    held_out = min(images * prior.encode.images.validation, VALIDATION_IMAGES)
    seen = lengths["prior"] / codes_per_image(plan)
    return Plan(
        _tokenizer_with_length(plan.tokenizer, lengths["tokenizer"], images),
        maps,
        _with_length(prior, lengths["prior"], validations=_validations(seen, held_out)),
    )


def _tokenizer_with_length(training: TokenizerTraining, length: int, images: int) -> TokenizerTraining:
    held_out = min(images * training.images.validation, training.images.validation_images)
    return _with_length(training, length, validations=_validations(length, held_out))


def _validations(seen: float, held_out: float) -> int:
    """Images that a training sees, and those it looks at in a validation -> how often it validates."""
    return max(min(math.floor(VALIDATION_COST * seen / max(held_out, 1)), MAX_VALIDATIONS), 1)


def _with_length(training: T, length: int, *, validations: int) -> T:
    if length == training.run.total:
        return training
    run: Any = training.run.with_total(length)
    return replace(
        training,
        run=replace(
            run,
            log_every=math.ceil(length / NUM_REPORTS),
            validate_every=math.ceil(length / validations),
            sample_every=math.ceil(length / 2),
            checkpoint_every=math.ceil(length / NUM_CHECKPOINTS),
        ),
    )
