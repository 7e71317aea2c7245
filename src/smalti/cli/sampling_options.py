"""Options that `smalti sample` and `smalti complete` share: count, conditions, size, sampler and device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from smalti.cli.console import by_name
from smalti.core.errors import SmaltiError

Out = Annotated[Path, typer.Option("--out", help="Folder for the images.")]
Count = Annotated[int, typer.Option("-n", "--count", min=1, help="How many images.")]
Label = Annotated[str | None, typer.Option(help="Class label; without it, generation is unconditional.")]
Text = Annotated[str | None, typer.Option(help="A description of the image, for a model conditioned on captions.")]
Segmentation = Annotated[str | None, typer.Option(help="A label map: an image file with one class index per pixel.")]
Depth = Annotated[str | None, typer.Option(help="A depth map: an image file.")]
Layout = Annotated[str | None, typer.Option(help="Objects and their boxes: a JSON file.")]
Conditions = Annotated[
    list[str] | None,
    typer.Option(
        "--condition", help="Any other condition, as NAME=VALUE; `smalti info` lists the names. May be repeated."
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the first image; each further image uses the next seed.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="Sampling temperature; 0 always takes the most likely code.")]
TopK = Annotated[int, typer.Option("--top-k", min=0, help="Sample from the k most likely codes; 0 samples from all.")]
TopP = Annotated[
    float,
    typer.Option("--top-p", min=0.0, max=1.0, help="Sample from the most likely codes whose probabilities sum to p."),
]
MinP = Annotated[
    float,
    typer.Option(
        "--min-p", min=0.0, max=1.0, help="Sample from codes at least this fraction as likely as the most likely one."
    ),
]
Guidance = Annotated[float, typer.Option(min=0.0, help="Classifier-free guidance scale; 1 applies none.")]
GuidanceSchedule = Annotated[
    str, typer.Option("--guidance-schedule", help="How guidance grows over an image: constant, linear or cosine.")
]
BestOf = Annotated[
    int | None,
    typer.Option(
        "--best-of",
        min=1,
        help="Generate this many candidates per image and keep the best; 1 by default, 8 with --classifier.",
    ),
]
Batch = Annotated[int, typer.Option(min=1, help="Images per batch; does not change the images.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Size = Annotated[
    str | None, typer.Option(help="Size in pixels: 64, or height x width as 64x256; the training size by default.")
]


def condition_texts(known: Sequence[str], *, other: Sequence[str], **options: str | None) -> dict[str, str]:
    """The condition options as typed -> their values by the model's condition keys. Raises `SmaltiError`
    for other keys."""
    given = {name: text for name, text in options.items() if text is not None}
    for name in given:
        if name not in known:
            takes = " and ".join(f"--{key}" if key in options else f"--condition {key}=..." for key in known)
            raise SmaltiError(f"this model takes {takes or 'no condition'}, not --{name}")
    return {**by_name(other, known, option="--condition"), **given}
