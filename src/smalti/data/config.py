"""Settings of image data: file type, size, crops, flips and held-out fraction."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from smalti.core.settings import Natural, Positive, settings


@settings
class ImageSettings:
    """What the files are, and what is cut out of each."""

    file_type: Literal["color", "labels", "depth", "edges"] = "color"
    """"color": images, of 1, 3 or 4 channels, as the model has. "labels": maps with one number per pixel, each of which
    has a channel of the model. "depth": maps of one channel, each spread from its nearest to its farthest. "edges": of
    images, one channel, found as they are read. A tokenizer that says of itself what it reads is given that when images
    are encoded."""
    unlabeled: Annotated[int, Field(ge=0, le=65535)] | None = None
    """For labels: the number in the files that stands for no label, say 255. The model's last channel is for it."""
    size: tuple[Positive, Positive] = (64, 64)
    """(H, W) in pixels."""
    crop: Literal["random", "center"] = "random"
    """Where a training image is cut. The held-out ones are cut in the middle."""
    zoom: tuple[Annotated[float, Field(ge=1)], Annotated[float, Field(ge=1)]] = (1.0, 1.25)
    """For random crops the shorter side is first resized to `size` times a factor drawn from this range, for crops in
    the middle by the least of it."""
    flip: bool = True
    """Mirror every second of the random crops."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Fraction of the images that is held out, chosen by a hash of the path."""
    validation_images: Positive = 256
    """How many of those are looked at each time."""
    cache_mib: Natural = 1024
    """In training, images are kept decoded in memory if they all fit into this many MiB. Encoding reads each once, and
    keeps none."""
