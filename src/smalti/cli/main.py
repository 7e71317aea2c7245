"""The `smalti` command: its subcommands and exit status: 0 success, 1 an error in one sentence, 2 wrong usage."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from smalti.cli import (
    bench,
    complete,
    convert,
    datasets,
    demo,
    doctor,
    evaluate,
    experiment,
    fit,
    info,
    push,
    reconstruct,
    sample,
    train,
    web,
)
from smalti.cli.console import ERRORS
from smalti.core.allocator import keep_memory
from smalti.core.errors import SmaltiError
from smalti.core.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train discrete image tokenizers and priors on your images, and generate images with them.",
)
app.command("demo")(demo.demo)
app.command("fit")(fit.fit)
app.command("scenes")(datasets.scenes)
app.add_typer(train.app, name="train")
app.command("encode")(datasets.encode)
app.command("sample")(sample.sample)
app.command("complete")(complete.complete)
app.command("reconstruct")(reconstruct.reconstruct)
app.add_typer(evaluate.app, name="evaluate")
app.command("experiment")(experiment.experiment)
app.command("convert")(convert.convert)
app.command("bench")(bench.bench)
app.command("web")(web.web)
app.command("push")(push.push)
app.command("doctor")(doctor.doctor)
app.command("info")(info.info)
app.command("recipes")(info.recipes)


def _version(requested: bool) -> None:
    if requested:
        print(f"smalti {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _is_shortage(error: Exception) -> bool:
    """Whether an allocation failed, in main memory or on an accelerator."""
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("DefaultCPUAllocator", "out of memory")
    )


def main() -> None:
    """Run the command line; this never returns."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.getLogger("smalti").handlers = [handler]
    keep_memory()
    try:
        app()
    except SmaltiError as error:
        ERRORS.print(f"error: {error}", style="red", soft_wrap=True)
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not _is_shortage(error):
            raise
        sentence = "not enough memory; use smaller images, fewer images at once, or a smaller batch"
        ERRORS.print(f"error: {sentence}", style="red", soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        ERRORS.print("interrupted", style="red")
        sys.exit(1)
