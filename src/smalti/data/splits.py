"""Which images a training learns from, and which it is validated on."""

from __future__ import annotations

from smalti.core.errors import SmaltiError
from smalti.core.evenly_spaced import evenly_spaced
from smalti.data.config import ImageSettings
from smalti.data.crops import CenterCrop, Crop, RandomCrop
from smalti.data.damage import DamageRecord
from smalti.data.loader import Crops, Readable, first_readable
from smalti.data.sources import Source, held_out_order, split


def split_crops(
    source: Source, images: ImageSettings, *, channels: int, seed: int, max_held_out: int | None = None
) -> tuple[Crops, Crops]:
    """A source -> its training images (random crops and flips) and its held-out ones (center crops, at the least zoom).

    Both have the file type of the source. `max_held_out`: the maximum number of held-out images, evenly spread; all by
    default. If all held-out images are damaged, a training image is held out too. Raises `SmaltiError` for a single
    image, for a file type that does not fit the channels, and for too many damaged images.
    """
    training, validation = split(source.images, validation=images.validation)
    if not validation:
        raise SmaltiError(
            f"{source.path} holds a single image; training needs at least two, one of them to validate on"
        )
    if max_held_out is not None and max_held_out < len(validation):
        validation = tuple(validation[index] for index in evenly_spaced(len(validation), max_held_out))
    center = CenterCrop(zoom=images.zoom[0])
    crop: Crop = RandomCrop(zoom=images.zoom, flip=images.flip) if images.crop == "random" else center
    size, cache = images.size, images.cache_mib
    record = DamageRecord(source, [len(training), len(validation)])
    parts = (
        Crops(
            source, training, size=size, channels=channels, crop=crop, seed=seed, cache_mib=cache, record=(record, 0)
        ),
        Crops(
            source,
            validation,
            size=size,
            channels=channels,
            crop=center,
            seed=seed,
            cache_mib=cache,
            record=(record, 1),
        ),
    )
    return with_readable_held_out(parts, parts)


def with_readable_held_out(parts: tuple[Crops, Crops], examples: tuple[Readable, Readable]) -> tuple[Crops, Crops]:
    """Training and held-out images -> the same, if a held-out example can be read; otherwise the first training image
    whose example can be read is moved to the held-out ones.

    `examples`: the examples of both, such as the images with their conditions. A single training image is not moved.
    """
    training, held_out = examples
    if len(training) == 1 or first_readable(held_out) is not None:
        return parts
    index = first_readable(training, held_out_order(parts[0].images))
    return parts if index is None else move_to_held_out(parts, index)


def move_to_held_out(parts: tuple[Crops, Crops], index: int) -> tuple[Crops, Crops]:
    """Training and held-out images -> the same with the training image number `index` among the held-out ones."""
    training, held_out = (part.images for part in parts)
    fewer, more = (*training[:index], *training[index + 1 :]), (*held_out, training[index])
    record = DamageRecord(parts[0].source, [len(fewer), len(more)])
    return parts[0].of(fewer, record=(record, 0)), parts[1].of(more, record=(record, 1))
