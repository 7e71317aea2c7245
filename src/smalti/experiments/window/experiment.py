"""The experiment `window`: how are images generated that are larger than what a prior learned from? Section 3.2 of the
paper.

One tokenizer, and priors of about as many parameters that see as many codes. Three learn from crops of one size and
grow: the transformer under the paper's sliding window, the same conditioned on coordinates, and the neighborhood
transformer. One learns whole images of each larger size: an upper bound, by a prior for one size only. And one does
not use any context: independent tiles, which show what a seam is.

H W pixels, f = H/h, h w grid of codes, P prefix codes, B images.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from smalti.conditions.base import grid_text
from smalti.core.devices import pick_device
from smalti.core.errors import SmaltiError
from smalti.core.evenly_spaced import evenly_spaced
from smalti.core.progress import progress_bar
from smalti.core.settings import Positive, as_mapping, settings
from smalti.data.code_shards import open_codes
from smalti.data.config import ImageSettings
from smalti.data.crops import RandomCrop
from smalti.data.loader import Crops, in_order
from smalti.data.sources import open_source, split
from smalti.data.splits import split_crops
from smalti.encoding.code_writer import ImageSets, WritingSettings, write_codes
from smalti.encoding.condition_encoding import ConditionSource, paired_images, tokenizer_encoder
from smalti.experiments import condition_fidelity, prior_steps, steps
from smalti.experiments.base import Experiment, ExperimentRequest, Step, StepContext
from smalti.experiments.conditions.experiment import known_of
from smalti.experiments.equal_time import check_parameter_counts
from smalti.experiments.sampling import ENCODED, SampleSettings, generate_images, zoom_of
from smalti.experiments.scene_network import train_scene_network
from smalti.experiments.steps import SCENES, ImageSource, check_overrides_used
from smalti.experiments.window.findings import COORDINATES, NEIGHBORHOOD, TILES, WHOLE, WINDOW, findings
from smalti.experiments.window.metrics import images_in, join_tiles, likelihood, nats_of, seam_scores, sequential
from smalti.generation.code_sampler import Sampler
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import unknown_codes
from smalti.hub.pretrained import find_model
from smalti.images.io import save_png
from smalti.model_loading import load_tokenizer
from smalti.pipeline import Pipeline
from smalti.prior_folder import load_prior
from smalti.scenes.painter import CLASSES, LABELS
from smalti.training.config import PriorTraining, TokenizerTraining
from smalti.training.prior_networks import CodesRead
from smalti.training.run_folder import read_metrics
from smalti.training.runs import train_prior

Side = tuple[Positive, Positive]

EIGHTHS = 8
"""Sides of images that the scene network takes are multiples of this."""


@settings
class WindowSettings:
    """What is compared, and on what."""

    recipe: str
    """Of the tokenizer and of the priors."""
    tokenizer: tuple[str, ...] = ()
    """`a.b=c` over the recipe, for the tokenizer."""
    prior: tuple[str, ...] = ()
    """`a.b=c` over the recipe, for all priors. `run.codes` says how many codes each sees, `run.batch` how many windows
    at once; of whole images so many fewer that there are as many codes."""
    transformer: tuple[str, ...] = ()
    """... for those under a window and those of whole images: their network."""
    neighborhood: tuple[str, ...]
    """... for the neighborhood transformer: its network."""
    parameters_within: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """The share by which the parameters of the others may differ from those of the transformer."""
    levels: Positive = 64
    """Codes between the first and the last pixel of an image, for the prior conditioned on coordinates."""
    window: Side
    """(h,w) codes of the crops that priors learn from."""
    sizes: Annotated[tuple[Side, ...], Field(min_length=1)]
    """Larger grids (h,w) that are generated, of whole windows; the page goes through them in this order."""
    whole: tuple[Side, ...] = ()
    """Those of them on which a transformer learns whole images."""
    size: Side
    """(H,W) of the scenes, in pixels; crops are cut from them as they are."""
    crop: Side
    """(H,W) of the parts of them that the tokenizer is trained on."""
    copies: Positive
    """Crops of the window's size of each training scene; of larger ones so many fewer that there are about as many
    codes."""
    held_out: Annotated[float, Field(gt=0, lt=1)]
    """Fraction of the scenes that trainings do not see."""
    images: Positive
    """Held-out scenes, evenly spread, of which a crop of each size is measured and kept from trainings, at most."""
    samples: Positive
    """Images generated with each method at each size."""
    shown: Positive
    """How many of those are shown, at most."""
    scene_network_steps: Positive
    """Batches that the scene network of sky and ground learns from."""
    scenes: Positive


def plan(chosen: WindowSettings, request: ExperimentRequest) -> list[Step]:
    """Scenes; the tokenizer; codes of crops of each size; the priors; images in each way and size; comparisons; the
    scene network."""
    check_overrides_used(request, trains=("tokenizer", "prior"))
    if request.data is not None:
        raise SmaltiError("this experiment needs scenes with known sky and ground; omit --data")
    training = _tokenizer(chosen, request)
    f = training.model.autoencoder.factor
    _check_sizes(chosen, f)
    scenes = ImageSource.of(None)
    trainings = _trainings(chosen, request)
    grids = (chosen.window, *chosen.sizes)
    found = [
        steps.scenes(count=chosen.scenes, size=chosen.size),
        steps.tokenizer("tokenizer", images=scenes, training=training),
    ]
    found += [_codes(grid, scenes, chosen) for grid in grids]
    counts = {}
    for name, (prior, grid) in trainings.items():
        counts[name] = prior_steps.parameters(prior, _read(prior, grid, training.model.quantizer.codebook_size, chosen))
        found.append(_prior(name, prior, grid))
    check_parameter_counts(
        counts,
        like=WINDOW,
        within=chosen.parameters_within,
        change="set its network by transformer=[...] or neighborhood=[...]",
    )
    for grid in grids:
        found += [_generating(way, grid, f, chosen) for way in _ways(grid, chosen)]
        found.append(_comparing(grid, f, counts, chosen))
    return [*found, _structure(f, chosen)]


def _tokenizer(chosen: WindowSettings, request: ExperimentRequest) -> TokenizerTraining:
    zoom = zoom_of(chosen.crop, chosen.size)
    fixed = [
        f"images.size={list(chosen.crop)}",
        f"images.zoom=[{zoom}, {zoom}]",
        f"images.validation={chosen.held_out}",
    ]
    return steps.varied_tokenizer(
        chosen.recipe, shared=chosen.tokenizer, overrides=request.of("tokenizer"), changes=fixed
    )


def _trainings(chosen: WindowSettings, request: ExperimentRequest) -> dict[str, tuple[PriorTraining, tuple[int, int]]]:
    """Each prior by its name -> its training, and the grid (h,w) of the crops it learns from."""

    def varied(network: tuple[str, ...], condition: str) -> PriorTraining:
        changes = [*network, f"condition={condition}", "condition_dropout=0", "encode={}", "run.patience=0"]
        return steps.varied_prior(chosen.recipe, shared=chosen.prior, overrides=request.of("prior"), changes=changes)

    transformer = varied(chosen.transformer, "unconditional")
    return {
        WINDOW: (transformer, chosen.window),
        COORDINATES: (varied(chosen.transformer, "coordinates"), chosen.window),
        NEIGHBORHOOD: (varied(chosen.neighborhood, "unconditional"), chosen.window),
        **{f"{WHOLE}-{grid_text(grid)}": (_fewer(transformer, grid, chosen.window), grid) for grid in chosen.whole},
    }


def _fewer(training: PriorTraining, grid: tuple[int, int], window: tuple[int, int]) -> PriorTraining:
    """A training on crops of the window's size -> the same on larger grids (h,w), as far as can be with as many codes a
    step."""
    run, times = training.run, grid[0] * grid[1] // (window[0] * window[1])
    return replace(training, run=replace(run, batch=max(run.batch // times // run.accumulate, 1) * run.accumulate))


def _read(training: PriorTraining, grid: tuple[int, int], size: int, chosen: WindowSettings) -> CodesRead:
    """What a prior reads, on a grid (h,w) of codes of a codebook of `size`."""
    if training.condition == "unconditional":
        return CodesRead(size=size, grid=grid, condition_size=0, prefix=1)
    return CodesRead(size=size, grid=grid, condition_size=chosen.levels, prefix=grid[0] * grid[1], maps=(0,))


def _ways(grid: tuple[int, int], chosen: WindowSettings) -> dict[str, str]:
    """A grid (h,w) -> the ways in which it is generated, and the name of the prior of each."""
    tiles = {TILES: WINDOW} if grid != chosen.window else {}
    whole = {WHOLE: f"{WHOLE}-{grid_text(grid)}"} if grid in chosen.whole else {}
    return {**tiles, **{name: name for name in (WINDOW, COORDINATES, NEIGHBORHOOD)}, **whole}


def _check_sizes(chosen: WindowSettings, f: int) -> None:
    """Raise `SmaltiError` for grids that are not whole windows or larger than scenes, and where sky and ground are
    not seen."""
    h, w = chosen.window
    (H, W), grids = chosen.size, chosen.sizes
    for grid in grids:
        if grid[0] % h or grid[1] % w or grid == chosen.window or grids.count(grid) > 1:
            raise SmaltiError(
                f"sizes has {grid_text(grid)}, and the window is {h}x{w} codes; give larger grids of whole windows, "
                "each once"
            )
        if grid[0] * f > H or grid[1] * f > W:
            raise SmaltiError(
                f"{grid_text(grid)} codes are {grid[0] * f} x {grid[1] * f} pixels, more than the scenes of {H} x {W}; "
                "set a smaller one in sizes, or a larger size"
            )
    for grid in chosen.whole:
        if grid not in grids:
            raise SmaltiError(f"whole has {grid_text(grid)}, which is not in sizes; add it there, or remove it")
    tall = _tall(chosen, f)
    if not tall or any(side % EIGHTHS for side in (H, min(H, W), *(grid[1] * f for grid in tall))):
        raise SmaltiError(
            f"sky and ground are looked for in those of sizes that are as high as the scenes, {H} pixels, and the "
            f"scene network takes sides of multiples of {EIGHTHS}; set size and sizes so that there is one, and each "
            "of them is so"
        )


def _tall(chosen: WindowSettings, f: int) -> list[tuple[int, int]]:
    """The grids (h,w) of images as high as the scenes."""
    return [grid for grid in chosen.sizes if grid[0] * f == chosen.size[0]]


def _codes(grid: tuple[int, int], scenes: ImageSource, chosen: WindowSettings) -> Step:
    """The step that encodes crops of a grid (h,w) of codes, with where each is in its scene."""
    copies = max(chosen.copies * chosen.window[0] * chosen.window[1] // (grid[0] * grid[1]), 1)

    def work(context: StepContext) -> dict[str, Any]:
        tokenizer = load_tokenizer(context.before["tokenizer"].folder).to(pick_device("auto"))
        source, f = open_source(scenes.path(context)), tokenizer.factor
        side = grid[0] * f, grid[1] * f
        zoom = (zoom_of(side, chosen.size),) * 2
        training, others = split(source.images, validation=chosen.held_out)
        held_out = [others[index] for index in evenly_spaced(len(others), chosen.images)]
        of = partial(Crops, source, size=side, channels=3)
        parts = (
            of(training, crop=RandomCrop(zoom=zoom), seed=0),
            of(held_out, crop=RandomCrop(zoom=zoom, flip=False), seed=1),
        )
        annotated = [ConditionSource("coordinates", options={"levels": chosen.levels})]
        pairs = paired_images(annotated, parts, factor=f, device=pick_device("auto"))
        with progress_bar(context.console, title="encoding", unit="crops") as progress:
            write_codes(
                context.folder / "codes",
                ImageSets(training=pairs.training, validation=pairs.validation, prefix=pairs.prefix),
                encoder=tokenizer_encoder(tokenizer, parts[0].to_images),
                settings=WritingSettings(copies=copies, batch=ENCODED),
                progress=progress,
            )
        return {"training": len(training) * copies, "held_out": len(held_out)}

    shaped = {"grid": list(grid), "size": list(chosen.size), "levels": chosen.levels}
    step_settings = {**shaped, "copies": copies, "held_out": chosen.held_out, "images": chosen.images}
    return Step(
        name=f"codes-{grid_text(grid)}",
        settings={**scenes.described, **step_settings},
        work=work,
        after=(SCENES, "tokenizer"),
    )


def _prior(name: str, training: PriorTraining, grid: tuple[int, int]) -> Step:
    """The step that trains a prior on crops of a grid (h,w) of codes; its folder is a run folder."""

    def work(context: StepContext) -> dict[str, Any]:
        shards = open_codes(context.before[f"codes-{grid_text(grid)}"].folder / "codes")
        tokenizer = context.before["tokenizer"].folder
        train_prior(shards, tokenizer, context.folder, settings=training, console=context.console)
        lines = read_metrics(context.folder)
        entropies = [line["code_entropy_nats"] for line in lines if line["part"] == "validation"]
        return {"curve": prior_steps.prior_curve(lines), "code_entropy_nats": entropies[-1]}

    step_settings = {"training": steps.decisive_settings(as_mapping(training))}
    return Step(
        name=f"prior-{name}", settings=step_settings, work=work, after=("tokenizer", f"codes-{grid_text(grid)}")
    )


def _pipeline(context: StepContext, prior: str) -> Pipeline:
    tokenizer = load_tokenizer(context.before["tokenizer"].folder)
    kept = find_model(context.before[f"prior-{prior}"].folder, kind="prior")
    return Pipeline(tokenizer, *load_prior(kept)).to(pick_device("auto"))


def _generating(way: str, grid: tuple[int, int], f: int, chosen: WindowSettings) -> Step:
    """The step that generates images of a grid (h,w) with one method; coordinates span the whole image."""
    prior = _ways(grid, chosen)[way]

    def work(context: StepContext) -> dict[str, Any]:
        pipeline = _pipeline(context, prior)
        if way == TILES:
            return _tiles(pipeline, grid, chosen.samples, context)
        wanted = SampleSettings(number=chosen.samples, size=(grid[0] * f, grid[1] * f), with_frechet=False)
        folder, images = context.before[f"prior-{prior}"].folder, context.before[SCENES].folder / "images"
        found = generate_images(pipeline.tokenizer, folder, images, context, wanted=wanted)
        return {**found, "steps": sequential(pipeline.prior, grid)}

    step_settings = {"count": chosen.samples, "grid": list(grid), "way": way}
    after = (SCENES, "tokenizer", f"prior-{prior}")
    return Step(name=f"samples-{way}-{grid_text(grid)}", settings=step_settings, work=work, after=after)


def _tiles(pipeline: Pipeline, grid: tuple[int, int], count: int, context: StepContext) -> dict[str, Any]:
    """Images of a grid (h,w) made of independent windows, all generated at once."""
    prior, began = pipeline.prior, time.monotonic()
    number = grid[0] * grid[1] // (prior.grid[0] * prior.grid[1])
    known, seeds = unknown_codes(count * number, prior.grid), torch.arange(count * number)
    request = pipeline.request_for([None] * len(known), known, seeds=seeds, sampler=Sampler())
    codes_of_tiles = final_codes(generate(prior, request))
    seconds = (time.monotonic() - began) / count
    codes = join_tiles(codes_of_tiles.view(count, number, *prior.grid), grid)  # (B,h,w)
    for seed, image in enumerate(pipeline.decode(codes)):
        save_png(context.folder / "samples" / f"{seed:04d}.png", image, settings={"seed": seed})
    return {
        "codes": grid[0] * grid[1],
        "seconds_per_image": seconds,
        "steps": sequential(prior, prior.grid),
    }


def _comparing(grid: tuple[int, int], f: int, counts: Mapping[str, int], chosen: WindowSettings) -> Step:
    """The step that measures the likelihood of held-out crops of one size under each prior, and its samples."""
    ways = _ways(grid, chosen)

    def work(context: StepContext) -> dict[str, Any]:
        codes, annotated = _held_out(context.before[f"codes-{grid_text(grid)}"].folder / "codes")
        for number, image in enumerate(_pipeline(context, WINDOW).decode(codes)):
            save_png(context.folder / "real" / f"{number:04d}.png", image)
        values = {
            way: nats_of(_pipeline(context, prior).prior, way, codes, annotated, window=chosen.window).tolist()
            for way, prior in ways.items()
        }
        done = {way: context.before[f"samples-{way}-{grid_text(grid)}"] for way in ways}
        rows = {
            way: {
                "parameters": counts[prior],
                **likelihood(values[way], values[WINDOW]),
                **seam_scores(done[way].folder / "samples", chosen.window[1], f),
                "seconds": done[way].outcome["seconds_per_image"],
                "steps": done[way].outcome["steps"],
            }
            for way, prior in ways.items()
        }
        return {"images": len(codes), "rows": rows, "real": seam_scores(context.folder / "real", chosen.window[1], f)}

    after = (
        "tokenizer",
        f"codes-{grid_text(grid)}",
        *dict.fromkeys(f"prior-{prior}" for prior in ways.values()),
        *(f"samples-{way}-{grid_text(grid)}" for way in ways),
    )
    step_settings = {"grid": list(grid), "parameters": {way: counts[ways[way]] for way in ways}}
    return Step(name=f"compare-{grid_text(grid)}", settings=step_settings, work=work, after=after)


def _held_out(shards: Path) -> tuple[Tensor, Tensor]:
    """Codes of held-out crops (B,h,w), and where each of their codes is in its scene (B,h,w)."""
    batches = list(in_order(open_codes(shards).validation, batch=ENCODED))
    codes, annotated = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("codes", "prefix"))
    return codes, annotated.view_as(codes)


def _structure(f: int, chosen: WindowSettings) -> Step:
    """The step that teaches a scene network what is in scenes, and asks it where sky and ground are, in images as high
    as scenes."""
    tall, (H, W) = _tall(chosen, f), chosen.size
    square = ImageSettings(size=(H, min(H, W)), zoom=(1.0, 1.0), validation=chosen.held_out)

    def work(context: StepContext) -> dict[str, Any]:
        training, _ = split_crops(open_source(context.before[SCENES].folder / "images"), square, channels=3, seed=0)
        with progress_bar(context.console, title="reading", unit="scenes") as progress:
            known = known_of(training, context.before[SCENES].folder, progress=progress)
        with progress_bar(context.console, title="training the scene network", unit="steps") as progress:
            scene_network = train_scene_network(
                known, labels=len(LABELS), classes=len(CLASSES), steps=chosen.scene_network_steps, progress=progress
            )

        def share(folder: Path) -> float:
            images = torch.stack(list(images_in(folder)))
            return condition_fidelity.heights(
                condition_fidelity.ComparedImages(images, images, images, known, [], scene_network)
            ).conditioned

        return {
            grid_text(grid): {
                "real": share(context.before[f"compare-{grid_text(grid)}"].folder / "real"),
                **{
                    way: share(context.before[f"samples-{way}-{grid_text(grid)}"].folder / "samples")
                    for way in _ways(grid, chosen)
                },
            }
            for grid in tall
        }

    after = [SCENES]
    for grid in tall:
        after += [f"compare-{grid_text(grid)}", *(f"samples-{way}-{grid_text(grid)}" for way in _ways(grid, chosen))]
    step_settings = {"steps": chosen.scene_network_steps, "size": list(square.size), "held_out": chosen.held_out}
    return Step(name="structure", settings=step_settings, work=work, after=tuple(after))


WINDOWS_COMPARED = Experiment(
    name="window",
    about="images larger than the training size: sliding window, neighborhood attention, whole grid",
    takes_models=False,
    settings=WindowSettings,
    scales_file=Path(__file__).with_name("scales.yaml"),
    plan=plan,
    findings=findings,
    page="experiments/window/page.html",
)
