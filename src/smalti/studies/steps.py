"""Steps that studies share: painting scenes, training a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from smalti.data.scene_files import write_scenes
from smalti.data.sources import open_source
from smalti.errors import SmaltiError
from smalti.evaluation.pictures import identity
from smalti.settings import as_mapping
from smalti.studies.base import Place, Step
from smalti.training.config import TokenizerTraining, resolve
from smalti.training.folder import FREE_TO_CHANGE
from smalti.training.runs import train_tokenizer
from smalti.training.watching import counting

SCENES = "scenes"
"""Name of the step that paints."""


class Pictures(NamedTuple):
    """Where a study's pictures come from: a path that was given, or else the scenes that an earlier step has painted."""

    given: Path | None
    described: dict[str, Any]
    """What the settings of a step that reads them hold, so that other pictures are other settings."""

    @classmethod
    def of(cls, given: Path | None) -> Pictures:
        """A path, or None for scenes. Raises `SmaltiError` where the path holds no pictures."""
        if given is None:
            return cls(None, {"pictures": SCENES})
        return cls(given, {"pictures": str(given.absolute()), "identity": identity(open_source(given))})

    @property
    def after(self) -> tuple[str, ...]:
        """The steps that must be done before there are pictures."""
        return () if self.given else (SCENES,)

    def path(self, place: Place) -> Path:
        """Where they are, for a step that comes `after`."""
        return self.given or place.before[SCENES].folder / "images"


def scenes(*, count: int, size: tuple[int, int], seed: int = 0) -> Step:
    """The step that paints `count` embedded scenes of `size` (H,W)."""

    def work(place: Place) -> dict[str, Any]:
        with counting(place.console, title="painting", unit="scenes") as progress:
            write_scenes(
                place.folder,
                count=count,
                size=size,
                seed=seed,
                workers=None,
                progress=lambda done: progress(done, count),
            )
        return {"pictures": count}

    return Step(name=SCENES, settings={"count": count, "size": list(size), "seed": seed}, work=work)


def varied(
    recipe: str, *, shared: Sequence[str], overrides: Sequence[str], changes: Sequence[str]
) -> TokenizerTraining:
    """A recipe, then the study's changes for all, what a person set, and what the study varies -> a tokenizer's training.

    Raises `SmaltiError` where a person sets what the study varies: it would change nothing.
    """
    varies = {change.partition("=")[0] for change in changes}
    for override in overrides:
        key = override.partition("=")[0]
        if key in varies:
            raise SmaltiError(
                f"--set tokenizer.{override}: the study decides {key} itself, by settings of its own; set those "
                "(its page lists them, and docs/studies.md explains)"
            )
    laid = [*shared, *overrides, *changes]
    return resolve(TokenizerTraining, stage="tokenizer", recipe=recipe, overrides=laid)


def tokenizer(name: str, *, pictures: Pictures, training: TokenizerTraining) -> Step:
    """The step that trains a tokenizer; its folder is a run folder."""

    def work(place: Place) -> dict[str, Any]:
        train_tokenizer(pictures.path(place), place.folder, settings=training, console=place.console)
        return {}

    settings = {**pictures.described, "training": _decisive(as_mapping(training))}
    return Step(name=name, settings=settings, work=work, after=pictures.after)


def _decisive(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of a training without those that change nothing of what it learns: the run goes on with others of them."""
    kept: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            kept[key] = _decisive(value, f"{prefix}{key}.")
        elif prefix + key == "run.length" or prefix + key not in FREE_TO_CHANGE:
            kept[key] = value
    return kept
