"""Images prepared for evaluation: read ahead by threads, resized and cropped; damaged ones are skipped and counted.

Every image has an index, its number among those taken, which does not depend on batches or on the order in which they
are read. Memory does not depend on the number of images, except for their names.

B batch, C channels, H W pixels, N images.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from smalti.core.capacity import available_cores
from smalti.core.errors import SmaltiError
from smalti.core.evenly_spaced import evenly_spaced
from smalti.data.image_entries import ImageEntry
from smalti.data.sources import Source, held_out_order, identity, open_source, split
from smalti.evaluation.protocols import Filter, ImageProtocol
from smalti.images.io import Array, DamagedImage
from smalti.images.resizing import PixelBox, center_crop, covered_middle, covering_size, is_excessive, middle_box

READERS = min(4, available_cores())
"""Threads that read ahead. Decoders let other threads run, and so does PyTorch."""
PORTION = 4  # images that a thread reads at once
_PENDING = 4  # batches' worth of images of unlike sizes that wait for others of their size ...
_PENDING_BYTES = 2**28  # ... or this much of them

FILTERS: dict[Filter, Image.Resampling] = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "halving": Image.Resampling.BICUBIC,
}


def scale_and_crop(array: Array, *, size: tuple[int, int], filter: Filter) -> Array:
    """(H',W',C) uint8 or uint16 -> (H,W,C) for the size (H,W): scaled to cover it, and the middle cut out.

    "halving" is the rule of ADM's data (Dhariwal and Nichol 2021, `center_crop_arr`): as long as the image is twice too
    large, each 2x2 pixels become their mean; then bicubic.
    """
    if filter == "lanczos":
        return covered_middle(array, size)
    if filter == "halving":
        while min(array.shape[0] / size[0], array.shape[1] / size[1]) >= 2:
            array = _resized(array, array.shape[0] // 2, array.shape[1] // 2, Image.Resampling.BOX)
    full = (array.shape[0], array.shape[1])
    if is_excessive(full, size):
        return _resized(array, *size, FILTERS[filter], box=middle_box(full, size))
    return center_crop(_resized(array, *covering_size(full, size), FILTERS[filter]), size)


def _resized(
    array: Array, height: int, width: int, resampling: Image.Resampling, *, box: PixelBox | None = None
) -> Array:
    """An image, or the `box` of it alone -> the same at another size."""
    if box is None and array.shape[:2] == (height, width):
        return array
    if array.dtype == np.uint8:
        shaped = array if array.shape[2] == 3 else array[:, :, 0]
        resized: Array = np.array(Image.fromarray(shaped).resize((width, height), resampling, box))
        return resized.reshape(height, width, -1)
    plane = Image.fromarray(array[:, :, 0].astype(np.float32)).resize((width, height), resampling, box)
    wide: Array = np.array(plane).round().clip(0, 65535).astype(np.uint16)
    return wide[:, :, None]


class ImageBatch(NamedTuple):
    """A batch of images of one size."""

    indices: Tensor
    """(B,) int64"""
    pixels: npt.NDArray[Any]
    """(B,H,W,C), uint8, or uint16 for files with 16 bits"""


@final
class PreparedImages:
    """The images that a protocol selects from a source, resized and cropped, with notes on what was read.

    Where all held-out ones are damaged, the next one is held out too, as in training.

    `channels` is 1 or 3. `tile`: images that keep their size are cut to whole multiples of it.

    Raises `SmaltiError` when the source has fewer images than the protocol counts.
    """

    def __init__(self, source: Source, protocol: ImageProtocol, *, channels: int, tile: int = 1) -> None:
        chosen = source.images
        if protocol.held_out:
            chosen = split(chosen, validation=protocol.held_out)[1]
            if not chosen:
                raise SmaltiError(f"{source.path} holds a single image, and none is held out; evaluate all of them")
            chosen = _with_readable(source, chosen, channels)
        if protocol.count is not None:
            if len(chosen) < protocol.count:
                raise SmaltiError(
                    f"the protocol takes {protocol.count:,} images and {source.path} has {len(chosen):,}; give that "
                    "many, choose another protocol, or set another count (which is another protocol)"
                )
            chosen = tuple(chosen[index] for index in evenly_spaced(len(chosen), protocol.count))
        self.source = source
        self.images: tuple[ImageEntry, ...] = chosen
        self.left_out: dict[str, str] = {}
        """The names of those that could not be read -> why, as the rest of a sentence."""
        self.sizes: set[tuple[int, int]] = set()
        """(H,W) of all that were measured: at most 1,000 of them."""
        self.enlarged = 0
        self.protocol, self._channels, self._tile = protocol, channels, tile

    def __len__(self) -> int:
        return len(self.images)

    @property
    def measured(self) -> int:
        """How many of them were read, once all have been."""
        return len(self) - len(self.left_out)

    def read(self, index: int) -> Array:
        """One prepared image (H,W,C). Raises `DamagedImage`."""
        return self._prepare(index)[0]

    def _prepare(self, index: int) -> tuple[Array, bool]:
        """An index -> the prepared image, and whether it was enlarged."""
        image, size = self.images[index], self.protocol.size
        array = self.source.read(image, self._channels)
        height, width = array.shape[:2]
        if size is not None:
            smaller = height < size[0] or width < size[1]
            return scale_and_crop(array, size=size, filter=self.protocol.filter), smaller
        whole = height // self._tile * self._tile, width // self._tile * self._tile
        if not all(whole):
            raise DamagedImage(
                image.key, f"is {height}x{width} pixels, smaller than the downsampling factor {self._tile}"
            )
        return center_crop(array, whole), False

    def batches(self, batch: int) -> Iterator[ImageBatch]:
        """All of them once, at most `batch` at a time, those of one size together; reading ahead is bounded.

        Raises `SmaltiError` when none can be read.
        """
        waiting: dict[tuple[Any, ...], list[tuple[int, Array]]] = {}
        for index, found in _read_ahead(self, range(len(self))):
            if isinstance(found, DamagedImage):
                self.left_out[found.name] = found.reason
                continue
            array, smaller = found
            self.enlarged += smaller
            if len(self.sizes) < 1000:
                self.sizes.add((array.shape[0], array.shape[1]))
            kind = (*array.shape, array.dtype)
            waiting.setdefault(kind, []).append((index, array))
            if len(waiting[kind]) == batch:
                yield _stacked(waiting.pop(kind))
            elif _too_many(waiting, batch):
                yield _stacked(waiting.pop(max(waiting, key=lambda kind: len(waiting[kind]))))
        for rest in waiting.values():
            yield _stacked(rest)
        if not self.measured:
            name, reason = next(iter(self.left_out.items()))
            raise SmaltiError(
                f"none of the {len(self)} images in {self.source.path} can be read; the first: {name} {reason}"
            )

    def notes(self) -> tuple[str, ...]:
        """Sentences about what was found."""
        found = []
        if self.left_out:
            listed = [f"{key} {reason}" for key, reason in list(self.left_out.items())[:3]]
            more = "; ..." if len(self.left_out) > 3 else ""
            was = "was" if len(self.left_out) == 1 else "were"
            found.append(
                f"{len(self.left_out)} of {len(self)} images {was} skipped as damaged: {'; '.join(listed)}{more}"
            )
        if len(self.sizes) > 1:
            ordered = sorted(self.sizes, key=lambda size: (math.prod(size), size))
            many = "1,000 or more" if len(ordered) >= 1000 else f"{len(ordered)}"
            (a, b), (c, d) = ordered[0], ordered[-1]
            found.append(
                f"the images have {many} different sizes, from {a}x{b} to {c}x{d} (height x width), and were measured "
                "as they are; set a size to resize them first"
            )
        if self.enlarged:
            was = "image was" if self.enlarged == 1 else "images were"
            found.append(f"{self.enlarged} {was} smaller than the size and enlarged")
        return tuple(found)

    def examples(self, count: int) -> Iterator[tuple[str, Array]]:
        """The names and pixels of at most `count` images, evenly spaced; those that cannot be read are left out."""
        for index in evenly_spaced(len(self), count):
            try:
                yield self.images[index].key, self.read(index)
            except DamagedImage:
                continue

    def described(self) -> dict[str, Any]:
        """The set as it is in a result: its name, identity, N, sizes, and what was left out."""
        sizes = sorted(self.sizes)
        return {
            "name": self.source.path.name,
            "identity": identity(self.source),
            "images": self.measured,
            "left_out": dict(list(self.left_out.items())[:20]),
            "sizes": [list(size) for size in (sizes if len(sizes) <= 4 else (sizes[0], sizes[-1]))],
        }


def _with_readable(source: Source, held_out: Sequence[ImageEntry], channels: int) -> tuple[ImageEntry, ...]:
    """Held-out images -> the same, and where none can be read the first other one that can, in the order of `split`."""

    def is_readable(image: ImageEntry) -> bool:
        try:
            source.read(image, channels)
        except DamagedImage:
            return False
        return True

    if any(map(is_readable, held_out)):
        return tuple(held_out)
    known = {image.key for image in held_out}
    others = (source.images[index] for index in held_out_order(source.images))
    more = next((image for image in others if image.key not in known and is_readable(image)), None)
    return tuple(held_out) if more is None else (*held_out, more)


def _too_many(waiting: dict[tuple[Any, ...], list[tuple[int, Array]]], batch: int) -> bool:
    count = sum(len(some) for some in waiting.values())
    return count >= _PENDING * batch or sum(some[0][1].nbytes * len(some) for some in waiting.values()) > _PENDING_BYTES


def _stacked(some: list[tuple[int, Array]]) -> ImageBatch:
    return ImageBatch(torch.tensor([index for index, _ in some]), np.stack([array for _, array in some]))


def _read_ahead(
    prepared: PreparedImages, indices: Iterable[int]
) -> Iterator[tuple[int, tuple[Array, bool] | DamagedImage]]:
    """Places -> each with its image, or with what is wrong with it, in order."""

    def read(some: list[int]) -> list[tuple[int, tuple[Array, bool] | DamagedImage]]:
        done: list[tuple[int, tuple[Array, bool] | DamagedImage]] = []
        for index in some:
            try:
                done.append((index, prepared._prepare(index)))
            except DamagedImage as error:
                done.append((index, error))
        return done

    waiting = iter(indices)
    ahead: deque[Future[list[tuple[int, tuple[Array, bool] | DamagedImage]]]] = deque()
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="smalti-read")
    try:
        while True:
            while len(ahead) < 2 * READERS and (some := list(islice(waiting, PORTION))):
                ahead.append(pool.submit(read, some))
            if not ahead:
                return
            yield from ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@final
class ArraySource(Source):
    """The images in `arr_0` of an `.npz` file, (N,H,W,3) uint8, as ADM's tools write samples; named by their numbers.

    If the file is not compressed (ADM's are not), the array is memory-mapped instead of read whole.
    Raises `SmaltiError` for a file without such an array.
    """

    def __init__(self, path: Path) -> None:
        self._array = _mapped(path)
        array = self._array
        if array.ndim != 4 or array.shape[3] != 3 or array.dtype != np.uint8 or not len(array):
            raise SmaltiError(
                f"{path}: arr_0 is {array.dtype} of shape {array.shape}; samples are uint8 of shape (N, H, W, 3)"
            )
        digits = len(str(len(array) - 1))
        super().__init__(path, [ImageEntry(f"{number:0{digits}d}", None) for number in range(len(array))])

    def stream(self, image: ImageEntry) -> BinaryIO:
        pixels = np.ascontiguousarray(self._array[int(image.key)])
        return io.BytesIO(b"P6 %d %d 255\n" % (pixels.shape[1], pixels.shape[0]) + pixels.tobytes())  # a PPM file

    def length(self, image: ImageEntry) -> int:
        return int(self._array[0].nbytes)

    def files(self, images: Sequence[ImageEntry]) -> Sequence[Path]:
        return [self.path]

    def file_content(self, name: str) -> bytes | None:
        return None


def _mapped(path: Path) -> npt.NDArray[Any]:
    """`arr_0` of an `.npz` file, mapped where it is stored uncompressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo("arr_0.npy")
            with archive.open(member) as stream:
                version = np.lib.format.read_magic(stream)
                header = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, fortran, dtype = header(stream)
                begin = stream.tell()
            if member.compress_type == zipfile.ZIP_STORED and not fortran and not dtype.hasobject:
                with path.open("rb") as file:
                    file.seek(member.header_offset + 26)
                    lengths = np.frombuffer(file.read(4), "<u2")  # of the name and the extra field before the data
                offset = member.header_offset + 30 + int(lengths.sum()) + begin
                return np.memmap(path, dtype, mode="r", offset=offset, shape=shape)
        with np.load(path, allow_pickle=False) as arrays:
            array: npt.NDArray[Any] = arrays["arr_0"]
            return array
    except KeyError as error:
        raise SmaltiError(f"{path} holds no images: it has no array arr_0") from error
    except Exception as error:  # damage in its zip file, in the headers of its arrays, or in their numbers: of any kind
        raise SmaltiError(f"{path} cannot be read as an .npz file ({error}); download it again") from error


def open_images(path: Path) -> Source:
    """A folder, a `.txt` list, a `.zip` file, or an `.npz` file of samples -> its images. Raises `SmaltiError`."""
    return ArraySource(path) if path.suffix.lower() == ".npz" and path.is_file() else open_source(path)
