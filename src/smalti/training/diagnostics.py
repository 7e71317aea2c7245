"""What can go wrong in a training: metrics of a report -> messages that say what to do.

Every check is a pure function: metrics -> the name of each diagnostic that they allow, with its message, or "" where
all is well. A diagnostic that these metrics do not allow is left out, and stays as it was.
docs/troubleshooting.md describes each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, final

import torch

from smalti.losses.adversarial import ADVERSARIAL
from smalti.losses.objective import AdversarialSettings

Diagnoses = dict[str, str]

FEW_IN_USE = 0.2
"""Fraction of the codes in use, counted over at least 64 times as many codes. Healthy codebooks use more than nine
tenths; the original's 1024 codes of ImageNet are known to use about half."""
FEW_LIKELY = 0.05
"""Perplexity as a fraction of the codebook. Rarely used codes raise the fraction above, not this one."""
OVERPOWERING_LOSS = 0.1
"""The discriminator's loss as a fraction of its loss at logits of 0: below this, hardly any logit is within the
margin."""
OVERPOWERING_GAP = 2.0
"""Logits of images less those of reconstructions, from which on the discriminator overpowers: both margins
of the hinge loss."""
NOT_LEARNING_LOSS = 0.99
"""The discriminator's loss as such a fraction, from which on it has learned nothing, as is normal early in training."""
NOT_LEARNING_GAP = 0.02
"""Logits of images less those of reconstructions, below which the discriminator has learned nothing."""
PATIENCE = 0.05
"""Fraction of the training after which a discriminator should have learned something."""
AT_CLAMP = 0.5
"""The mean adaptive weight as a fraction of its limit. Usual weights are below 100 and the limit is 10000, so a mean of
half the limit means that the weight is at the limit in half of the steps."""


def diagnose_codebook(means: Mapping[str, float], *, size: int) -> Diagnoses:
    """`codes_in_use`, a fraction of the `size` codes, and `perplexity` -> "codebook"."""
    if "codes_in_use" not in means or "perplexity" not in means:
        return {}
    used, perplexity = means["codes_in_use"], means["perplexity"]
    if used >= FEW_IN_USE and perplexity >= FEW_LIKELY * size:
        return {"codebook": ""}
    return {
        "codebook": f"the codebook has collapsed: {used:.1%} of {size:,} codes are in use, as good as "
        f"{perplexity:.0f} equally frequent ones. Let codes start from features and restart "
        "(model.quantizer.kmeans_iterations, dead_code_threshold), use fewer or lower-dimensional normalized codes "
        "(model.quantizer.codebook_size, codebook_dim), or a lower optimizer.lr"
    }


def diagnose_gan(
    means: Mapping[str, float], *, settings: AdversarialSettings, trained: float, strength: float
) -> Diagnoses:
    """The discriminator's loss and logits -> "discriminator overpowering" and "discriminator not learning"; the weight
    -> "adaptive weight".

    `trained`: share of the training over which the discriminator has learned. `strength`: factor of the
    generator's adversarial term, in [0,1].
    """
    if not settings.weight or trained <= 0 or "discriminator" not in means or "real_logits" not in means:
        return {}
    zeros = torch.zeros(1)
    uninformed = float(ADVERSARIAL[settings.loss].discriminator(zeros, zeros))  # 1 for hinge, log 2 for the others
    share, gap = means["discriminator"] / uninformed, means["real_logits"] - means["fake_logits"]
    found = {"discriminator overpowering": "", "discriminator not learning": ""}
    if share < OVERPOWERING_LOSS and gap > OVERPOWERING_GAP:
        found["discriminator overpowering"] = (
            f"the discriminator is overpowering: its loss is {share:.0%} of that of a guess, its logits are {gap:.2g} "
            "apart, and its gradient does not help the generator. Lower discriminator_optimizer.lr, raise "
            "objective.adversarial.lecam, or make it smaller (objective.adversarial.discriminator.base_channels, "
            "layers)"
        )
    if trained >= PATIENCE and share > NOT_LEARNING_LOSS and gap < NOT_LEARNING_GAP:
        found["discriminator not learning"] = (
            f"the discriminator is not learning: after {trained:.0%} of the training its loss is that of a guess "
            f"({share:.0%}), so that the adversarial term is noise. Raise discriminator_optimizer.lr, or lower "
            "objective.adversarial.weight and lecam"
        )
    return {**found, **_diagnose_adaptive_weight(means, settings=settings, strength=strength)}


def _diagnose_adaptive_weight(
    means: Mapping[str, float], *, settings: AdversarialSettings, strength: float
) -> Diagnoses:
    if settings.weighting != "adaptive" or not strength or "adaptive_weight" not in means:
        return {}
    adaptive = means["adaptive_weight"] / (strength * settings.weight)
    if adaptive < AT_CLAMP * settings.max_weight:
        return {"adaptive weight": ""}
    return {
        "adaptive weight": f"the adaptive weight is at its limit ({adaptive:.3g} of {settings.max_weight:g}): the "
        "discriminator's gradient is close to zero and is scaled up. See whether the discriminator is overpowering or "
        "not learning; else set objective.adversarial.weighting=fixed, or a lower objective.adversarial.max_weight"
    }


def diagnose_skipped_steps(skipped: int, steps: int, *, names: list[str]) -> Diagnoses:
    """Number of skipped steps among those since the last report, and the metrics that were not finite
    -> "not finite"."""
    if not skipped:
        return {"not finite": ""}
    return {
        "not finite": f"{skipped} of {steps} steps were skipped, because metrics of them are not finite "
        f"({', '.join(names)}); the weights are as before. Lower optimizer.lr, set optimizer.grad_clip=1, or "
        "run.precision=32-true; look for odd images too"
    }


class Change(NamedTuple):
    """A diagnostic that begins or is resolved."""

    name: str
    state: str
    """"begun" or "resolved"."""
    message: str

    def described(self) -> str:
        """The message to print."""
        return f"WARNING: {self.message}" if self.state == "begun" else f"resolved: {self.name}"


@final
class Diagnostics:
    """The active diagnostics: name -> message. New results change them, and only the changes are reported."""

    def __init__(self, active: Mapping[str, str]) -> None:
        self.active: dict[str, str] = dict(active)

    def changes(self, found: Diagnoses) -> list[Change]:
        """Take new results -> the diagnostics that begin and those that are resolved."""
        changes = []
        for name, sentence in found.items():
            if sentence and name not in self.active:
                self.active[name] = sentence
                changes.append(Change(name, "begun", sentence))
            elif not sentence and name in self.active:
                changes.append(Change(name, "resolved", self.active.pop(name)))
        return changes


def describe_diagnostics(lines: list[dict[str, Any]], *, unit: str) -> list[str]:
    """The diagnostic lines of a run, oldest first -> a sentence each with when it began and ended. `unit`:
    what is counted."""
    began: dict[str, tuple[int, str]] = {}
    described = []
    for line in lines:
        if line["state"] == "begun":
            began[line["diagnostic"]] = (line["seen"], line["message"])
        elif line["diagnostic"] in began:
            seen, message = began.pop(line["diagnostic"])
            described.append((seen, f"From {seen:,} to {line['seen']:,} {unit}: {message}."))
    described += [(seen, f"From {seen:,} {unit} on, to the end: {message}.") for seen, message in began.values()]
    return [sentence for _, sentence in sorted(described)]
