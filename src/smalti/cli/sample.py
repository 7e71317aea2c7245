"""`smalti sample`, `smalti complete` and `smalti reconstruct`: commands that write images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smalti.cli.console import CONSOLE, ERRORS, by_name, progress_bar, size_option
from smalti.cli.generation_output import (
    CandidateSelection,
    GenerationJob,
    GenerationOptions,
    KeptPixels,
    OutputFile,
    Parallel,
    Preview,
    Resume,
    Speculate,
    generate_and_save,
)
from smalti.cli.model_options import GridOption, ModelArgument, announce_default, grid_option
from smalti.core.errors import SmaltiError
from smalti.hub.bundled_models import SCENES

if TYPE_CHECKING:
    from smalti.evaluation.rejection_sampling import ImageScore
    from smalti.generation.request import GenerationRequest
    from smalti.losses.logits import LogitDistance
    from smalti.pipeline import Pipeline

Out = Annotated[Path, typer.Option("--out", help="Folder for the images.")]
Count = Annotated[int, typer.Option("-n", "--count", min=1, help="How many images.")]
Label = Annotated[str | None, typer.Option(help="Class label; without it, generation is unconditional.")]
Text = Annotated[str | None, typer.Option(help="A description of the image, for a model conditioned on captions.")]
Segmentation = Annotated[str | None, typer.Option(help="A label map: an image file with one class index per pixel.")]
Depth = Annotated[str | None, typer.Option(help="A depth map: an image file.")]
Layout = Annotated[str | None, typer.Option(help="Objects and their boxes: a JSON file.")]
Conditions = Annotated[
    list[str] | None,
    typer.Option(
        "--condition", help="Any other condition, as NAME=VALUE; `smalti info` lists the names. May be repeated."
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the first image; each further image uses the next seed.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="Sampling temperature; 0 always takes the most likely code.")]
TopK = Annotated[int, typer.Option("--top-k", min=0, help="Sample from the k most likely codes; 0 samples from all.")]
TopP = Annotated[
    float,
    typer.Option("--top-p", min=0.0, max=1.0, help="Sample from the most likely codes whose probabilities sum to p."),
]
MinP = Annotated[
    float,
    typer.Option(
        "--min-p", min=0.0, max=1.0, help="Sample from codes at least this fraction as likely as the most likely one."
    ),
]
Guidance = Annotated[float, typer.Option(min=0.0, help="Classifier-free guidance scale; 1 applies none.")]
GuidanceSchedule = Annotated[
    str, typer.Option("--guidance-schedule", help="How guidance grows over an image: constant, linear or cosine.")
]
BestOf = Annotated[
    int | None,
    typer.Option(
        "--best-of",
        min=1,
        help="Generate this many candidates per image and keep the best; 1 by default, 8 with --classifier.",
    ),
]
Batch = Annotated[int, typer.Option(min=1, help="Images per batch; does not change the images.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Size = Annotated[
    str | None, typer.Option(help="Size in pixels: 64, or height x width as 64x256; the training size by default.")
]


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
    conditions = _condition_texts(
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
    best_of = best_of or (8 if classifier else 1)
    selection = _selection(pipeline, classifier, label=label, best_of=best_of)
    settings = {
        "model": model.resolve().name,
        "size": list(height_width),
        **as_mapping(sampler),
        **conditions,
        **({"parallel": parallel} if parallel else {}),
        **_selection_settings(selection),
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


def _selection(pipeline: Pipeline, classifier: str | None, *, label: str | None, best_of: int) -> CandidateSelection:
    """How the best candidate is selected. Raises `SmaltiError` for an invalid classifier or an unknown class."""
    from smalti.core.files import normalized
    from smalti.evaluation.imagenet_classifier import imagenet_classes, read_classifier
    from smalti.evaluation.rejection_sampling import by_likelihood

    if classifier is None:
        return CandidateSelection(best_of, "likelihood", by_likelihood)
    if best_of == 1:
        raise typer.BadParameter("--classifier needs --best-of 2 or more")
    conditions = [part for part in pipeline.condition.members if part.value_type == "label"]
    if not conditions:
        raise SmaltiError("--classifier needs a model conditioned on labels, and this model is not; omit it")
    if label is None:
        raise SmaltiError("--classifier needs a class; give --label")
    conditions[0].encode([label])  # raises for unknown labels
    number = imagenet_classes(conditions[0].names)[normalized(label)]
    network = read_classifier(classifier).to(pipeline.device)
    return CandidateSelection(best_of, Path(classifier).name, partial(_score_by_class, network=network, number=number))


def _score_by_class(
    pipeline: Pipeline, request: GenerationRequest, *, network: LogitDistance, number: int
) -> ImageScore:
    """A request for images of one class -> their score by a classifier."""
    from smalti.evaluation.imagenet_classifier import by_class
    from smalti.evaluation.rejection_sampling import by_images

    return by_images(pipeline, by_class(network, [number] * request.batch))


def _selection_settings(selection: CandidateSelection) -> dict[str, int]:
    """The PNG settings of an image selected among several candidates; empty for a single candidate."""
    return {"best_of": selection.num_candidates} if selection.num_candidates > 1 else {}


def _condition_texts(known: Sequence[str], *, other: Sequence[str], **options: str | None) -> dict[str, str]:
    """The condition options as typed -> their values by the model's condition keys. Raises `SmaltiError`
    for other keys."""
    given = {name: text for name, text in options.items() if text is not None}
    for name in given:
        if name not in known:
            takes = " and ".join(f"--{key}" if key in options else f"--condition {key}=..." for key in known)
            raise SmaltiError(f"this model takes {takes or 'no condition'}, not --{name}")
    return {**by_name(other, known, option="--condition"), **given}


def complete(
    model: Annotated[Path, typer.Argument(help="A model as for `smalti sample`; `scenes` is bundled with smalti.")],
    image: Annotated[Path, typer.Argument(help="The image to complete.")],
    out: Out,
    mask: Annotated[
        Path | None, typer.Option(help="A mask of the same size: white pixels are kept, black pixels are generated.")
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="The part to keep: top-half, left-half, right-half, bottom-half or center.")
    ] = None,
    canvas: Annotated[
        str | None,
        typer.Option(
            help="Outpaint: the size in pixels, 128 or height x width, of an image with the given one at its center."
        ),
    ] = None,
    count: Count = 4,
    label: Label = None,
    text: Text = None,
    condition: Conditions = None,
    size: Size = None,
    temperature: Temperature = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    guidance: Guidance = 1.0,
    guidance_schedule: GuidanceSchedule = "constant",
    seed: Seed = 0,
    best_of: Annotated[
        int, typer.Option("--best-of", min=1, help="Generate this many candidates per image and keep the most likely.")
    ] = 1,
    blend: Annotated[
        bool,
        typer.Option(help="Keep the given pixels as they are; --no-blend takes all pixels from the decoder."),
    ] = True,
    fill: Annotated[
        bool,
        typer.Option(
            "--fill",
            help="Encode the image with the hole filled by its surroundings, so that kept codes do not depend on what "
            "is erased.",
        ),
    ] = False,
    resume: Resume = False,
    preview: Preview = 30.0,
    speculate: Speculate = 0,
    parallel: Parallel = 0,
    window: GridOption = None,
    device: Device = "auto",
) -> None:
    """Inpaint or outpaint an image: keep a part and generate the rest. The image is scaled and cropped to `--size`."""
    import torch

    from smalti.conditions.base import condition_keys
    from smalti.core.devices import pick_device
    from smalti.core.settings import as_mapping
    from smalti.generation.code_sampler import make_sampler
    from smalti.generation.request import center_on_canvas, check_generation_memory
    from smalti.images.io import read_image, to_tensor
    from smalti.images.masks import kept_by_mask, kept_part
    from smalti.images.resizing import covered_middle
    from smalti.images.seams import on_canvas
    from smalti.pipeline import Pipeline

    if (mask is not None and keep is not None) or not any((mask, keep, canvas)):
        raise typer.BadParameter("give either --mask or --keep, or --canvas to outpaint the whole image")
    pipeline = Pipeline.from_pretrained(model, grid=grid_option(window)).to(pick_device(device))
    height_width = size_option(size) or pipeline.default_size
    pipeline.grid(height_width)
    whole = read_image(image, channels=pipeline.tokenizer.settings.autoencoder.channels, name=str(image))
    given = to_tensor(covered_middle(whole, height_width)).unsqueeze(0)
    if mask is not None:
        known = kept_by_mask(mask, image=(whole.shape[0], whole.shape[1]), size=height_width)
    elif keep is not None:
        known = kept_part(keep, height_width)
    else:
        known = torch.ones(height_width, dtype=torch.bool)
    sampler = make_sampler(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        guidance=guidance,
        guidance_schedule=guidance_schedule,
    )
    settings: dict[str, Any] = {
        "model": model.resolve().name,
        "image": image.name,
        "keep": keep,
        "canvas": canvas,
        "label": label,
    }
    settings |= {"parallel": parallel} if parallel else {}
    settings |= {} if blend else {"blend": False}
    settings |= {"fill": True} if fill else {}
    settings |= {} if text is None else {"text": text}
    settings |= as_mapping(sampler)
    conditions = _condition_texts(condition_keys(pipeline.condition), label=label, text=text, other=condition or [])
    wide = size_option(canvas) or height_width
    value, grid = pipeline.read_condition(conditions, size=wide)
    check_generation_memory(count, grid)
    kept = pipeline.known_codes(given, known, fill=fill)
    codes = center_on_canvas(kept, grid).repeat(count, 1, 1)
    if not (codes < 0).any():
        raise SmaltiError(
            "the whole image is kept, and there is nothing to generate; paint the pixels to generate black in the "
            "mask, or give a --canvas larger than the image"
        )
    selection = _selection(pipeline, None, label=label, best_of=best_of)
    seeds = pipeline.seeds(seed, count)
    files = [
        OutputFile(
            out / f"{image.stem}-{image_seed:06d}.png",
            {"command": "complete", "seed": image_seed, **settings, **_selection_settings(selection)},
        )
        for image_seed in seeds.tolist()
    ]
    inputs = [image, *([] if mask is None else [mask]), *(Path(argument) for argument in conditions.values())]
    options = GenerationOptions(selection, resume, preview, inputs)
    pixels = KeptPixels(*on_canvas(given, known, grid, factor=pipeline.tokenizer.factor)) if blend else None
    request = pipeline.request_for(
        [value] * count, codes, seeds=seeds, sampler=sampler, speculate=speculate, parallel=parallel
    )
    generate_and_save(GenerationJob(pipeline, request, files, options, kept=pixels))
    seen = "all that is kept" if pipeline.prior.knows_any_order else "what is kept above and to its left"
    CONSOLE.print(f"{count} completions of {image} in {out}; each new code is conditioned on {seen}", soft_wrap=True)


def reconstruct(
    tokenizer: Annotated[
        Path,
        typer.Argument(
            help="A tokenizer: model folder, run folder, Hub id, or a checkpoint of another program; `scenes` is "
            "bundled."
        ),
    ],
    images: Annotated[Path, typer.Argument(help="An image, a folder, a .txt list of paths, or a .zip file.")],
    out: Out,
    size: Annotated[
        str | None,
        typer.Option(
            help="Scale and crop to this size; by default each image keeps its size, cropped to a multiple of the "
            "downsampling factor."
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Encode and decode images, and report PSNR."""
    from smalti.conditions.map_files import label_accuracy, label_colors
    from smalti.core.devices import pick_device
    from smalti.data.file_types import file_type_of
    from smalti.data.image_entries import ImageEntry
    from smalti.data.outputs import check_outputs, output_paths, without_results
    from smalti.data.sources import holds_many, open_source
    from smalti.evaluation.metrics import CodeUse, psnr
    from smalti.images.io import DamagedImage, save_png
    from smalti.images.resizing import center_crop, covered_middle
    from smalti.model_loading import read_tokenizer
    from smalti.tokenizer.tiled.any_size import decode_of_any_size, encode_of_any_size

    model, about = read_tokenizer(tokenizer)
    model.to(pick_device(device))
    channels, f, wanted = model.settings.autoencoder.channels, model.factor, size_option(size)
    kind = file_type_of(about, channels=channels)
    source = open_source(images, file_type=kind) if holds_many(images) or not images.exists() else None
    entries = without_results(source, out, command="reconstruct") if source else (ImageEntry(images.name, None),)
    paths = output_paths(entries, out)
    streams = source.files(entries) if source else ()
    check_outputs(paths, out, inputs=(images, *streams))
    labels = kind.name == "labels"
    name, similarity = ("correct labels", label_accuracy) if labels else ("PSNR", psnr)
    code_use, similarities = CodeUse(model.size), []
    with progress_bar("reconstructing", "images") as progress:
        for done, (entry, path) in enumerate(zip(entries, paths, strict=True), 1):
            try:
                array = (
                    source.read(entry, channels) if source else kind.read(images, channels=channels, name=str(images))
                )
                if wanted:
                    array = covered_middle(array, wanted, filter=kind.filter)
                height, width = wanted or (array.shape[0] // f * f, array.shape[1] // f * f)
                if not height or not width:
                    raise DamagedImage(
                        entry.key,
                        f"is {array.shape[0]}x{array.shape[1]} pixels, smaller than the downsampling factor {f}",
                    )
                compact = kind.compact(center_crop(array, (height, width)), channels)
            except DamagedImage as error:
                if source is None:
                    raise
                ERRORS.print(f"skipped: {error}", soft_wrap=True)
                continue
            given = kind.to_images(compact.unsqueeze(0), channels)
            quantized = encode_of_any_size(model, given)
            back = decode_of_any_size(model, quantized.latents)
            code_use.add(quantized.codes)
            similarities.append(float(similarity(given, back)))
            measured = {"right_labels" if labels else "psnr": round(similarities[-1], 3)}
            settings = {"command": "reconstruct", "tokenizer": tokenizer.resolve().name, **measured}
            shown = label_colors(back) if labels else back
            save_png(path, shown[0], settings=settings)
            progress(done, len(entries))
    if not similarities:
        raise SmaltiError(f"none of the {len(entries)} images in {images} could be read")
    left_out = f", {len(entries) - len(similarities)} skipped" if len(similarities) < len(entries) else ""
    mean = sum(similarities) / len(similarities)
    CONSOLE.print(
        f"{len(similarities)} images{left_out}: {name} {f'{mean:.1%}' if labels else f'{mean:.2f} dB'}, "
        f"{code_use.in_use:.1%} of {model.size} codes in use, perplexity {code_use.perplexity:.0f}; in {out}",
        soft_wrap=True,
    )
