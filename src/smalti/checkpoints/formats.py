"""The foreign formats there are, and a path of any of them -> smalti's models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from smalti.checkpoints import diffusers, exports, llamagen, taming, taming_writing, transformers
from smalti.checkpoints.base import FormatReader, Imported, check_window
from smalti.conditions.base import Condition, Grid
from smalti.core.errors import SmaltiError
from smalti.prior import Prior
from smalti.tokenizer.vqgan import VQGAN


class FormatWriter(Protocol):
    """Our models -> a folder of the format. Raises `SmaltiError` for what the format cannot hold, naming the
    setting."""

    def __call__(
        self,
        tokenizer: VQGAN | None,
        prior: Prior | None,
        condition: Condition | None,
        folder: Path,
        *,
        about: Mapping[str, Any],
    ) -> None: ...


class CheckpointFormat(NamedTuple):
    """One program's way to keep models."""

    about: str
    read: FormatReader
    write: FormatWriter


FORMATS: dict[str, CheckpointFormat] = {
    "diffusers": CheckpointFormat("diffusers' VQModel: a folder with config.json", diffusers.read, diffusers.write),
    "taming": CheckpointFormat(
        "CompVis/taming-transformers and the VQ first stages of latent-diffusion: run folders, .ckpt with a YAML",
        taming.read,
        taming_writing.write,
    ),
    "transformers": CheckpointFormat(
        "transformers' GPT-2, of the paper's prior: a folder that smalti wrote", transformers.read, transformers.write
    ),
    "llamagen": CheckpointFormat(
        "LlamaGen's tokenizers and class-conditional GPTs: .pt", llamagen.read, llamagen.write
    ),
}

EXPORTS: dict[str, FormatWriter] = {"onnx": exports.write_onnx, "export": exports.write_programs}
"""What is written to be run by other programs, and not read again."""


def find_foreign(path: Path, *, grid: Grid | None = None, prior: bool = True) -> Imported | None:
    """A folder or file -> the models of the first foreign format that recognizes it, in evaluation mode on the CPU;
    None if none does.

    `grid` and `prior` as in `FormatReader`. Raises `SmaltiError` for what a format refuses, for a checkpoint without
    its settings, and for a `grid` that contradicts the checkpoint.
    """
    for name, form in FORMATS.items():
        try:
            imported = form.read(path, grid=grid, prior=prior)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise SmaltiError(
                f"{path} is damaged: a value in it has not the type that {name} gives it ({error}); copy it again"
            ) from error
        if imported is not None:
            check_window(imported.prior if prior else None, grid, where=path)
            return imported
    if path.is_file() and path.suffix in taming.SUFFIXES:
        raise SmaltiError(
            f"{path} has no YAML beside it that says what it holds; put the run's *-project.yaml next to it"
        )
    return None


def read_foreign(path: Path, *, grid: Grid | None = None, prior: bool = True) -> Imported:
    """As `find_foreign`; raises `SmaltiError` also where there is nothing, and where no format recognizes it."""
    if not path.exists():
        raise SmaltiError(f"there is nothing at {path}")
    imported = find_foreign(path, grid=grid, prior=prior)
    if imported is None:
        known = "; ".join(f"{name}: {form.about}" for name, form in FORMATS.items())
        raise SmaltiError(f"{path} is of no format that is read ({known})")
    return imported
