"""Training that begins with the weights of another tokenizer or prior.

The settings of the model are kept. Of a tokenizer the codebook is kept too, and the discriminator is new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.core.fingerprints import weights_fingerprint
from smalti.core.settings import apply_override, as_mapping, assignment, flattened
from smalti.hub.pretrained import find_model
from smalti.model_loading import load_tokenizer
from smalti.prior import Prior
from smalti.prior_folder import load_prior
from smalti.tokenizer.vqgan import VQGANSettings
from smalti.training.config import PriorTraining, TokenizerTraining, resolve
from smalti.training.prior_networks import network_of

_SHOWN = 160
"""Characters of a condition's settings in a message."""


class TokenizerStart(NamedTuple):
    """The tokenizer that a training begins with."""

    name: str
    """As it was given; a path is made absolute."""
    settings: VQGANSettings
    weights: Mapping[str, Tensor]
    fingerprint: str

    def described(self) -> dict[str, str]:
        """Where the training comes from, for its resolved config and the model it makes."""
        return {"model": self.name, "fingerprint": self.fingerprint}


class PriorStart(NamedTuple):
    """The prior that a training begins with."""

    name: str
    """As it was given; a path is made absolute."""
    network: Mapping[str, Any]
    """The settings of the network, as plain values."""
    condition: Mapping[str, Any]
    """The settings of its condition, likewise."""
    weights: Mapping[str, Tensor]
    fingerprint: str

    def described(self) -> dict[str, str]:
        """Where the training comes from, for its resolved config and the model it makes."""
        return {"model": self.name, "fingerprint": self.fingerprint}

    def load_into(self, prior: Prior, condition: Mapping[str, Any]) -> None:
        """Give its weights to the prior of a training, in place, whose condition has these settings.

        Raises `SmaltiError` if the codes of the training are not of the kind that it knows.
        """
        before, after = dict(flattened(self.network)), dict(flattened(as_mapping(prior.settings)))
        differ = [key for key in after if before.get(key) != after[key]]
        if differ:
            key = differ[0]
            raise SmaltiError(
                f"--from {self.name}: its {key} is {before.get(key)}, and for these codes it must be {after[key]}; "
                "encode the images at the size and with the conditions of that model, or train without --from"
            )
        if condition != self.condition:
            raise SmaltiError(
                f"--from {self.name}: it was conditioned on {_summary(self.condition)}, and these codes come with "
                f"{_summary(condition)}; encode with the same classes and condition tokenizers (for text: "
                "--condition-set text.vocabulary_of=MODEL), or train without --from"
            )
        prior.load_state_dict(self.weights)


def tokenizer_start(name: str) -> TokenizerStart:
    """A model, run or pipeline folder of smalti, a Hub id, or a foreign checkpoint -> the tokenizer to begin with.

    Raises `SmaltiError` when there is none.
    """
    tokenizer = load_tokenizer(name)
    return TokenizerStart(_absolute(name), tokenizer.settings, tokenizer.state_dict(), tokenizer.fingerprint())


def prior_start(name: str) -> PriorStart:
    """A model, run or pipeline folder of smalti, the name of a bundled model, or a Hub id -> the prior to begin with.

    Raises `SmaltiError` when there is none.
    """
    saved = find_model(name, kind="prior")
    prior, _ = load_prior(saved)
    weights = prior.state_dict()
    network = as_mapping(prior.settings)
    return PriorStart(_absolute(name), network, saved.settings["condition"], weights, weights_fingerprint(weights))


def resolve_prior_from(start: PriorStart, *, recipe: str, overrides: Sequence[str]) -> PriorTraining:
    """As `resolve`, with the network of `start` in place of the recipe's.

    Raises `SmaltiError` for overrides that change the network.
    """
    plain = network_of(start.network)
    network, rest = _of_section(overrides, "network")
    _check_same(start.name, "network", plain, network)
    return resolve(PriorTraining, stage="prior", recipe=recipe, overrides=rest, fixed={"network": plain})


def resolve_tokenizer_from(start: TokenizerStart, *, recipe: str, overrides: Sequence[str]) -> TokenizerTraining:
    """As `resolve`, with the model of `start` in place of the recipe's, whose codes are used from the first step.

    Raises `SmaltiError` for overrides that change the model, or that delay the codebook.
    """
    plain = as_mapping(start.settings)
    model, rest = _of_section(overrides, "model")
    _check_same(start.name, "model", plain, model)
    for override in rest:
        key, value = assignment(override)
        if key == "quantize_from" and value:
            raise SmaltiError(
                f"--set {override}: training starts from {start.name}, whose codes are placed already; leave it out"
            )
    return resolve(
        TokenizerTraining,
        stage="tokenizer",
        recipe=recipe,
        overrides=rest,
        fixed={"model": plain, "quantize_from": 0.0},
    )


def _of_section(overrides: Sequence[str], section: str) -> tuple[list[str], list[str]]:
    """Overrides -> those of a section of settings, and all others."""
    inside = [override for override in overrides if override.partition("=")[0].split(".")[0] == section]
    return inside, [override for override in overrides if override not in inside]


def _check_same(name: str, section: str, there: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Raise `SmaltiError` for overrides of a section of settings, whose values are `there`, that change it."""
    values: dict[str, Any] = {section: deepcopy(dict(there))}
    for override in overrides:
        apply_override(values, override)
    if not isinstance(values[section], Mapping):
        raise SmaltiError(f"--set {overrides[-1]!r}: the {section} is a section of settings, not a single value")
    before, after = dict(flattened(there)), dict(flattened(values[section]))
    differ = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    if differ:
        key = differ[0]
        was = before.get(key, "not there")
        raise SmaltiError(
            f"--set {section}.{key}={after.get(key)} is not the {section} of {name}, whose {section}.{key} is {was}; "
            "leave it out, or train from the beginning without --from"
        )


def _absolute(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def _summary(condition: Mapping[str, Any]) -> str:
    """The settings of a condition in a line."""
    text = ", ".join(f"{key}={value}" for key, value in flattened(condition))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
