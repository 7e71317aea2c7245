"""Steps that experiments share: rendering scenes, training a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from smalti.core.errors import SmaltiError
from smalti.core.progress import progress_bar
from smalti.core.settings import as_mapping, settings
from smalti.data.sources import identity, open_source
from smalti.experiments.base import TRAININGS, ExperimentRequest, Step, StepContext
from smalti.scenes.scene_files import write_scenes
from smalti.training.config import PriorTraining, TokenizerTraining, resolve
from smalti.training.run_folder import RESUMABLE_CHANGES
from smalti.training.runs import train_tokenizer

SCENES = "scenes"
"""Name of the step that renders."""


@settings
class Variation:
    """One of the trainings that an experiment compares."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    changes: tuple[str, ...] = ()
    """`a.b=c` over what the others are trained by: what varies."""


def check_unique_names(names: Sequence[str], *, what: str) -> None:
    """Raise `SmaltiError` if two have one name. `what` they are, such as "tokenizers"."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SmaltiError(f"two {what} are called {twice!r}; name each differently")


def check_overrides_used(request: ExperimentRequest, *, trains: Sequence[str]) -> None:
    """Raise `SmaltiError` for what was set and would change nothing: trainings that the experiment has none of, scenes
    that are not painted. `trains`: those of `TRAININGS` that it has."""
    for override in request.overrides:
        key = override.partition("=")[0].partition(".")[0]
        if key in TRAININGS and key not in trains:
            raise SmaltiError(f"--set {override}: no {key} is trained in this experiment; omit it")
        if request.data and key == "scenes":
            raise SmaltiError(f"--set {override}: images are given and no scenes are rendered; omit it")


class ImageSource(NamedTuple):
    """Where an experiment's images come from: a path that was given, or else the scenes that an earlier step has
    painted."""

    given: Path | None
    described: dict[str, Any]
    """What the settings of a step that reads them hold, so that other images are other settings."""

    @classmethod
    def of(cls, given: Path | None) -> ImageSource:
        """A path, or None for scenes. Raises `SmaltiError` if the path holds no images."""
        if given is None:
            return cls(None, {"images": SCENES})
        return cls(given, {"images": str(given.absolute()), "identity": identity(open_source(given))})

    @property
    def after(self) -> tuple[str, ...]:
        """The steps that must be done before there are images."""
        return () if self.given else (SCENES,)

    def path(self, context: StepContext) -> Path:
        """Where they are, for a step that comes `after`."""
        return self.given or context.before[SCENES].folder / "images"


def scenes(*, count: int, size: tuple[int, int], seed: int = 0, name: str = SCENES) -> Step:
    """The step that renders `count` embedded scenes of `size` (H,W)."""

    def work(context: StepContext) -> dict[str, Any]:
        with progress_bar(context.console, title="rendering", unit="scenes") as progress:
            write_scenes(
                context.folder,
                count=count,
                size=size,
                seed=seed,
                workers=None,
                progress=lambda done: progress(done, count),
            )
        return {"images": count}

    return Step(name=name, settings={"count": count, "size": list(size), "seed": seed}, work=work)


def varied_tokenizer(
    recipe: str, *, shared: Sequence[str], overrides: Sequence[str], changes: Sequence[str]
) -> TokenizerTraining:
    """A recipe, then the experiment's changes for all, what a person set, and what the experiment varies -> a
    tokenizer's training.

    Raises `SmaltiError` if a person sets what the experiment varies: it would change nothing.
    """
    _check_not_varied("tokenizer", overrides, changes)
    return resolve(TokenizerTraining, stage="tokenizer", recipe=recipe, overrides=[*shared, *overrides, *changes])


def varied_prior(
    recipe: str, *, shared: Sequence[str], overrides: Sequence[str], changes: Sequence[str]
) -> PriorTraining:
    """As `varied_tokenizer`, a prior's training."""
    _check_not_varied("prior", overrides, changes)
    return resolve(PriorTraining, stage="prior", recipe=recipe, overrides=[*shared, *overrides, *changes])


def _check_not_varied(stage: str, overrides: Sequence[str], changes: Sequence[str]) -> None:
    """Raise `SmaltiError` for an override of what an experiment decides, of a part of it, or of a section that it is a
    part of."""
    varies = {change.partition("=")[0] for change in changes}
    for override in overrides:
        key = override.partition("=")[0]
        if any(f"{key}.".startswith(f"{each}.") or f"{each}.".startswith(f"{key}.") for each in varies):
            raise SmaltiError(
                f"--set {stage}.{override}: the experiment decides {key} itself, by settings of its own; set those "
                "(its page lists them, and docs/experiments.md explains)"
            )


def tokenizer(name: str, *, images: ImageSource, training: TokenizerTraining) -> Step:
    """The step that trains a tokenizer; its folder is a run folder."""

    def work(context: StepContext) -> dict[str, Any]:
        train_tokenizer(images.path(context), context.folder, settings=training, console=context.console)
        return {}

    settings = {**images.described, "training": decisive_settings(as_mapping(training))}
    return Step(name=name, settings=settings, work=work, after=images.after)


def decisive_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of a training without those that change nothing of what it learns: the run continues with others of
    them."""
    kept: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            kept[key] = decisive_settings(value, f"{prefix}{key}.")
        elif prefix + key in ("run.images", "run.codes") or prefix + key not in RESUMABLE_CHANGES:
            kept[key] = value
    return kept
