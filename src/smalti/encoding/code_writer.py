"""Encodes images into code shards; `smalti.data.code_shards` defines and reads their format.

B batch, C channels, H W pixels, h w grid, N images, P prefix codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.core.files import write_atomically, write_json
from smalti.core.settings import as_mapping, flattened
from smalti.core.shared_work import SharedWork
from smalti.data.code_shards import FORMAT, CodesSettings, PartSettings, PrefixSettings, dtype_of, read_meta
from smalti.data.loader import stacks

SHARD_BYTES = 2**28  # a shard is gathered in memory before it is written
SHARD_IMAGES = 4096
"""Images of a shard at most: what a process that is killed has to encode again."""


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
    """Two sets of images -> a folder of codes at `out`, which appears when it is whole. True if it was written.

    Damaged images are left out. `progress` is called with the number of images done and their total. Several processes
    that are called with the same arguments share the work, shard by shard, and what was written is found again by a
    later call.

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
        described = {"training": training.described(), "validation": validation.described()}
        before = {"prefix": {"fingerprint": None if prefix is None else prefix.fingerprint}}
        _check_same_settings(out, {**facts, **before, "copies": copies, **described})
        return False
    parts = {
        "training": _part("training", training, copies, grid=grid, size=encoder.size),
        "validation": _part("validation", validation, 1, grid=grid, size=encoder.size),
    }
    shards = [shard for part in parts.values() for shard in part.shards]
    request = {
        **facts,
        "copies": copies,
        **{name: part.described for name, part in parts.items()},
        "shards": [len(span) for part in parts.values() for span in part.shards.values()],
    }
    work = SharedWork(out, {**request, "prefix": None if prefix is None else prefix.fingerprint})
    writer = _ShardWriter(work.folder, encoder, prefix, settings=settings, grid=grid)
    encoding = _Encoding(parts, writer, progress)
    try:
        work.make(shards, encoding.write, encoding.finished)
        return work.finish(lambda: _write_meta(work, parts, prefix, facts=facts, grid=grid))
    except BaseException:
        work.discard_if_empty()
        raise


class _Part(NamedTuple):
    """The training or the validation images."""

    dataset: Encodable
    copies: int
    described: dict[str, Any]
    shards: dict[str, range]
    """Shard -> the numbers of its images."""


def _part(name: str, dataset: Encodable, copies: int, *, grid: tuple[int, int], size: int) -> _Part:
    shards = _shards(name, dataset, copies, grid=grid, size=size)
    return _Part(dataset, copies, dataset.described(), shards)


@final
class _Encoding:
    """Writes the shards that fall to this process, and reports the progress of all."""

    def __init__(
        self, parts: Mapping[str, _Part], writer: _ShardWriter, progress: Callable[[int, int], object]
    ) -> None:
        self._parts, self._writer, self._progress = parts, writer, progress
        self._sizes = {shard: len(span) * part.copies for part in parts.values() for shard, span in part.shards.items()}
        self._finished: set[str] = set()

    def write(self, shard: str) -> int:
        """Encode the images of a shard -> how many were not damaged."""
        part = self._parts[shard.partition("-")[0]]
        report = partial(self._report, shard)
        return self._writer.write(shard, part.dataset, part.shards[shard], copies=part.copies, report=report)

    def finished(self, shard: str) -> None:
        """Note that a shard is written, by this process or another one."""
        self._finished.add(shard)
        self._report(shard, 0)

    def _report(self, shard: str, done: int) -> None:
        """`done`: images of the shard that are encoded, if it is not finished."""
        self._progress(done + sum(self._sizes[each] for each in self._finished), sum(self._sizes.values()))


def _write_meta(
    work: SharedWork,
    parts: Mapping[str, _Part],
    prefix: Prefix | None,
    *,
    facts: Mapping[str, Any],
    grid: tuple[int, int],
) -> None:
    """Number the shards without gaps, and write `codes.json`."""
    rows = {name: _numbered(work, part.shards) for name, part in parts.items()}
    sets = {
        name: PartSettings(
            shards=rows[name],
            copies=part.copies,
            damaged=len(part.dataset) - sum(rows[name]),
            data=part.described,
        )
        for name, part in parts.items()
    }
    meta = CodesSettings(
        format=FORMAT,
        **{**facts, "labels": tuple(facts["labels"])},
        grid=grid,
        prefix=_saved(prefix, work.folder),
        training=sets["training"],
        validation=sets["validation"],
    )
    write_json(work.folder / "codes.json", as_mapping(meta))


def _shards(name: str, dataset: Encodable, copies: int, *, grid: tuple[int, int], size: int) -> dict[str, range]:
    """A part of the images -> its shards by name, and the numbers of their images."""
    rows = min(SHARD_IMAGES, max(1, SHARD_BYTES // (copies * math.prod(grid) * dtype_of(size).itemsize)))
    spans = [range(start, min(start + rows, len(dataset))) for start in range(0, len(dataset), rows)]
    return {f"{name}-{number:05d}": span for number, span in enumerate(spans)}


def _numbered(work: SharedWork, shards: Iterable[str]) -> tuple[int, ...]:
    """The shards of a part -> how many images each has, without those whose images are all damaged: the files after
    these are given their numbers."""
    rows: list[int] = []
    for shard in shards:
        if count := int(work.notes(shard)):
            stem = f"{shard.partition('-')[0]}-{len(rows):05d}"
            for path in work.folder.glob(f"{shard}.*npy") if stem != shard else ():
                path.rename(path.with_name(path.name.replace(shard, stem)))
            rows.append(count)
    return tuple(rows)


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


def _check_same_settings(out: Path, wanted: Mapping[str, Any]) -> None:
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

    def write(
        self, shard: str, dataset: Encodable, span: range, *, copies: int, report: Callable[[int], object]
    ) -> int:
        """The images of a span that are not damaged, with `copies` of each -> the shard of this name, and how many they
        are; `report` is called with the number of images done."""
        encoder, prefix, batch = self._encoder, self._prefix, self._settings.batch
        at_once = max(1, batch // copies)
        starts = range(span.start, span.stop, at_once)
        keys = ([(i, 0) for i in range(start, min(start + at_once, span.stop))] for start in starts)
        read = stacks(_Copies(dataset, copies), keys, workers=self._settings.workers)
        codes: list[npt.NDArray[Any]] = []
        prefixes: list[npt.NDArray[Any]] = []
        labels: list[int] = []
        for start, fields in zip(starts, read, strict=True):
            if fields is not None:
                images, some, *conditions = fields  # (N, copies, C, H, W), (N,), (N, copies, ...) each
                codes.append(_encoded([images], encoder.encode, shape=self._grid, size=encoder.size, batch=batch))
                labels += some.tolist()
                if prefix is not None:
                    length, size = (prefix.condition.length,), prefix.condition.size
                    prefixes.append(_encoded(conditions, prefix.encode, shape=length, size=size, batch=batch))
            report((min(start + at_once, span.stop) - span.start) * copies)
        arrays = {"": codes, ".labels": [np.array(labels, dtype=np.int32)], ".prefix": prefixes}
        for kind, pieces in arrays.items():
            if labels and pieces:
                self._save(self._folder / f"{shard}{kind}.npy", np.concatenate(pieces))
        return len(labels)

    def _save(self, path: Path, array: npt.NDArray[Any]) -> None:
        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.save(file, array)

        write_atomically(path, write)


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
