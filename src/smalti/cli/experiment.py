"""`smalti experiment`: lists the experiments, or runs one. The same command again goes on where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smalti.cli.console import CONSOLE
from smalti.cli.shell_completion import experiments


def experiment(
    name: Annotated[
        str | None, typer.Argument(help="An experiment; without one, all are listed.", autocompletion=experiments)
    ] = None,
    models: Annotated[
        list[Path] | None,
        typer.Argument(help="Models to compare, where an experiment takes given ones.", show_default=False),
    ] = None,
    scale: Annotated[str, typer.Option("--scale", help="tiny, small or full.")] = "tiny",
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Images: a folder, a .txt list or a .zip file. Tiny paints scenes without."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the experiment; runs/experiments/NAME-SCALE by default.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="key=value of the experiment, or tokenizer.a.b=value of trainings; may be repeated."
        ),
    ] = None,
) -> None:
    """Run an experiment and write its page: what is compared is trained or given, measured, and shown."""
    from smalti.core.errors import SmaltiError, suggestion
    from smalti.experiments.base import ExperimentRequest, run_experiment
    from smalti.experiments.experiment_registry import EXPERIMENTS

    if name is None:
        for known, experiment in EXPERIMENTS.items():
            CONSOLE.print(f"{known}: {experiment.about}", soft_wrap=True)
            for size, each in experiment.scales.items():
                CONSOLE.print(f"    --scale {size}: {each.about}; {each.data}", soft_wrap=True)
        return
    if name not in EXPERIMENTS:
        raise SmaltiError(f"there is no experiment {name!r}; {suggestion(name, EXPERIMENTS)}")
    request = ExperimentRequest(scale=scale, models=tuple(models or ()), data=data, overrides=tuple(overrides or ()))
    folder = out or Path("runs") / "experiments" / f"{name}-{scale}"
    page = run_experiment(name, EXPERIMENTS[name], folder, request=request, console=CONSOLE)
    CONSOLE.print(f"open {page}", soft_wrap=True)
