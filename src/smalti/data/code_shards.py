"""Shards of codes: a set of images, encoded once, from which stage 2 reads integers instead of images.

A folder holds `codes.json` (what the codes are) and, for each of the two parts, shards: `training-00000.npy`,
shaped (images, copies, h, w) uint16 (uint32 for codebooks above 65536), and `training-00000.labels.npy`,
(images,) int32, -1 for none; likewise `validation-...` with one copy. Where the codes of a condition stand before
those of each image, `training-00000.prefix.npy` has them, (images, copies, P). Shards are mapped into memory, not read
whole. `smalti.encoding.code_writer` writes them.

B batch, P prefix codes, h w grid, N images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeAlias, final

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.core.files import read_json
from smalti.core.settings import Natural, Positive, parse, settings
from smalti.data.crops import uniform_numbers

FORMAT = 1
CodebookSize: TypeAlias = Annotated[int, Field(ge=1, le=2**26)]
"""More codes than any codebook has; how often each occurs is counted in memory."""


@settings
class PartSettings:
    """One part (training or validation): its images per shard, and where they came from."""

    shards: tuple[Natural, ...]
    copies: Positive
    damaged: Natural  # images left out
    data: dict[str, Any]


@settings
class PrefixSettings:
    """The codes of a condition before those of each image: how many there are to choose from, and how many an image
    has.

    `condition`: the plain values that its `save` gave, which wrote the rest into the folder. `fingerprint` names what
    made them.
    """

    size: CodebookSize
    length: Natural
    fingerprint: str
    condition: dict[str, Any]


@settings
class CodesSettings:
    """The content of `codes.json`. `grid` is (h, w), `factor` the height and width of a code in pixels."""

    format: int
    fingerprint: str
    size: CodebookSize
    grid: tuple[Positive, Positive]
    factor: Positive
    labels: tuple[str, ...]
    seed: int
    training: PartSettings
    validation: PartSettings
    prefix: PrefixSettings | None = None


class CodeExample(NamedTuple):
    """One image: `codes` (h, w) int64; `label` () int64, the index in the labels, -1 for none; `prefix` (P,) int64."""

    codes: Tensor
    label: Tensor
    prefix: Tensor


class CodeBatch(NamedTuple):
    """Several images: `codes` (B, h, w) int64; `labels` (B,) int64, -1 for none; `prefix` (B, P) int64, P 0 where none
    is kept.
    """

    codes: Tensor
    labels: Tensor
    prefix: Tensor


def dtype_of(size: int) -> np.dtype[Any]:
    """How codes below `size` are kept."""
    return np.dtype(np.uint16 if size <= 2**16 else np.uint32)


@final
class CodeSet:
    """One part of a folder of codes: `codes[index, draw]` is image `index`, in the copy that `draw` chooses.

    `labels` (N,) int32 holds the index of each image's label in the labels of the folder, -1 for none. Raises
    `SmaltiError` for a missing or damaged shard.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        part: PartSettings,
        *,
        grid: tuple[int, int],
        size: int,
        prefix: PrefixSettings | None = None,
    ) -> None:
        self._arguments = (folder, name, part, grid, size, prefix)
        self._copies, self._size, self._prefix = part.copies, size, prefix
        self._shards: list[npt.NDArray[Any]] = []
        self._prefixes: list[npt.NDArray[Any]] = []
        found: list[npt.NDArray[np.int32]] = [np.zeros(0, dtype=np.int32)]
        for number, rows in enumerate(part.shards):
            stem = folder / f"{name}-{number:05d}"
            own = (rows, part.copies, *grid)
            self._shards.append(_load(stem.with_suffix(".npy"), shape=own, dtype=dtype_of(size), mapped=True))
            if prefix is not None:
                before, file = (rows, part.copies, prefix.length), stem.with_suffix(".prefix.npy")
                self._prefixes.append(_load(file, shape=before, dtype=dtype_of(prefix.size), mapped=True))
            found.append(_load(stem.with_suffix(".labels.npy"), shape=(rows,), dtype=np.dtype(np.int32), mapped=False))
        self.labels = np.concatenate(found)
        self._ends = np.cumsum(part.shards, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: tuple[int, int], /) -> CodeExample:
        index, draw = key
        shard = int(np.searchsorted(self._ends, index, side="right"))
        row = index - int(self._ends[shard]) + len(self._shards[shard])
        copy = int(uniform_numbers(0, draw)[0] * self._copies)
        codes = self._shards[shard][row, copy].astype(np.int64)
        self.check(int(codes.max()))
        prefix = np.zeros(0, dtype=np.int64)
        if self._prefix is not None:
            prefix = self._prefixes[shard][row, copy].astype(np.int64)
            self._check(int(prefix.max()), self._prefix.size, "condition")
        return CodeExample(torch.from_numpy(codes), torch.tensor(int(self.labels[index])), torch.from_numpy(prefix))

    def batch_of(self, *stacked: Tensor) -> CodeBatch:
        """The fields of examples, stacked -> a batch."""
        return CodeBatch(*stacked)

    def chunks(self) -> Iterator[npt.NDArray[Any]]:
        """All codes of all copies, in flat pieces of about a million."""
        for shard in self._shards:
            step = max(1, 2**20 // math.prod(shard.shape[1:]))
            for first in range(0, len(shard), step):
                yield np.asarray(shard[first : first + step]).reshape(-1)

    def check(self, largest: int) -> None:
        """Raise `SmaltiError` when a code that was read is not a code of the codebook."""
        self._check(largest, self._size, str(self._arguments[1]))

    def _check(self, largest: int, size: int, what: str) -> None:
        if largest >= size:
            raise SmaltiError(
                f"the {what} codes in {self._arguments[0]} are damaged: there is a code {largest}, "
                f"but the codebook has {size}; remove the folder and encode again"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, self._arguments  # another process maps the files itself; pickling would copy them


def _reopened(
    folder: Path, name: str, part: PartSettings, grid: tuple[int, int], size: int, prefix: PrefixSettings | None
) -> CodeSet:
    return CodeSet(folder, name, part, grid=grid, size=size, prefix=prefix)


def _load(path: Path, *, shape: tuple[int, ...], dtype: np.dtype[Any], mapped: bool) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except FileNotFoundError as error:
        raise SmaltiError(f"there is no file {path}; the folder is not whole, encode again") from error
    except Exception as error:  # numpy reads the header as Python's literals, which fail in many ways
        raise SmaltiError(f"{path} is damaged ({error}); remove the folder and encode again") from error
    if array.shape != shape or array.dtype != dtype:
        raise SmaltiError(
            f"{path} holds {array.dtype} {array.shape} where codes.json says {dtype} {shape}; "
            f"remove the folder and encode again"
        )
    return array


@final
@dataclass(frozen=True, kw_only=True)
class CodeShards:
    """An opened folder of codes."""

    path: Path
    meta: CodesSettings
    training: CodeSet
    validation: CodeSet

    def check_fingerprint(self, fingerprint: str) -> None:
        """Raise `SmaltiError` unless the tokenizer with this fingerprint made the codes."""
        if fingerprint != self.meta.fingerprint:
            raise SmaltiError(
                f"the codes in {self.path} were made by the tokenizer {self.meta.fingerprint}, not by {fingerprint}; "
                f"give the tokenizer they were made by, or encode the images again with this one"
            )


def open_codes(path: Path) -> CodeShards:
    """A folder that `write_codes` made -> its codes. Raises `SmaltiError` when it is missing, damaged or of a later
    format.
    """
    meta = read_meta(path)
    training = CodeSet(path, "training", meta.training, grid=meta.grid, size=meta.size, prefix=meta.prefix)
    validation = CodeSet(path, "validation", meta.validation, grid=meta.grid, size=meta.size, prefix=meta.prefix)
    return CodeShards(path=path, meta=meta, training=training, validation=validation)


def read_meta(path: Path) -> CodesSettings:
    """What a folder of codes says about itself. Raises `SmaltiError` as `open_codes`."""
    file = path / "codes.json"
    if not file.exists():
        raise SmaltiError(f"there are no codes in {path} (no codes.json); make them with: smalti encode")
    values = read_json(file)
    if not isinstance(values, dict) or not isinstance(values.get("format"), int):
        raise SmaltiError(f"{file} does not describe codes; remove the folder and encode again")
    if values["format"] > FORMAT:
        raise SmaltiError(
            f"{file} has format {values['format']}, but this version of smalti reads formats up to {FORMAT}; "
            f"install a newer one"
        )
    return parse(CodesSettings, values, where=str(file))


def histogram(codeset: CodeSet, size: int) -> npt.NDArray[np.int64]:
    """How often each of the `size` codes of the codebook is in all images and copies: (size,) int64."""
    counts = np.zeros(size, dtype=np.int64)
    for codes in codeset.chunks():
        codeset.check(int(codes.max()))
        counts += np.bincount(codes, minlength=size)
    return counts


def entropy(codeset: CodeSet, size: int) -> float:
    """The entropy in nats of a single code, as often as each occurs: what a prior that knows only frequencies would
    reach.
    """
    counts = histogram(codeset, size)
    shares = counts[counts > 0] / max(1, counts.sum())
    return float(-(shares * np.log(shares)).sum())
