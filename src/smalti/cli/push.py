"""`smalti push`: upload a model and its card to the Hugging Face Hub."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smalti.cli.console import CONSOLE
from smalti.cli.model_options import GridOption, grid_option
from smalti.core.errors import SmaltiError

if TYPE_CHECKING:
    from smalti.hub.model_cards import Run


def push(
    model: Annotated[Path, typer.Argument(help="A pipeline, model or run folder, or another program's checkpoint.")],
    name: Annotated[str, typer.Argument(help="The repository, owner/name; created if it does not exist.")],
    license: Annotated[
        str,
        typer.Option(
            "--license", help="License id of the Hub: mit, apache-2.0, cc-by-4.0, other ...; prompted for by default."
        ),
    ] = "",
    private: Annotated[bool, typer.Option("--private", help="Create the repository as private.")] = False,
    results: Annotated[
        list[Path] | None,
        typer.Option("--result", help="A result.json of `smalti evaluate` to add to the card; may be repeated."),
    ] = None,
    card_only: Annotated[
        Path | None, typer.Option("--card-only", help="Write the upload to this folder instead of uploading it.")
    ] = None,
    grid: GridOption = None,
) -> None:
    """Upload a model, with a model card written from its run, to the Hugging Face Hub."""
    from smalti.core.files import folder_written_atomically
    from smalti.hub import hugging_face
    from smalti.hub.model_cards import Sources, write_card
    from smalti.model_loading import read_models, save_models

    if not hugging_face.is_name(name):
        raise SmaltiError(f"{name!r} is not a repository name; write owner/name")
    if card_only is not None and card_only.exists():
        raise SmaltiError(f"{card_only} exists already; name a new folder")
    if not license and not sys.stdin.isatty():
        raise SmaltiError("give the license of the model: --license mit, cc-by-4.0, other ...; there is no default")
    sources = Sources(
        license or typer.prompt("license (mit, apache-2.0, cc-by-4.0, other ...)"), _runs(model), results or ()
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        save_models(read_models(model, grid=grid_option(grid)), folder)
        write_card(folder, name, sources)
        if card_only is None:
            CONSOLE.print(f"{model} is at {hugging_face.upload(folder, name, private=private)}", soft_wrap=True)
            return
        with folder_written_atomically(card_only) as written:
            shutil.copytree(folder, written, dirs_exist_ok=True)
        CONSOLE.print(f"{card_only} holds the upload; nothing was sent", soft_wrap=True)


def _runs(model: Path) -> dict[str, Run]:
    """A run folder, or a folder with runs of a tokenizer and a prior -> "tokenizer" or "prior" -> the run."""
    from smalti.core.settings import read_yaml
    from smalti.hub.model_cards import Run
    from smalti.hub.pretrained import is_smalti_folder
    from smalti.training.run_folder import read_metrics

    runs = {}
    for kind, folder in (("tokenizer", model), ("tokenizer", model / "tokenizer"), ("prior", model / "prior")):
        if (folder / "config.yaml").is_file() and is_smalti_folder(folder):
            config = read_yaml(folder / "config.yaml")
            image = max((folder / "images").glob("*.png"), default=None)
            runs[kind] = Run(config, read_metrics(folder), image)
    return runs
