"""`smalti reconstruct`: encode and decode images, and report how similar they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from smalti.cli.console import CONSOLE, ERRORS, progress_bar, size_option
from smalti.cli.sampling_options import Device, Out
from smalti.core.errors import SmaltiError

if TYPE_CHECKING:
    from torch import Tensor

    from smalti.data.file_types import FileType
    from smalti.data.image_entries import ImageEntry
    from smalti.data.sources import Source
    from smalti.evaluation.metrics import CodeUse
    from smalti.images.pixel_formats import Array
    from smalti.tokenizer.vqgan import VQGAN


def reconstruct(
    tokenizer: Annotated[
        Path,
        typer.Argument(
            help="A tokenizer: model folder, run folder, Hub id, or a checkpoint of another program; `scenes` is "
            "bundled."
        ),
    ],
    images: Annotated[Path, typer.Argument(help="An image, a folder, a .txt list of paths, or a .zip file.")],
    out: Out,
    size: Annotated[
        str | None,
        typer.Option(
            help="Scale and crop to this size; by default each image keeps its size, cropped to a multiple of the "
            "downsampling factor."
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Encode and decode images, and report PSNR."""
    from smalti.conditions.map_files import label_accuracy, label_colors
    from smalti.core.devices import pick_device
    from smalti.data.file_types import file_type_of
    from smalti.evaluation.metrics import CodeUse, psnr
    from smalti.images.io import save_png
    from smalti.model_loading import read_tokenizer

    model, about = read_tokenizer(tokenizer)
    model.to(pick_device(device))
    requested_size = size_option(size)
    file_type = file_type_of(about, channels=model.settings.autoencoder.channels)
    inputs = _open_inputs(images, out, file_type)
    labels = file_type.name == "labels"  # label maps are compared label by label
    code_use, similarities = CodeUse(model.size), list[float]()
    with progress_bar("reconstructing", "images") as progress:
        for done, path, batch in _readable_images(inputs, model, file_type, requested_size):
            reconstructions = _reconstruct(model, batch, code_use)
            similarity = float((label_accuracy if labels else psnr)(batch, reconstructions))
            similarities.append(similarity)
            settings = {
                "command": "reconstruct",
                "tokenizer": tokenizer.resolve().name,
                "right_labels" if labels else "psnr": round(similarity, 3),
            }
            save_png(path, (label_colors(reconstructions) if labels else reconstructions)[0], settings=settings)
            progress(done, len(inputs.entries))
    if not similarities:
        raise SmaltiError(f"none of the {len(inputs.entries)} images in {images} could be read")
    skipped = len(inputs.entries) - len(similarities)
    mean = sum(similarities) / len(similarities)
    CONSOLE.print(
        f"{len(similarities)} images{f', {skipped} skipped' if skipped else ''}: "
        f"{f'correct labels {mean:.1%}' if labels else f'PSNR {mean:.2f} dB'}, "
        f"{code_use.in_use:.1%} of {model.size} codes in use, perplexity {code_use.perplexity:.0f}; in {out}",
        soft_wrap=True,
    )


class _Inputs(NamedTuple):
    """The images to reconstruct, and where their reconstructions go."""

    path: Path
    source: Source | None
    """None where `path` is a single image."""
    entries: Sequence[ImageEntry]
    outputs: Sequence[Path]


def _open_inputs(images: Path, out: Path, file_type: FileType) -> _Inputs:
    """An image, or a folder, list or archive of images -> what to read and write.

    Raises `SmaltiError` where a result would replace an input or a file that smalti did not write.
    """
    from smalti.data.image_entries import ImageEntry
    from smalti.data.outputs import check_outputs, output_paths, without_results
    from smalti.data.sources import holds_many, open_source

    source: Source | None = None
    entries: Sequence[ImageEntry] = (ImageEntry(images.name, None),)
    files: Sequence[Path] = ()
    if holds_many(images) or not images.exists():
        source = open_source(images, file_type=file_type)
        entries = without_results(source, out, command="reconstruct")
        files = source.files(entries)
    outputs = output_paths(entries, out)
    check_outputs(outputs, out, inputs=(images, *files))
    return _Inputs(images, source, entries, outputs)


def _readable_images(
    inputs: _Inputs, model: VQGAN, file_type: FileType, size: tuple[int, int] | None
) -> Iterator[tuple[int, Path, Tensor]]:
    """Yield each image that can be read: its number from 1, the path of its reconstruction, and the image
    (1,C,H,W). Damaged images of a source are named and skipped; a single damaged one raises `DamagedImage`."""
    from smalti.images.io import DamagedImage

    channels = model.settings.autoencoder.channels
    for number, (entry, output) in enumerate(zip(inputs.entries, inputs.outputs, strict=True), 1):
        try:
            if inputs.source is None:
                array = file_type.read(inputs.path, channels=channels, name=str(inputs.path))
            else:
                array = inputs.source.read(entry, channels)
            cropped = _cropped(array, entry, size, file_type=file_type, factor=model.factor)
            compact = file_type.compact(cropped, channels)
        except DamagedImage as error:
            if inputs.source is None:
                raise
            ERRORS.print(f"skipped: {error}", soft_wrap=True)
            continue
        yield number, output, file_type.to_images(compact.unsqueeze(0), channels)


def _cropped(
    array: Array, entry: ImageEntry, size: tuple[int, int] | None, *, file_type: FileType, factor: int
) -> Array:
    """An image (H,W,C) -> scaled and cropped to `size`, or without one its center in multiples of `factor`.

    Raises `DamagedImage` for an image that is smaller than `factor`.
    """
    from smalti.images.io import DamagedImage
    from smalti.images.resizing import center_crop, covered_middle

    if size is not None:
        return covered_middle(array, size, filter=file_type.filter)
    height, width = array.shape[0] // factor * factor, array.shape[1] // factor * factor
    if not height or not width:
        raise DamagedImage(
            entry.key,
            f"is {array.shape[0]}x{array.shape[1]} pixels, smaller than the downsampling factor {factor}",
        )
    return center_crop(array, (height, width))


def _reconstruct(model: VQGAN, images: Tensor, code_use: CodeUse) -> Tensor:
    """Images (B,C,H,W) -> their reconstructions; the codes are added to `code_use`."""
    from smalti.tokenizer.tiled.any_size import decode_of_any_size, encode_of_any_size

    quantized = encode_of_any_size(model, images)
    code_use.add(quantized.codes)
    return decode_of_any_size(model, quantized.latents)
