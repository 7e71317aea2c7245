"""`smalti complete`: inpaint or outpaint an image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from smalti.cli.console import CONSOLE, size_option
from smalti.cli.generation_output import (
    GenerationJob,
    GenerationOptions,
    KeptPixels,
    OutputFile,
    Parallel,
    Preview,
    Resume,
    Speculate,
    generate_and_save,
    likelihood_selection,
)
from smalti.cli.model_options import GridOption, grid_option
from smalti.cli.sampling_options import (
    Conditions,
    Count,
    Device,
    Guidance,
    GuidanceSchedule,
    Label,
    MinP,
    Out,
    Seed,
    Size,
    Temperature,
    Text,
    TopK,
    TopP,
    condition_texts,
)
from smalti.core.errors import SmaltiError

if TYPE_CHECKING:
    from torch import Tensor

    from smalti.pipeline import Pipeline


def complete(
    model: Annotated[Path, typer.Argument(help="A model as for `smalti sample`; `scenes` is bundled with smalti.")],
    image: Annotated[Path, typer.Argument(help="The image to complete.")],
    out: Out,
    mask: Annotated[
        Path | None, typer.Option(help="A mask of the same size: white pixels are kept, black pixels are generated.")
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="The part to keep: top-half, left-half, right-half, bottom-half or center.")
    ] = None,
    canvas: Annotated[
        str | None,
        typer.Option(
            help="Outpaint: the size in pixels, 128 or height x width, of an image with the given one at its center."
        ),
    ] = None,
    count: Count = 4,
    label: Label = None,
    text: Text = None,
    condition: Conditions = None,
    size: Size = None,
    temperature: Temperature = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    guidance: Guidance = 1.0,
    guidance_schedule: GuidanceSchedule = "constant",
    seed: Seed = 0,
    best_of: Annotated[
        int, typer.Option("--best-of", min=1, help="Generate this many candidates per image and keep the most likely.")
    ] = 1,
    blend: Annotated[
        bool,
        typer.Option(help="Keep the given pixels as they are; --no-blend takes all pixels from the decoder."),
    ] = True,
    fill: Annotated[
        bool,
        typer.Option(
            "--fill",
            help="Encode the image with the hole filled by its surroundings, so that kept codes do not depend on what "
            "is erased.",
        ),
    ] = False,
    resume: Resume = False,
    preview: Preview = 30.0,
    speculate: Speculate = 0,
    parallel: Parallel = 0,
    window: GridOption = None,
    device: Device = "auto",
) -> None:
    """Inpaint or outpaint an image: keep a part and generate the rest. The image is scaled and cropped to `--size`."""
    from smalti.conditions.base import condition_keys
    from smalti.core.devices import pick_device
    from smalti.core.settings import as_mapping
    from smalti.generation.code_sampler import make_sampler
    from smalti.generation.request import check_generation_memory
    from smalti.pipeline import Pipeline

    if (mask is not None and keep is not None) or not any((mask, keep, canvas)):
        raise typer.BadParameter("give either --mask or --keep, or --canvas to outpaint the whole image")
    pipeline = Pipeline.from_pretrained(model, grid=grid_option(window)).to(pick_device(device))
    image_size = size_option(size) or pipeline.default_size
    pipeline.grid(image_size)  # raises for a size that is not a multiple of f
    given = _read_given(image, pipeline, image_size, mask=mask, keep=keep)
    sampler = make_sampler(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        guidance=guidance,
        guidance_schedule=guidance_schedule,
    )
    texts = condition_texts(condition_keys(pipeline.condition), label=label, text=text, other=condition or [])
    value, grid = pipeline.read_condition(texts, size=size_option(canvas) or image_size)
    check_generation_memory(count, grid)
    codes = _known_codes(pipeline, given, grid, fill=fill)
    selection = likelihood_selection(best_of)
    settings: dict[str, Any] = {
        "model": model.resolve().name,
        "image": image.name,
        "keep": keep,
        "canvas": canvas,
        "label": label,
        **({"parallel": parallel} if parallel else {}),
        **({} if blend else {"blend": False}),
        **({"fill": True} if fill else {}),
        **({} if text is None else {"text": text}),
        **as_mapping(sampler),
        **selection.settings,
    }
    seeds = pipeline.seeds(seed, count)
    files = [
        OutputFile(out / f"{image.stem}-{image_seed:06d}.png", {"command": "complete", "seed": image_seed, **settings})
        for image_seed in seeds.tolist()
    ]
    inputs = [image, *([] if mask is None else [mask]), *(Path(argument) for argument in texts.values())]
    request = pipeline.request_for(
        [value] * count, codes.repeat(count, 1, 1), seeds=seeds, sampler=sampler, speculate=speculate, parallel=parallel
    )
    generate_and_save(
        GenerationJob(
            pipeline,
            request,
            files,
            GenerationOptions(selection, resume, preview, inputs),
            kept=_kept_pixels(pipeline, given, grid) if blend else None,
        )
    )
    context = "all that is kept" if pipeline.prior.knows_any_order else "what is kept above and to its left"
    CONSOLE.print(f"{count} completions of {image} in {out}; each new code is conditioned on {context}", soft_wrap=True)


class _GivenImage(NamedTuple):
    """The image to complete, scaled and cropped."""

    pixels: Tensor
    """(1,C,H,W) in [-1,1]."""
    known: Tensor
    """(H,W) bool, True where a pixel is kept."""


def _read_given(
    path: Path, pipeline: Pipeline, size: tuple[int, int], *, mask: Path | None, keep: str | None
) -> _GivenImage:
    """An image file, and a mask file or the name of a part to keep (neither keeps all) -> both at `size` (H,W)."""
    import torch

    from smalti.images.io import read_image, to_tensor
    from smalti.images.masks import kept_by_mask, kept_part
    from smalti.images.resizing import covered_middle

    full = read_image(path, channels=pipeline.tokenizer.settings.autoencoder.channels, name=str(path))  # (..,..,C)
    pixels = to_tensor(covered_middle(full, size)).unsqueeze(0)  # (1,C,H,W)
    if mask is not None:
        return _GivenImage(pixels, kept_by_mask(mask, image=(full.shape[0], full.shape[1]), size=size))
    if keep is not None:
        return _GivenImage(pixels, kept_part(keep, size))
    return _GivenImage(pixels, torch.ones(size, dtype=torch.bool))


def _known_codes(pipeline: Pipeline, given: _GivenImage, grid: tuple[int, int], *, fill: bool) -> Tensor:
    """The given image -> the codes (1,h,w) of the result's `grid`, -1 where they are to be generated.

    Raises `SmaltiError` if there is nothing to generate.
    """
    from smalti.generation.request import center_on_canvas

    codes = center_on_canvas(pipeline.known_codes(given.pixels, given.known, fill=fill), grid)
    if not (codes < 0).any():
        raise SmaltiError(
            "the whole image is kept, and there is nothing to generate; paint the pixels to generate black in the "
            "mask, or give a --canvas larger than the image"
        )
    return codes


def _kept_pixels(pipeline: Pipeline, given: _GivenImage, grid: tuple[int, int]) -> KeptPixels:
    """The given image in the center of a canvas of `grid` codes."""
    from smalti.images.seams import on_canvas

    return KeptPixels(*on_canvas(given.pixels, given.known, grid, factor=pipeline.tokenizer.factor))
