"""`smalti fit`: a folder of images in, a generator out. The same command again resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smalti.cli.console import CONSOLE
from smalti.cli.shell_completion import recipes


def fit(
    images: Annotated[
        Path,
        typer.Argument(
            help="Images: a folder, a .txt list of paths, a .zip file, tar shards, a folder of a Hugging Face data "
            "set, or hf:NAME for one on the Hub."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the generator; the same command again resumes it.")
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe", help="Name of a recipe (see `smalti recipes`) or a YAML file.", autocompletion=recipes
        ),
    ] = "small",
    time: Annotated[
        str,
        typer.Option("--time", help="How long all of it takes, such as 45m or 1h30m; by default as the recipe says."),
    ] = "",
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--without",
            help="Leave out a condition that is found: labels, text, layout, segmentation, depth; repeatable.",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a setting: tokenizer.a.b=value or prior.a.b=value; may be repeated."),
    ] = None,
    stream: Annotated[
        int,
        typer.Option(
            "--stream",
            min=0,
            help="Copy this many images of a data set on the Hub instead of downloading all of it; 0 downloads it.",
        ),
    ] = 0,
    check: Annotated[
        bool, typer.Option("--check", help="Print what was found and what should be changed, and stop.")
    ] = False,
) -> None:
    """Train a generator on your images: tokenizer, codes, prior, samples and a report."""
    from smalti.core.errors import SmaltiError
    from smalti.fit import fit_run

    request = fit_run.request_for(
        images, recipe=recipe, time=time, without=without or (), overrides=overrides or (), stream=stream
    )
    if check:
        if stream:
            raise SmaltiError("--check looks at images that are there; leave out --stream, or run without --check")
        fit_run.check(request, Path(request.images), console=CONSOLE)
        return
    if out is None:
        raise SmaltiError("smalti fit needs a folder for the generator; name it with --out")
    page = fit_run.fit(request, out, console=CONSOLE)
    CONSOLE.print(f"open {page}", soft_wrap=True)
