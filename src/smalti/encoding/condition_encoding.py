"""What images are told, beside them: files that become codes by a tokenizer of their own, and what is said of their parts.

Letters: B batch, C channels, H W pixels, h w grid of codes, P prefix codes.
Source: arXiv 2012.09841, section 3.2: the condition has a VQGAN of its own, and its codes stand before those of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from smalti.conditions.base import Condition
from smalti.conditions.composite import Several
from smalti.conditions.spatial import Maps, MapsSettings
from smalti.core.errors import SmaltiError
from smalti.core.settings import parse
from smalti.data.damage import DamageRecord
from smalti.data.file_types import file_type_of
from smalti.data.loader import Crops
from smalti.data.paired import AlignedCrops, AnnotatedCrops, Paired, PairedCrops, beside
from smalti.data.sources import Source, open_source
from smalti.encoding.annotators import ANNOTATORS, digest
from smalti.encoding.code_writer import Prefix, code_grid
from smalti.model_loading import read_tokenizer
from smalti.scenes.scene_files import scene_labels
from smalti.tokenizer.vqgan import VQGAN

VALUES: dict[str, Literal["segmentation", "depth", "edges", "image"]] = {
    "color": "image",
    "labels": "segmentation",
    "depth": "depth",
    "edges": "edges",
}
"""The kind of files that a tokenizer is for -> what a value of its condition is."""


class ConditionSource(NamedTuple):
    """One thing that images are told: the name it is given by when images are laid, its tokenizer, and where it lies.

    Names in `ANNOTATORS` need no tokenizer, and their `options` are the settings of their condition. What has a tokenizer and no
    `data` is made of the images themselves: their edges, or a smaller copy, as the kind and the size say that the tokenizer was
    trained on.
    """

    key: str
    tokenizer: Path | None = None
    data: Path | None = None
    options: Mapping[str, Any] = MappingProxyType({})


class Pairs(NamedTuple):
    """Both parts of the data with what lies beside the images, and how that becomes codes."""

    training: Paired
    validation: Paired
    prefix: Prefix


class _Part(NamedTuple):
    """One thing that images are told."""

    condition: Condition
    fingerprint: str
    training: PairedCrops
    validation: PairedCrops
    encode: Callable[[Tensor], Tensor]


def encoder(model: VQGAN, images: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A tokenizer, and what makes images of what examples hold -> the codes (B,h,w) of what B examples hold."""
    device = next(model.parameters()).device

    @torch.no_grad()
    def encode(held: Tensor) -> Tensor:
        return model.encode(images(held.to(device)).contiguous(memory_format=torch.channels_last)).codes

    return encode


def beside_images(
    told: Sequence[ConditionSource], parts: tuple[Crops, Crops], *, factor: int, device: torch.device
) -> Pairs:
    """The crops of training and held-out images, whose tokenizer has `factor` pixels a code -> the same with their condition.

    Raises `SmaltiError` for a tokenizer that is none, for images without a condition and for sizes that do not divide.
    """
    grid = code_grid(parts[0].size, factor)
    made = [_made(one, parts, grid=grid, factor=factor, device=device) for one in told]
    several = Several([part.condition for part in made]) if len(made) > 1 else None

    def encode(*held: Tensor) -> Tensor:
        codes = [part.encode(each).cpu() for part, each in zip(made, held, strict=True)]
        return several.joined(codes) if several else codes[0]

    fingerprint = made[0].fingerprint if len(made) == 1 else digest([part.fingerprint for part in made])
    prefix = Prefix(several or made[0].condition, fingerprint, encode)
    training, validation = parts
    return Pairs(
        Paired(training, [part.training for part in made]),
        Paired(validation, [part.validation for part in made]),
        prefix,
    )


def _made(
    told: ConditionSource, parts: tuple[Crops, Crops], *, grid: tuple[int, int], factor: int, device: torch.device
) -> _Part:
    if told.key not in ANNOTATORS:
        return _map(told, parts, grid=grid, device=device)
    if told.tokenizer is not None:
        raise SmaltiError(f"the condition {told.key} takes no tokenizer, {told.tokenizer} was given; leave it out")
    annotator = ANNOTATORS[told.key](told.data, told.options, parts[0], grid, factor)
    training, validation = (AnnotatedCrops(part, annotator.of(part)) for part in parts)
    return _Part(annotator.condition, annotator.fingerprint, training, validation, lambda codes: codes)


def _map(told: ConditionSource, parts: tuple[Crops, Crops], *, grid: tuple[int, int], device: torch.device) -> _Part:
    """Files through a tokenizer of their own."""
    if told.tokenizer is None:
        raise SmaltiError(
            f"the condition {told.key} takes a tokenizer of its own: --condition-tokenizer {told.key}=RUN; those that take none "
            f"are {', '.join(ANNOTATORS)}"
        )
    if beyond := {key: value for key, value in told.options.items() if key != "names"}:
        raise SmaltiError(f"the condition {told.key} has no settings but names, {beyond} were given; leave them out")
    model, about = read_tokenizer(told.tokenizer)
    model.to(device)
    channels = model.settings.autoencoder.channels
    kind = file_type_of(about, channels=channels)
    if told.data is None and kind.name not in ("color", "edges"):
        raise SmaltiError(
            f"{told.tokenizer} is for {kind.files}, which cannot be made of images; say where they lie: --condition-data"
        )
    source = open_source(told.data or parts[0].source.path, kind=kind)
    values = {"kind": VALUES[kind.name], "key": told.key, "grid": grid, **told.options}
    values["unlabeled"] = kind.described().get("unlabeled")
    if kind.name == "labels" and "names" not in values:
        values["names"] = scene_labels(source.path)
    condition = Maps(parse(MapsSettings, values, where="the condition"), model)
    size = grid[0] * model.factor, grid[1] * model.factor
    record = DamageRecord(source, [len(part) for part in parts])
    training, validation = (
        _aligned_crops(part, source, size=size, channels=channels, record=(record, number))
        for number, part in enumerate(parts)
    )
    encode = encoder(model, training.files.to_images)
    return _Part(condition, model.fingerprint(), training, validation, lambda held: encode(held).flatten(1))


def _aligned_crops(
    images: Crops, source: Source, *, size: tuple[int, int], channels: int, record: tuple[DamageRecord, int]
) -> AlignedCrops:
    chosen = beside(images.images, source)
    files = Crops(source, chosen, size=size, channels=channels, crop=images.crop, seed=images.seed, record=record)
    return AlignedCrops(images, files)
