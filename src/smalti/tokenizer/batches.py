"""What callers give a tokenizer, in the forms that people have: tensors of floats or bytes, Pillow's images, and codes.

Notation: B batch, C channels, H W pixels, h w code grid, K size of the codebook.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.images.pixel_formats import as_floats, levels_of, storage, upright

Images: TypeAlias = Tensor | Image.Image | Sequence[Image.Image]
"""Images (B,C,H,W): floats in [-1,1], or uint8 from 0 to 255; or one of Pillow's images, or several of one size."""
Codes: TypeAlias = Tensor | npt.NDArray[Any]
"""Codes (B,h,w) of any type of whole numbers."""

_FAR = 10.0
"""A float beyond it is not a pixel in [-1,1], whatever was computed with it."""


def image_batch(images: Images, *, channels: int, dtype: torch.dtype) -> Tensor:
    """Images in any of the forms -> (B,C,H,W) of `dtype` in [-1,1], on their device.

    Bytes are mapped from 0 to 255 to [-1,1]. Pillow's images are converted as files are: turned upright, to as many
    channels.

    Raises `SmaltiError` for other types and numbers of dimensions, for none, for images of unlike sizes, and for floats
    that are NaN, infinite or far outside [-1,1].
    """
    if isinstance(images, Image.Image):
        images = [images]
    if isinstance(images, list | tuple) and images and all(isinstance(image, Image.Image) for image in images):
        return _from_pillow(images, channels).to(dtype)
    if not isinstance(images, Tensor):
        raise SmaltiError(
            f"images are a tensor (B, {channels}, H, W) or images of Pillow, not {type(images).__name__}; of an array "
            "(H, W, C) of uint8 smalti.to_tensor(array)[None] makes a batch"
        )
    if images.dim() != 4 or images.shape[1] != channels:
        raise SmaltiError(f"the tokenizer takes images of shape (B, {channels}, H, W), got {tuple(images.shape)}")
    if not len(images):
        raise SmaltiError(f"there is no image in a batch of shape {tuple(images.shape)}; give one or more")
    if images.dtype == torch.uint8 and channels in (1, 3, 4):
        return images.float().div_(127.5).sub_(1).to(dtype)
    if not images.is_floating_point():
        raise SmaltiError(
            "images are floats from -1 to 1, or bytes (uint8) from 0 to 255 of 1, 3 or 4 channels; these are "
            f"{images.dtype} of {channels} channels; convert them first"
        )
    _check_range(images)
    return images.to(dtype)


def _from_pillow(images: Sequence[Image.Image], channels: int) -> Tensor:
    if channels not in (1, 3, 4):
        raise SmaltiError(
            f"images of Pillow have 1, 3 or 4 channels, and the tokenizer takes {channels}; give a tensor (B, "
            f"{channels}, H, W)"
        )
    each = []
    for number, image in enumerate(images):
        try:
            stored = storage(image)  # before its pixels are read
            each.append(as_floats(levels_of(upright(image), channels=channels, bits=16, stored=stored)))
        except Exception as error:  # decoders answer damage with every kind of exception
            raise SmaltiError(f"image {number} of the batch cannot be read ({error})") from error
    sizes = {tuple(image.shape[1:]) for image in each}
    if len(sizes) > 1:
        raise SmaltiError(
            "the images of a batch have one size, and these have "
            f"{', '.join(f'{h}x{w}' for h, w in sorted(sizes)[:3])} pixels (height x width); encode them one by one, "
            "or scale them first"
        )
    return torch.stack(each)


def _check_range(images: Tensor) -> None:
    if torch.compiler.is_compiling() or not images.numel():
        return
    low, high = (float(bound) for bound in images.detach().aminmax())
    if not np.isfinite([low, high]).all():
        raise SmaltiError(
            "the images hold numbers that are NaN or infinite, and pixels are from -1 to 1; fix them first"
        )
    if max(-low, high) > _FAR:
        raise SmaltiError(
            f"images are floats from -1 to 1, and these are from {low:g} to {high:g}; give images / 127.5 - 1 where "
            "they are from 0 to 255, or bytes (uint8)"
        )


def code_batch(codes: Codes, *, size: int) -> Tensor:
    """Codes (B,h,w) of any type of whole numbers in [0,K) -> int64, on their device.

    Raises `SmaltiError` for other types and shapes, for none, and for codes outside the codebook.
    """
    given = torch.as_tensor(codes) if isinstance(codes, np.ndarray) else codes
    if not isinstance(given, Tensor) or given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        kind = given.dtype if isinstance(given, Tensor) else type(codes).__name__
        raise SmaltiError(
            f"codes are a tensor of whole numbers from 0 to {size - 1}, not {kind}; convert them by .long()"
        )
    if given.dim() != 3 or not given.numel():
        raise SmaltiError(
            f"codes have the shape (B, h, w), with one or more of each, and these {tuple(given.shape)}; "
            f"{'codes[None] makes a batch of one' if given.dim() == 2 else 'reshape them'}"
        )
    whole = given.long()
    if not torch.compiler.is_compiling() and (int(whole.min()) < 0 or int(whole.max()) >= size):
        worst = int(whole.min()) if int(whole.min()) < 0 else int(whole.max())
        raise SmaltiError(f"code {worst} is outside the codebook, whose codes are 0 to {size - 1}")
    return whole
