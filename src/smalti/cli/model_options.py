"""How commands take a pipeline: the folder or name that was typed, else the model that comes with smalti."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smalti.cli.console import CONSOLE, size_option
from smalti.hub.bundled_models import SCENES

Model = Annotated[
    Path,
    typer.Argument(
        help="A folder with `tokenizer` and `prior` in it, or a model's name; by default scenes, which comes with smalti.",
        show_default=False,
    ),
]

Grid = Annotated[
    str | None,
    typer.Option(
        "--grid",
        metavar="HxW",
        help="The prior's window in codes, height x width: for another program's checkpoint that does not say it, as the "
        "original's do where it is no square.",
    ),
]


def grid_option(text: str | None) -> tuple[int, int] | None:
    """`HxW` in codes -> (h,w); None stays None. Anything else is wrong usage."""
    return size_option(text, of="a grid", unit="codes")


def tell_default(model: Path) -> None:
    """Say so where no model was named."""
    if model == SCENES:
        CONSOLE.print(f"no model was named; taking the one that comes with smalti: {model.name}", soft_wrap=True)
