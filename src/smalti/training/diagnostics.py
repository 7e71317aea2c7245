"""What can go wrong in a training, seen in the numbers of a report: numbers -> sentences that say what to do.

Every judgment is a pure function: numbers -> the name of each alarm it can judge by them, with its sentence, or "" where all is
well. An alarm that cannot be judged by these numbers is left out, and stays as it was. docs/training.md tells each at length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, final

import torch

from smalti.losses.adversarial import ADVERSARIAL
from smalti.losses.objective import AdversarialSettings

Judged = dict[str, str]

FEW_IN_USE = 0.2
"""Share of the codes in use, of at least 64 codes for each one there is. Well-kept codebooks use more than nine tenths; the
original's 1024 codes of ImageNet are known to use about half. Below a fifth the bits of the rest are paid for nothing."""
FEW_LIKELY = 0.05
"""Perplexity as a share of the codebook. Codes in use once in a while save the share above, not this one."""
WON = 0.1
"""The discriminator's loss as a share of what it is where it knows nothing: below, hardly any logit is within the margin."""
APART = 2.0
"""Logits of images less those of reconstructions, when the discriminator has won: both margins of the hinge loss."""
ASLEEP = 0.99
"""The discriminator's loss as such a share, from which on it has learned nothing; early in training that is as it should be."""
TOGETHER = 0.02
"""Logits of images less those of reconstructions, when the discriminator sleeps."""
PATIENCE = 0.05
"""Share of the training that a discriminator is given before it is said to sleep."""
AT_CLAMP = 0.5
"""The mean adaptive weight as a share of its limit. Usual weights are below 100 and the limit is 10000, so that a mean of half of
it is a weight that stands at the limit in half of the steps."""


def judge_codes(means: Mapping[str, float], *, size: int) -> Judged:
    """`codes_in_use`, a share of the `size` codes, and `perplexity` -> "codebook"."""
    if "codes_in_use" not in means or "perplexity" not in means:
        return {}
    used, perplexity = means["codes_in_use"], means["perplexity"]
    if used >= FEW_IN_USE and perplexity >= FEW_LIKELY * size:
        return {"codebook": ""}
    return {
        "codebook": f"the codebook has collapsed: {used:.1%} of {size:,} codes are in use, as good as {perplexity:.0f} equally "
        "frequent ones. Let codes start from features and restart (model.quantizer.kmeans_iterations, "
        "dead_code_threshold), use fewer or lower-"
        "dimensional normalized codes (model.quantizer.codebook_size, dimension), or a lower optimizer.lr"
    }


def judge_game(means: Mapping[str, float], *, settings: AdversarialSettings, trained: float, strength: float) -> Judged:
    """The discriminator's loss and logits -> "discriminator won" and "discriminator asleep"; the weight -> "adaptive weight".

    `trained`: share of the training over which the discriminator has learned. `strength`: how much the generator listens, in [0,1].
    """
    if not settings.weight or trained <= 0 or "discriminator" not in means or "real_logits" not in means:
        return {}
    zeros = torch.zeros(1)
    ignorant = float(ADVERSARIAL[settings.loss].discriminator(zeros, zeros))  # 1 for hinge, log 2 for the others
    share, gap = means["discriminator"] / ignorant, means["real_logits"] - means["fake_logits"]
    judged = {"discriminator won": "", "discriminator asleep": ""}
    if share < WON and gap > APART:
        judged["discriminator won"] = (
            f"the discriminator has won: its loss is {share:.0%} of that of a guess, its logits are {gap:.2g} apart, and its "
            "gradient teaches the generator nothing. Lower discriminator_optimizer.lr, raise objective.adversarial.lecam, or "
            "make it smaller (objective.adversarial.discriminator.base_channels, layers)"
        )
    if trained >= PATIENCE and share > ASLEEP and gap < TOGETHER:
        judged["discriminator asleep"] = (
            f"the discriminator sleeps: after {trained:.0%} of the training its loss is that of a guess ({share:.0%}), so that the "
            "adversarial term is noise. Raise discriminator_optimizer.lr, or lower objective.adversarial.weight and lecam"
        )
    return {**judged, **_judge_weight(means, settings=settings, strength=strength)}


def _judge_weight(means: Mapping[str, float], *, settings: AdversarialSettings, strength: float) -> Judged:
    if settings.weighting != "adaptive" or not strength or "adaptive_weight" not in means:
        return {}
    adaptive = means["adaptive_weight"] / (strength * settings.weight)
    if adaptive < AT_CLAMP * settings.max_weight:
        return {"adaptive weight": ""}
    return {
        "adaptive weight": f"the adaptive weight stands at its limit ({adaptive:.3g} of {settings.max_weight:g}): "
        "the discriminator "
        "hands the generator no gradient worth the name, and it is blown up. See whether it has won or sleeps; else set "
        "objective.adversarial.weighting=fixed, or a lower objective.adversarial.max_weight"
    }


def judge_skips(skipped: int, steps: int, *, names: list[str]) -> Judged:
    """How many of the steps since the last report were left out, and for which numbers -> "not finite"."""
    if not skipped:
        return {"not finite": ""}
    return {
        "not finite": f"{skipped} of {steps} steps were skipped, for numbers of them are not finite ({', '.join(names)}); the "
        "weights are as before. Lower optimizer.lr, set optimizer.grad_clip=1, or run.precision=32-true; look for odd images too"
    }


class Change(NamedTuple):
    """An alarm that has begun or is over."""

    name: str
    state: str
    """"begun" or "over"."""
    message: str

    def told(self) -> str:
        """The sentence for a person."""
        return f"ALARM: {self.message}" if self.state == "begun" else f"alarm over: {self.name}"


@final
class Alarms:
    """Which alarms there are now: name -> sentence. Judgments change it, and only the changes are told."""

    def __init__(self, active: Mapping[str, str]) -> None:
        self.active: dict[str, str] = dict(active)

    def changes(self, judged: Judged) -> list[Change]:
        """Take new judgments in -> the alarms that begin and those that are over."""
        changes = []
        for name, sentence in judged.items():
            if sentence and name not in self.active:
                self.active[name] = sentence
                changes.append(Change(name, "begun", sentence))
            elif not sentence and name in self.active:
                changes.append(Change(name, "over", self.active.pop(name)))
        return changes


def told_alarms(lines: list[dict[str, Any]], *, unit: str) -> list[str]:
    """The alarm lines of a run, oldest first -> a sentence each with when it began and ended. `unit`: what is counted."""
    began: dict[str, tuple[int, str]] = {}
    told = []
    for line in lines:
        if line["state"] == "begun":
            began[line["alarm"]] = (line["seen"], line["message"])
        elif line["alarm"] in began:
            seen, message = began.pop(line["alarm"])
            told.append((seen, f"From {seen:,} to {line['seen']:,} {unit}: {message}."))
    told += [(seen, f"From {seen:,} {unit} on, to the end: {message}.") for seen, message in began.values()]
    return [sentence for _, sentence in sorted(told)]
