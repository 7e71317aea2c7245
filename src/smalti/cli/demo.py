"""`smalti demo`: the whole pipeline on the embedded scenes, and a page that shows what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smalti.cli.console import CONSOLE


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for everything the demo makes.")] = Path("runs/demo"),
    recipe: Annotated[str, typer.Option("--recipe", help="Name of a recipe or a YAML file.")] = "demo",
    count: Annotated[int, typer.Option(min=120, help="How many scenes to paint.")] = 2000,
) -> None:
    """Scenes, tokenizer, codes, prior, samples, panorama, completion, report. The same command again goes on."""
    from smalti.experiments.demo.experiment import run_demo

    run_demo(out, recipe=recipe, count=count, console=CONSOLE)
