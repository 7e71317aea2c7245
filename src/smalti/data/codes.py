"""Shards of codes: a set of pictures, encoded once, from which stage 2 reads integers instead of pictures.

A folder holds `codes.json` (what the codes are) and, for each of the two parts, shards: `training-00000.npy`,
shaped (pictures, copies, h, w) uint16 (uint32 for codebooks above 65536), and `training-00000.labels.npy`,
(pictures,) int32, -1 for none; likewise `validation-...` with one copy. Shards are mapped into memory, not read
whole.

B batch, C channels, H W pixels, h w grid, N pictures, K codebook size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smalti.data.loading import Example, chances, stacks
from smalti.errors import SmaltiError
from smalti.files import folder_written_atomically, read_json, write_json
from smalti.settings import as_mapping, parse, settings

FORMAT = 1
SHARD_BYTES = 2**28  # a shard is gathered in memory before it is written


@settings
class PartSettings:
    """One part (training or validation): its pictures per shard, and where they came from."""

    shards: tuple[int, ...]
    copies: int
    damaged: int  # pictures left out
    data: dict[str, Any]


@settings
class CodesSettings:
    """The content of `codes.json`. `grid` is (h, w), `factor` how many pixels a code is high and wide."""

    format: int
    fingerprint: str
    size: int
    grid: tuple[int, int]
    factor: int
    labels: tuple[str, ...]
    seed: int
    training: PartSettings
    validation: PartSettings


class Encodable(Protocol):
    """Pictures that can be encoded, such as `smalti.data.loading.Crops`."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of all examples."""

    def __len__(self) -> int: ...

    def example(self, index: int, draw: int) -> Example:
        """One example. Raises `DamagedImage`."""

    def described(self) -> dict[str, Any]:
        """What decides the examples, as plain values."""


class CodeExample(NamedTuple):
    """One picture: `codes` (h, w) int64; `label` () int64, the place in the labels, -1 for none."""

    codes: Tensor
    label: Tensor


class CodeBatch(NamedTuple):
    """Several pictures: `codes` (B, h, w) int64; `labels` (B,) int64, -1 for none."""

    codes: Tensor
    labels: Tensor


def write_codes(
    out: Path,
    *,
    training: Encodable,
    validation: Encodable,
    encode: Callable[[Tensor], Tensor],
    fingerprint: str,
    size: int,
    factor: int,
    labels: Sequence[str],
    copies: int,
    seed: int,
    batch: int,
    progress: Callable[[int, int], object],
    workers: int = 0,
) -> bool:
    """Two sets of pictures -> a folder of codes at `out`, which appears when it is whole. True if it was written.

    `encode` maps images as examples hold them, (B, C, H, W) in [-1, 1] or maps (B, H, W) of labels, to codes (B, h, w)
    int64 below `size`, B at most `batch`;
    `fingerprint` names the tokenizer. Each training picture is encoded `copies` times: copy c of picture i is draw
    i * copies + c. Damaged pictures are left out. `progress` is told the number of images done and their total.

    False if the folder is there already and was made by the same tokenizer from the same pictures with the same
    settings; if not by the same, `SmaltiError` names what differs. It is also raised when the size of the pictures
    is no multiple of `factor`, when too many pictures are damaged, and when the disk refuses.
    """
    if copies < 1:
        raise SmaltiError(f"each picture is encoded at least once, not {copies} times")
    grid = _grid(training.size, factor)
    if out.exists():
        parts = {"training": training.described(), "validation": validation.described()}
        wanted = {"fingerprint": fingerprint, "size": size, "factor": factor, "labels": list(labels), "seed": seed}
        _refuse_others(out, {**wanted, "copies": copies, **parts})
        return False
    images = len(training) * copies

    def report(done: int) -> None:
        progress(done, images + len(validation))

    with folder_written_atomically(out) as folder:
        writer = _ShardWriter(folder, "training", size=size, grid=grid, copies=copies)
        first = writer.write(training, encode=encode, batch=batch, workers=workers, report=report)
        writer = _ShardWriter(folder, "validation", size=size, grid=grid, copies=1)
        second = writer.write(
            validation, encode=encode, batch=batch, workers=workers, report=lambda done: report(images + done)
        )
        meta = CodesSettings(
            format=FORMAT, fingerprint=fingerprint, size=size, grid=grid, factor=factor, labels=tuple(labels),
            seed=seed, training=first, validation=second,
        )  # fmt: skip
        write_json(folder / "codes.json", as_mapping(meta))
    return True


def _grid(image_size: tuple[int, int], factor: int) -> tuple[int, int]:
    height, width = image_size
    if height % factor or width % factor:
        raise SmaltiError(f"pictures of {height}x{width} pixels do not divide into codes of {factor}x{factor} pixels")
    return height // factor, width // factor


def _refuse_others(out: Path, wanted: Mapping[str, Any]) -> None:
    """Raise `SmaltiError` unless `out` holds codes made with the wanted settings."""
    if not (out / "codes.json").exists():
        raise SmaltiError(f"{out} exists and holds no codes; give a new folder")
    meta = as_mapping(_read_meta(out))
    parts = {name: meta[name]["data"] for name in ("training", "validation")}
    present = _flat({**meta, "copies": meta["training"]["copies"], **parts})
    for key, value in _flat(wanted).items():
        if present.get(key) != value:
            raise SmaltiError(
                f"{out} holds other codes already: {key} is {present.get(key)!r} there, {value!r} now; "
                f"give a new folder, or remove this one"
            )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value})
    return flat


@final
class _ShardWriter:
    """Writes the shards of one part of a data set into `folder`."""

    def __init__(self, folder: Path, name: str, *, size: int, grid: tuple[int, int], copies: int) -> None:
        self._folder, self._name, self._size = folder, name, size
        self._shape = (copies, *grid)
        self._dtype = np.uint16 if size <= 2**16 else np.uint32
        self._rows = max(1, SHARD_BYTES // (math.prod(self._shape) * np.dtype(self._dtype).itemsize))
        self._codes: list[npt.NDArray[Any]] = []
        self._labels: list[int] = []
        self._shards: list[int] = []

    def write(
        self,
        dataset: Encodable,
        *,
        encode: Callable[[Tensor], Tensor],
        batch: int,
        workers: int,
        report: Callable[[int], object],
    ) -> PartSettings:
        """All pictures that are not damaged -> shards; `report` is told the number of images done."""
        copies = self._shape[0]
        pictures = max(1, batch // copies)  # at once
        starts = range(0, len(dataset), pictures)
        keys = ([(i, 0) for i in range(start, min(start + pictures, len(dataset)))] for start in starts)
        for start, fields in zip(starts, stacks(_Copies(dataset, copies), keys, workers=workers), strict=True):
            if fields is not None:
                images, labels = fields  # (P, copies, C, H, W), (P,)
                codes = torch.cat([self._checked(encode(some)) for some in torch.split(images.flatten(0, 1), batch)])
                self._add(codes.numpy().reshape(-1, *self._shape), labels.tolist())
            report(min(start + pictures, len(dataset)) * copies)
        self._flush()
        damaged = len(dataset) - sum(self._shards)
        return PartSettings(shards=tuple(self._shards), copies=copies, damaged=damaged, data=dataset.described())

    def _checked(self, codes: Tensor) -> Tensor:
        codes = codes.detach().cpu()
        assert codes.shape[1:] == self._shape[1:], f"encode gave codes {tuple(codes.shape)}, not (B, {self._shape[1:]})"
        low, high = int(codes.min()), int(codes.max())
        assert 0 <= low <= high < self._size, f"encode gave codes {low}..{high} for a codebook of {self._size}"
        return codes

    def _add(self, codes: npt.NDArray[Any], labels: Sequence[int]) -> None:
        self._codes.extend(codes.astype(self._dtype))
        self._labels.extend(labels)
        while len(self._labels) >= self._rows:
            self._flush()

    def _flush(self) -> None:
        rows = min(self._rows, len(self._labels))
        if rows:
            stem = f"{self._name}-{len(self._shards):05d}"
            np.save(self._folder / f"{stem}.npy", np.stack(self._codes[:rows]))
            np.save(self._folder / f"{stem}.labels.npy", np.array(self._labels[:rows], dtype=np.int32))
            self._shards.append(rows)
            del self._codes[:rows], self._labels[:rows]


@final
class _Copies:
    """Picture index -> all its copies (copies, C, H, W) and its label: kept or left out together."""

    def __init__(self, dataset: Encodable, copies: int) -> None:
        self._dataset, self._copies = dataset, copies

    def __call__(self, key: tuple[int, int]) -> Example:
        index = key[0]
        examples = [self._dataset.example(index, index * self._copies + copy) for copy in range(self._copies)]
        return Example(torch.stack([example.image for example in examples]), examples[0].label)


@final
class CodeSet:
    """One part of a folder of codes: `codes[index, draw]` is picture `index`, in the copy that `draw` chooses.

    `labels` (N,) int32 holds the place of each picture's label in the labels of the folder, -1 for none. Raises
    `SmaltiError` for a missing or damaged shard.
    """

    def __init__(self, folder: Path, name: str, part: PartSettings, *, grid: tuple[int, int], size: int) -> None:
        self._arguments = (folder, name, part, grid, size)
        self._copies, self._size = part.copies, size
        self._shards: list[npt.NDArray[Any]] = []
        found: list[npt.NDArray[np.int32]] = [np.zeros(0, dtype=np.int32)]
        dtype = np.dtype(np.uint16 if size <= 2**16 else np.uint32)
        for number, rows in enumerate(part.shards):
            stem = folder / f"{name}-{number:05d}"
            shape = (rows, part.copies, *grid)
            self._shards.append(_load(stem.with_suffix(".npy"), shape=shape, dtype=dtype, mapped=True))
            found.append(_load(stem.with_suffix(".labels.npy"), shape=(rows,), dtype=np.dtype(np.int32), mapped=False))
        self.labels = np.concatenate(found)
        self._ends = np.cumsum(part.shards, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: tuple[int, int], /) -> CodeExample:
        index, draw = key
        shard = int(np.searchsorted(self._ends, index, side="right"))
        row = index - int(self._ends[shard]) + len(self._shards[shard])
        copy = int(chances(0, draw)[0] * self._copies)
        codes = self._shards[shard][row, copy].astype(np.int64)
        self.check(int(codes.max()))
        return CodeExample(torch.from_numpy(codes), torch.tensor(int(self.labels[index])))

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
        """Raise `SmaltiError` when a code that was read is no code of the codebook."""
        if largest >= self._size:
            raise SmaltiError(
                f"the {self._arguments[1]} codes in {self._arguments[0]} are damaged: there is a code {largest}, "
                f"but the codebook has {self._size}; remove the folder and encode again"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, self._arguments  # another process maps the files itself; pickling would copy them


def _reopened(folder: Path, name: str, part: PartSettings, grid: tuple[int, int], size: int) -> CodeSet:
    return CodeSet(folder, name, part, grid=grid, size=size)


def _load(path: Path, *, shape: tuple[int, ...], dtype: np.dtype[Any], mapped: bool) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except FileNotFoundError as error:
        raise SmaltiError(f"there is no file {path}; the folder is not whole, encode again") from error
    except (OSError, ValueError, EOFError) as error:
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
                f"give the tokenizer they were made by, or encode the pictures again with this one"
            )


def open_codes(path: Path) -> CodeShards:
    """A folder that `write_codes` made -> its codes. Raises `SmaltiError` when it is missing, damaged or of a later
    format.
    """
    meta = _read_meta(path)
    training = CodeSet(path, "training", meta.training, grid=meta.grid, size=meta.size)
    validation = CodeSet(path, "validation", meta.validation, grid=meta.grid, size=meta.size)
    return CodeShards(path=path, meta=meta, training=training, validation=validation)


def _read_meta(path: Path) -> CodesSettings:
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
    """How often each of the `size` codes of the codebook stands in all pictures and copies: (size,) int64."""
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
