"""A condition with places: what lies beside each picture, and becomes codes before its own.

Letters: B batch, C channels, H W pixels, h w grid of codes, P prefix codes.
Source: arXiv 2012.09841, section 3.2: the condition has a VQGAN of its own, and its codes stand before those of the picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from smalti.conditions.maps import Maps, MapsSettings
from smalti.data.encoding import Prefix
from smalti.data.kinds import kind_of
from smalti.data.loading import Crops
from smalti.data.paired import Paired, beside
from smalti.data.sources import Picture, Source, open_source
from smalti.errors import SmaltiError
from smalti.pipeline import load_tokenizer, read_models
from smalti.settings import parse

VALUES: dict[str, Literal["segmentation", "depth", "picture"]] = {
    "colour": "picture",
    "labels": "segmentation",
    "depth": "depth",
    "edges": "depth",
}
"""The kind of files that a tokenizer is for -> what a value of its condition is. Edges have one channel, as depths have."""


class Told(NamedTuple):
    """What pictures are told: the name it is given by when pictures are laid, its tokenizer, and the folder where it lies.

    Without a folder it is made of the pictures themselves: their edges, or a smaller copy, as the kind and the size say that the
    tokenizer was trained on.
    """

    key: str
    tokenizer: Path
    data: Path | None


class Beside(NamedTuple):
    """Both parts of the data with what lies beside the pictures, and how that becomes codes."""

    training: Paired
    validation: Paired
    prefix: Prefix


def beside_pictures(told: Told, parts: tuple[Crops, Crops], *, factor: int, device: torch.device) -> Beside:
    """The crops of training and held-out pictures, whose tokenizer has `factor` pixels a code -> the same with their condition.

    The condition has a code for each code of a picture. Raises `SmaltiError` for a tokenizer that is none, for pictures without a
    condition and for sizes that do not divide.
    """
    models = read_models(told.tokenizer)
    model = (models.tokenizer or load_tokenizer(told.tokenizer)).to(device)
    channels, (height, width) = model.settings.pyramid.channels, parts[0].size
    if height % factor or width % factor:
        raise SmaltiError(f"pictures of {height}x{width} pixels do not divide into codes of {factor}x{factor} pixels")
    kind = kind_of(models.about, channels=channels)
    source = parts[0].source if told.data is None else open_source(told.data, kind=kind)
    if told.data is None:
        if kind.name not in ("colour", "edges"):
            raise SmaltiError(
                f"{told.tokenizer} is for {kind.files}, which cannot be made of pictures; say where they lie: --condition-data"
            )
        source = open_source(source.path, kind=kind)
    values = {"kind": VALUES[kind.name], "key": told.key, "grid": (height // factor, width // factor)}
    condition = Maps(parse(MapsSettings, values, where="the condition"), model)
    size = height // factor * model.factor, width // factor * model.factor
    training, validation = (_paired(part, source, size=size, channels=channels) for part in parts)

    @torch.no_grad()
    def encode(held: Tensor) -> Tensor:
        images = training.beside.images(held.to(device)).contiguous(memory_format=torch.channels_last)
        return model.encode(images).codes.flatten(1)

    return Beside(training, validation, Prefix(condition, model.fingerprint(), encode))


def _paired(pictures: Crops, source: Source, *, size: tuple[int, int], channels: int) -> Paired:
    chosen: tuple[Picture, ...] = beside(pictures.pictures, source)
    cut = Crops(source, chosen, size=size, channels=channels, crop=pictures.crop, seed=pictures.seed)
    return Paired(pictures, cut)
