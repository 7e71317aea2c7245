"""`smalti experiment`: list the experiments, or run one. The same command again resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smalti.cli.console import CONSOLE
from smalti.cli.shell_completion import experiments


def experiment(
    name: Annotated[
        str | None,
        typer.Argument(help="Name of an experiment; without it, all are listed.", autocompletion=experiments),
    ] = None,
    models: Annotated[
        list[Path] | None,
        typer.Argument(help="Models to compare, for experiments that accept them.", show_default=False),
    ] = None,
    scale: Annotated[str, typer.Option("--scale", help="tiny, small or full.")] = "tiny",
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="Images: a folder, a .txt list or a .zip file. The scale tiny renders scenes without it."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Output folder; runs/experiments/NAME-SCALE by default.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Setting key=value of the experiment, or tokenizer.a.b=value of its trainings; may be repeated.",
        ),
    ] = None,
) -> None:
    """Run an experiment of the paper: train or load models, measure them, and write a report."""
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
    page = run_experiment(EXPERIMENTS[name], folder, request=request, console=CONSOLE)
    CONSOLE.print(f"open {page}", soft_wrap=True)
