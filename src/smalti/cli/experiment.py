"""`smalti experiment`: lists the studies, or runs one. The same command again goes on where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smalti.cli.console import CONSOLE
from smalti.cli.shell_completion import studies


def experiment(
    name: Annotated[
        str | None, typer.Argument(help="A study; without one, all are listed.", autocompletion=studies)
    ] = None,
    models: Annotated[
        list[Path] | None, typer.Argument(help="Models to compare, where a study takes given ones.", show_default=False)
    ] = None,
    scale: Annotated[str, typer.Option("--scale", help="tiny, small or full.")] = "tiny",
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Images: a folder, a .txt list or a .zip file. Tiny paints scenes without."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the study; runs/experiments/NAME-SCALE by default.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value of the study, or tokenizer.a.b=value of trainings; may be repeated."),
    ] = None,
) -> None:
    """Run a study and write its page: what is compared is trained or given, measured, and shown."""
    from smalti.core.errors import SmaltiError, suggestion
    from smalti.experiments.base import Asked, run_study
    from smalti.experiments.experiment_registry import STUDIES

    if name is None:
        for known, study in STUDIES.items():
            CONSOLE.print(f"{known}: {study.about}", soft_wrap=True)
            for size, each in study.scales.items():
                CONSOLE.print(f"    --scale {size}: {each.about}; {each.data}", soft_wrap=True)
        return
    if name not in STUDIES:
        raise SmaltiError(f"there is no study {name!r}; {suggestion(name, STUDIES)}")
    asked = Asked(scale=scale, models=tuple(models or ()), data=data, overrides=tuple(overrides or ()))
    folder = out or Path("runs") / "experiments" / f"{name}-{scale}"
    page = run_study(name, STUDIES[name], folder, asked=asked, console=CONSOLE)
    CONSOLE.print(f"open {page}", soft_wrap=True)
