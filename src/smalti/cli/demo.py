"""`smalti demo`: the whole pipeline on the embedded scenes, with a report of the results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smalti.cli.console import CONSOLE


def demo(
    out: Annotated[Path, typer.Option("--out", help="Output folder of the demo.")] = Path("runs/demo"),
    recipe: Annotated[str, typer.Option("--recipe", help="Name of a recipe or a YAML file.")] = "demo",
    count: Annotated[int, typer.Option(min=120, help="Number of scenes to render.")] = 2000,
) -> None:
    """Run the whole pipeline on rendered scenes and write a report. Run the same command again to resume."""
    from smalti.experiments.demo.experiment import run_demo

    run_demo(out, recipe=recipe, count=count, console=CONSOLE)
