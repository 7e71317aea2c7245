"""Priors on disk: the table of those that can be saved; a network and its condition <-> a model folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from smalti.conditions.base import Condition
from smalti.conditions.condition_registry import build_condition
from smalti.core.errors import SmaltiError, suggestion
from smalti.core.settings import as_mapping, parse
from smalti.hub.pretrained import Saved, build_saved, save_model
from smalti.prior import (
    GPT,
    GPTSettings,
    Neighborhood,
    NeighborhoodSettings,
    PixelSNAIL,
    PixelSNAILSettings,
    Prior,
    Transformer,
    TransformerSettings,
)

PriorSettings: TypeAlias = (
    type[TransformerSettings] | type[GPTSettings] | type[NeighborhoodSettings] | type[PixelSNAILSettings]
)

PRIORS: dict[str, tuple[Callable[[Any], Prior], PriorSettings]] = {
    "transformer": (Transformer, TransformerSettings),
    "gpt": (GPT, GPTSettings),
    "neighborhood": (Neighborhood, NeighborhoodSettings),
    "pixelsnail": (PixelSNAIL, PixelSNAILSettings),
}


def save_prior(prior: Prior, condition: Condition, folder: Path, *, fingerprint: str, about: Mapping[str, Any]) -> None:
    """Write a prior's model folder: its network, its condition, and the fingerprint of the tokenizer whose codes it
    knows."""
    settings = {
        "network": as_mapping(prior.settings),
        "condition": condition.save(folder),
        "tokenizer_fingerprint": fingerprint,
    }
    save_model(folder, kind="prior", settings=settings, about=about, weights=prior.state_dict())


def load_prior(saved: Saved) -> tuple[Prior, Condition]:
    """A prior's model folder -> its network, in evaluation mode on the CPU, and its condition. Raises `SmaltiError` for
    damage."""
    for key in ("tokenizer_fingerprint", "network", "condition"):
        if key not in saved.settings:
            raise SmaltiError(f"the config of {saved.folder} holds no {key}; copy it again or train the prior again")
    for key in ("network", "condition"):
        if not isinstance(saved.settings[key], Mapping):
            raise SmaltiError(
                f"{key} = {saved.settings[key]!r} in the config of {saved.folder} is no mapping; copy it again, or "
                "train the prior again"
            )
    network = saved.settings["network"]
    kind = network.get("name")
    if not isinstance(kind, str) or kind not in PRIORS:
        raise SmaltiError(f"{saved.folder} holds an unknown prior {kind!r}; {suggestion(str(kind), PRIORS)}")
    build, options = PRIORS[kind]
    settings = parse(options, network, where=str(saved.folder))
    prior = build_saved(lambda: build(settings), saved)
    return prior.eval().requires_grad_(False), build_condition(saved.settings["condition"], saved.folder)
