"""From images to the batches that training reads.

A batch is a pure function of the data set, the seed and the position in the stream: not of the number of worker
processes, of ranks, of caching or of how often training was stopped and resumed. Every random choice depends on a
counter, `draw`, the number of the example in the stream.

B batch, C channels, H W pixels, N images.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, TypeVar, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from smalti.core.errors import SmaltiError
from smalti.core.evenly_spaced import evenly_spaced
from smalti.core.files import normalized
from smalti.data.crops import Crop, View, crop_to_view
from smalti.data.damage import DAMAGED, GOOD, DamageRecord
from smalti.data.file_types import COLOR
from smalti.data.image_entries import ImageEntry
from smalti.data.sources import Source, identity
from smalti.images.io import Array, DamagedImage

logger = logging.getLogger("smalti")


class Example(NamedTuple):
    """One image: `image` (C, H, W) float32 in [-1, 1], or, of a label map, (H, W) whole numbers; `label` () int64, the
    index in the source's labels, -1 for none.
    """

    image: Tensor
    label: Tensor


class Batch(NamedTuple):
    """Several images: `images` (B, C, H, W) float32 in [-1, 1], or (B, H, W) whole numbers; `labels` (B,) int64, -1 for
    none.
    """

    images: Tensor
    labels: Tensor


@final
class Crops:
    """Images of a source -> examples of one size: `crops[index, draw]` is image `index`, cut as draw number
    `draw` says.

    `size` is (H, W) in pixels. Images are scaled to cover it, enlarged at most twice: smaller ones, and those
    that are too thin (`images.is_excessive`), count as damaged. A damaged image is named once through the logger
    "smalti", and the next good one takes its place. When at least 3 images and more than a tenth of those looked at
    are damaged (decided when 100 or all have been looked at), or all are, reading raises `SmaltiError`. Parts of one
    source share a record of damage, and are checked together.

    Scaled images are kept in memory when all of them together are expected to take at most `cache_mib` MiB (0:
    never); worker processes share that allowance. What is read does not depend on it.

    `channels` are those of the tokenizer; `images` makes what it is given of the images of a batch. Raises
    `SmaltiError` where the kind of the source does not go with them.
    """

    def __init__(
        self,
        source: Source,
        images: Sequence[ImageEntry],
        *,
        size: tuple[int, int],
        channels: int,
        crop: Crop,
        seed: int,
        cache_mib: int = 1024,
        record: tuple[DamageRecord, int] | None = None,
    ) -> None:
        """`record`: that of all parts of the source, and which part this is; by default it is all there is."""
        source.file_type.check(channels)
        self.source, self._cache_mib = source, cache_mib
        self.images = tuple(images)
        self.size = size
        self._channels = channels
        self.crop = crop
        self.seed = seed
        self._kept_size = (math.ceil(size[0] * crop.margin), math.ceil(size[1] * crop.margin))
        self._label_index = {label: index for index, label in enumerate(source.labels)}
        # Until they are read their aspects are unknown; photos are often 4:3.
        expected = len(self.images) * source.file_type.width(channels) * math.prod(self._kept_size) * 4 / 3
        self._allowance = cache_mib * 2**20 if expected <= cache_mib * 2**20 else 0
        self._cached: dict[int, Array] = {}
        self._cached_bytes = 0
        self._latest: tuple[int, Array] | None = None  # several draws of one image in a row read it once
        self._full: dict[int, tuple[int, int]] = {}
        self._reasons: dict[int, str] = {}
        self._record, self._part = record or (DamageRecord(source, [len(self.images)]), 0)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int], /) -> Example:
        index, draw = key
        for step in range(len(self)):
            try:
                return self.example((index + step) % len(self), draw)
            except DamagedImage:
                continue
        raise self._too_many_damaged()

    def example(self, index: int, draw: int) -> Example:
        """The example of image `index` itself. Raises `DamagedImage` if `crops[index, draw]` would step to the
        next one.
        """
        kind = self.source.file_type
        array = crop_to_view(self._scaled(index), self.view(index, draw), filter=kind.filter)
        label = self.images[index].label
        label_index = self._label_index[label] if label is not None else -1
        return Example(kind.compact(array, self._channels), torch.tensor(label_index))

    def of(self, images: Sequence[ImageEntry], *, record: tuple[DamageRecord, int]) -> Crops:
        """The same crops of other images of the source."""
        return Crops(
            self.source,
            images,
            size=self.size,
            channels=self._channels,
            crop=self.crop,
            seed=self.seed,
            cache_mib=self._cache_mib,
            record=record,
        )

    def view(self, index: int, draw: int) -> View:
        """Which part of image `index` its example of this draw shows. Raises `DamagedImage`."""
        array = self._scaled(index)
        return self.crop.view((array.shape[0], array.shape[1]), self.size, seed=self.seed, draw=draw)

    def full_size(self, index: int) -> tuple[int, int]:
        """(H, W) of image `index` in its file. Raises `DamagedImage`."""
        if index not in self._full:
            self._scaled(index)
        return self._full[index]

    def to_images(self, compact: Tensor) -> Tensor:
        """The images of examples or of a batch, on any device -> (C, H, W) or (B, C, H, W) float32 for the
        tokenizer."""
        return self.source.file_type.to_images(compact, self._channels)

    def batch_of(self, *stacked: Tensor) -> Batch:
        """The fields of examples, stacked -> a batch."""
        return Batch(*stacked)

    @property
    def damaged(self) -> Mapping[str, str]:
        """The keys of the images found damaged so far -> the reason, as the rest of a sentence that begins with
        the key.
        """
        for index in np.flatnonzero(self._record.states(self._part) == DAMAGED).tolist():
            if index not in self._reasons:  # a worker process found it, and only that it is damaged is shared
                with suppress(DamagedImage):
                    self._scaled(index)
        return {self.images[index].key: reason for index, reason in sorted(self._reasons.items())}

    def described(self) -> dict[str, Any]:
        """What decides the examples, as plain values: two data sets described alike read the same, if no file has
        changed.
        """
        names = "\0".join(normalized(image.portable_name) for image in self.images)
        keys = hashlib.sha256(names.encode("utf-8", "surrogateescape"))
        return {
            "source": str(self.source.path.absolute()),
            "images": len(self.images),
            "keys": keys.hexdigest()[:16],
            "files": identity(self.source, self.images),
            "size": list(self.size),
            "channels": self._channels,
            "seed": self.seed,
            **self.crop.described(),
            **(
                self.source.file_type.described() if self.source.file_type != COLOR else {}
            ),  # as before there were other kinds
        }

    def _scaled(self, index: int) -> Array:
        if index in self._cached:
            return self._cached[index]
        if self._latest is not None and self._latest[0] == index:
            return self._latest[1]
        if index in self._reasons:
            raise DamagedImage(self.images[index].key, self._reasons[index])
        try:
            array, self._full[index] = self.source.covering(
                self.images[index], self._kept_size, channels=self._channels, window=self.size
            )
        except DamagedImage as error:
            self._reasons[index] = error.reason
            self._note(index, DAMAGED)
            raise
        self._note(index, GOOD)
        self._latest = (index, array)
        self._keep(index, array)
        return array

    def _keep(self, index: int, array: Array) -> None:
        worker = get_worker_info()
        if self._cached_bytes + array.nbytes <= self._allowance // (worker.num_workers if worker else 1):
            self._cached[index] = array
            self._cached_bytes += array.nbytes

    def _note(self, index: int, state: int) -> None:
        """Record for all processes what was found of an image; name it if damaged; check the whole."""
        states = self._record.states(self._part)
        if states[index] in (state, DAMAGED):
            return
        states[index] = state
        if state == DAMAGED:
            key, reason, path = self.images[index].key, self._reasons[index], self.source.path
            logger.warning("damaged image left out: %s %s (in %s)", key, reason, path)
        if self._reasons and self._record.exceeds_limit:
            raise self._too_many_damaged()

    def _too_many_damaged(self) -> SmaltiError:
        damaged = [f"{key} {reason}" for key, reason in self.damaged.items()]
        count = self._record.damaged
        return SmaltiError(
            f"{count} of the {self._record.looked_at} images looked at in {self.source.path} are damaged: "
            f"{'; '.join(damaged[:3])}{'; ...' if count > min(len(damaged), 3) else ''}; fix or remove them"
        )


class Readable(Protocol):
    """Examples that may turn out to be damaged, as `Crops` and `smalti.data.paired.Paired`."""

    def __len__(self) -> int: ...

    def example(self, index: int, draw: int) -> tuple[Tensor, ...]:
        """Raises `DamagedImage`."""


def first_readable(dataset: Readable, order: Iterable[int] | None = None) -> int | None:
    """The number of the first example that is not damaged, in some order; None where all are."""
    for index in range(len(dataset)) if order is None else order:
        try:
            dataset.example(index, index)
        except DamagedImage:
            continue
        return index
    return None


B_co = TypeVar("B_co", covariant=True)
Fields = tuple[Tensor, ...]


class Examples(Protocol[B_co]):
    """What can be streamed: examples that are tuples of tensors, whose stacked fields make a batch."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: tuple[int, int], /) -> Fields:
        """(index, draw) -> one example; `draw` decides all that is random about it."""

    def batch_of(self, *stacked: Tensor) -> B_co:
        """Each field of the examples, stacked -> a batch."""


def batches(
    dataset: Examples[B_co], *, batch: int, seed: int, start: int, rank: int = 0, world: int = 1, workers: int = 0
) -> Iterator[B_co]:
    """A data set of N examples -> an endless stream of batches, in a new order every epoch.

    Example number n of the stream, counted over all ranks, is `dataset[order[n % N], n]` with the order of epoch n
    // N, which (seed, epoch) decide. The stream begins at number `start`. `batch` is the number of examples that
    all `world` ranks take at once; this `rank` gets every world-th of them, beginning at its own number. `workers`
    processes read ahead (0: none).

    Raises `SmaltiError` when the data set is empty, when `batch` cannot be shared out evenly, and for what the data
    set raises.
    """
    if len(dataset) == 0:
        raise SmaltiError("there are no examples to make batches of; give more data")
    if batch < 1 or batch % world:
        raise SmaltiError(
            f"a batch of {batch} cannot be shared out evenly to {world} devices; use a multiple of {world}"
        )
    keys = _endless_keys(len(dataset), batch=batch, seed=seed, start=start, rank=rank, world=world)
    return _batches(dataset, keys, workers)


def in_order(dataset: Examples[B_co], *, batch: int, workers: int = 0) -> Iterator[B_co]:
    """A data set of N examples -> batches of all of them, once, in order; the last batch may be smaller. Draw i
    goes with i.
    """
    keys = ([(n, n) for n in range(first, min(first + batch, len(dataset)))] for first in range(0, len(dataset), batch))
    return _batches(dataset, keys, workers)


def evenly_spaced_batch(dataset: Examples[B_co], count: int) -> B_co:
    """A data set of N examples -> one batch of `count` of them (N if there are fewer), evenly spaced. Example n is
    cropped by draw n."""
    chosen = evenly_spaced(len(dataset), count)
    return dataset.batch_of(*(torch.stack(field) for field in zip(*(dataset[n, n] for n in chosen), strict=True)))


def _batches(dataset: Examples[B_co], keys: Iterable[list[tuple[int, int]]], workers: int) -> Iterator[B_co]:
    for fields in stacks(dataset.__getitem__, keys, workers=workers):
        assert fields is not None, "damaged images are replaced, not left out"
        yield dataset.batch_of(*fields)


def stacks(
    get: Callable[[tuple[int, int]], Fields], keys: Iterable[list[tuple[int, int]]], *, workers: int
) -> Iterator[Fields | None]:
    """For each sequence of keys: `get` of each, stacked field by field, without those that raise `DamagedImage`.

    None where nothing is left. Other errors are raised here, in the process of the caller.
    """
    loader: DataLoader[Any] = DataLoader(
        _Gotten(get),
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=_stack,
        worker_init_fn=_leave_signals_to_the_main_process,
        generator=torch.Generator(),  # else the loader would take a number from the global generator
    )
    for fields in loader:
        if isinstance(fields, SmaltiError):
            raise fields
        yield fields


def _endless_keys(
    N: int, *, batch: int, seed: int, start: int, rank: int, world: int
) -> Iterator[list[tuple[int, int]]]:
    order, epoch = _order(N, seed, start // N), start // N
    for first in itertools.count(start, batch):
        keys = []
        for n in range(first + rank, first + batch, world):
            if n // N != epoch:
                epoch = n // N
                order = _order(N, seed, epoch)
            keys.append((int(order[n % N]), n))
        yield keys


def _order(N: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """A permutation of 0..N-1. RandomState, because numpy promises never to change what it draws."""
    words = np.frombuffer(hashlib.sha256(f"order {seed} {epoch}".encode()).digest(), dtype="<u4")
    return np.random.RandomState(words).permutation(N)


@final
class _Gotten(Dataset[Any]):
    """A function of keys as PyTorch's data set. Errors are returned: raised ones would reach the caller as a long
    traceback.
    """

    def __init__(self, get: Callable[[tuple[int, int]], Fields]) -> None:
        self._get = get

    def __getitem__(self, key: tuple[int, int]) -> Fields | SmaltiError:
        try:
            return self._get(key)
        except SmaltiError as error:
            return error


def _stack(items: Sequence[Fields | SmaltiError]) -> Fields | SmaltiError | None:
    good: list[Fields] = []
    for item in items:
        if isinstance(item, DamagedImage):
            continue
        if isinstance(item, SmaltiError):
            return item
        good.append(item)
    return tuple(torch.stack(field) for field in zip(*good, strict=True)) if good else None


def _leave_signals_to_the_main_process(worker: int) -> None:
    """On Ctrl-C the terminal, at a time limit Slurm signals every process; the main one needs its workers to end well.

    Ctrl-C is ignored, and of the requests to terminate only that of the main process is followed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere the sender of a signal cannot be known, and workers end when asked to
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_parent_asks, args=(os.getppid(),), daemon=True).start()


def _end_when_the_parent_asks(parent: int) -> None:
    while True:
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == parent:
            os._exit(0)
