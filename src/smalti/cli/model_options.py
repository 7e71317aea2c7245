"""The model argument of commands: a folder or name, by default the bundled model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smalti.cli.console import CONSOLE, size_option
from smalti.hub.bundled_models import SCENES

ModelArgument = Annotated[
    Path,
    typer.Argument(
        help="A folder that contains `tokenizer` and `prior`, a Hub id, or a checkpoint; the bundled model "
        "`scenes` by default.",
        show_default=False,
    ),
]

GridOption = Annotated[
    str | None,
    typer.Option(
        "--grid",
        metavar="HxW",
        help="The prior's window in codes, height x width, for a checkpoint of another program that does not store "
        "it, such as the original's with a window that is not square.",
    ),
]


def grid_option(text: str | None) -> tuple[int, int] | None:
    """`HxW` in codes -> (h,w); None stays None. Anything else is wrong usage."""
    return size_option(text, of="a grid", unit="codes")


def announce_default(model: Path) -> None:
    """Print the model's name where none was given."""
    if model == SCENES:
        CONSOLE.print(f"no model given; using the bundled model: {model.name}", soft_wrap=True)
