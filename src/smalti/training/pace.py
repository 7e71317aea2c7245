"""How fast a training is on this machine: the time of a few of its steps, whose results are thrown away.

Notation: B batch, P prefix codes, h w code grid, n = h w.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning_fabric import Fabric

from smalti.data.sources import Source
from smalti.prior import nll, parameter_groups
from smalti.training.config import PriorTraining, TokenizerTraining
from smalti.training.launcher import launch
from smalti.training.loop import seed_step
from smalti.training.optimizer import build_optimizer
from smalti.training.prior_networks import CodesRead, build_network
from smalti.training.stage1 import TokenizerStage

NOMINAL = 10**9
"""Length in images of the training that is timed: large enough that no step lies across a phase boundary."""
PLACES = 6
"""Number of points of the schedule, evenly spread, at which steps are timed; the discriminator starts in between."""
MIN_TIMED_STEPS = 3
"""Timed steps at each point, at least; one more goes before them."""


def measure_tokenizer_pace(training: TokenizerTraining, source: Source, *, seconds: float) -> float:
    """A training of `NOMINAL` images -> the seconds that an image takes it on this machine, with its reading.

    The mean over `PLACES` of the medians of the steps there, about `seconds` of them. What they teach is thrown away.
    """
    fabric = launch(training.run)
    stage = TokenizerStage(training, source, fabric=fabric, about={})
    batches = stage.batches(0)
    found = []
    for number in range(PLACES):
        seen = (2 * number + 1) * NOMINAL // (2 * PLACES)
        took: list[float] = []
        while len(took) <= MIN_TIMED_STEPS or sum(took) < seconds / PLACES:
            began = time.perf_counter()
            _step(stage, next(batches), seen, fabric)
            took.append(time.perf_counter() - began)
        found.append(statistics.median(took[1:]) / training.run.batch)
    return statistics.fmean(found)


def _step(stage: TokenizerStage, batch: Any, seen: int, fabric: Fabric) -> None:
    run = stage.settings.run
    generator = seed_step(run.seed, seen, fabric.global_rank)
    values = stage.step(batch, seen=seen, count=run.batch, generator=generator)
    float(values["reconstruction"])  # reading a number waits for the device


def measure_prior_pace(training: PriorTraining, codes: CodesRead, *, seconds: float) -> float:
    """The training of a prior, and what it reads -> the seconds that a code takes it on this machine.

    The median of about `seconds` of steps on random codes, at least `MIN_TIMED_STEPS` of them.
    """
    fabric = launch(training.run)
    prior, _ = build_network(training.network, codes)
    prior.to(fabric.device)
    optimizer = build_optimizer(
        parameter_groups(prior, weight_decay=training.optimizer.weight_decay), training.optimizer
    )
    batch = training.run.batch
    images = torch.randint(codes.size, (batch, *codes.grid), device=fabric.device)  # (B,h,w)
    prefix = torch.randint(max(codes.condition_size, 1), (batch, codes.prefix), device=fabric.device)  # (B,P)

    def step() -> None:
        any_order = prior.knows_any_order
        order = training.orders.draw(batch, codes.grid, device=fabric.device) if any_order else None  # (B,n)
        loss = nll(prior, prefix, images, order=order).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        float(loss.detach())  # reading a number waits for the device

    return _median(step, seconds) / images.numel()


def _median(step: Callable[[], None], seconds: float) -> float:
    """The median time of a step, without the first one, which is slower."""
    took: list[float] = []
    while len(took) <= MIN_TIMED_STEPS or sum(took) < seconds:
        began = time.perf_counter()
        step()
        took.append(time.perf_counter() - began)
    return statistics.median(took[1:])
