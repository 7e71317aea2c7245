"""Encodes images into code shards; `smalti.data.code_shards` defines and reads their format.

B batch, C channels, H W pixels, h w grid, N images, P prefix codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class ImageSets:
    """The images of a data set, the names of their labels in order, and the condition of the images, if any."""

    training: Encodable
    validation: Encodable
    labels: Sequence[str] = ()
    prefix: Prefix | None = None


@dataclass(frozen=True, kw_only=True)
class ImageEncoder:
    """What turns images into codes."""

    encode: Callable[[Tensor], Tensor]
    """Images as examples hold them, (B, C, H, W) in [-1, 1] or label maps (B, H, W) -> codes (B, h, w) int64."""
    fingerprint: str
    """The fingerprint of the tokenizer."""
    size: int
    """Codes are integers in [0, size)."""
    factor: int
    """Pixels per code along a side."""


@dataclass(frozen=True, kw_only=True)
class WritingSettings:
    """How images are encoded."""

    copies: int = 1
    """How many crops of each training image: copy c of image i is draw i * copies + c."""
    seed: int = 0
    """The seed of the crops, for the description of the codes."""
    batch: int = 64
    """Images per call of the encoder, at most."""
    workers: int = 0
    """Additional processes that read images."""


def write_codes(
    out: Path,
    images: ImageSets,
    *,
    encoder: ImageEncoder,
    settings: WritingSettings,
    progress: Callable[[int, int], object],
) -> bool:
    """Two sets of images -> a folder of codes at `out`, written atomically. True if it was written.

    Damaged images are left out. `progress` is called with the number of images done and their total.

    False if the folder is there already and was made by the same tokenizer from the same images with the same settings;
    otherwise `SmaltiError` names what differs. It is also raised when the size of the images is not a multiple of the
    encoder's factor, when too many images are damaged, and if writing fails.
    """
    copies, training, validation, prefix = settings.copies, images.training, images.validation, images.prefix
    if copies < 1:
        raise SmaltiError(f"each image is encoded at least once, not {copies} times")
    grid = code_grid(training.size, encoder.factor)
    facts: dict[str, Any] = {
        "fingerprint": encoder.fingerprint,
        "size": encoder.size,
        "factor": encoder.factor,
        "labels": list(images.labels),
        "seed": settings.seed,
    }
    if out.exists():
        parts = {"training": training.described(), "validation": validation.described()}
        before = {"prefix": {"fingerprint": None if prefix is None else prefix.fingerprint}}
        _refuse_others(out, {**facts, **before, "copies": copies, **parts})
        return False
    first_images = len(training) * copies
    total = first_images + len(validation)
    with folder_written_atomically(out) as folder:
        writer = _ShardWriter(folder, encoder, prefix, settings=settings, grid=grid)
        first = writer.write("training", training, copies=copies, report=lambda done: progress(done, total))
        second = writer.write(
            "validation", validation, copies=1, report=lambda done: progress(first_images + done, total)
        )
        meta = CodesSettings(
            format=FORMAT,
            **{**facts, "labels": tuple(images.labels)},
            grid=grid,
            training=first,
            validation=second,
            prefix=_saved(prefix, folder),
        )
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
    """The size (H, W) of an image -> (h, w) of its codes. Raises `SmaltiError` for sizes that `factor` does not
    divide."""
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
    """Writes the shards of the parts of a data set into `folder`."""

    def __init__(
        self,
        folder: Path,
        encoder: ImageEncoder,
        prefix: Prefix | None,
        *,
        settings: WritingSettings,
        grid: tuple[int, int],
    ) -> None:
        self._folder, self._encoder, self._prefix, self._settings, self._grid = folder, encoder, prefix, settings, grid

    def write(self, name: str, dataset: Encodable, *, copies: int, report: Callable[[int], object]) -> PartSettings:
        """All images that are not damaged -> the shards of the part `name`, with `copies` of each image; `report` is
        called with the number of images done."""
        encoder, prefix, batch = self._encoder, self._prefix, self._settings.batch
        shard_rows = max(1, SHARD_BYTES // (copies * math.prod(self._grid) * dtype_of(encoder.size).itemsize))
        part = _Part(self._folder, name, rows=shard_rows)
        at_once = max(1, batch // copies)
        starts = range(0, len(dataset), at_once)
        keys = ([(i, 0) for i in range(start, min(start + at_once, len(dataset)))] for start in starts)
        read = stacks(_Copies(dataset, copies), keys, workers=self._settings.workers)
        for start, fields in zip(starts, read, strict=True):
            if fields is not None:
                images, labels, *conditions = fields  # (N, copies, C, H, W), (N,), (N, copies, ...) each
                codes = _encoded([images], encoder.encode, shape=self._grid, size=encoder.size, batch=batch)
                prefixes = None
                if prefix is not None:
                    length, size = (prefix.condition.length,), prefix.condition.size
                    prefixes = _encoded(conditions, prefix.encode, shape=length, size=size, batch=batch)
                part.append(codes, labels.tolist(), prefixes)
            report(min(start + at_once, len(dataset)) * copies)
        shards = part.finish()
        damaged = len(dataset) - sum(shards)
        return PartSettings(shards=shards, copies=copies, damaged=damaged, data=dataset.described())


def _encoded(
    inputs: Sequence[Tensor], encode: Callable[..., Tensor], *, shape: tuple[int, ...], size: int, batch: int
) -> npt.NDArray[Any]:
    """What examples hold, (N, copies, ...) each -> codes (N, copies, *shape) below `size`."""
    copies = inputs[0].shape[1]
    some = zip(*(torch.split(each.flatten(0, 1), batch) for each in inputs), strict=True)
    codes = torch.cat([encode(*each).detach().cpu() for each in some])
    assert codes.shape[1:] == shape, f"encode gave codes {tuple(codes.shape)}, not (B, {shape})"
    low, high = int(codes.min()), int(codes.max())
    assert 0 <= low <= high < size, f"encode gave codes {low}..{high} for a codebook of {size}"
    return codes.numpy().reshape(-1, copies, *shape).astype(dtype_of(size))


@final
class _Part:
    """The codes of one part of a data set, written as shards of `rows` images."""

    def __init__(self, folder: Path, name: str, *, rows: int) -> None:
        self._folder, self._name, self._rows = folder, name, rows
        self._codes: list[npt.NDArray[Any]] = []
        self._prefixes: list[npt.NDArray[Any]] = []
        self._labels: list[int] = []
        self._shards: list[int] = []

    def append(self, codes: npt.NDArray[Any], labels: Sequence[int], prefixes: npt.NDArray[Any] | None) -> None:
        """Add codes (N, copies, h, w), labels (N,) and prefixes (N, copies, P); full shards are written."""
        self._codes.extend(codes)
        self._labels.extend(labels)
        self._prefixes.extend(() if prefixes is None else prefixes)
        while len(self._labels) >= self._rows:
            self._flush()

    def finish(self) -> tuple[int, ...]:
        """Write the rest -> the number of images in each shard."""
        self._flush()
        return tuple(self._shards)

    def _flush(self) -> None:
        rows = min(self._rows, len(self._labels))
        if rows:
            stem = f"{self._name}-{len(self._shards):05d}"
            np.save(self._folder / f"{stem}.npy", np.stack(self._codes[:rows]))
            np.save(self._folder / f"{stem}.labels.npy", np.array(self._labels[:rows], dtype=np.int32))
            if self._prefixes:
                np.save(self._folder / f"{stem}.prefix.npy", np.stack(self._prefixes[:rows]))
            self._shards.append(rows)
            del self._codes[:rows], self._labels[:rows], self._prefixes[:rows]


@final
class _Copies:
    """Image index -> all its copies (copies, C, H, W), its label, and the copies of its conditions (copies, ...): kept
    or left out together.
    """

    def __init__(self, dataset: Encodable, copies: int) -> None:
        self._dataset, self._copies = dataset, copies

    def __call__(self, key: tuple[int, int]) -> tuple[Tensor, ...]:
        index = key[0]
        examples = [self._dataset.example(index, index * self._copies + copy) for copy in range(self._copies)]
        images, labels, *conditions = zip(*examples, strict=True)
        return torch.stack(images), labels[0], *(torch.stack(each) for each in conditions)
