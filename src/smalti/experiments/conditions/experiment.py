"""The experiment `conditions`: do generated images follow their conditions? Those of the paper, and more, on the
embedded scenes.

One tokenizer of images, one of each kind of maps, and for each condition a prior. The conditions come from held-out
scenes; a network trained on real scenes predicts the content of the samples.

H W pixels, f = H/h, h w grid of codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from PIL import Image
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from smalti.conditions.base import Condition, constant_prefix
from smalti.core.errors import SmaltiError
from smalti.core.evenly_spaced import evenly_spaced
from smalti.core.files import write_atomically
from smalti.core.progress import progress_bar
from smalti.core.settings import Positive, as_mapping, settings
from smalti.data.annotations.annotation_files import read_annotations
from smalti.data.annotations.objects import ObjectAnnotation, paired_annotations
from smalti.data.code_shards import open_codes
from smalti.data.config import ImageSettings
from smalti.data.file_types import FILE_TYPES
from smalti.data.loader import Crops
from smalti.data.paired import AlignedCrops, paired_entries
from smalti.data.sources import open_source
from smalti.data.splits import split_crops
from smalti.encoding.annotators import ANNOTATORS
from smalti.encoding.condition_encoding import ConditionSource
from smalti.experiments import condition_fidelity, steps
from smalti.experiments.base import Experiment, ExperimentRequest, Step, StepContext
from smalti.experiments.condition_fidelity import Measure
from smalti.experiments.conditions.findings import findings
from smalti.experiments.scene_network import KnownScenes, SceneNetwork, train_scene_network
from smalti.experiments.steps import SCENES, check_overrides_used
from smalti.generation.code_sampler import make_sampler
from smalti.generation.generation_loop import generation_states
from smalti.generation.request import GenerationRequest, unknown_codes
from smalti.hub.pretrained import find_model
from smalti.images.io import save_png
from smalti.model_loading import load_tokenizer
from smalti.pipeline import Pipeline
from smalti.prior_folder import load_prior
from smalti.scenes.painter import CLASSES, LABELS
from smalti.training.config import CopiesSettings, PriorTraining, TokenizerTraining
from smalti.training.runs import encode_images, train_prior, train_tokenizer

OpenFraction = Annotated[float, Field(gt=0, lt=1)]
Name = Literal[
    "label", "segmentation", "depth", "edges", "lowres", "layout", "keypoints", "coordinates", "label-segmentation"
]

LARGE = "scenes-large"
"""Name of the step that renders scenes twice as high and wide, of which a window sees a part."""


class MapCondition(NamedTuple):
    """A condition that has a tokenizer of its own: where its files are among the scenes ("images": it is made of them),
    and what its training changes."""

    folder: str
    changes: tuple[str, ...]


MAPS: dict[str, MapCondition] = {
    "segmentation": MapCondition(
        "segmentations",
        (
            "images.file_type=labels",
            f"model.autoencoder.channels={len(LABELS)}",
            "objective.pixel=cross_entropy",
            "objective.hatch_weight=0",
        ),
    ),
    "depth": MapCondition("depths", ("images.file_type=depth", "model.autoencoder.channels=1")),
    "edges": MapCondition("images", ("images.file_type=edges", "model.autoencoder.channels=1")),
    # Its images have a quarter of the sides, and its codes a quarter of the pixels.
    "lowres": MapCondition("images", ()),
}
SMALLER = 4
"""The factor between the size of the images and that of the condition `lowres`."""


class Trial(NamedTuple):
    """The conditions of a prior, and the measure of their fidelity."""

    conditions: tuple[str, ...]
    measure: Measure
    large: bool = False
    """Whether it is trained on crops of larger scenes and generates larger images."""
    times: int = 1
    """How many times as long as the others its prior is trained: things in boxes are a small part of the image, learned
    late."""
    also: tuple[Name, ...] = ()
    """Other trials whose measures apply too."""


def _is_figure(annotation: ObjectAnnotation) -> bool:
    return bool(annotation.keypoints)


TRIALS: dict[Name, Trial] = {
    "label": Trial(("labels",), condition_fidelity.classes),
    "segmentation": Trial(("segmentation",), condition_fidelity.labels),
    "depth": Trial(("depth",), condition_fidelity.depths),
    "edges": Trial(("edges",), condition_fidelity.edge_maps),
    "lowres": Trial(("lowres",), partial(condition_fidelity.smaller, times=SMALLER)),
    "layout": Trial(
        ("layout",), partial(condition_fidelity.boxes, names=LABELS, only=lambda annotation: True), times=3
    ),
    "keypoints": Trial(("keypoints",), partial(condition_fidelity.boxes, names=LABELS, only=_is_figure), times=3),
    "coordinates": Trial(("coordinates",), condition_fidelity.heights, large=True),
    "label-segmentation": Trial(("labels", "segmentation"), condition_fidelity.labels, also=("label",)),
}


@settings
class ConditionsSettings:
    """The conditions and their trainings."""

    recipe: str
    """Of the tokenizers and of the priors."""
    tokenizer: tuple[str, ...] = ()
    """`a.b=c` over the recipe, for all tokenizers."""
    maps: tuple[str, ...] = ()
    """... for those of conditions alone."""
    prior: tuple[str, ...] = ()
    """... for the priors."""
    conditions: tuple[Name, ...] = tuple(TRIALS)
    size: tuple[Positive, Positive] = (64, 64)
    """(H,W) of all images, sides divisible by 16."""
    scenes: Positive
    held_out: OpenFraction = 0.1
    """Fraction of the scenes that is held out and provides the conditions of the samples."""
    copies: Positive = 3
    """Crops of each training image that priors learn from."""
    scene_network_steps: Positive = 400
    """Batches that training the scene network from."""
    samples: Positive = 64
    """Images of each condition, as far as there are held-out scenes."""
    shown: Positive = 8
    """Of them on the page."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    guidance: Annotated[float, Field(ge=0)] = 2.0
    """Guidance scale of the conditional images."""


def plan(chosen: ConditionsSettings, request: ExperimentRequest) -> list[Step]:
    """Scenes; a scene network; tokenizers of images and of maps; and for each condition its codes, its prior, and its
    samples."""
    check_overrides_used(request, trains=("tokenizer", "prior"))
    if request.data is not None:
        raise SmaltiError("this experiment needs scenes with known labels; omit --data")
    if any(side % 16 for side in chosen.size):
        raise SmaltiError(f"size = {chosen.size[0]}x{chosen.size[1]}: sides are multiples of 16 here")
    training = steps.varied_tokenizer(
        chosen.recipe,
        shared=chosen.tokenizer,
        overrides=request.of("tokenizer"),
        changes=[f"images.size={list(chosen.size)}", f"images.validation={chosen.held_out}"],
    )
    prior = steps.varied_prior(
        chosen.recipe, shared=chosen.prior, overrides=request.of("prior"), changes=["condition=auto", "encode={}"]
    )
    large = chosen.size[0] * 2, chosen.size[1] * 2
    found = [steps.scenes(count=chosen.scenes, size=chosen.size)]
    if any(TRIALS[name].large for name in chosen.conditions):
        found.append(steps.scenes(count=chosen.scenes, size=large, name=LARGE))
    found += [_scene_network(chosen), _tokenizer("tokenizer", "images", training)]
    needed = [name for name in MAPS if any(name in TRIALS[each].conditions for each in chosen.conditions)]
    found += [_map_tokenizer(name, chosen, request, factor=training.model.autoencoder.factor) for name in needed]
    for name in chosen.conditions:
        found += [_codes(name, chosen), _prior(name, prior), _fidelity(name, chosen)]
    return found


def _tokenizer(name: str, folder: str, training: TokenizerTraining) -> Step:
    def work(context: StepContext) -> dict[str, Any]:
        train_tokenizer(
            context.before[SCENES].folder / folder, context.folder, settings=training, console=context.console
        )
        return {}

    step_settings = {"folder": folder, "training": steps.decisive_settings(as_mapping(training))}
    return Step(name=name, settings=step_settings, work=work, after=(SCENES,))


def _map_tokenizer(name: str, chosen: ConditionsSettings, request: ExperimentRequest, *, factor: int) -> Step:
    """`factor`: pixels a code of the images' tokenizer. Raises `SmaltiError` if there is none for smaller copies."""
    shape = [f"images.size={list(chosen.size)}"]
    if name == "lowres":
        if factor % SMALLER:
            raise SmaltiError(
                f"lowres takes a tokenizer of {SMALLER} or a multiple of it as factor, and it has {factor}"
            )
        smaller = [side // SMALLER for side in chosen.size]
        shape = [
            f"images.size={smaller}",
            f"model.autoencoder.patch_size={factor // SMALLER}",
            "model.autoencoder.channel_multipliers=[1]",
        ]
    fixed = ["objective.adversarial.weight=0", "objective.perceptual=none", f"images.validation={chosen.held_out}"]
    changes = [*MAPS[name].changes, *shape, *fixed]
    training = steps.varied_tokenizer(
        chosen.recipe, shared=[*chosen.tokenizer, *chosen.maps], overrides=request.of("tokenizer"), changes=changes
    )
    return _tokenizer(f"tokenizer-{name}", MAPS[name].folder, training)


def _images(name: Name, chosen: ConditionsSettings) -> ImageSettings:
    """How images with this condition are cropped."""
    zoom, flip = ((2.0, 2.0), False) if TRIALS[name].large else ((1.0, 1.25), True)
    return ImageSettings(size=chosen.size, zoom=zoom, flip=flip, validation=chosen.held_out)


def _codes(name: Name, chosen: ConditionsSettings) -> Step:
    trial = TRIALS[name]
    scenes = LARGE if trial.large else SCENES
    after = ("tokenizer", *(f"tokenizer-{each}" for each in trial.conditions if each in MAPS))
    copies = CopiesSettings(copies=chosen.copies, images=_images(name, chosen))

    def annotator(each: str, context: StepContext) -> ConditionSource:
        folder = context.before[scenes].folder
        if each in ANNOTATORS:
            return ConditionSource(each, data=folder if each in ("layout", "keypoints") else None)
        data = None if MAPS[each].folder == "images" else folder / MAPS[each].folder
        return ConditionSource(each, context.before[f"tokenizer-{each}"].folder, data)

    def work(context: StepContext) -> dict[str, Any]:
        with progress_bar(context.console, title="encoding", unit="images") as progress:
            encode_images(
                context.before["tokenizer"].folder,
                context.before[scenes].folder / "images",
                context.folder / "codes",
                settings=copies,
                seed=0,
                progress=progress,
                conditions=[annotator(each, context) for each in trial.conditions],
            )
        return {"held_out": len(open_codes(context.folder / "codes").validation)}

    return Step(name=f"codes-{name}", settings=as_mapping(copies), work=work, after=(scenes, *after))


def _prior(name: Name, training: PriorTraining) -> Step:
    training = replace(training, run=replace(training.run, codes=training.run.codes * TRIALS[name].times))

    def work(context: StepContext) -> dict[str, Any]:
        shards, tokenizer = (
            open_codes(context.before[f"codes-{name}"].folder / "codes"),
            context.before["tokenizer"].folder,
        )
        train_prior(shards, tokenizer, context.folder, settings=training, console=context.console)
        return {}

    step_settings = {"training": steps.decisive_settings(as_mapping(training))}
    return Step(name=f"prior-{name}", settings=step_settings, work=work, after=("tokenizer", f"codes-{name}"))


def _scene_network(chosen: ConditionsSettings) -> Step:
    """The step that trains the scene network and measures it on held-out scenes."""

    def work(context: StepContext) -> dict[str, Any]:
        training, held_out = split_crops(
            open_source(context.before[SCENES].folder / "images"), _images("label", chosen), channels=3, seed=0
        )
        with progress_bar(context.console, title="reading", unit="scenes") as progress:
            known = known_of(training, context.before[SCENES].folder, progress=progress)
        with progress_bar(context.console, title="training the scene network", unit="steps") as progress:
            scene_network = train_scene_network(
                known, labels=len(LABELS), classes=len(CLASSES), steps=chosen.scene_network_steps, progress=progress
            )
        write_atomically(context.folder / "scene_network.safetensors", partial(save_file, scene_network.state_dict()))
        real = known_of(held_out, context.before[SCENES].folder)
        whole = condition_fidelity.ComparedImages(real.images, real.images, real.images, real, [], scene_network)
        return {
            "labels": condition_fidelity.labels(whole).real,
            "depths": condition_fidelity.depths(whole).real,
            "classes": condition_fidelity.classes(whole).real,
        }

    step_settings = {"steps": chosen.scene_network_steps, "size": list(chosen.size), "held_out": chosen.held_out}
    return Step(name="scene-network", settings=step_settings, work=work, after=(SCENES,))


def known_of(crops: Crops, scenes: Path, *, progress: Any = lambda done, total: None) -> KnownScenes:
    """Crops of the images of a folder of scenes -> the first crop of each, with all that is known of it."""
    condition_crops = []
    for folder, kind in (("segmentations", FILE_TYPES["labels"](None)), ("depths", FILE_TYPES["depth"](None))):
        source = open_source(scenes / folder, file_type=kind)
        chosen, channels = paired_entries(crops.images, source), len(LABELS) if folder == "segmentations" else 1
        files = Crops(source, chosen, size=crops.size, channels=channels, crop=crops.crop, seed=crops.seed)
        condition_crops.append(AlignedCrops(crops, files))
    rows = []
    for index in range(len(crops)):
        rows.append((*crops.example(index, index), *(each.example(index, index) for each in condition_crops)))
        progress(index + 1, len(crops))
    images, classes, labels, depths = (torch.stack(each) for each in zip(*rows, strict=True))
    return KnownScenes(images, classes, labels.long(), depths)


def _fidelity(name: Name, chosen: ConditionsSettings) -> Step:
    """The step that generates images of held-out conditions, and of none, and measures."""
    trial = TRIALS[name]
    scenes, times = (LARGE, 2) if trial.large else (SCENES, 1)
    cut = ImageSettings(
        size=(chosen.size[0] * times, chosen.size[1] * times), zoom=(1.0, 1.0), validation=chosen.held_out
    )

    def work(context: StepContext) -> dict[str, Any]:
        folder = context.before[scenes].folder
        _, held_out = split_crops(open_source(folder / "images"), cut, channels=3, seed=0, max_held_out=chosen.samples)
        known = known_of(held_out, folder)
        tokenizer = load_tokenizer(context.before["tokenizer"].folder)
        pipeline = Pipeline(tokenizer, *load_prior(find_model(context.before[f"prior-{name}"].folder, kind="prior")))
        prefixes = _requested_conditions(
            context.before[f"codes-{name}"].folder / "codes", held_out, cut, pipeline.condition
        )
        grid, nothing = pipeline.grid(cut.size), pipeline.prior.null_prefix(len(prefixes))
        # The coordinates of windows in a larger image depend on the image's size.
        prefix_at = (
            pipeline.window_prefix([None] * len(prefixes), grid=grid) if trial.large else constant_prefix(prefixes)
        )
        unknown, seeds = unknown_codes(len(prefixes), grid), torch.arange(len(prefixes))
        guided, plain = make_sampler(top_p=chosen.top_p, guidance=chosen.guidance), make_sampler(top_p=chosen.top_p)
        conditional = GenerationRequest(prefix_at, unknown, seeds=seeds, sampler=guided)
        unconditional = GenerationRequest(constant_prefix(nothing), unknown, seeds=seeds, sampler=plain)
        images = condition_fidelity.ComparedImages(
            conditioned=_generate(pipeline, conditional, context),
            unconditional=_generate(pipeline, unconditional, context),
            real=pipeline.reconstruct(known.images),
            known=known,
            listed=paired_annotations(held_out.images, read_annotations(folder)),
            network=_read_scene_network(context.before["scene-network"].folder),
        )
        _save(
            context.folder, images, [] if trial.large else list(map(pipeline.condition.preview, prefixes)), chosen.shown
        )
        also = {each: TRIALS[each].measure(images)._asdict() for each in trial.also}
        return {**trial.measure(images)._asdict(), "also": also, "images": len(prefixes)}

    settings = {
        "samples": chosen.samples,
        "shown": chosen.shown,
        "top_p": chosen.top_p,
        "guidance": chosen.guidance,
        **({"also": list(trial.also)} if trial.also else {}),
    }
    after = (scenes, "scene-network", "tokenizer", f"codes-{name}", f"prior-{name}")
    return Step(name=f"fidelity-{name}", settings=settings, work=work, after=after)


def _read_scene_network(folder: Path) -> SceneNetwork:
    scene_network = SceneNetwork(len(LABELS), len(CLASSES))
    scene_network.load_state_dict(load_file(folder / "scene_network.safetensors"))
    return scene_network.eval().requires_grad_(False)


def _requested_conditions(codes: Path, chosen: Crops, cut: ImageSettings, condition: Condition) -> Tensor:
    """The condition codes (B,P) of some held-out images, from the shards of all of them."""
    _, every = split_crops(chosen.source, cut, channels=3, seed=0)
    row_of = {image.key: index for index, image in enumerate(every.images)}
    shards = open_codes(codes)
    examples = [shards.validation[row_of[image.key], 0] for image in chosen.images]
    labels, prefixes = (
        torch.stack(part) for part in zip(*((each.label, each.prefix) for each in examples), strict=True)
    )
    return condition.example_prefix(labels, prefixes)


def _generate(pipeline: Pipeline, request: GenerationRequest, context: StepContext) -> Tensor:
    """A request -> its images (B,C,H,W)."""
    with progress_bar(context.console, title="generating", unit="codes") as progress:
        for state in generation_states(pipeline.prior, request):
            progress(state.generated, state.total)
    return pipeline.decode(state.codes)


def _save(folder: Path, images: condition_fidelity.ComparedImages, previews: Sequence[Any], shown: int) -> None:
    """Write the conditions and images for the page, evenly spread over all of them."""
    for number, seed in enumerate(evenly_spaced(len(images.conditioned), shown)):
        for name in ("conditioned", "real", "unconditional"):
            image = getattr(images, name)[seed]
            save_png(folder / "shown" / f"{number:03d}-{name}.png", image, settings={"seed": seed})
        if previews:
            write_atomically(
                folder / "shown" / f"{number:03d}-condition.png",
                partial(Image.fromarray(previews[seed]).save, format="PNG"),
            )


CONDITION_FIDELITY = Experiment(
    name="conditions",
    about="do generated images follow their conditions? Every condition, on scenes with known labels",
    takes_models=False,
    settings=ConditionsSettings,
    scales_file=Path(__file__).with_name("scales.yaml"),
    plan=plan,
    findings=findings,
    page="experiments/conditions/page.html",
)
