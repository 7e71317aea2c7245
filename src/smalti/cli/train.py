"""`smalti train tokenizer` and `smalti train prior`. The same command again goes on where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smalti.cli.console import CONSOLE, counting
from smalti.cli.shell_completion import recipes

app = typer.Typer(
    no_args_is_help=True, help="Train stage 1 (tokenizer) or stage 2 (prior). The same command again resumes."
)

Out = Annotated[Path, typer.Option("--out", help="Folder of the run; the same command again goes on with it.")]
Recipe = Annotated[
    str,
    typer.Option("--recipe", help="Name of a recipe (see `smalti recipes`) or a YAML file.", autocompletion=recipes),
]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Lay a.b=value over the recipe; may be repeated.")]
From = Annotated[
    str,
    typer.Option(
        "--from", help="Begin with this tokenizer: a model or run folder, a Hub id, or another program's checkpoint."
    ),
]
Patience = Annotated[
    int | None,
    typer.Option(
        "--patience", min=0, help="Stop after so many validations without a better one; 0 never. Sets run.patience."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved settings and stop.")]


@app.command("tokenizer")
def tokenizer(
    data: Annotated[Path, typer.Argument(help="Images: a folder, a .txt list of paths, or a .zip file.")],
    out: Out,
    recipe: Recipe = "small",
    overrides: Overrides = None,
    source: From = "",
    dry_run: DryRun = False,
) -> None:
    """Learn a codebook from images (stage 1)."""
    from smalti.training.config import TokenizerTraining, resolve
    from smalti.training.initialization import resolve_from, start_from
    from smalti.training.launcher import is_first, report_once
    from smalti.training.runs import show_settings, train_tokenizer

    with report_once():
        asked = overrides or []
        start = start_from(source) if source else None
        if start is None:
            settings = resolve(TokenizerTraining, stage="tokenizer", recipe=recipe, overrides=asked)
        else:
            settings = resolve_from(start, recipe=recipe, overrides=asked)
        if is_first():
            show_settings(settings, CONSOLE)
        if not dry_run:
            train_tokenizer(data, out, settings=settings, console=CONSOLE, start=start)


@app.command("prior")
def prior(
    data: Annotated[
        Path, typer.Argument(help="Codes made by `smalti encode`, or images, which are then encoded into the run.")
    ],
    tokenizer: Annotated[
        Path, typer.Option("--tokenizer", help="The tokenizer that made the codes, or is to make them.")
    ],
    out: Out,
    recipe: Recipe = "small",
    overrides: Overrides = None,
    patience: Patience = None,
    dry_run: DryRun = False,
) -> None:
    """Learn how codes follow one another (stage 2)."""
    from smalti.training.config import PriorTraining, resolve
    from smalti.training.launcher import is_first, report_once
    from smalti.training.runs import codes_of, show_settings, train_prior

    with report_once():
        asked = [*(overrides or []), *([] if patience is None else [f"run.patience={patience}"])]
        settings = resolve(PriorTraining, stage="prior", recipe=recipe, overrides=asked)
        if is_first():
            show_settings(settings, CONSOLE)
        if not dry_run:
            with counting("encoding", "images") as progress:
                shards = codes_of(data, tokenizer, out / "codes", settings=settings, progress=progress)
            train_prior(shards, tokenizer, out, settings=settings, console=CONSOLE)
