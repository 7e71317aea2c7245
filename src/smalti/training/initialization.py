"""Training that begins with another tokenizer's weights: its settings and its codebook are kept, the discriminator is
new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.core.settings import apply_override, as_mapping, assignment, flattened
from smalti.model_loading import load_tokenizer
from smalti.tokenizer.vqgan import VQGANSettings
from smalti.training.config import TokenizerTraining, resolve


class Start(NamedTuple):
    """The tokenizer that a training begins with."""

    name: str
    """As it was given; a path is made absolute."""
    settings: VQGANSettings
    weights: Mapping[str, Tensor]
    fingerprint: str

    def described(self) -> dict[str, str]:
        """Where the training comes from, for its resolved config and the model it makes."""
        return {"model": self.name, "fingerprint": self.fingerprint}


def start_from(name: str) -> Start:
    """A model, run or pipeline folder of smalti, a Hub id, or a foreign checkpoint -> the tokenizer to begin with.

    Raises `SmaltiError` when there is none.
    """
    tokenizer = load_tokenizer(name)
    path = Path(name).expanduser()
    where = str(path.resolve()) if path.exists() else name
    return Start(where, tokenizer.settings, tokenizer.state_dict(), tokenizer.fingerprint())


def resolve_from(start: Start, *, recipe: str, overrides: Sequence[str]) -> TokenizerTraining:
    """As `resolve`, with the model of `start` in place of the recipe's, whose codes are used from the first step.

    Raises `SmaltiError` for overrides that change the model, or that delay the codebook.
    """
    model = [override for override in overrides if _is_of(override, "model")]
    rest = [override for override in overrides if not _is_of(override, "model")]
    _check_same(start, model)
    for override in rest:
        key, value = assignment(override)
        if key == "quantize_from" and value:
            raise SmaltiError(
                f"--set {override}: training starts from {start.name}, whose codes are placed already; leave it out"
            )
    plain = as_mapping(start.settings)
    return resolve(
        TokenizerTraining,
        stage="tokenizer",
        recipe=recipe,
        overrides=rest,
        fixed={"model": plain, "quantize_from": 0.0},
    )


def _is_of(override: str, section: str) -> bool:
    return override.partition("=")[0].split(".")[0] == section


def _check_same(start: Start, overrides: Sequence[str]) -> None:
    there = as_mapping(start.settings)
    values: dict[str, Any] = {"model": as_mapping(start.settings)}
    for override in overrides:
        apply_override(values, override)
    if not isinstance(values["model"], Mapping):
        raise SmaltiError(f"--set {overrides[-1]!r}: the model is a section of settings, not a single value")
    before, after = dict(flattened(there)), dict(flattened(values["model"]))
    differ = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    if differ:
        key = differ[0]
        was = before.get(key, "not there")
        raise SmaltiError(
            f"--set model.{key}={after.get(key)} is not the model of {start.name}, whose model.{key} is {was}; leave "
            "it out, or train from the beginning without --from"
        )
