"""What the page does, without the page: lay images row by row, complete one, and show what the codes keep of one.

B batch, C channels, H W pixels, h w code grid, f = H/h.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.conditions.base import Condition
from smalti.conditions.spatial import Maps
from smalti.core.errors import SmaltiError
from smalti.generation.code_sampler import unknown
from smalti.images.io import DamagedImage, covered_middle, read_middle, read_size, to_tensor
from smalti.images.masks import read_mask
from smalti.pipeline import Pipeline
from smalti.web.code_images import as_text, from_text
from smalti.web.requests import Asked, Limits, Part, check_size, parts_of

SHOWING = 0.2  # share of the time that goes into images of what is laid so far


class Moment(NamedTuple):
    """What is laid so far: codes (B,h,w), -1 where none is yet; images (B,C,H,W); the share that is laid; seconds left.

    The last one has a `share` of 1, unless the laying was stopped.
    """

    codes: Tensor
    images: Tensor
    share: float
    left: float


class Reconstructed(NamedTuple):
    """An image (C,H,W), what its codes (h,w) keep of it (C,H,W), both in [-1,1], and how near that is, in decibels."""

    image: Tensor
    kept: Tensor
    codes: Tensor
    psnr: float


@final
class Studio:
    """A pipeline, what may be asked of it, and how much."""

    def __init__(self, pipeline: Pipeline, limits: Limits, *, name: str, names: tuple[str, ...] = ()) -> None:
        self.pipeline, self.limits, self.name = pipeline, limits, name
        self.parts = parts_of(pipeline.condition, names=names)
        self._conditions: dict[str, Condition] = {
            one.key: one for one in pipeline.condition.parts or (pipeline.condition,) if one.key
        }

    @property
    def channels(self) -> int:
        """C of the images."""
        return self.pipeline.tokenizer.settings.autoencoder.channels

    def told(self, given: Mapping[str, str | Path | None], size: tuple[int, int]) -> Any:
        """What a person gave by the parts' keys, as their ways say; None and "" for nothing -> the condition's value.

        `choose` and `write` take text, `paint` what the page's canvas holds or a file, `image` and `list` a file. Maps
        are scaled to the image's `size` (H,W) and cut. Raises `SmaltiError`.
        """
        said = {key: text for key, text in given.items() if text}
        self.pipeline.value(said)  # which refuses other keys
        values = {part.key: self._value(part, said[part.key], size) for part in self.parts if part.key in said}
        return self.pipeline.value(values)

    def _value(self, part: Part, text: str | Path, size: tuple[int, int]) -> Any:
        condition, as_file = self._conditions[part.key], part.way in ("paint", "image", "list")
        if isinstance(text, Path) and as_file:
            self.check_file(text) if part.way == "list" else self.check_image(text)
            value = condition.read(str(text))
        elif isinstance(text, str) and part.way == "paint":
            value = from_text(text, most=4 * self.limits.side**2, name=part.key)
        elif isinstance(text, str) and not as_file:
            value = condition.read(text)
        else:  # text is never the name of a file of this machine
            raise SmaltiError(f"the {part.key} is given as {'a file' if as_file else 'text'}, not as {text!r:.40}")
        if isinstance(condition, Maps):
            return condition.fit(value, grid=self.pipeline.grid(size))[0]
        return value

    def canvas(self, key: str, file: Path, size: tuple[int, int]) -> str:
        """A label map's file -> what the page's canvas holds of it, for an image of a size (H,W): the inverse of
        `from_text`."""
        labels = self.told({key: file}, size)
        labels = labels[key] if isinstance(labels, Mapping) else labels  # (H,W)
        condition = self._conditions[key]
        assert isinstance(condition, Maps), "a key of a part that is painted"
        if condition.settings.unlabeled is not None:  # the last of those on the canvas
            labels = labels.masked_fill(labels == condition.settings.unlabeled, condition.channels - 1)
        numbers = labels.numpy().astype(np.uint8)
        return as_text(np.dstack([numbers, numbers * 0, numbers * 0]), side=max(numbers.shape))

    def lay(self, request: Asked, value: Any, stop: threading.Event) -> Iterator[Moment]:
        """New images of a checked request, moment by moment; the last one is whole, unless `stop` was set."""
        known = unknown(request.count, self.pipeline.grid(request.size))
        yield from self._laid(known, request, value, stop)

    def complete(
        self,
        request: Asked,
        value: Any,
        image: Tensor,
        erased: Tensor,
        around: tuple[int, int, int, int],
        stop: threading.Event,
    ) -> Iterator[Moment]:
        """As `lay`, with what is kept of an image: (C,H,W), and True where a pixel is erased, (H,W) bool.

        `around` is how many pixels are added above, to the right, below and to the left. Raises `SmaltiError` where
        nothing is to be laid, and as `check_size`.
        """
        top, right, bottom, left = around
        f = self.pipeline.tokenizer.factor
        if any(side < 0 or side % f for side in around):
            raise SmaltiError(f"an image is extended by whole tiles of {f} pixels, not by {around}")
        height, width = image.shape[1:]
        check_size(self.pipeline, (height + top + bottom, width + left + right), self.limits, count=request.count)
        kept = self.pipeline.kept(image.unsqueeze(0), ~erased)
        known = F.pad(kept, (left // f, right // f, top // f, bottom // f), value=-1)
        if not (known < 0).any():
            raise SmaltiError(
                "nothing is erased and nothing added; paint over what is to be laid anew, or extend the image"
            )
        yield from self._laid(known.repeat(request.count, 1, 1), request, value, stop)

    def _laid(self, known: Tensor, request: Asked, value: Any, stop: threading.Event) -> Iterator[Moment]:
        pipeline, count = self.pipeline, len(known)
        begun, next_shown = time.monotonic(), 0.0
        missing = int((known < 0).sum())
        codes = known.cpu()
        for codes in pipeline.lay(
            [value] * count, known, sampler=request.sampler, seeds=pipeline.seeds(request.seed, count)
        ):
            now, open_places = time.monotonic(), int((codes < 0).sum())
            if stop.is_set():
                return
            if now < next_shown and open_places:
                continue
            share = 1 - open_places / missing
            images = pipeline.partial(codes) if open_places else pipeline.decode(codes)
            # Decoding a large image takes longer than laying a row of it.
            next_shown = time.monotonic() + (time.monotonic() - now) * (1 / SHOWING - 1)
            yield Moment(codes, images, share, (now - begun) * (1 / share - 1) if share else math.inf)

    def image(self, file: Path, size: tuple[int, int]) -> Tensor:
        """An image file of a visitor -> (C,H,W), scaled until it covers the size (H,W) and cut. Raises
        `DamagedImage`."""
        self.check_image(file)
        return to_tensor(read_middle(file, size, channels=self.channels, name=file.name))

    def fitting(self, file: Path) -> Tensor:
        """An image file of a visitor -> (C,H,W) of its own shape, scaled down to the longest side, cut to whole
        tiles."""
        f, most = self.pipeline.tokenizer.factor, self.limits.side // 2  # what is compared stands side by side
        height, width = self.check_image(file)
        scale = min(most / max(height, width), 1)
        size = (int(height * scale) // f * f, int(width * scale) // f * f)
        if not min(size):
            raise DamagedImage(
                file.name, f"is {height}x{width} pixels (height x width), and less than a tile of {f} of them is left"
            )
        return to_tensor(read_middle(file, size, channels=self.channels, name=file.name))

    def reconstruct(self, image: Tensor) -> Reconstructed:
        """An image (C,H,W) in [-1,1] -> what its codes keep of it."""
        codes = self.pipeline.encode(image.unsqueeze(0))
        kept = self.pipeline.decode(codes)[0]
        error = float(F.mse_loss(kept, image)) / 4  # of pixels in [0,1]
        return Reconstructed(image, kept, codes[0].cpu(), -10 * math.log10(max(error, 1e-10)))

    def erased(self, painted: str | Path, size: tuple[int, int]) -> Tensor:
        """What the canvas over an image holds, "" for nothing, or a mask file that is white there -> (H,W) bool, True
        where a pixel is erased."""
        if not painted:
            return torch.zeros(size, dtype=torch.bool)
        if isinstance(painted, Path):
            self.check_image(painted)
            levels = read_mask(painted, name=painted.name)
            mask = levels > np.iinfo(levels.dtype).max // 2
        else:
            mask = from_text(painted, most=4 * self.limits.side**2, name="mask").numpy().astype(bool)[:, :, None]
        return torch.from_numpy(covered_middle(mask.astype(np.uint8), size, filter="nearest")[:, :, 0].copy()) > 0

    def check_image(self, file: Path) -> tuple[int, int]:
        """An image file -> its (height, width) upright. Raises `SmaltiError` as `check_file`, for more than
        `limits.pixels`, which a small file may have too, and for what is no image."""
        self.check_file(file)
        height, width = read_size(file, name=file.name)
        if height * width > self.limits.pixels * 10**6:
            raise DamagedImage(
                file.name,
                f"has {height} x {width} pixels (height x width), and {self.limits.pixels} million are the most here; "
                "scale it down",
            )
        return height, width

    def check_file(self, file: Path) -> None:
        """Raise `SmaltiError` for a file that is missing or larger than `limits.upload`."""
        size = file.stat().st_size if file.is_file() else -1
        if size < 0:
            raise SmaltiError(f"the file {file.name} is gone; load it again")
        if size > self.limits.upload * 2**20:
            raise SmaltiError(
                f"{file.name} has {size / 2**20:.0f} MiB, and {self.limits.upload} is the most; scale it down"
            )
