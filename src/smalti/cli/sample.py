"""`smalti sample`, `smalti complete` and `smalti reconstruct`: pictures out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smalti.cli.console import CONSOLE, ERRORS, counting, size_option
from smalti.errors import SmaltiError

if TYPE_CHECKING:
    from smalti.prior import Sampler

Model = Annotated[Path, typer.Argument(help="A folder with `tokenizer` and `prior` in it.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for the pictures.")]
Count = Annotated[int, typer.Option("-n", "--count", min=1, help="How many pictures.")]
Label = Annotated[str | None, typer.Option(help="Class label; left out, the model chooses.")]
Segmentation = Annotated[str | None, typer.Option(help="A label map: a picture file with one number a pixel.")]
Depth = Annotated[str | None, typer.Option(help="A depth map: a picture file.")]
Layout = Annotated[str | None, typer.Option(help="Objects and their boxes: a JSON file.")]
Told = Annotated[
    str | None, typer.Option("--condition", help="What any other model is told; its name is in `smalti info`.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the first picture; the next ones count up.")]
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
    str, typer.Option("--guidance-schedule", help="How guidance is reached over a picture: constant, linear or cosine.")
]
Batch = Annotated[int, typer.Option(min=1, help="Pictures at once; does not change them.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Size = Annotated[str | None, typer.Option(help="Pixels: 64, or height x width as 64x256; as trained by default.")]


def sample(
    model: Model,
    out: Out,
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
    batch: Batch = 16,
    device: Device = "auto",
) -> None:
    """Paint new pictures, of any size."""
    from smalti.devices import pick_device
    from smalti.images import save_png
    from smalti.pipeline import Pipeline
    from smalti.prior import unknown
    from smalti.settings import as_mapping

    pipeline = Pipeline.from_pretrained(model).to(pick_device(device))
    sampler = _sampler(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        guidance=guidance,
        guidance_schedule=guidance_schedule,
    )
    told = _told(
        pipeline.condition.key, label=label, segmentation=segmentation, depth=depth, layout=layout, any=condition
    )
    wanted = size_option(size)
    value, grid = (None, pipeline.grid(wanted)) if told is None else pipeline.fitted(told, size=wanted)
    height_width = grid[0] * pipeline.tokenizer.factor, grid[1] * pipeline.tokenizer.factor
    made = {"model": model.resolve().name, "size": list(height_width), **as_mapping(sampler)}
    said = made if told is None else {**made, pipeline.condition.key: told}
    with counting("laying", "rows") as progress:
        for first in range(0, count, batch):
            here = min(batch, count - first)
            known = unknown(here, grid)
            seeds = pipeline.seeds(seed + first, here)
            laying = pipeline.lay([value] * here, known, sampler=sampler, seeds=seeds)
            for row in range(1, grid[0] + 1):
                codes = next(laying)
                progress(first // batch * grid[0] + row, -(-count // batch) * grid[0])
            for place, image in enumerate(pipeline.decode(codes)):
                number = seed + first + place
                name = f"{label or 'sample'}-{number:06d}.png".replace("/", "-")
                save_png(out / name, image, settings={"command": "sample", "seed": number, **said})
    CONSOLE.print(f"{count} pictures of {height_width[0]}x{height_width[1]} in {out}", soft_wrap=True)


def _sampler(**chosen: float | str) -> Sampler:
    """The options of sampling as they were typed -> the sampler. Raises `SmaltiError` for a value that it does not take."""
    from smalti.prior import Sampler
    from smalti.settings import parse

    return parse(Sampler, chosen, where="sampling")


def _told(key: str, *, any: str | None, **options: str | None) -> str | None:
    """The options of the conditions as they were typed -> the one the model knows. Raises `SmaltiError` for another."""
    given = {name: text for name, text in options.items() if text is not None}
    for name in given:
        if name != key:
            takes = f"--{key}" if key in options else f"--condition, which is its {key}" if key else "no condition"
            raise SmaltiError(f"this model takes {takes}, not --{name}")
    return given.get(key, any)


def complete(
    model: Model,
    image: Annotated[Path, typer.Argument(help="The picture to complete.")],
    out: Out,
    mask: Annotated[
        Path | None, typer.Option(help="A picture of the same size: white is kept, black is laid anew.")
    ] = None,
    keep: Annotated[str | None, typer.Option(help="top-half, left-half, right-half, bottom-half or centre.")] = None,
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
    device: Device = "auto",
) -> None:
    """Keep a part of a picture and lay the rest anew. The picture is scaled and cropped to `--size`."""
    from smalti.devices import pick_device
    from smalti.images import center_crop, read_image, resize_to_cover, save_png, to_tensor
    from smalti.masks import kept_by_mask, kept_part
    from smalti.pipeline import Pipeline
    from smalti.settings import as_mapping

    if (mask is None) == (keep is None):
        raise typer.BadParameter("give either --mask or --keep")
    pipeline = Pipeline.from_pretrained(model).to(pick_device(device))
    height_width = size_option(size) or pipeline.default_size
    pipeline.grid(height_width)
    whole = read_image(image, channels=pipeline.tokenizer.settings.pyramid.channels, name=str(image))
    given = to_tensor(center_crop(resize_to_cover(whole, height_width), height_width)).unsqueeze(0)
    if mask is None:
        assert keep is not None
        known = kept_part(keep, height_width)
    else:
        known = kept_by_mask(mask, picture=(whole.shape[0], whole.shape[1]), size=height_width)
    sampler = _sampler(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        guidance=guidance,
        guidance_schedule=guidance_schedule,
    )
    said = {"model": model.resolve().name, "image": image.name, "keep": keep, "label": label, **as_mapping(sampler)}
    images = given.expand(count, -1, -1, -1)
    told = _told(pipeline.condition.key, label=label, any=condition)
    value = None if told is None else pipeline.fitted(told, size=height_width)[0]
    completed = pipeline.complete(images, known, values=[value] * count, sampler=sampler, seed=seed)
    for place, picture in enumerate(completed):
        settings = {"command": "complete", "seed": seed + place, **said}
        save_png(out / f"{image.stem}-{seed + place:06d}.png", picture, settings=settings)
    CONSOLE.print(f"{count} completions of {image} in {out}", soft_wrap=True)


def reconstruct(
    tokenizer: Annotated[
        Path, typer.Argument(help="A tokenizer: model folder, run folder, Hub id, or a checkpoint of another program.")
    ],
    images: Annotated[Path, typer.Argument(help="A picture, a folder, a .txt list of paths, or a .zip file.")],
    out: Out,
    size: Annotated[
        str | None, typer.Option(help="Scale and crop to this; by default each keeps its size, cut to whole tiles.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Send pictures through the codebook and back, and say how much survives."""
    import torch

    from smalti.conditions.map_files import label_colours, right_labels
    from smalti.data.kinds import kind_of
    from smalti.data.sources import Picture, holds_many, open_source
    from smalti.devices import pick_device
    from smalti.evaluation.metrics import CodeUse, psnr
    from smalti.images import DamagedImage, center_crop, resize_to_cover, save_png
    from smalti.pipeline import load_tokenizer, read_models

    models = read_models(tokenizer)
    model = (models.tokenizer or load_tokenizer(tokenizer)).to(pick_device(device))  # which tells that there is none
    channels, f, wanted = model.settings.pyramid.channels, model.factor, size_option(size)
    kind = kind_of(models.about, channels=channels)
    place = next(model.parameters()).device
    source = open_source(images, kind=kind) if holds_many(images) or not images.exists() else None
    pictures = source.pictures if source else [Picture(images.name, None)]
    labels = kind.name == "labels"
    name, like = ("right labels", right_labels) if labels else ("PSNR", psnr)
    use, likenesses = CodeUse(model.size), []
    with counting("reconstructing", "pictures") as progress:
        for done, picture in enumerate(pictures, 1):
            try:
                array = (
                    source.read(picture, channels) if source else kind.read(images, channels=channels, name=str(images))
                )
                if wanted:
                    array = resize_to_cover(array, wanted, filter=kind.filter)
                height, width = wanted or (array.shape[0] // f * f, array.shape[1] // f * f)
                if not height or not width:
                    raise DamagedImage(
                        picture.key, f"is {array.shape[0]}x{array.shape[1]} pixels, smaller than one tile of {f}"
                    )
                held = kind.held(center_crop(array, (height, width)), channels)
            except DamagedImage as error:
                if source is None:
                    raise
                ERRORS.print(f"left out: {error}", markup=False, highlight=False, soft_wrap=True)
                continue
            given = kind.images(held.unsqueeze(0).to(place), channels)
            with torch.no_grad():
                back, quantized = model(given)
            use.add(quantized.codes)
            likenesses.append(float(like(given, back)))
            measured = {"right_labels" if labels else "psnr": round(likenesses[-1], 3)}
            said = {"command": "reconstruct", "tokenizer": tokenizer.resolve().name, **measured}
            shown = label_colours(back) if labels else back
            save_png((out / picture.key).with_suffix(".png"), shown[0].cpu(), settings=said)
            progress(done, len(pictures))
    if not likenesses:
        raise SmaltiError(f"none of the {len(pictures)} pictures in {images} could be read")
    left_out = f", {len(pictures) - len(likenesses)} left out" if len(likenesses) < len(pictures) else ""
    mean = sum(likenesses) / len(likenesses)
    CONSOLE.print(
        f"{len(likenesses)} pictures{left_out}: {name} {f'{mean:.1%}' if labels else f'{mean:.2f} dB'}, "
        f"{use.in_use:.1%} of {model.size} codes in use, perplexity {use.perplexity:.0f}; in {out}",
        soft_wrap=True,
    )
