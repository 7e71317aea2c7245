"""The files of LlamaGen: which hold a tokenizer or a GPT, and their weights."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from smalti.checkpoints.pickles import read_pickle, read_tensors, tensors_in
from smalti.core.errors import SmaltiError

SUFFIXES = (".pt", ".pth", ".safetensors")
SECTIONS = ("ema", "model", "module", "state_dict")
"""Where LlamaGen keeps weights in a file; averaged ones first. Some files are the weights themselves."""

IGNORED = r"freqs_cis|causal_mask|quantize\.codebook_used|layers\.\d+\.attention\.kv_cache\.[kv]_cache"
"""Entries among the weights that smalti computes again, or that are statistics of training."""


class LlamaGenFile(NamedTuple):
    """One file of LlamaGen."""

    path: Path
    kind: str
    """"tokenizer" or "GPT"."""
    weights: dict[str, Tensor]
    notes: Mapping[str, Any] | None
    """Those that smalti wrote."""

    def shape(self, name: str, *, axes: int) -> tuple[int, ...]:
        """A weight's name -> its shape. Raises `SmaltiError` if it is missing or has another number of axes."""
        if name not in self.weights:
            raise self.does_not_fit(f"{name} is missing")
        shape = tuple(self.weights[name].shape)
        if len(shape) != axes or 0 in shape:
            raise self.does_not_fit(f"{name} has the shape {shape}")
        return shape

    def count(self, pattern: str) -> int:
        """A regular expression with a number in its names -> one more than the largest."""
        return 1 + max((int(m[1]) for name in self.weights if (m := re.fullmatch(pattern, name))), default=-1)

    def does_not_fit(self, problem: str) -> SmaltiError:
        """What to raise for weights that are not a LlamaGen model."""
        return SmaltiError(f"the weights of {self.path} do not fit: {problem}")


def files_in(path: Path) -> dict[str, LlamaGenFile]:
    """A file or folder -> the LlamaGen files in it, by kind."""
    candidates = sorted(path.iterdir()) if path.is_dir() else [path]
    found: dict[str, LlamaGenFile] = {}
    for candidate in candidates:
        file = open_file(candidate) if candidate.is_file() and candidate.suffix in SUFFIXES else None
        if file is None:
            continue
        if file.kind in found:
            both = f"{found[file.kind].path.name} and {candidate.name}"
            raise SmaltiError(
                f"{path} holds more than one {file.kind} of LlamaGen ({both}); name the file, or move one away"
            )
        found[file.kind] = file
    return found


def knows(path: Path) -> bool:
    """Whether a file holds a LlamaGen model. Raises `SmaltiError` if it is damaged."""
    return path.suffix in SUFFIXES and open_file(path) is not None


def open_file(path: Path) -> LlamaGenFile | None:
    """A file -> its weights if they are a LlamaGen model. Raises `SmaltiError` if it is damaged."""
    content: Any = read_tensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    if not isinstance(content, Mapping):
        return None
    weights = tensors_in(content, sections=SECTIONS)
    notes, kind = content.get("smalti"), kind_of(weights)
    return None if kind is None else LlamaGenFile(path, kind, weights, notes if isinstance(notes, Mapping) else None)


def kind_of(names: Collection[str]) -> str | None:
    """Names of weights -> LlamaGen's "tokenizer" or "GPT", None for other programs' models."""
    if any(name.startswith(("encoder.conv_blocks.", "decoder.conv_blocks.")) for name in names):
        return "tokenizer"
    signs = ("tok_embeddings.weight", "cls_embedding.embedding_table.weight", "layers.0.attention.wqkv.weight")
    return "GPT" if sum(name in names for name in signs) > 1 else None
