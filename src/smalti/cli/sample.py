"""`smalti sample`: generate images."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smalti.cli.console import CONSOLE, size_option
from smalti.cli.generation_output import (
    CandidateSelection,
    GenerationJob,
    GenerationOptions,
    OutputFile,
    Parallel,
    Preview,
    Resume,
    Speculate,
    generate_and_save,
    likelihood_selection,
)
from smalti.cli.model_options import GridOption, ModelArgument, announce_default, grid_option
from smalti.cli.sampling_options import (
    Batch,
    BestOf,
    Conditions,
    Count,
    Depth,
    Device,
    Guidance,
    GuidanceSchedule,
    Label,
    Layout,
    MinP,
    Out,
    Seed,
    Segmentation,
    Size,
    Temperature,
    Text,
    TopK,
    TopP,
    condition_texts,
)
from smalti.core.errors import SmaltiError
from smalti.hub.bundled_models import SCENES

if TYPE_CHECKING:
    from smalti.evaluation.rejection_sampling import ImageScore
    from smalti.generation.request import GenerationRequest
    from smalti.losses.logits import LogitDistance
    from smalti.pipeline import Pipeline


def sample(
    out: Out,
    model: ModelArgument = SCENES,
    count: Count = 4,
    label: Label = None,
    text: Text = None,
    segmentation: Segmentation = None,
    depth: Depth = None,
    layout: Layout = None,
    condition: Conditions = None,
    size: Size = None,
    temperature: Temperature = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    guidance: Guidance = 1.0,
    guidance_schedule: GuidanceSchedule = "constant",
    seed: Seed = 0,
    best_of: BestOf = None,
    classifier: Annotated[
        str | None,
        typer.Option(
            help="Keep the candidate that this classifier rates highest for --label: an ImageNet ResNet-50 file, or "
            "a name such as resnet50. Without it, the most likely candidate is kept."
        ),
    ] = None,
    batch: Batch = 16,
    resume: Resume = False,
    preview: Preview = 30.0,
    speculate: Speculate = 0,
    parallel: Parallel = 0,
    window: GridOption = None,
    device: Device = "auto",
) -> None:
    """Generate images. Ctrl-C saves the partial result; --resume continues it."""
    from smalti.conditions.base import condition_keys
    from smalti.core.devices import pick_device
    from smalti.core.settings import as_mapping
    from smalti.generation.code_sampler import make_sampler
    from smalti.generation.request import unknown_codes
    from smalti.pipeline import Pipeline

    announce_default(model)
    pipeline = Pipeline.from_pretrained(model, grid=grid_option(window)).to(pick_device(device))
    sampler = make_sampler(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        guidance=guidance,
        guidance_schedule=guidance_schedule,
    )
    conditions = condition_texts(
        condition_keys(pipeline.condition),
        label=label,
        text=text,
        segmentation=segmentation,
        depth=depth,
        layout=layout,
        other=condition or [],
    )
    value, grid = pipeline.read_condition(conditions, size=size_option(size))
    height_width = grid[0] * pipeline.tokenizer.factor, grid[1] * pipeline.tokenizer.factor
    if classifier is None:
        selection = likelihood_selection(best_of or 1)
    else:
        selection = _classifier_selection(pipeline, classifier, label=label, num_candidates=best_of or 8)
    settings = {
        "model": model.resolve().name,
        "size": list(height_width),
        **as_mapping(sampler),
        **conditions,
        **({"parallel": parallel} if parallel else {}),
        **selection.settings,
    }
    # Values that name files are not overwritten; other values name no file.
    inputs = [Path(argument) for argument in (*conditions.values(), classifier) if argument is not None]
    options = GenerationOptions(selection, resume, preview, inputs)
    all_seeds = pipeline.seeds(seed, count)
    for first in range(0, count, batch):
        seeds = all_seeds[first : first + batch]
        files = [
            OutputFile(
                out / f"{label or 'sample'}-{image_seed:06d}.png".replace("/", "-"),
                {"command": "sample", "seed": image_seed, **settings},
            )
            for image_seed in seeds.tolist()
        ]
        title = f" {first + 1} to {first + len(seeds)} of {count}" if count > batch else ""
        values, known = [value] * len(seeds), unknown_codes(len(seeds), grid)
        request = pipeline.request_for(
            values, known, seeds=seeds, sampler=sampler, speculate=speculate, parallel=parallel
        )
        generate_and_save(GenerationJob(pipeline, request, files, options, title))
    CONSOLE.print(f"{count} images of {height_width[0]}x{height_width[1]} in {out}", soft_wrap=True)


def _classifier_selection(
    pipeline: Pipeline, classifier: str, *, label: str | None, num_candidates: int
) -> CandidateSelection:
    """Select the candidate that the classifier rates highest for `label`. Raises `SmaltiError` for an invalid
    classifier or an unknown class."""
    from smalti.core.files import normalized
    from smalti.evaluation.imagenet_classifier import imagenet_classes, read_classifier

    if num_candidates == 1:
        raise typer.BadParameter("--classifier needs --best-of 2 or more")
    conditions = [part for part in pipeline.condition.members if part.value_type == "label"]
    if not conditions:
        raise SmaltiError("--classifier needs a model conditioned on labels, and this model is not; omit it")
    if label is None:
        raise SmaltiError("--classifier needs a class; give --label")
    conditions[0].encode([label])  # raises for unknown labels
    number = imagenet_classes(conditions[0].names)[normalized(label)]
    network = read_classifier(classifier).to(pipeline.device)
    make_score = partial(_score_by_class, network=network, number=number)
    return CandidateSelection(num_candidates, Path(classifier).name, make_score)


def _score_by_class(
    pipeline: Pipeline, request: GenerationRequest, *, network: LogitDistance, number: int
) -> ImageScore:
    """A request for images of one class -> their score by a classifier."""
    from smalti.evaluation.imagenet_classifier import by_class
    from smalti.evaluation.rejection_sampling import by_images

    return by_images(pipeline, by_class(network, [number] * request.batch))
