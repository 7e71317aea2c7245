"""`smalti scenes` and `smalti encode`: data sets made by smalti."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smalti.cli.console import CONSOLE, counting, size_option


def scenes(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    count: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 2000,
    size: Annotated[str, typer.Option(help="Pixels: 64, or height x width as 64x128.")] = "64",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that paint; all cores by default.")] = None,
) -> None:
    """Paint the embedded data set: landscapes with classes, segmentation, depth, edges, boxes and keypoints."""
    from smalti.data.scenes import write_scenes

    height_width = size_option(size)
    assert height_width is not None
    with counting("painting", "scenes") as progress:
        write_scenes(
            out, count=count, size=height_width, seed=seed, progress=lambda done: progress(done, count), workers=workers
        )
    CONSOLE.print(f"{count} scenes in {out}; pictures by class in {out / 'images'}", soft_wrap=True)


def encode(
    tokenizer: Annotated[Path, typer.Argument(help="A tokenizer: model folder, run folder or Hub id.")],
    data: Annotated[Path, typer.Argument(help="Pictures: a folder, a .txt list of paths, or a .zip file.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the code shards.")],
    copies: Annotated[int, typer.Option(min=1, help="Random crops and flips of each training picture.")] = 8,
    size: Annotated[
        str | None, typer.Option(help="Pixels: 64, or height x width; what the tokenizer was trained on by default.")
    ] = None,
    zoom: Annotated[float, typer.Option(min=1.0, help="Crops are cut after enlarging by 1 to this.")] = 1.25,
    flip: Annotated[bool, typer.Option(help="Mirror every second copy.")] = True,
    validation: Annotated[float, typer.Option(help="Share of the pictures that is held out.")] = 0.05,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read pictures.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    condition: Annotated[
        str, typer.Option(help="Name of what pictures are told, with codes of its own: segmentation, depth, edges ...")
    ] = "",
    condition_tokenizer: Annotated[Path | None, typer.Option(help="The tokenizer of the condition.")] = None,
    condition_data: Annotated[
        Path | None,
        typer.Option(
            help="Where it lies, named as the pictures are; else it is made of them: edges, or smaller copies."
        ),
    ] = None,
) -> None:
    """Turn pictures into code shards, from which a prior is trained without pictures."""
    from smalti.data.codes import open_codes
    from smalti.errors import SmaltiError
    from smalti.pretrained import find_model
    from smalti.settings import parse
    from smalti.training.config import CopiesSettings
    from smalti.training.runs import encode_pictures
    from smalti.training.telling import Told

    if bool(condition) != (condition_tokenizer is not None) or (condition_data is not None and not condition):
        raise SmaltiError(
            "a condition takes a name and a tokenizer of its own: give --condition and --condition-tokenizer"
        )
    told = None if condition_tokenizer is None else Told(condition, condition_tokenizer, condition_data)
    trained = find_model(tokenizer, kind="tokenizer").about.get("size", [256, 256])
    pictures = {"size": size_option(size) or trained, "zoom": (1.0, zoom), "flip": flip, "validation": validation}
    settings = parse(CopiesSettings, {"copies": copies, "pictures": pictures}, where="smalti encode")
    with counting("encoding", "images") as progress:
        made = encode_pictures(
            tokenizer,
            data,
            out,
            settings=settings,
            seed=seed,
            progress=progress,
            device=device,
            workers=workers,
            told=told,
        )
    meta = open_codes(out).meta
    pictures_in = sum(meta.training.shards)
    said = "" if made else "already there: "
    CONSOLE.print(
        f"{said}{pictures_in} pictures x {meta.training.copies} copies and {sum(meta.validation.shards)} held out, "
        f"{meta.grid[0]}x{meta.grid[1]} codes each, in {out}",
        soft_wrap=True,
    )
