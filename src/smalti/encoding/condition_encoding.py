"""The conditions of images: files of the same names that become codes by a tokenizer of their own, and annotations of
their parts.

Notation: B batch, C channels, H W pixels, h w grid of codes, P prefix codes. Source: arXiv 2012.09841, section 3.2: the
condition has a VQGAN of its own, and its codes stand before those of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from smalti.conditions.base import Condition
from smalti.conditions.composite import CompositeCondition
from smalti.conditions.spatial import SpatialCondition, SpatialConditionSettings
from smalti.core.errors import SmaltiError
from smalti.core.fingerprints import values_fingerprint
from smalti.core.settings import parse
from smalti.data.damage import DamageRecord
from smalti.data.file_types import file_type_of
from smalti.data.loader import Crops
from smalti.data.paired import AlignedCrops, AnnotatedCrops, PairedCrops, PairedExamples, paired_entries
from smalti.data.sources import Source, open_source
from smalti.encoding.annotators import ANNOTATORS
from smalti.encoding.code_writer import ImageEncoder, Prefix, code_grid
from smalti.model_loading import read_tokenizer
from smalti.scenes.scene_files import scene_labels
from smalti.tokenizer.vqgan import VQGAN

VALUES: dict[str, Literal["segmentation", "depth", "edges", "image"]] = {
    "color": "image",
    "labels": "segmentation",
    "depth": "depth",
    "edges": "edges",
}
"""The file type of a tokenizer -> the kind of its condition."""


class ConditionSource(NamedTuple):
    """A condition of the images of a data set: its name (that of its option in generation), its tokenizer and its data.

    Names in `ANNOTATORS` need no tokenizer, and their `options` are the settings of their condition. A condition with a
    tokenizer and without `data` is computed from the images themselves: their edges, or a smaller copy, depending on
    the file type and the size of images that the tokenizer was trained on.
    """

    key: str
    tokenizer: Path | None = None
    data: Path | None = None
    options: Mapping[str, Any] = MappingProxyType({})


class Pairs(NamedTuple):
    """Both splits of the data, each image paired with its conditions, and how conditions become codes."""

    training: PairedExamples
    validation: PairedExamples
    prefix: Prefix


class _Part(NamedTuple):
    """One condition of the images."""

    condition: Condition
    fingerprint: str
    training: PairedCrops
    validation: PairedCrops
    encode: Callable[[Tensor], Tensor]


def tokenizer_encoder(model: VQGAN, to_images: Callable[[Tensor], Tensor]) -> ImageEncoder:
    """A tokenizer, and a function from the values of examples to images (B,C,H,W) -> the encoder of such values."""
    return ImageEncoder(
        encode=partial(_tokenizer_codes, model, to_images),
        fingerprint=model.fingerprint(),
        size=model.size,
        factor=model.factor,
    )


@torch.no_grad()
def _tokenizer_codes(model: VQGAN, to_images: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """B values of examples -> codes (B,h,w)."""
    images = to_images(inputs.to(next(model.parameters()).device))  # (B,C,H,W)
    return model.encode(images.contiguous(memory_format=torch.channels_last)).codes


def paired_images(
    sources: Sequence[ConditionSource], parts: tuple[Crops, Crops], *, factor: int, device: torch.device
) -> Pairs:
    """The crops of training and held-out images, whose tokenizer has `factor` pixels per code -> the same
    with their condition.

    Raises `SmaltiError` for a path without a tokenizer, for images without a condition and for sizes that do not
    divide.
    """
    grid = code_grid(parts[0].size, factor)
    made = [_paired_condition(one, parts, grid=grid, factor=factor, device=device) for one in sources]
    several = CompositeCondition([part.condition for part in made]) if len(made) > 1 else None

    def encode(*inputs: Tensor) -> Tensor:
        codes = [part.encode(each).cpu() for part, each in zip(made, inputs, strict=True)]
        return several.join(codes) if several else codes[0]

    fingerprint = made[0].fingerprint if len(made) == 1 else values_fingerprint([part.fingerprint for part in made])
    prefix = Prefix(several or made[0].condition, fingerprint, encode)
    training, validation = parts
    return Pairs(
        PairedExamples(training, [part.training for part in made]),
        PairedExamples(validation, [part.validation for part in made]),
        prefix,
    )


def _paired_condition(
    wanted: ConditionSource, parts: tuple[Crops, Crops], *, grid: tuple[int, int], factor: int, device: torch.device
) -> _Part:
    if wanted.key not in ANNOTATORS:
        return _spatial_condition(wanted, parts, grid=grid, device=device)
    if wanted.tokenizer is not None:
        raise SmaltiError(f"the condition {wanted.key} takes no tokenizer, {wanted.tokenizer} was given; leave it out")
    annotator = ANNOTATORS[wanted.key](wanted.data, wanted.options, parts[0], grid, factor)
    training, validation = (AnnotatedCrops(part, annotator.of(part)) for part in parts)
    return _Part(annotator.condition, annotator.fingerprint, training, validation, lambda codes: codes)


def _spatial_condition(
    wanted: ConditionSource, parts: tuple[Crops, Crops], *, grid: tuple[int, int], device: torch.device
) -> _Part:
    """A condition of files that have a tokenizer of their own."""
    if wanted.tokenizer is None:
        raise SmaltiError(
            f"the condition {wanted.key} takes a tokenizer of its own: --condition-tokenizer {wanted.key}=RUN; "
            f"those that need none are {', '.join(ANNOTATORS)}"
        )
    if beyond := {key: value for key, value in wanted.options.items() if key != "names"}:
        raise SmaltiError(f"the condition {wanted.key} has no settings but names, {beyond} were given; leave them out")
    model, about = read_tokenizer(wanted.tokenizer)
    model.to(device)
    channels = model.settings.autoencoder.channels
    file_type = file_type_of(about, channels=channels)
    if wanted.data is None and file_type.name not in ("color", "edges"):
        raise SmaltiError(
            f"{wanted.tokenizer} is for {file_type.files}, which cannot be computed from images; "
            "give their location: --condition-data"
        )
    source = open_source(wanted.data or parts[0].source.path, file_type=file_type)
    values = {"kind": VALUES[file_type.name], "key": wanted.key, "grid": grid, **wanted.options}
    values["unlabeled"] = file_type.described().get("unlabeled")
    if file_type.name == "labels" and "names" not in values:
        values["names"] = scene_labels(source.path)
    condition = SpatialCondition(parse(SpatialConditionSettings, values, where="the condition"), model)
    size = grid[0] * model.factor, grid[1] * model.factor
    record = DamageRecord(source, [len(part) for part in parts])
    training, validation = (
        _aligned_crops(part, source, size=size, channels=channels, record=(record, number))
        for number, part in enumerate(parts)
    )
    encoder = tokenizer_encoder(model, training.files.to_images)
    return _Part(condition, encoder.fingerprint, training, validation, lambda inputs: encoder.encode(inputs).flatten(1))


def _aligned_crops(
    images: Crops, source: Source, *, size: tuple[int, int], channels: int, record: tuple[DamageRecord, int]
) -> AlignedCrops:
    chosen = paired_entries(images.images, source)
    crop, seed = images.crop, images.seed
    files = Crops(source, chosen, size=size, channels=channels, crop=crop, seed=seed, cache_mib=0, record=record)
    return AlignedCrops(images, files)
