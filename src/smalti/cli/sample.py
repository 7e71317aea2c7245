"""`smalti sample`, `smalti complete` and `smalti reconstruct`: images out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smalti.cli.console import CONSOLE, ERRORS, by_name, counting, size_option
from smalti.cli.generation_output import Choice, File, Laying, Preview, Resume, Speculate, Way, lay_and_save
from smalti.cli.model_options import Grid, Model, grid_option, tell_default
from smalti.core.errors import SmaltiError
from smalti.hub.bundled_models import SCENES

if TYPE_CHECKING:
    from smalti.pipeline import Pipeline

Out = Annotated[Path, typer.Option("--out", help="Folder for the images.")]
Count = Annotated[int, typer.Option("-n", "--count", min=1, help="How many images.")]
Label = Annotated[str | None, typer.Option(help="Class label; left out, the model chooses.")]
Segmentation = Annotated[str | None, typer.Option(help="A label map: an image file with one number a pixel.")]
Depth = Annotated[str | None, typer.Option(help="A depth map: an image file.")]
Layout = Annotated[str | None, typer.Option(help="Objects and their boxes: a JSON file.")]
Told = Annotated[
    list[str] | None,
    typer.Option(
        "--condition", help="What any other model is told: NAME=TEXT, names are in `smalti info`; may be repeated."
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the first image; the next ones count up.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="Below 1 safer, above 1 wilder; 0 takes the likeliest code.")]
TopK = Annotated[int, typer.Option("--top-k", min=0, help="Choose among the k likeliest codes; 0 among all.")]
TopP = Annotated[
    float, typer.Option("--top-p", min=0.0, max=1.0, help="Choose among the likeliest codes that sum to p.")
]
MinP = Annotated[
    float,
    typer.Option(
        "--min-p", min=0.0, max=1.0, help="Choose among codes at least this share as likely as the likeliest."
    ),
]
Guidance = Annotated[float, typer.Option(min=0.0, help="How strongly the label is followed; 1 is as trained.")]
Scheduled = Annotated[
    str, typer.Option("--guidance-schedule", help="How guidance is reached over an image: constant, linear or cosine.")
]
Tries = Annotated[
    int | None,
    typer.Option(min=1, help="Lay each image so many times and keep the best; by default 1, with --classifier 8."),
]
Batch = Annotated[int, typer.Option(min=1, help="Images at once; does not change them.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Size = Annotated[str | None, typer.Option(help="Pixels: 64, or height x width as 64x256; as trained by default.")]


def sample(
    out: Out,
    model: Model = SCENES,
    count: Count = 4,
    label: Label = None,
    segmentation: Segmentation = None,
    depth: Depth = None,
    layout: Layout = None,
    condition: Told = None,
    size: Size = None,
    temperature: Temperature = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    guidance: Guidance = 1.0,
    guidance_schedule: Scheduled = "constant",
    seed: Seed = 0,
    tries: Tries = None,
    classifier: Annotated[
        str | None,
        typer.Option(
            help="Keep the try that shows the --label most surely: the file of a ResNet-50 of ImageNet, or a name such as "
            "resnet50. Without it the likeliest is kept."
        ),
    ] = None,
    batch: Batch = 16,
    resume: Resume = False,
    preview: Preview = 30.0,
    speculate: Speculate = 0,
    window: Grid = None,
    device: Device = "auto",
) -> None:
    """Paint new images, of any size. Ctrl-C keeps what is laid."""
    from smalti.conditions.base import keys
    from smalti.core.devices import pick_device
    from smalti.core.settings import as_mapping
    from smalti.generation.code_sampler import sampler_of, unknown
    from smalti.pipeline import Pipeline

    tell_default(model)
    pipeline = Pipeline.from_pretrained(model, grid=grid_option(window)).to(pick_device(device))
    sampler = sampler_of(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        guidance=guidance,
        guidance_schedule=guidance_schedule,
    )
    told = _told(
        keys(pipeline.condition),
        label=label,
        segmentation=segmentation,
        depth=depth,
        layout=layout,
        any=condition or [],
    )
    wanted = size_option(size)
    value, grid = pipeline.fitted(told, size=wanted)
    height_width = grid[0] * pipeline.tokenizer.factor, grid[1] * pipeline.tokenizer.factor
    tries = tries or (8 if classifier else 1)
    choice = _choice(pipeline, classifier, label=label, tries=tries)
    said = {"model": model.resolve().name, "size": list(height_width), **as_mapping(sampler), **told, **_tries(choice)}
    way = Way(sampler, choice, resume, preview, speculate)
    inputs = [Path(text) for text in (*told.values(), classifier) if text is not None]
    all_seeds = pipeline.seeds(seed, count)
    for first in range(0, count, batch):
        seeds = all_seeds[first : first + batch]
        files = [
            File(
                out / f"{label or 'sample'}-{own:06d}.png".replace("/", "-"),
                {"command": "sample", "seed": own, **said},
            )
            for own in seeds.tolist()
        ]
        title = f" {first + 1} to {first + len(seeds)} of {count}" if count > batch else ""
        values, known = [value] * len(seeds), unknown(len(seeds), grid)
        lay_and_save(Laying(pipeline, values, known, seeds, files, way, inputs, title))
    CONSOLE.print(f"{count} images of {height_width[0]}x{height_width[1]} in {out}", soft_wrap=True)


def _choice(pipeline: Pipeline, classifier: str | None, *, label: str | None, tries: int) -> Choice:
    """How tries are compared. Raises `SmaltiError` for a classifier that is none, and where it is not known which class
    was asked for."""
    from smalti.conditions.labels import Labels
    from smalti.core.files import normalized
    from smalti.evaluation.imagenet_classifier import by_class, imagenet_classes, read_classifier
    from smalti.evaluation.rejection_sampling import by_images, by_likelihood

    if classifier is None:
        return Choice(tries, "likelihood", lambda values, known: by_likelihood(pipeline, values, known=known))
    if tries == 1:
        raise typer.BadParameter("--classifier chooses among several tries; ask for --tries 2 or more")
    told = [part for part in pipeline.condition.parts or (pipeline.condition,) if isinstance(part, Labels)]
    if not told:
        raise SmaltiError("a classifier looks for the class of a label, and this model takes none; leave it out")
    if label is None:
        raise SmaltiError("a classifier looks for a class; say which: --label")
    told[0].encode([label])  # which tells of labels that there are not
    number, network = (
        imagenet_classes(told[0].names)[normalized(label)],
        read_classifier(classifier).to(pipeline.device),
    )
    judge = Path(classifier).name
    return Choice(tries, judge, lambda values, known: by_images(pipeline, by_class(network, [number] * len(values))))


def _tries(choice: Choice) -> dict[str, int]:
    """What an image that was chosen among several says of it from the beginning; nothing where there was one alone."""
    return {"tries": choice.tries} if choice.tries > 1 else {}


def _told(known: Sequence[str], *, any: Sequence[str], **options: str | None) -> dict[str, str]:
    """The options of the conditions as they were typed -> texts by the keys that the model knows. `SmaltiError` for
    others."""
    given = {name: text for name, text in options.items() if text is not None}
    for name in given:
        if name not in known:
            takes = " and ".join(f"--{key}" if key in options else f"--condition {key}=..." for key in known)
            raise SmaltiError(f"this model takes {takes or 'no condition'}, not --{name}")
    return {**by_name(any, known, option="--condition"), **given}


def complete(
    model: Annotated[Path, typer.Argument(help="As for `smalti sample`; `scenes` comes with smalti.")],
    image: Annotated[Path, typer.Argument(help="The image to complete.")],
    out: Out,
    mask: Annotated[
        Path | None, typer.Option(help="An image of the same size: white is kept, black is laid anew.")
    ] = None,
    keep: Annotated[str | None, typer.Option(help="top-half, left-half, right-half, bottom-half or center.")] = None,
    canvas: Annotated[
        str | None,
        typer.Option(help="Lay an image of these pixels, 128 or height x width, around the given one, in its middle."),
    ] = None,
    count: Count = 4,
    label: Label = None,
    condition: Told = None,
    size: Size = None,
    temperature: Temperature = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    guidance: Guidance = 1.0,
    guidance_schedule: Scheduled = "constant",
    seed: Seed = 0,
    tries: Annotated[int, typer.Option(min=1, help="Lay each image so many times and keep the likeliest.")] = 1,
    resume: Resume = False,
    preview: Preview = 30.0,
    speculate: Speculate = 0,
    window: Grid = None,
    device: Device = "auto",
) -> None:
    """Keep a part of an image and lay the rest anew. The image is scaled and cropped to `--size`."""
    import torch

    from smalti.conditions.base import keys
    from smalti.core.devices import pick_device
    from smalti.core.settings import as_mapping
    from smalti.generation.code_sampler import check_room, sampler_of
    from smalti.images.io import covered_middle, read_image, to_tensor
    from smalti.images.masks import kept_by_mask, kept_part
    from smalti.pipeline import Pipeline, amid

    if (mask is not None and keep is not None) or not any((mask, keep, canvas)):
        raise typer.BadParameter("give either --mask or --keep, or a --canvas around all of the image")
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
    sampler = sampler_of(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        guidance=guidance,
        guidance_schedule=guidance_schedule,
    )
    said = {"model": model.resolve().name, "image": image.name, "keep": keep, "canvas": canvas, "label": label}
    said |= as_mapping(sampler)
    told = _told(keys(pipeline.condition), label=label, any=condition or [])
    wide = size_option(canvas) or height_width
    value, grid = pipeline.fitted(told, size=wide)
    check_room(count, grid)
    kept = pipeline.kept(given, known)
    codes = amid(kept, grid).repeat(count, 1, 1)
    if not (codes < 0).any():
        raise SmaltiError(
            "all of the image is kept, and nothing would be laid; make black in the mask what is to be laid anew, or give a "
            "--canvas larger than the image"
        )
    choice = _choice(pipeline, None, label=label, tries=tries)
    seeds = pipeline.seeds(seed, count)
    files = [
        File(out / f"{image.stem}-{own:06d}.png", {"command": "complete", "seed": own, **said, **_tries(choice)})
        for own in seeds.tolist()
    ]
    way = Way(sampler, choice, resume, preview, speculate)
    inputs = [image, *([] if mask is None else [mask]), *(Path(text) for text in told.values())]
    lay_and_save(Laying(pipeline, [value] * count, codes, seeds, files, way, inputs))
    CONSOLE.print(f"{count} completions of {image} in {out}", soft_wrap=True)


def reconstruct(
    tokenizer: Annotated[
        Path,
        typer.Argument(
            help="A tokenizer: model folder, run folder, Hub id, or a checkpoint of another program; `scenes` comes with smalti."
        ),
    ],
    images: Annotated[Path, typer.Argument(help="An image, a folder, a .txt list of paths, or a .zip file.")],
    out: Out,
    size: Annotated[
        str | None, typer.Option(help="Scale and crop to this; by default each keeps its size, cut to whole tiles.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Send images through the codebook and back, and say how much survives."""
    from smalti.conditions.map_files import label_colors, right_labels
    from smalti.core.devices import pick_device
    from smalti.data.file_types import kind_of
    from smalti.data.outputs import check_outputs, output_paths, without_results
    from smalti.data.sources import ImageEntry, holds_many, open_source
    from smalti.evaluation.metrics import CodeUse, psnr
    from smalti.images.io import DamagedImage, center_crop, covered_middle, save_png
    from smalti.model_loading import read_tokenizer
    from smalti.tokenizer.tiled.any_size import decode_of_any_size, encode_of_any_size

    model, about = read_tokenizer(tokenizer)
    model.to(pick_device(device))
    channels, f, wanted = model.settings.autoencoder.channels, model.factor, size_option(size)
    kind = kind_of(about, channels=channels)
    source = open_source(images, kind=kind) if holds_many(images) or not images.exists() else None
    entries = without_results(source, out, command="reconstruct") if source else (ImageEntry(images.name, None),)
    paths = output_paths(entries, out)
    streams = source.files(entries) if source else ()
    check_outputs(paths, out, inputs=(images, *streams))
    labels = kind.name == "labels"
    name, like = ("right labels", right_labels) if labels else ("PSNR", psnr)
    use, likenesses = CodeUse(model.size), []
    with counting("reconstructing", "images") as progress:
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
                        entry.key, f"is {array.shape[0]}x{array.shape[1]} pixels, smaller than one tile of {f}"
                    )
                held = kind.held(center_crop(array, (height, width)), channels)
            except DamagedImage as error:
                if source is None:
                    raise
                ERRORS.print(f"left out: {error}", soft_wrap=True)
                continue
            given = kind.to_images(held.unsqueeze(0), channels)
            quantized = encode_of_any_size(model, given)
            back = decode_of_any_size(model, quantized.latents)
            use.add(quantized.codes)
            likenesses.append(float(like(given, back)))
            measured = {"right_labels" if labels else "psnr": round(likenesses[-1], 3)}
            said = {"command": "reconstruct", "tokenizer": tokenizer.resolve().name, **measured}
            shown = label_colors(back) if labels else back
            save_png(path, shown[0], settings=said)
            progress(done, len(entries))
    if not likenesses:
        raise SmaltiError(f"none of the {len(entries)} images in {images} could be read")
    left_out = f", {len(entries) - len(likenesses)} left out" if len(likenesses) < len(entries) else ""
    mean = sum(likenesses) / len(likenesses)
    CONSOLE.print(
        f"{len(likenesses)} images{left_out}: {name} {f'{mean:.1%}' if labels else f'{mean:.2f} dB'}, "
        f"{use.in_use:.1%} of {model.size} codes in use, perplexity {use.perplexity:.0f}; in {out}",
        soft_wrap=True,
    )
