"""A tokenizer -> graphs that run without smalti: ONNX, and PyTorch's own `.pt2`. They are written, never read.

Two files, `encoder` (images -> codes) and `decoder` (codes -> images), for any number of images of any size from two
codes each way on. Beside them `tokenizer.json` says what they take. An image is computed whole: there are no strips in
a graph.

Notation: B batch, C channels, H W pixels, h w code grid, f = H/h.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from smalti.conditions.base import Condition
from smalti.core.errors import SmaltiError
from smalti.core.files import folder_written_atomically
from smalti.prior import Prior
from smalti.tokenizer.vqgan import VQGAN

if TYPE_CHECKING:
    from torch.export import ExportedProgram

ABOUT = "tokenizer.json"
SAMPLE = (2, 5, 7)
"""B, h, w of what is traced; all three may be others afterward."""
MAX_DIM = 2**15
"""The largest B, h and w of a graph; PyTorch wants one named."""


@final
class Encoding(nn.Module):
    """Images (B,C,H,W) in [-1,1] -> codes (B,h,w) int64."""

    def __init__(self, tokenizer: VQGAN) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, images: Tensor) -> Tensor:
        # Not those of `encode`, whose loss some quantizers compute in pieces: their number would be fixed.
        return self.tokenizer.quantizer.likeliest_codes(self.tokenizer.features(images))


@final
class Decoding(nn.Module):
    """Codes (B,h,w) int64 -> images (B,C,H,W), about [-1,1]. Nothing checks that the codes are of the codebook."""

    def __init__(self, tokenizer: VQGAN) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, codes: Tensor) -> Tensor:
        return self.tokenizer.decode(self.tokenizer.quantizer.lookup(codes))


def write_onnx(
    tokenizer: VQGAN | None, prior: Prior | None, condition: Condition | None, folder: Path, *, about: Mapping[str, Any]
) -> None:
    """A tokenizer -> a folder with `encoder.onnx` and `decoder.onnx`, which must not exist yet.

    Raises `SmaltiError` for a prior, and without the packages of the extra `onnx`.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 - PyTorch needs it
    except ImportError as error:
        raise SmaltiError(
            f"ONNX needs packages of its own ({error}); install them with: pip install 'smalti[onnx]'"
        ) from error

    kind = None if tokenizer is None else tokenizer.settings.quantizer.name

    def save(program: ExportedProgram, path: Path, names: tuple[str, str]) -> None:
        try:
            with _quiet():
                graph = torch.onnx.export(
                    program, dynamo=True, input_names=[names[0]], output_names=[names[1]], verbose=False
                )
        except torch.onnx.OnnxExporterError as error:
            raise SmaltiError(
                f"ONNX has no operations for this {path.stem} (model.quantizer.name = {kind!r}); --to export "
                "writes it for PyTorch"
            ) from error
        assert graph is not None
        onnx.save(graph.model_proto, path)

    _write(tokenizer, prior, folder, save=save, suffix=".onnx", about=about)


def write_programs(
    tokenizer: VQGAN | None, prior: Prior | None, condition: Condition | None, folder: Path, *, about: Mapping[str, Any]
) -> None:
    """A tokenizer -> a folder with `encoder.pt2` and `decoder.pt2` for `torch.export.load`, which must not exist yet.

    Raises `SmaltiError` for a prior.
    """

    def save(program: ExportedProgram, path: Path, names: tuple[str, str]) -> None:
        with _quiet():
            plain = program.run_decompositions(
                {}
            )  # without regions of autocast, which PyTorch writes but does not read
            torch.export.save(plain, path)

    _write(tokenizer, prior, folder, save=save, suffix=".pt2", about=about)


def _write(
    tokenizer: VQGAN | None,
    prior: Prior | None,
    folder: Path,
    *,
    save: Callable[[ExportedProgram, Path, tuple[str, str]], None],
    suffix: str,
    about: Mapping[str, Any],
) -> None:
    if tokenizer is None or prior is not None:
        raise SmaltiError("graphs are made of tokenizers alone; convert the folder of the tokenizer, not of the prior")
    with folder_written_atomically(folder) as temporary:
        save(encoder_of(tokenizer), temporary / f"encoder{suffix}", ("images", "codes"))
        save(decoder_of(tokenizer), temporary / f"decoder{suffix}", ("codes", "images"))
        facts = {
            "channels": tokenizer.settings.autoencoder.channels,
            "range": [-1, 1],
            "factor": tokenizer.factor,
            "codes": tokenizer.size,
            "fingerprint": tokenizer.fingerprint(),
            "about": dict(about),
        }
        (temporary / ABOUT).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


def encoder_of(tokenizer: VQGAN) -> ExportedProgram:
    """A tokenizer -> its graph from images (B,C,H,W) in [-1,1] to codes (B,h,w)."""
    (B, h, w), f = SAMPLE, tokenizer.factor
    images = torch.zeros(B, tokenizer.settings.autoencoder.channels, h * f, w * f)
    batch, rows, columns = _any_size()
    return _traced(Encoding(tokenizer), images, {0: batch, 2: f * rows, 3: f * columns})


def decoder_of(tokenizer: VQGAN) -> ExportedProgram:
    """A tokenizer -> its graph from codes (B,h,w) to images (B,C,H,W)."""
    batch, rows, columns = _any_size()
    return _traced(Decoding(tokenizer), torch.zeros(SAMPLE, dtype=torch.int64), {0: batch, 1: rows, 2: columns})


def _any_size() -> tuple[Any, Any, Any]:
    """The sides that may change. A grid of one row or column would lie in memory in another way, and be another
    graph."""
    from torch.export import Dim  # slow to import, and only needed here

    return Dim("batch", min=1, max=MAX_DIM), Dim("rows", min=2, max=MAX_DIM), Dim("columns", min=2, max=MAX_DIM)


def _traced(module: nn.Module, sample: Tensor, sides: Mapping[int, Any]) -> ExportedProgram:
    from torch.export import export  # as above

    with torch.no_grad(), _quiet():
        return export(module.eval(), (sample,), dynamic_shapes=(dict(sides),))


@contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch tells users of its exporters about its own insides and about packages that are not needed here."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
