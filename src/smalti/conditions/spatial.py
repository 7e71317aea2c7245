"""Images of another kind as a condition, encoded by their own tokenizer: segmentations, depth, edges, other images.

Notation: B batch, C channels, H W pixels, h w grid of codes, f = H/h, n labels, P prefix codes. Source: arXiv
2012.09841, section 3.2, "conditioned synthesis": the condition has its own VQGAN, and its codes precede those of
the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, final

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from smalti.conditions.base import Condition, Grid, ValueType, WindowPrefix, check_grid, code_crops
from smalti.conditions.map_files import read_edges, read_normalized_depth, read_segmentation
from smalti.conditions.previews import palette
from smalti.core.errors import SmaltiError
from smalti.core.settings import Positive, as_mapping, settings
from smalti.images.edge_maps import edges
from smalti.images.io import Array, read_image, to_array, to_tensor
from smalti.images.large_planes import strip_of
from smalti.images.resizing import MAX_COVERING_PIXELS, covered_middle, covering_size, is_excessive, resize
from smalti.tokenizer.tiled.any_size import MAX_UNTILED_PIXELS, tile_rows
from smalti.tokenizer.tiled.tiled_layers import encode_tiled
from smalti.tokenizer.vqgan import VQGAN

FOLDER = "condition"
"""The subfolder of a prior's folder for the tokenizer of its condition."""


@settings
class SpatialConditionSettings:
    """`kind`: the kind of map. `key`: the name of the option. `grid`: the window (h, w) of the prior, in codes.

    `unlabeled`: the number in segmentations that stands for no label, for which the tokenizer has its last channel;
    None for none. `names`: the names of the labels of segmentations, in order; empty if unknown.
    """

    name: Literal["spatial"] = "spatial"
    kind: Literal["segmentation", "depth", "edges", "image"]
    key: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    grid: tuple[Positive, Positive]
    unlabeled: Annotated[int, Field(ge=0, le=65535)] | None = None
    names: tuple[str, ...] = ()


@final
class SpatialCondition(Condition):
    """B maps (H,W) or (C,H,W) -> (B, h w): the codes from the map's own tokenizer.

    A map is a tensor or an array: a segmentation (H,W) of integers in [0,n), a depth (1,H,W) or an image (3,H,W) of
    floats in [-1,1]. Edges are (1,H,W), or an image (3,H,W) from which they are computed. A map has f times as many
    pixels as the generated image has codes, with f the factor of the map's tokenizer.
    """

    def __init__(self, settings: SpatialConditionSettings, tokenizer: VQGAN) -> None:
        kind, channels = _KINDS[settings.kind], tokenizer.settings.autoencoder.channels
        if kind.channels not in (0, channels):
            raise SmaltiError(
                f"the tokenizer of the condition {settings.key!r} is for {channels} channels, and a {settings.kind} "
                f"has {kind.channels}; take another tokenizer or another kind"
            )
        labels = channels - (settings.unlabeled is not None)
        if settings.names and (settings.kind != "segmentation" or len(settings.names) != labels):
            raise SmaltiError(
                f"{len(settings.names)} names were given for the condition {settings.key!r}, which has "
                f"{f'{labels} labels' if settings.kind == 'segmentation' else 'no labels'}; give as many, or none"
            )
        self.settings, self.tokenizer, self.networks = settings, tokenizer.eval().requires_grad_(False), (tokenizer,)
        self.key, self.size, self.smallest_grid = settings.key, tokenizer.size, settings.grid
        self.value_type: ValueType = "segmentation" if settings.kind == "segmentation" else "image"
        if settings.kind == "segmentation":
            self.names = settings.names or tuple(f"label {number}" for number in range(labels))
            self.unlabeled = settings.unlabeled
        self.length, self.maps = settings.grid[0] * settings.grid[1], (0,)

    @property
    def channels(self) -> int:
        """C of the tokenizer's images; n for segmentations."""
        return self.tokenizer.settings.autoencoder.channels

    def read(self, text: str) -> Tensor:
        """The path of an image file -> the map in it, at its own size. Raises `DamagedImage`."""
        return _KINDS[self.settings.kind].read(Path(text))

    def resize_to_grid(self, value: Any, *, grid: Grid | None) -> tuple[Any, Grid]:
        """A map of any size, and the grid (h,w) to fit, None for its own -> the map at the right size, and the
        grid.

        Without a grid the map is cropped to whole tiles; a map smaller than the window gets the smallest grid of
        its shape that covers the window. With a grid it is scaled to cover the image, as files are for training,
        and center-cropped. Edges are computed after scaling and before cropping, as in training. Raises
        `SmaltiError` for grids smaller than the window.
        """
        factor, image = self.tokenizer.factor, value if value.dim() == 3 else value.unsqueeze(0)  # (C,H,W)
        height, width = image.shape[1:]
        scale = max(
            1.0, *(min_side * factor / side for min_side, side in zip(self.settings.grid, (height, width), strict=True))
        )
        resizes = grid is not None or scale > 1
        if grid is None:  # rounding may have shortened a side that just fits
            grid = (int(height * scale / factor + 1e-6), int(width * scale / factor + 1e-6))
            if scale > 1 and grid[0] * grid[1] * factor**2 > MAX_COVERING_PIXELS:
                raise SmaltiError(
                    f"the {self.key} is {height}x{width} pixels (height x width), and the smallest image of its shape "
                    f"has {grid[0]}x{grid[1]} codes; crop it, or ask for a size"
                )
        check_grid(grid, window=self.settings.grid, key=self.key)
        rows, columns = grid[0] * factor, grid[1] * factor
        if resizes and is_excessive((height, width), (rows, columns)):
            image = _resized(
                image, (rows, columns), middle=True
            )  # edges at its border are found without what is beyond it
        elif resizes:
            image = _resized(image, covering_size((height, width), (rows, columns)))
        image = _KINDS[self.settings.kind].prepare(image)
        top, left = (image.shape[1] - rows) // 2, (image.shape[2] - columns) // 2
        resized = image[:, top : top + rows, left : left + columns]
        return (resized if value.dim() == 3 else resized[0]), grid

    def encode(self, values: Sequence[Any]) -> Tensor:
        return self.codes(values, grid=self.settings.grid).flatten(1)

    def encode_windows(self, values: Sequence[Any], *, grid: Grid) -> WindowPrefix:
        check_grid(grid, window=self.settings.grid, key=self.key)
        return code_crops(self.codes(values, grid=grid))

    @torch.no_grad()
    def codes(self, values: Sequence[Any], *, grid: Grid) -> Tensor:
        """B maps of images of `grid` (h,w) codes -> their own codes (B,h,w), each map encoded whole.

        A map of the image's shape in another size is scaled, labels with nearest-neighbor sampling. Raises
        `SmaltiError` for maps of other shapes or numbers of channels, and for unknown labels.
        """
        if not values:
            return torch.empty(0, *grid, dtype=torch.int64)
        resized = [self._at_grid_size(value, grid) for value in values]
        device = next(self.tokenizer.parameters()).device
        if grid[0] * grid[1] * self.tokenizer.factor**2 > MAX_UNTILED_PIXELS:
            codes = torch.cat([self._codes_tiled(value, device) for value in resized])
        else:
            maps = torch.stack([self._image(value) for value in resized])  # (B,C,H,W)
            codes = self.tokenizer.encode(maps.to(device)).codes.cpu()  # (B,h,w)
        assert codes.shape[1:] == grid, f"{tuple(codes.shape)} codes for a grid of {grid}"
        return codes

    def _codes_tiled(self, value: Tensor, device: torch.device) -> Tensor:
        """A large map that has its size -> its codes (1,h,w), in bounded memory: of labels only strips have
        channels."""
        prepared = _KINDS[self.settings.kind].prepare(value)
        height, width = prepared.shape[-2:]

        def read(first: int, last: int) -> Tensor:
            return self._image(prepared[..., first:last, :])[None].to(device)

        encoded = encode_tiled(self.tokenizer, read, height, rows=tile_rows(self.tokenizer, width))
        return encoded.codes.cpu()

    def _at_grid_size(self, value: Any, grid: Grid) -> Tensor:
        """One map -> the same at the size for the tokenizer."""
        if not isinstance(value, Tensor | np.ndarray):
            raise SmaltiError(f"{self.key} is a tensor or an array, not {value!r}")
        image, factor = torch.as_tensor(value), self.tokenizer.factor
        if image.dim() not in (2, 3) or image.is_floating_point():
            self._check(image)  # that of labels, with a channel each, waits until they have their size
        expected, size = (grid[0] * factor, grid[1] * factor), tuple(image.shape[-2:])
        if size[0] * expected[1] != size[1] * expected[0] or not image.numel():
            raise SmaltiError(
                f"the {self.key} is {size[0]} x {size[1]} pixels (height x width), and an image of {grid[0]} x "
                f"{grid[1]} codes takes one of the shape of {expected[0]} x {expected[1]}; crop it, or ask for another "
                "size"
            )
        return image if size == expected else self.resize_to_grid(image, grid=grid)[0]

    def _check(self, value: Tensor) -> None:
        """Raise `SmaltiError` for a map of any size that is not of floats, or not of the shape and range of its
        kind."""
        if self.settings.kind == "edges" and _is_photograph(value):
            _channels(value, 3, "photograph")
        else:
            _KINDS[self.settings.kind].image(value, self.channels, self.key)

    def _image(self, value: Tensor) -> Tensor:
        """A map of any size (H,W) or (C,H,W) -> its channels (C,H,W) float32, one per label."""
        kind = _KINDS[self.settings.kind]
        return kind.image(kind.prepare(self._labeled(value)), self.channels, self.key)

    def _labeled(self, value: Tensor) -> Tensor:
        """A map -> the same with the last label where it has none, as the tokenizer was trained."""
        if self.settings.unlabeled is None or value.is_floating_point():
            return value
        labels = value.long()
        return labels.masked_fill(labels == self.settings.unlabeled, self.channels - 1)

    def preview(self, codes: Tensor) -> Array:
        image: Array = self.to_image(codes.reshape(1, *self.settings.grid))[0]
        return image

    @torch.no_grad()
    def to_image(self, codes: Tensor) -> Array:
        """Codes (B,h,w) -> the decoded maps as images (B,H,W,3) uint8: labels in colors, depth in gray."""
        device = next(self.tokenizer.parameters()).device
        return _KINDS[self.settings.kind].to_image(self.tokenizer.decode_codes(codes.to(device)).cpu())

    def save(self, folder: Path) -> dict[str, Any]:
        self.tokenizer.save_pretrained(folder / FOLDER, about={"condition": self.key})
        return as_mapping(self.settings)


def one_hot_labels(labels: Tensor, *, count: int, key: str) -> Tensor:
    """Labels (H,W), integers in [0,count) -> (count,H,W) float32, 1 in the label's channel and 0 in the others.

    Raises `SmaltiError` for other shapes, for numbers that are not integers, and for unknown labels.
    """
    if labels.dim() != 2:
        raise SmaltiError(f"{key} has the shape (height, width), not {tuple(labels.shape)}; give one label a pixel")
    if labels.is_floating_point() or labels.is_complex():
        raise SmaltiError(f"{key} holds whole numbers, not {labels.dtype}; round it first")
    labels = labels.long()
    if labels.numel() and (labels.min() < 0 or labels.max() >= count):
        invalid = int(labels.min()) if labels.min() < 0 else int(labels.max())
        raise SmaltiError(
            f"the {key} holds the label {invalid}, and there are the labels 0 to {count - 1}; give what is unknown one "
            "of them"
        )
    return (labels == torch.arange(count, device=labels.device)[:, None, None]).float()


def colorize_labels(maps: Tensor, colorize: Tensor) -> Tensor:
    """Maps (B,n,H,W) and weights (3,n,1,1) -> colors (B,3,H,W), scaled to [-1,1] by the minimum and maximum of the
    batch.

    The original displays segmentations this way, with random weights from its checkpoints. If all colors are equal,
    all are -1 (the original divides by 0).
    """
    colors = F.conv2d(maps, colorize.to(maps))
    lowest, highest = colors.min(), colors.max()
    return 2 * (colors - lowest) / (highest - lowest).clamp(min=torch.finfo(colors.dtype).tiny) - 1


def _channels(value: Tensor, channels: int, key: str) -> Tensor:
    """A map (C,H,W) in [-1,1] -> itself, float32."""
    if value.dim() != 3 or value.shape[0] != channels:
        raise SmaltiError(f"{key} has the shape ({channels}, height, width), not {tuple(value.shape)}")
    if not value.is_floating_point():
        raise SmaltiError(f"{key} holds floats from -1 to 1, not {value.dtype}; scale it first")
    if value.numel() and not (value.min() >= -1 and value.max() <= 1):
        raise SmaltiError(
            f"{key} holds floats from -1 to 1, and this one is from {float(value.min()):g} to {float(value.max()):g}; "
            "scale it first"
        )
    return value.float()


def _resized(value: Tensor, size: Grid, *, middle: bool = False) -> Tensor:
    """A map (C,H,W), labels or floats in [-1,1] -> the same of another size, as files are scaled for training: labels
    to the nearest one, floats by Lanczos, which leaves 16 bits of them. `middle`: the middle of what covers the size,
    as `images.covered_middle`."""
    if value.shape[1:] == size:
        return value
    if not value.is_floating_point():
        if middle:
            cropped = covered_middle(value.cpu().numpy().transpose(1, 2, 0), size, filter="nearest")
            return torch.from_numpy(np.ascontiguousarray(cropped.transpose(2, 0, 1)))
        resized = resize(value.cpu().numpy().transpose(1, 2, 0), size, filter="nearest")
        return torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
    planes = [_levels(plane) for plane in value.cpu()]
    scaled = [covered_middle(plane, size) if middle else resize(plane, size, filter="lanczos") for plane in planes]
    return torch.cat([to_tensor(plane) for plane in scaled]).to(value.dtype)


def _levels(plane: Tensor) -> Array:
    """(H,W) in [-1,1] -> (H,W,1) uint16."""
    levels, strip_rows = np.empty((*plane.shape, 1), np.uint16), strip_of((plane.shape[0], plane.shape[1]))
    for first in range(0, len(plane), strip_rows):
        part = plane[first : first + strip_rows].double()
        levels[first : first + strip_rows, :, 0] = ((part.clamp(-1, 1) + 1) * 32767.5).round().numpy()
    return levels


def _is_photograph(value: Tensor) -> bool:
    """Whether it is one by its shape, of which edges are still to be made."""
    return value.dim() == 3 and value.shape[0] == 3


def _edges(value: Tensor) -> Tensor:
    """A photograph (3,H,W) in [-1,1] -> its edges (1,H,W), as the tokenizer was trained on; anything else -> itself."""
    if not _is_photograph(value):
        return value
    photograph = _channels(value, 3, "photograph")
    height, width = photograph.shape[1:]
    edge_map, strip_rows = torch.empty(1, height, width), strip_of((height, width))
    for first in range(0, height, strip_rows):
        last, above = min(first + strip_rows, height), max(first - 1, 0)  # a slope is that of the rows above and below
        strip = edges(to_array(photograph[:, above : last + 1]))
        edge_map[:, first:last] = to_tensor(strip[first - above : last - above])
    return edge_map


def _label_colors(decoded: Tensor) -> Array:
    """Scores (B,n,H,W) -> the colors of the most likely labels (B,H,W,3)."""
    colors: Array = palette(decoded.shape[1])[decoded.argmax(dim=1).numpy()]
    return colors


def _gray(decoded: Tensor) -> Array:
    return np.repeat(to_array(decoded), 3, axis=-1)


class _Kind(NamedTuple):
    """What is different between the kinds of maps; `channels` 0 is any number, `made` what becomes of a value that has
    its size."""

    channels: int
    image: Callable[[Tensor, int, str], Tensor]
    to_image: Callable[[Tensor], Array]
    read: Callable[[Path], Tensor]
    prepare: Callable[[Tensor], Tensor] = lambda value: value


_KINDS: dict[str, _Kind] = {
    "segmentation": _Kind(
        0, lambda value, count, key: one_hot_labels(value, count=count, key=key), _label_colors, read_segmentation
    ),
    "depth": _Kind(1, _channels, _gray, read_normalized_depth),
    "edges": _Kind(1, lambda value, count, key: _channels(value, count, f"map of {key}"), _gray, read_edges, _edges),
    "image": _Kind(3, _channels, to_array, lambda path: to_tensor(read_image(path, channels=3, name=str(path)))),
}
