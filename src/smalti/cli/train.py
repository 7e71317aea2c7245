"""`smalti train tokenizer` and `smalti train prior`. The same command again resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smalti.cli.console import CONSOLE, progress_bar
from smalti.cli.shell_completion import recipes

app = typer.Typer(
    no_args_is_help=True, help="Train stage 1 (tokenizer) or stage 2 (prior). Run the same command again to resume."
)

Out = Annotated[Path, typer.Option("--out", help="Run folder; the same command again resumes it.")]
Recipe = Annotated[
    str,
    typer.Option("--recipe", help="Name of a recipe (see `smalti recipes`) or a YAML file.", autocompletion=recipes),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting of the recipe: a.b=value; may be repeated.")
]
FromTokenizer = Annotated[
    str,
    typer.Option(
        "--from", help="Fine-tune this tokenizer: a model or run folder, a Hub id, or a checkpoint of another program."
    ),
]
FromPrior = Annotated[
    str,
    typer.Option(
        "--from",
        help="Fine-tune this prior: a model or run folder, a bundled model, or a Hub id. The codes must have its size, "
        "grid and conditions.",
    ),
]
Patience = Annotated[
    int | None,
    typer.Option(
        "--patience",
        min=0,
        help="Stop early after this many validations without improvement; 0 disables. Sets run.patience.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved settings and stop.")]


@app.command("tokenizer")
def tokenizer(
    data: Annotated[Path, typer.Argument(help="Images: a folder, a .txt list of paths, or a .zip file.")],
    out: Out,
    recipe: Recipe = "small",
    overrides: Overrides = None,
    source: FromTokenizer = "",
    dry_run: DryRun = False,
) -> None:
    """Train a tokenizer on images (stage 1)."""
    from smalti.training.config import TokenizerTraining, resolve
    from smalti.training.initialization import resolve_tokenizer_from, tokenizer_start
    from smalti.training.launcher import errors_from_first_process, is_first_process
    from smalti.training.runs import show_settings, train_tokenizer

    with errors_from_first_process():
        changes = overrides or []
        start = tokenizer_start(source) if source else None
        if start is None:
            settings = resolve(TokenizerTraining, stage="tokenizer", recipe=recipe, overrides=changes)
        else:
            settings = resolve_tokenizer_from(start, recipe=recipe, overrides=changes)
        if is_first_process():
            show_settings(settings, CONSOLE)
        if not dry_run:
            train_tokenizer(data, out, settings=settings, console=CONSOLE, start=start)


@app.command("prior")
def prior(
    data: Annotated[
        Path, typer.Argument(help="Code shards of `smalti encode`, or images, which are encoded into the run folder.")
    ],
    tokenizer: Annotated[Path, typer.Option("--tokenizer", help="The tokenizer of the codes.")],
    out: Out,
    recipe: Recipe = "small",
    overrides: Overrides = None,
    condition: Annotated[
        str | None,
        typer.Option(
            "--condition",
            help="What the prior is conditioned on: text, labels, coordinates, unconditional, or a condition of "
            "the code shards; several with commas: labels,text. Sets condition.",
        ),
    ] = None,
    source: FromPrior = "",
    patience: Patience = None,
    dry_run: DryRun = False,
) -> None:
    """Train a prior on codes (stage 2)."""
    from smalti.training.config import PriorTraining, resolve
    from smalti.training.initialization import prior_start, resolve_prior_from
    from smalti.training.launcher import errors_from_first_process, is_first_process
    from smalti.training.runs import codes_of, show_settings, train_prior

    with errors_from_first_process():
        changes = [*(overrides or []), *([] if patience is None else [f"run.patience={patience}"])]
        changes += [] if condition is None else [f"condition={condition}"]
        start = prior_start(source) if source else None
        if start is None:
            settings = resolve(PriorTraining, stage="prior", recipe=recipe, overrides=changes)
        else:
            settings = resolve_prior_from(start, recipe=recipe, overrides=changes)
        if is_first_process():
            show_settings(settings, CONSOLE)
        if not dry_run:
            with progress_bar("encoding", "images") as progress:
                shards = codes_of(data, tokenizer, out / "codes", settings=settings, progress=progress)
            train_prior(shards, tokenizer, out, settings=settings, console=CONSOLE, start=start)
