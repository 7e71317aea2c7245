"""`smalti scenes` and `smalti encode`: commands that write data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from smalti.cli.console import CONSOLE, by_name, progress_bar, size_option


def scenes(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    count: Annotated[int, typer.Option(min=1, help="How many images.")] = 2000,
    size: Annotated[str, typer.Option(help="Pixels: 64, or height x width as 64x128.")] = "64",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of worker processes; all cores by default.")
    ] = None,
) -> None:
    """Render the embedded data set: landscapes with classes, captions, segmentation, depth, edges, boxes
    and keypoints."""
    from smalti.scenes.scene_classes import write_scenes

    height_width = size_option(size)
    assert height_width is not None
    with progress_bar("rendering", "scenes") as progress:
        write_scenes(
            out, count=count, size=height_width, seed=seed, progress=lambda done: progress(done, count), workers=workers
        )
    CONSOLE.print(f"{count} scenes in {out}; images by class in {out / 'images'}", soft_wrap=True)


def encode(
    tokenizer: Annotated[Path, typer.Argument(help="A tokenizer: model folder, run folder or Hub id.")],
    data: Annotated[Path, typer.Argument(help="Images: a folder, a .txt list of paths, or a .zip file.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the code shards.")],
    copies: Annotated[int, typer.Option(min=1, help="Random crops and flips of each training image.")] = 8,
    size: Annotated[
        str | None,
        typer.Option(help="Size in pixels: 64, or height x width; the tokenizer's training size by default."),
    ] = None,
    zoom: Annotated[
        float, typer.Option(min=1.0, help="Maximum zoom: images are enlarged by --min-zoom to --zoom before cropping.")
    ] = 1.25,
    min_zoom: Annotated[
        float, typer.Option(min=1.0, help="Minimum zoom; if equal to --zoom, all crops have one scale.")
    ] = 1.0,
    flip: Annotated[bool, typer.Option(help="Flip every second copy horizontally.")] = True,
    validation: Annotated[float, typer.Option(help="Fraction of the images held out for validation.")] = 0.05,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Number of data loading processes.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    condition: Annotated[
        list[str] | None,
        typer.Option(
            help="Condition to encode: labels, text, coordinates, layout, keypoints, or a name of your own for one "
            "with its own tokenizer: segmentation, depth, edges ... May be repeated."
        ),
    ] = None,
    condition_tokenizer: Annotated[
        list[str] | None, typer.Option(help="Tokenizer of the condition; NAME=TOKENIZER with several conditions.")
    ] = None,
    condition_data: Annotated[
        list[str] | None,
        typer.Option(
            help="Files of the condition, named like the images, or an annotation file. By default the condition is "
            "derived from the images (edges, smaller copies), or from captions among them. NAME=PATH with several "
            "conditions."
        ),
    ] = None,
    condition_set: Annotated[
        list[str] | None, typer.Option(help="A setting of a condition: layout.max_objects=10; may be repeated.")
    ] = None,
) -> None:
    """Encode images to code shards for training a prior."""
    from smalti.core.errors import SmaltiError
    from smalti.core.settings import apply_override, parse
    from smalti.data.code_shards import open_codes
    from smalti.encoding.condition_encoding import ConditionSource
    from smalti.hub.pretrained import find_model
    from smalti.training.config import CopiesSettings
    from smalti.training.runs import encode_images

    names = condition or []
    tokenizers = by_name(condition_tokenizer or [], names, option="--condition-tokenizer")
    paths = by_name(condition_data or [], names, option="--condition-data")
    options: dict[str, Any] = {}
    for setting in condition_set or []:
        apply_override(options, setting)
    for name in options:
        if name not in names:
            raise SmaltiError(f"--condition-set {name}. ...: no --condition {name} is given")
    requested = [
        ConditionSource(
            name,
            Path(tokenizers[name]) if name in tokenizers else None,
            Path(paths[name]) if name in paths else None,
            options.get(name, {}),
        )
        for name in names
    ]
    trained = find_model(tokenizer, kind="tokenizer").about.get("size", [256, 256])
    images = {
        "size": size_option(size) or trained,
        "zoom": (min_zoom, zoom),
        "flip": flip,
        "validation": validation,
    }
    settings = parse(CopiesSettings, {"copies": copies, "images": images}, where="smalti encode")
    with progress_bar("encoding", "images") as progress:
        encoded = encode_images(
            tokenizer,
            data,
            out,
            settings=settings,
            seed=seed,
            progress=progress,
            device=device,
            workers=workers,
            conditions=requested,
        )
    meta = open_codes(out).meta
    images_in = sum(meta.training.shards)
    note = "" if encoded else "already encoded: "
    CONSOLE.print(
        f"{note}{images_in} images x {meta.training.copies} copies and {sum(meta.validation.shards)} held out, "
        f"{meta.grid[0]}x{meta.grid[1]} codes each, in {out}",
        soft_wrap=True,
    )
