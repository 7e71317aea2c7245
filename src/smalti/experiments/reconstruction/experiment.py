"""The experiment `reconstruction`: what different tokenizers keep of the same images, and at how many bits.

As the notebook of the original code did for VQGAN and DALL-E, for any number of tokenizers: given ones, of smalti or
imported, or some that the experiment trains itself, which differ in f and K.

H W pixels, f = H/h, K size of the codebook, N images.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from smalti.core.errors import SmaltiError
from smalti.core.settings import Positive, settings
from smalti.experiments import steps
from smalti.experiments.base import Experiment, ExperimentRequest, Step
from smalti.experiments.reconstruction.findings import findings
from smalti.experiments.steps import ImageSource, Variation, check_overrides_used, check_unique_names
from smalti.experiments.tokenizer_measurement import TokenizerMeasurement
from smalti.hub.pretrained import find_model, is_smalti_folder
from smalti.model_loading import load_tokenizer
from smalti.training.config import TokenizerTraining

IMPORTED = (256, 256)
"""(H,W) that tokenizers of other programs were trained on, all those that are read."""


@settings
class ReconstructionSettings:
    """What is compared, and on what."""

    recipe: str
    """Of the tokenizers that are trained, where none are given."""
    training: tuple[str, ...] = ()
    """`a.b=c` over the recipe, for all of them."""
    tokenizers: Annotated[tuple[Variation, ...], Field(min_length=1)]
    size: tuple[Positive, Positive]
    """(H,W) of the images that tokenizers are trained on, and of rendered scenes."""
    measured_at: tuple[Positive, Positive] | None = None
    """(H,W) that images are scaled and cropped to, to be measured; None: the largest that a tokenizer was trained
    on."""
    held_out: Annotated[float, Field(gt=0, lt=1)]
    """Fraction of the images that trainings do not see, and on which their tokenizers are measured. Given tokenizers
    are measured on all."""
    images: Positive
    """How many are measured at most, evenly spread."""
    shown: Positive
    """How many of those are set side by side."""
    scenes: Positive = 480
    """How many scenes are rendered, where no images are given."""


class _Candidate(NamedTuple):
    """One tokenizer on its way through the experiment."""

    name: str
    factor: int
    trained_on: tuple[int, int]
    """(H,W)"""
    given: Path | None
    training: TokenizerTraining | None
    described: dict[str, Any]
    """What the settings of its measuring hold."""


def plan(chosen: ReconstructionSettings, request: ExperimentRequest) -> list[Step]:
    """Scenes where no images are given, tokenizers where none are given, and the measuring of each."""
    _check_overrides_used(request)
    images = ImageSource.of(request.data)
    compared = _given(request) if request.models else _trained(request, chosen)
    size = _size(chosen, compared)
    held_out = 0.0 if request.models else chosen.held_out
    how = TokenizerMeasurement.of(
        "reconstruction", size=size, count=chosen.images, held_out=held_out, shown=chosen.shown
    )
    found: list[Step] = []
    if request.data is None:
        found.append(steps.scenes(count=chosen.scenes, size=chosen.size))
    for each in compared:
        if each.training is not None:
            found.append(steps.tokenizer(f"tokenizer-{each.name}", images=images, training=each.training))
    return found + [_measuring(each, images, how) for each in compared]


_OF_TRAININGS = ("tokenizer", "recipe", "training", "tokenizers", "held_out")


def _check_overrides_used(request: ExperimentRequest) -> None:
    """Raise `SmaltiError` for what was set and would change nothing."""
    check_overrides_used(request, trains=("tokenizer",))
    for override in request.overrides:
        key = override.partition("=")[0].partition(".")[0]
        if request.models and key in _OF_TRAININGS:
            raise SmaltiError(f"--set {override}: models are given and none is trained; leave it out")
        if request.models and request.data and key == "size":
            raise SmaltiError(
                f"--set {override}: nothing is trained or rendered; set measured_at for the size to measure at"
            )


def _size(chosen: ReconstructionSettings, tokenizers: Sequence[_Candidate]) -> tuple[int, int]:
    """(H,W) to measure at. Raises `SmaltiError` if it is not made of each tokenizer's tiles."""
    height, width = chosen.measured_at or (
        max(tokenizer.trained_on[0] for tokenizer in tokenizers),
        max(tokenizer.trained_on[1] for tokenizer in tokenizers),
    )
    for tokenizer in tokenizers:
        if height % tokenizer.factor or width % tokenizer.factor:
            f = math.lcm(*(each.factor for each in tokenizers))
            whole = [max(round(side / f), 1) * f for side in (height, width)]
            raise SmaltiError(
                f"{tokenizer.name} has tiles of {tokenizer.factor} pixels, of which {height} x {width} (height x "
                f"width) is not made; add --set measured_at={whole}"
            )
    return height, width


def _trained(request: ExperimentRequest, chosen: ReconstructionSettings) -> list[_Candidate]:
    """The tokenizers that the experiment trains, with what a person set for all of them."""
    check_unique_names([each.name for each in chosen.tokenizers], what="tokenizers")
    fixed = [f"images.size={list(chosen.size)}", f"images.validation={chosen.held_out}"]
    found = []
    for each in chosen.tokenizers:
        training = steps.varied_tokenizer(
            chosen.recipe, shared=chosen.training, overrides=request.of("tokenizer"), changes=[*each.changes, *fixed]
        )
        found.append(_Candidate(each.name, training.model.autoencoder.factor, chosen.size, None, training, {}))
    return found


def _given(request: ExperimentRequest) -> list[_Candidate]:
    """Given tokenizers, each opened once to see that it is one, and that all take images of one kind."""
    found: list[_Candidate] = []
    first = 0
    for name, path in zip(_names(request.models), request.models, strict=True):
        model = load_tokenizer(path)
        channels = model.settings.autoencoder.channels
        first = first or channels
        if channels != first:
            raise SmaltiError(
                f"{path} takes images of {channels} channels and {request.models[0]} of {first}; compare like with like"
            )
        described = {"model": name, "fingerprint": model.fingerprint()}
        found.append(_Candidate(name, model.factor, _trained_on(path), path, None, described))
    return found


def _trained_on(path: Path) -> tuple[int, int]:
    """(H,W) of the images that a model was trained on: as it says itself, and 256 x 256 for those of other programs."""
    home = path / "tokenizer" if (path / "tokenizer").is_dir() else path
    if home.exists() and not is_smalti_folder(home):
        return IMPORTED
    height, width = find_model(home, kind="tokenizer").about.get("size", IMPORTED)
    return height, width


_SAYS_NOTHING = re.compile(r"model|tokenizer|checkpoints|[0-9a-f]{12}")
"""Names of folders that many models are in; the last is a key of an experiment's step."""


def _names(paths: Sequence[Path]) -> list[str]:
    """Paths of models -> short names that differ: of the folder, or of the one above where many are called alike."""
    found: list[str] = []
    for path in paths:
        whole = path.expanduser().absolute()
        informative = [part for part in whole.parts[1:] if not _SAYS_NOTHING.fullmatch(part)]
        name = re.sub(r"[^\w.-]+", "-", informative[-1] if informative else whole.name).strip(".-") or "tokenizer"
        count = sum(re.fullmatch(rf"{re.escape(name)}(-\d+)?", other) is not None for other in found)
        found.append(f"{name}-{count + 1}" if count else name)
    return found


def _measuring(compared: _Candidate, images: ImageSource, how: TokenizerMeasurement) -> Step:
    """The step that measures one tokenizer, given or trained by the step before it."""
    trained = () if compared.training is None else (f"tokenizer-{compared.name}",)
    return how.step(
        compared.name,
        images=images,
        described=compared.described,
        after=trained,
        load=lambda context: load_tokenizer(compared.given or context.before[f"tokenizer-{compared.name}"].folder),
    )


RECONSTRUCTION = Experiment(
    name="reconstruction",
    about="what tokenizers keep of images, and at how many bits: given ones, or a grid of f and K trained here",
    takes_models=True,
    settings=ReconstructionSettings,
    scales_file=Path(__file__).with_name("scales.yaml"),
    plan=plan,
    findings=findings,
    page="experiments/reconstruction/page.html",
)
