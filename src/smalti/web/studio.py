"""The functions of the web page without its user interface: generate, inpaint and outpaint, and reconstruct images.

B batch, C channels, H W pixels, h w code grid, f = H/h.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.conditions.base import Condition
from smalti.core.errors import SmaltiError
from smalti.evaluation.metrics import psnr
from smalti.generation.generation_loop import generation_states
from smalti.generation.partial_images import PartialImages
from smalti.generation.request import unknown_codes
from smalti.images.io import DamagedImage, read_middle, read_size, to_tensor
from smalti.images.masks import read_mask
from smalti.images.resizing import covered_middle
from smalti.pipeline import Pipeline
from smalti.web.code_images import as_text, from_text
from smalti.web.requests import ConditionInput, Limits, SamplingRequest, check_size, condition_inputs

PREVIEW_SHARE = 0.2  # fraction of the time spent on previews


class Reconstruction(NamedTuple):
    """An image (C,H,W) in [-1,1], its reconstruction (C,H,W), its codes (h,w), and their PSNR in dB."""

    image: Tensor
    reconstruction: Tensor
    codes: Tensor
    psnr: float


@final
class Studio:
    """A pipeline with its condition inputs and limits."""

    def __init__(self, pipeline: Pipeline, limits: Limits, *, name: str, names: tuple[str, ...] = ()) -> None:
        self.pipeline, self.limits, self.name = pipeline, limits, name
        self.parts = condition_inputs(pipeline.condition, names=names)
        self._conditions: dict[str, Condition] = {
            one.key: one for one in pipeline.condition.parts or (pipeline.condition,) if one.key
        }

    @property
    def channels(self) -> int:
        """C of the images."""
        return self.pipeline.tokenizer.settings.autoencoder.channels

    def condition_value(self, given: Mapping[str, str | Path | None], size: tuple[int, int]) -> Any:
        """Inputs by the keys of the parts, None and "" for none -> the condition's value.

        `choice` and `text` take text, `paint` the value of the mask editor or a file, `image` and `json` a file. Maps
        are scaled to the image's `size` (H,W) and cropped. Raises `SmaltiError`.
        """
        texts = {key: text for key, text in given.items() if text}
        self.pipeline.condition_value(texts)  # raises for other keys
        values = {part.key: self._value(part, texts[part.key], size) for part in self.parts if part.key in texts}
        return self.pipeline.condition_value(values)

    def _value(self, part: ConditionInput, text: str | Path, size: tuple[int, int]) -> Any:
        condition, as_file = self._conditions[part.key], part.kind in ("paint", "image", "json")
        if isinstance(text, Path) and as_file:
            self.check_file(text) if part.kind == "json" else self.check_image(text)
            value = condition.read(str(text))
        elif isinstance(text, str) and part.kind == "paint":
            value = from_text(text, max_length=4 * self.limits.side**2, name=part.key)
        elif isinstance(text, str) and not as_file:
            value = condition.read(text)
        else:  # a text is never read as a path on this machine
            raise SmaltiError(f"the {part.key} takes {'a file' if as_file else 'text'}, not {text!r:.40}")
        return condition.resize_to_grid(value, grid=self.pipeline.grid(size))[0]

    def canvas(self, key: str, file: Path, size: tuple[int, int]) -> str:
        """A label map file -> the mask editor's value for an image of a size (H,W), the inverse of `from_text`."""
        labels = self.condition_value({key: file}, size)
        labels = labels[key] if isinstance(labels, Mapping) else labels  # (H,W)
        condition = self._conditions[key]
        if condition.unlabeled is not None:  # the last label of the editor
            labels = labels.masked_fill(labels == condition.unlabeled, len(condition.names))
        numbers = labels.numpy().astype(np.uint8)
        return as_text(np.dstack([numbers, numbers * 0, numbers * 0]), side=max(numbers.shape))

    def generate(self, request: SamplingRequest, value: Any, stop: threading.Event) -> Iterator[PartialImages]:
        """The partial images of a parsed request; the last are complete, unless `stop` was set."""
        known = unknown_codes(request.count, self.pipeline.grid(request.size))
        yield from self._generate(known, request, value, stop)

    def complete(
        self,
        request: SamplingRequest,
        value: Any,
        image: Tensor,
        masked: Tensor,
        padding: tuple[int, int, int, int],
        stop: threading.Event,
    ) -> Iterator[PartialImages]:
        """As `generate`, for an image (C,H,W) and a mask (H,W) bool, True where a pixel is to be generated.

        `padding`: pixels added above, to the right, below and to the left. Raises `SmaltiError` if there is nothing to
        generate, and as `check_size`.
        """
        top, right, bottom, left = padding
        f = self.pipeline.tokenizer.factor
        if any(side < 0 or side % f for side in padding):
            raise SmaltiError(f"an image is extended by multiples of {f} pixels, not by {padding}")
        height, width = image.shape[1:]
        check_size(self.pipeline, (height + top + bottom, width + left + right), self.limits, count=request.count)
        kept = self.pipeline.known_codes(image.unsqueeze(0), ~masked)
        known = F.pad(kept, (left // f, right // f, top // f, bottom // f), value=-1)
        if not (known < 0).any():
            raise SmaltiError(
                "nothing is masked and nothing added; paint over the region to generate, or extend the image"
            )
        yield from self._generate(known.repeat(request.count, 1, 1), request, value, stop)

    def _generate(
        self, known: Tensor, request: SamplingRequest, value: Any, stop: threading.Event
    ) -> Iterator[PartialImages]:
        seeds = self.pipeline.seeds(request.seed, len(known))
        codes_request = self.pipeline.request_for([value] * len(known), known, seeds=seeds, sampler=request.sampler)
        states = generation_states(self.pipeline.prior, codes_request)
        running = itertools.takewhile(lambda state: not stop.is_set(), states)
        yield from self.pipeline.partial_images(running, max_share=PREVIEW_SHARE)

    def image(self, file: Path, size: tuple[int, int]) -> Tensor:
        """An uploaded image file -> (C,H,W), scaled to cover the size (H,W) and cropped. Raises `DamagedImage`."""
        self.check_image(file)
        return to_tensor(read_middle(file, size, channels=self.channels, name=file.name))

    def read_photo(self, file: Path) -> Tensor:
        """An uploaded image file -> (C,H,W), scaled down to half of `limits.side` at most, cropped to multiples of f."""
        f, most = self.pipeline.tokenizer.factor, self.limits.side // 2  # images are compared side by side
        height, width = self.check_image(file)
        scale = min(most / max(height, width), 1)
        size = (int(height * scale) // f * f, int(width * scale) // f * f)
        if not min(size):
            raise DamagedImage(
                file.name,
                f"is {height}x{width} pixels (height x width), smaller than the downsampling factor {f} after scaling",
            )
        return to_tensor(read_middle(file, size, channels=self.channels, name=file.name))

    def reconstruct(self, image: Tensor) -> Reconstruction:
        """An image (C,H,W) in [-1,1] -> its reconstruction."""
        codes = self.pipeline.encode(image.unsqueeze(0))
        decoded = self.pipeline.decode(codes)
        return Reconstruction(image, decoded[0], codes[0].cpu(), float(psnr(decoded, image.unsqueeze(0))))

    def mask(self, painted: str | Path, size: tuple[int, int]) -> Tensor:
        """The mask editor's value, "" for none, or a mask file, white where masked -> (H,W) bool, True where masked."""
        if not painted:
            return torch.zeros(size, dtype=torch.bool)
        if isinstance(painted, Path):
            self.check_image(painted)
            levels = read_mask(painted, name=painted.name)
            mask = levels > np.iinfo(levels.dtype).max // 2
        else:
            mask = from_text(painted, max_length=4 * self.limits.side**2, name="mask").numpy().astype(bool)[:, :, None]
        return torch.from_numpy(covered_middle(mask.astype(np.uint8), size, filter="nearest")[:, :, 0].copy()) > 0

    def check_image(self, file: Path) -> tuple[int, int]:
        """An image file -> its (height, width) upright. Raises `SmaltiError` as `check_file`, for more than
        `limits.pixels` million pixels, and for files that are not images."""
        self.check_file(file)
        height, width = read_size(file, name=file.name)
        if height * width > self.limits.pixels * 10**6:
            raise DamagedImage(
                file.name,
                f"has {height} x {width} pixels (height x width), and the limit is {self.limits.pixels} million; scale it down",
            )
        return height, width

    def check_file(self, file: Path) -> None:
        """Raise `SmaltiError` for a file that is missing or larger than `limits.upload`."""
        size = file.stat().st_size if file.is_file() else -1
        if size < 0:
            raise SmaltiError(f"the file {file.name} no longer exists; upload it again")
        if size > self.limits.upload * 2**20:
            raise SmaltiError(
                f"{file.name} has {size / 2**20:.0f} MiB, and the limit is {self.limits.upload}; scale it down"
            )
