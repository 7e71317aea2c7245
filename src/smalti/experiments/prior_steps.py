"""What experiments of priors share: the codes of whole images, a prior trained on them, and how likely it finds
held-out ones.

B batch, H W pixels, f = H/h, h w grid of codes.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from smalti.conditions.labels import Unconditional
from smalti.core.devices import pick_device
from smalti.core.progress import say
from smalti.core.settings import as_mapping
from smalti.data.code_shards import CodeShards, open_codes
from smalti.data.loader import in_order
from smalti.experiments import steps
from smalti.experiments.base import ExperimentRequest, Step, StepContext
from smalti.experiments.equal_time import validations, with_length
from smalti.experiments.sampling import codes_of_crops, train_prior_on_codes
from smalti.experiments.steps import ImageSource
from smalti.experiments.tokenizer_comparison import difference
from smalti.hub.pretrained import find_model
from smalti.model_loading import load_tokenizer
from smalti.prior import nll
from smalti.prior_folder import load_prior
from smalti.tokenizer.vqgan import VQGAN
from smalti.training.config import PriorTraining, TokenizerTraining
from smalti.training.launcher import launch
from smalti.training.loop import seed_step
from smalti.training.prior_networks import CodesRead, build_network
from smalti.training.run_folder import read_metrics
from smalti.training.runs import condition_of
from smalti.training.stage2 import PriorStage

FIXED = ("condition=unconditional", "condition_dropout=0", "encode={}", "run.patience=0")
"""Of all priors of such an experiment: they are unconditional, and none stops before the others."""
BATCH = 64
"""Images per batch."""


def tokenizer_training(
    recipe: str, changes: Sequence[str], request: ExperimentRequest, *, size: tuple[int, int], held_out: float
) -> TokenizerTraining:
    """A recipe, an experiment's changes of it, and what a person set -> the training of the one tokenizer, on whole
    images of `size` (H,W)."""
    fixed = [f"images.size={list(size)}", f"images.validation={held_out}"]
    return steps.varied_tokenizer(recipe, shared=changes, overrides=request.of("tokenizer"), changes=fixed)


def prior_training(
    recipe: str, shared: Sequence[str], request: ExperimentRequest, *, changes: Sequence[str]
) -> PriorTraining:
    """A recipe, an experiment's changes for all priors, what a person set, and what is one prior's own -> its
    training."""
    return steps.varied_prior(recipe, shared=shared, overrides=request.of("prior"), changes=[*changes, *FIXED])


def codes_of_images(tokenizer: TokenizerTraining) -> CodesRead:
    """The training of a tokenizer -> what priors read of its images."""
    f, (H, W) = tokenizer.model.autoencoder.factor, tokenizer.images.size
    nothing = Unconditional()
    return CodesRead(
        size=tokenizer.model.quantizer.codebook_size,
        grid=(H // f, W // f),
        condition_size=nothing.size,
        prefix=nothing.length,
    )


def parameters(training: PriorTraining, codes: CodesRead) -> int:
    """A training and the codes that it reads -> how many numbers it learns, without making them.

    Raises `SmaltiError` if its network does not read such codes.
    """
    with torch.device("meta"):
        prior = build_network(training.network, codes).prior
    return sum(each.numel() for each in prior.parameters())


def codes(
    images: ImageSource,
    *,
    grid: tuple[int, int],
    size: tuple[int, int],
    held_out: float,
    copies: tuple[int, int],
) -> Step:
    """The step that encodes whole images, and their mirror images. `copies`: of each training image, of each held-out
    one."""

    def work(context: StepContext) -> dict[str, Any]:
        return codes_of_crops(
            load_tokenizer(context.before["tokenizer"].folder),
            images.path(context),
            context,
            window=grid,
            size=size,
            held_out=held_out,
            copies=copies,
        )

    step_settings = {"size": list(size), "held_out": held_out, "copies": list(copies)}
    return Step(
        name="codes", settings={**images.described, **step_settings}, work=work, after=(*images.after, "tokenizer")
    )


def pace_step(trainings: Mapping[str, PriorTraining], *, timed_steps: int) -> Step:
    """The step that measures how fast priors train, in seconds per code by name. `timed_steps` of each, in turn."""

    def work(context: StepContext) -> dict[str, Any]:
        say(context.console, f"measuring the training speed of {' and '.join(trainings)}")
        tokenizer = load_tokenizer(context.before["tokenizer"].folder)
        shards = open_codes(context.before["codes"].folder / "codes")
        return compare_prior_paces(trainings, shards, tokenizer, timed_steps=timed_steps)

    settings = {name: steps.decisive_settings(as_mapping(training)) for name, training in trainings.items()}
    return Step(
        name="pace", settings={"trainings": settings, "steps": timed_steps}, work=work, after=("tokenizer", "codes")
    )


def compare_prior_paces(
    trainings: Mapping[str, PriorTraining], shards: CodeShards, tokenizer: VQGAN, *, timed_steps: int
) -> dict[str, float]:
    """Trainings by name -> the seconds that a code takes each on this machine.

    The median of `timed_steps` steps, one of each training in turn, after one that is not counted. What they teach is
    thrown away.
    """
    stages, took = {}, {name: list[float]() for name in trainings}
    for name, training in trainings.items():
        fabric = launch(training.run)
        condition = condition_of(shards, training.condition)
        stage = PriorStage(training, shards, condition, tokenizer, fabric=fabric, about={})
        stages[name] = stage, stage.batches(0)
    for _ in range(timed_steps + 1):
        for name, (stage, batches) in stages.items():
            run = stage.settings.run
            began = time.perf_counter()
            generator = seed_step(run.seed, 0, stage.fabric.global_rank)
            float(stage.step(next(batches), seen=0, count=run.batch, generator=generator)["nats"])  # waits
            took[name].append((time.perf_counter() - began) / (run.batch * stage.per_example))
    return {name: statistics.median(each[1:]) for name, each in took.items()}


def prior(name: str, training: PriorTraining) -> Step:
    """The step that trains a prior over `run.codes`; its folder is a run folder."""
    training = replace(training, run=with_length(training.run, training.run.codes))
    return Step(
        name=f"prior-{name}",
        settings={"training": steps.decisive_settings(as_mapping(training))},
        work=lambda context: trained(context, training),
        after=("tokenizer", "codes"),
    )


def trained(context: StepContext, training: PriorTraining) -> dict[str, Any]:
    """Train a prior in the step's folder -> what is known of it then. `run` is `timed.of_length`."""
    tokenizer = load_tokenizer(context.before["tokenizer"].folder)
    outcome = train_prior_on_codes(tokenizer, context.before["codes"].folder / "codes", context, settings=training)
    points = prior_curve(read_metrics(context.folder))
    return {**outcome, "codes": points[-1]["codes"], "seconds": points[-1]["seconds"], "curve": points}


def prior_curve(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Lines of a prior's metrics -> the nats per code of held-out codes, after how many codes and seconds of
    training."""
    return [{"seconds": seconds, "codes": line["seen"], "nats": line["nats"]} for seconds, line in validations(lines)]


@torch.no_grad()
def validation_nll(context: StepContext, name: str) -> Iterator[Tensor]:
    """The nats of the codes of each held-out image, (h,w), by the model that the training of one prior has kept."""
    device = pick_device("auto")
    network, _ = load_prior(find_model(context.before[f"prior-{name}"].folder, kind="prior"))
    network.to(device)
    shards = open_codes(context.before["codes"].folder / "codes")
    for batch in in_order(shards.validation, batch=BATCH):
        yield from nll(network, network.null_prefix(len(batch.codes)), batch.codes.to(device)).cpu()  # (B,h,w)


def row(
    outcome: Mapping[str, Any], values: Sequence[float], *, over: str, others: Sequence[float]
) -> dict[str, float | None]:
    """What is known of a prior, and its nats per code on each held-out image -> what stands of it in a table.

    `over_` and the name `over`: how much more than the `others`, on the same images, and `error` the standard error of
    that; None where there is one image.
    """
    gain = difference(values, others)
    return {
        "codes": outcome["codes"],
        "seconds": outcome["seconds"],
        "nats": math.fsum(values) / len(values),
        "last_nats": outcome["curve"][-1]["nats"],
        f"over_{over}": gain.mean,
        "error": gain.error if len(values) > 1 else None,
    }
