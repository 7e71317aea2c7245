"""Encodes images into code shards; `smalti.data.code_shards` defines and reads their format.

B batch, C channels, H W pixels, h w grid, N images, P prefix codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.core.files import folder_written_atomically, write_json
from smalti.core.settings import as_mapping, flattened
from smalti.data.code_shards import FORMAT, CodesSettings, PartSettings, PrefixSettings, dtype_of, read_meta
from smalti.data.loader import stacks

SHARD_BYTES = 2**28  # a shard is gathered in memory before it is written


class Encodable(Protocol):
    """Images that can be encoded, such as `smalti.data.loader.Crops`."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of all examples."""

    def __len__(self) -> int: ...

    def example(self, index: int, draw: int) -> tuple[Tensor, ...]:
        """One example: its image, its label, and its conditions, if there is a prefix. Raises `DamagedImage`."""

    def described(self) -> dict[str, Any]:
        """What decides the examples, as plain values."""


class PrefixCondition(Protocol):
    """The condition of images, such as `smalti.conditions.base.Condition`."""

    size: int
    length: int

    def save(self, folder: Path) -> dict[str, Any]:
        """Write what does not fit into plain values, and return those."""


class Prefix(NamedTuple):
    """The condition whose codes precede those of an image, and how they are computed."""

    condition: PrefixCondition
    fingerprint: str
    encode: Callable[..., Tensor]
    """The conditions of at most `batch` examples, a tensor for each condition -> codes (B, P) int64."""


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
    prefix: Prefix | None = None,
) -> bool:
    """Two sets of images -> a folder of codes at `out`, written atomically. True if it was written.

    `encode` maps images as examples hold them, (B, C, H, W) in [-1, 1] or maps (B, H, W) of labels, to codes (B, h, w)
    int64 below `size`, B at most `batch`;
    `fingerprint` names the tokenizer. With a `prefix` their conditions are encoded too. Each training image is
    encoded `copies` times: copy c of image i is draw i * copies + c. Damaged images are left out. `progress` is called with
    the number of images done and their total.

    False if the folder is there already and was made by the same tokenizer from the same images with the same
    settings; otherwise `SmaltiError` names what differs. It is also raised when the size of the images
    is no multiple of `factor`, when too many images are damaged, and when the disk refuses.
    """
    if copies < 1:
        raise SmaltiError(f"each image is encoded at least once, not {copies} times")
    grid = code_grid(training.size, factor)
    if out.exists():
        parts = {"training": training.described(), "validation": validation.described()}
        wanted = {"fingerprint": fingerprint, "size": size, "factor": factor, "labels": list(labels), "seed": seed}
        before = {"prefix": {"fingerprint": None if prefix is None else prefix.fingerprint}}
        _refuse_others(out, {**wanted, **before, "copies": copies, **parts})
        return False
    images = len(training) * copies

    def report(done: int) -> None:
        progress(done, images + len(validation))

    with folder_written_atomically(out) as folder:
        writer = _ShardWriter(folder, "training", size=size, grid=grid, copies=copies, prefix=prefix)
        first = writer.write(training, encode=encode, batch=batch, workers=workers, report=report)
        writer = _ShardWriter(folder, "validation", size=size, grid=grid, copies=1, prefix=prefix)
        second = writer.write(
            validation, encode=encode, batch=batch, workers=workers, report=lambda done: report(images + done)
        )
        meta = CodesSettings(
            format=FORMAT, fingerprint=fingerprint, size=size, grid=grid, factor=factor, labels=tuple(labels),
            seed=seed, training=first, validation=second, prefix=_saved(prefix, folder),
        )  # fmt: skip
        write_json(folder / "codes.json", as_mapping(meta))
    return True


def _saved(prefix: Prefix | None, folder: Path) -> PrefixSettings | None:
    if prefix is None:
        return None
    condition = prefix.condition
    return PrefixSettings(
        size=condition.size, length=condition.length, fingerprint=prefix.fingerprint, condition=condition.save(folder)
    )


def code_grid(image_size: tuple[int, int], factor: int) -> tuple[int, int]:
    """The size (H, W) of an image -> (h, w) of its codes. Raises `SmaltiError` for sizes that `factor` does not divide."""
    height, width = image_size
    if height % factor or width % factor:
        raise SmaltiError(f"images of {height}x{width} pixels do not divide into codes of {factor}x{factor} pixels")
    return height // factor, width // factor


def _refuse_others(out: Path, wanted: Mapping[str, Any]) -> None:
    """Raise `SmaltiError` unless `out` holds codes made with the wanted settings."""
    if not (out / "codes.json").exists():
        raise SmaltiError(f"{out} exists and holds no codes; give a new folder")
    meta = as_mapping(read_meta(out))
    parts = {name: meta[name]["data"] for name in ("training", "validation")}
    present = dict(flattened({**meta, "copies": meta["training"]["copies"], **parts}))
    now = dict(flattened(wanted))
    for key, value in now.items():
        home, _, last = key.rpartition(".")
        files = f"{home}.files"
        unknown = last == "files" and key not in present  # it was made before the sizes of files were noted
        moved = last == "source" and files in present and present[files] == now.get(files)
        if present.get(key) != value and not (unknown or moved):
            raise SmaltiError(
                f"{out} holds other codes already: {key} is {present.get(key)!r} there, {value!r} now; "
                f"give a new folder, or remove this one"
            )


@final
class _ShardWriter:
    """Writes the shards of one part of a data set into `folder`."""

    def __init__(
        self, folder: Path, name: str, *, size: int, grid: tuple[int, int], copies: int, prefix: Prefix | None
    ) -> None:
        self._folder, self._name, self._size, self._prefix = folder, name, size, prefix
        self._shape = (copies, *grid)
        self._rows = max(1, SHARD_BYTES // (math.prod(self._shape) * dtype_of(size).itemsize))
        self._codes: list[npt.NDArray[Any]] = []
        self._prefixes: list[npt.NDArray[Any]] = []
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
        """All images that are not damaged -> shards; `report` is called with the number of images done."""
        copies = self._shape[0]
        at_once = max(1, batch // copies)  # at once
        starts = range(0, len(dataset), at_once)
        keys = ([(i, 0) for i in range(start, min(start + at_once, len(dataset)))] for start in starts)
        for start, fields in zip(starts, stacks(_Copies(dataset, copies), keys, workers=workers), strict=True):
            if fields is not None:
                images, labels, *beside = fields  # (N, copies, C, H, W), (N,), (N, copies, ...) each
                self._codes.extend(self._encoded([images], encode, shape=self._shape[1:], size=self._size, batch=batch))
                if self._prefix is not None:
                    condition, length = self._prefix.condition, (self._prefix.condition.length,)
                    self._prefixes.extend(
                        self._encoded(beside, self._prefix.encode, shape=length, size=condition.size, batch=batch)
                    )
                self._labels.extend(labels.tolist())
                while len(self._labels) >= self._rows:
                    self._flush()
            report(min(start + at_once, len(dataset)) * copies)
        self._flush()
        damaged = len(dataset) - sum(self._shards)
        return PartSettings(shards=tuple(self._shards), copies=copies, damaged=damaged, data=dataset.described())

    def _encoded(
        self, held: Sequence[Tensor], encode: Callable[..., Tensor], *, shape: tuple[int, ...], size: int, batch: int
    ) -> npt.NDArray[Any]:
        """What examples hold, (N, copies, ...) each -> codes (N, copies, *shape) below `size`."""
        some = zip(*(torch.split(each.flatten(0, 1), batch) for each in held), strict=True)
        codes = torch.cat([encode(*each).detach().cpu() for each in some])
        assert codes.shape[1:] == shape, f"encode gave codes {tuple(codes.shape)}, not (B, {shape})"
        low, high = int(codes.min()), int(codes.max())
        assert 0 <= low <= high < size, f"encode gave codes {low}..{high} for a codebook of {size}"
        return codes.numpy().reshape(-1, self._shape[0], *shape).astype(dtype_of(size))

    def _flush(self) -> None:
        rows = min(self._rows, len(self._labels))
        if rows:
            stem = f"{self._name}-{len(self._shards):05d}"
            np.save(self._folder / f"{stem}.npy", np.stack(self._codes[:rows]))
            np.save(self._folder / f"{stem}.labels.npy", np.array(self._labels[:rows], dtype=np.int32))
            if self._prefix is not None:
                np.save(self._folder / f"{stem}.prefix.npy", np.stack(self._prefixes[:rows]))
            self._shards.append(rows)
            del self._codes[:rows], self._labels[:rows], self._prefixes[:rows]


@final
class _Copies:
    """Image index -> all its copies (copies, C, H, W), its label, and the copies of what lies beside it (copies, ...): kept or
    left out together.
    """

    def __init__(self, dataset: Encodable, copies: int) -> None:
        self._dataset, self._copies = dataset, copies

    def __call__(self, key: tuple[int, int]) -> tuple[Tensor, ...]:
        index = key[0]
        examples = [self._dataset.example(index, index * self._copies + copy) for copy in range(self._copies)]
        images, labels, *beside = zip(*examples, strict=True)
        return torch.stack(images), labels[0], *(torch.stack(each) for each in beside)
