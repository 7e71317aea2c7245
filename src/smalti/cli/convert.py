"""`smalti convert`: convert checkpoints from and to other programs' formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smalti.cli.console import CONSOLE
from smalti.cli.model_options import GridOption, grid_option
from smalti.cli.shell_completion import FORMATS, formats
from smalti.core.errors import SmaltiError, suggestion


def convert(
    source: Annotated[Path, typer.Argument(help="A checkpoint or run folder of another program, or a smalti model.")],
    destination: Annotated[Path, typer.Argument(help="The folder to write; it must not exist yet.")],
    to: Annotated[str, typer.Option("--to", help=f"{', '.join(FORMATS)}.", autocompletion=formats)] = "smalti",
    half: Annotated[
        bool, typer.Option("--half", help="Store weights in half precision; only for smalti's own format.")
    ] = False,
    grid: GridOption = None,
) -> None:
    """Convert a checkpoint of another program to smalti's format, or a smalti model to another format."""
    from smalti.checkpoints import formats as foreign
    from smalti.hub.pretrained import round_to_half_precision, save_in_half_precision
    from smalti.model_loading import read_models, save_models

    if to not in FORMATS:
        raise SmaltiError(f"unknown format {to!r}; {suggestion(to, FORMATS)}")
    if destination.exists():
        raise SmaltiError(f"{destination} exists already; name a new folder")
    if half and to != "smalti":
        raise SmaltiError(f"--half is for smalti's own format, not for --to {to}; omit one of them")
    models = read_models(source, grid=grid_option(grid))
    if half:
        for network in (models.tokenizer, models.prior, *(models.condition.networks if models.condition else ())):
            if network is not None:
                round_to_half_precision(network)
    if to == "smalti":
        save_models(models, destination)
        if half:
            save_in_half_precision(destination)
    else:
        write = foreign.EXPORTS[to] if to in foreign.EXPORTS else foreign.FORMATS[to].write
        write(models.tokenizer, models.prior, models.condition, destination, about=models.about)
    parts = [name for name, part in (("tokenizer", models.tokenizer), ("prior", models.prior)) if part is not None]
    CONSOLE.print(f"{' and '.join(parts)} from {source} ({models.format}) to {destination} ({to})", soft_wrap=True)
