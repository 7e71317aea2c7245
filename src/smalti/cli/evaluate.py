"""`smalti evaluate`: scores and their protocol as a table, a JSON file and a report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smalti.cli.console import CONSOLE, progress_bar, size_option
from smalti.cli.model_options import GridOption, grid_option

if TYPE_CHECKING:
    from smalti.data.sources import Source
    from smalti.evaluation.measures import Measured

app = typer.Typer(
    no_args_is_help=True,
    help="Evaluate a tokenizer, a prior, or one set of images against another.",
)

Data = Annotated[
    Path, typer.Argument(help="Images: a folder, a .txt list of paths, a .zip file or an .npz of samples.")
]
Protocol = Annotated[
    str | None, typer.Option("--protocol", help="A named protocol; `smalti evaluate protocols` lists them.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Override a setting of the protocol: a.b=value; may be repeated. The result records it."
    ),
]
Size = Annotated[
    str | None, typer.Option(help="Scale and crop to this size in pixels: 64, or height x width as 64x128.")
]
HeldOut = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=0.99,
        help="Evaluate the fraction of DATA that a training with this validation fraction holds out; 0 evaluates all. "
        "By default the fraction of the training, if MODEL is a run on DATA.",
    ),
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for result.json, report.html and images.csv.")]
Batch = Annotated[int, typer.Option(min=1, help="Images per batch; does not change the scores.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]


@app.command("tokenizer")
def tokenizer(
    model: Annotated[
        Path,
        typer.Argument(help="A tokenizer: model, run or pipeline folder, Hub id, or a checkpoint of another program."),
    ],
    data: Data,
    protocol: Protocol = None,
    overrides: Overrides = None,
    size: Size = None,
    held_out: HeldOut = None,
    out: Out = None,
    batch: Batch = 16,
    device: Device = "auto",
) -> None:
    """Measure the reconstruction quality and the codebook usage of a tokenizer."""
    from smalti.core.devices import pick_device
    from smalti.core.errors import SmaltiError
    from smalti.data.file_types import file_type_of
    from smalti.evaluation.measures import measure_tokenizer
    from smalti.evaluation.prepared_images import open_images
    from smalti.evaluation.protocols import TOKENIZER_PROTOCOLS, select_protocol
    from smalti.evaluation.results import check_folder
    from smalti.model_loading import read_models

    if out is not None:
        check_folder(out)
    torch_device, source = pick_device(device), open_images(data)
    changes = [*_sized(size, "images"), *_held_out(held_out, model, data, source), *(overrides or [])]
    chosen = select_protocol(TOKENIZER_PROTOCOLS, protocol, overrides=changes)
    models = read_models(model, prior=False)
    if models.tokenizer is None:
        raise SmaltiError(f"{model} holds no tokenizer")
    kind = file_type_of(models.about, channels=models.tokenizer.settings.autoencoder.channels)
    if kind.name != "color":
        raise SmaltiError(
            f"{model} is for {kind.files}, and these scores are for color images; use `smalti reconstruct`"
        )
    trained = models.about.get("size")
    if chosen.images.size is None and trained is not None and not any("images.size" in each for each in changes):
        chosen = select_protocol(TOKENIZER_PROTOCOLS, protocol, overrides=[f"images.size={list(trained)}", *changes])
    with progress_bar("measuring", "images") as progress:
        measured = measure_tokenizer(
            models.tokenizer, source, protocol=chosen, device=torch_device, progress=progress, batch=batch
        )
    seen = _seen_in_training(models.about, data, len(source.images), held_out=chosen.images.held_out)
    _finish(measured, out, model={"name": _name(model), "about": models.about}, notes=seen)


@app.command("prior")
def prior(
    model: Annotated[
        Path,
        typer.Argument(
            help="A pipeline (folder with tokenizer and prior) or a checkpoint of another program with both."
        ),
    ],
    data: Annotated[
        Path, typer.Argument(help="Code shards of `smalti encode` (their held-out codes are evaluated), or images.")
    ],
    protocol: Protocol = None,
    overrides: Overrides = None,
    held_out: HeldOut = None,
    out: Out = None,
    batch: Batch = 16,
    grid: GridOption = None,
    device: Device = "auto",
) -> None:
    """Measure the likelihood that a prior assigns to held-out images; protocols with samples also compare generated
    images."""
    from smalti.core.devices import pick_device
    from smalti.core.errors import SmaltiError
    from smalti.data.code_shards import CodeShards, open_codes
    from smalti.evaluation.measures import measure_prior
    from smalti.evaluation.prepared_images import open_images
    from smalti.evaluation.protocols import PRIOR_PROTOCOLS, select_protocol
    from smalti.evaluation.results import check_folder
    from smalti.model_loading import read_models
    from smalti.pipeline import Pipeline

    if out is not None:
        check_folder(out)
    given = open_codes(data) if (data / "codes.json").is_file() else open_images(data)
    fraction = [] if isinstance(given, CodeShards) else _held_out(held_out, model / "tokenizer", data, given)
    chosen = select_protocol(PRIOR_PROTOCOLS, protocol, overrides=[*fraction, *(overrides or [])])
    torch_device = pick_device(device)
    models = read_models(model, grid=grid_option(grid))
    if models.tokenizer is None or models.prior is None or models.condition is None:
        raise SmaltiError(f"{model} does not hold both a prior and its tokenizer; the likelihood of images needs both")
    pipeline = Pipeline(models.tokenizer, models.prior, models.condition)
    with progress_bar("measuring", "images") as progress:
        measured = measure_prior(pipeline, given, protocol=chosen, device=torch_device, progress=progress, batch=batch)
    count = 0 if isinstance(given, CodeShards) else len(given.images)
    seen = _seen_in_training(models.about, data, count, held_out=chosen.images.held_out)
    _finish(measured, out, model={"name": _name(model), "about": models.about}, notes=seen)


@app.command("folders")
def folders(
    samples: Annotated[
        Path, typer.Argument(help="The samples: a folder, a .txt list, a .zip file or an .npz of samples.")
    ],
    reference: Annotated[Path, typer.Argument(help="The reference: images as above, or an .npz file of statistics.")],
    protocol: Protocol = None,
    overrides: Overrides = None,
    size: Size = None,
    statistics: Annotated[
        Path | None,
        typer.Option(help="Cache the reference's statistics in this .npz file."),
    ] = None,
    out: Out = None,
    batch: Batch = 32,
    device: Device = "auto",
) -> None:
    """Compare two sets of images: FID, KID, precision and recall, and the other scores of the protocol."""
    from smalti.core.devices import pick_device
    from smalti.core.errors import SmaltiError
    from smalti.evaluation.feature_statistics import holds_statistics, read_statistics
    from smalti.evaluation.measures import measure_sets, with_available_network
    from smalti.evaluation.prepared_images import open_images
    from smalti.evaluation.protocols import SET_PROTOCOLS, select_protocol
    from smalti.evaluation.results import check_folder

    if out is not None:
        check_folder(out)
    changes = [*_sized(size, "samples"), *_sized(size, "reference"), *(overrides or [])]
    chosen = select_protocol(SET_PROTOCOLS, protocol, overrides=changes)
    known = holds_statistics(reference)
    note = ""
    if protocol is None and not known and not any(each.startswith("features.network=") for each in changes):
        chosen, note = with_available_network(chosen)
        if note:
            CONSOLE.print(note, soft_wrap=True)
    if known and statistics is not None:
        raise SmaltiError(f"{reference} holds statistics already; omit --statistics")
    given = read_statistics(reference) if known else open_images(reference)
    torch_device, source = pick_device(device), open_images(samples)
    with progress_bar("measuring", "images") as progress:
        measured = measure_sets(
            source, given, protocol=chosen, device=torch_device, progress=progress, batch=batch, statistics=statistics
        )
    _finish(measured, out, model={}, notes=(note,) if note else ())


@app.command("compare")
def compare_results(
    first: Annotated[Path, typer.Argument(help="A result.json, or the folder it is in.")],
    second: Annotated[Path, typer.Argument(help="Another.")],
) -> None:
    """Compare two results. If their protocols or data differ, an error names the difference."""
    from smalti.evaluation.results import compare_results as compared
    from smalti.evaluation.results import format_score, read_result

    for score, a, b in compared(read_result(first), read_result(second)):
        CONSOLE.print(f"{score}: {format_score(score, a)} | {format_score(score, b)}  ({b - a:+.4g})", soft_wrap=True)


@app.command("protocols")
def protocols() -> None:
    """List the protocols of each command."""
    from smalti.evaluation.protocols import PRIOR_PROTOCOLS, SET_PROTOCOLS, TOKENIZER_PROTOCOLS

    about = {
        "tokenizer": {name: each.about for name, each in TOKENIZER_PROTOCOLS.items()},
        "prior": {name: each.about for name, each in PRIOR_PROTOCOLS.items()},
        "folders": {name: each.about for name, each in SET_PROTOCOLS.items()},
    }
    for command, table in about.items():
        for name, words in table.items():
            CONSOLE.print(f"{command} --protocol {name}: {words}", soft_wrap=True)


def _name(model: Path) -> str:
    """The last two parts of a path: `photos/tokenizer`."""
    return "/".join(model.resolve().parts[-2:]) if model.exists() else str(model)


def _sized(size: str | None, part: str) -> list[str]:
    height_width = size_option(size)
    return [] if height_width is None else [f"{part}.size={list(height_width)}"]


def _held_out(given: float | None, model: Path, data: Path, source: Source) -> list[str]:
    """The overrides for the held-out fraction: as given, or that of the training if `model` is a run on these
    images."""
    import yaml

    from smalti.core.settings import parse_yaml
    from smalti.data.contents import is_data_of

    if given is not None:
        return [f"images.held_out={given}"]
    config = next(
        (path for path in (model / "config.yaml", model / "tokenizer" / "config.yaml") if path.is_file()), None
    )
    try:
        run = parse_yaml(config.read_text("utf-8")) if config else None
    except (yaml.YAMLError, UnicodeDecodeError):  # not a run of smalti
        run = None
    if not isinstance(run, dict) or "images" not in run or not is_data_of(run, data, source):
        return []
    fraction = run["images"]["validation"]
    CONSOLE.print(f"{model} was trained on {data}: evaluating the {100 * fraction:g}% held out there", soft_wrap=True)
    return [f"images.held_out={fraction}"]


def _seen_in_training(about: dict[str, Any], data: Path, images: int, *, held_out: float) -> tuple[str, ...]:
    """A note if the images appear to be the training images."""
    if held_out or about.get("data") != data.name or about.get("images") != images:
        return ()
    return (
        f"the model was trained on a folder {data.name} with the same number of images, and all of them were measured: "
        "these scores are not of held-out images; use --held-out with the validation fraction of the training",
    )


def _finish(measured: Measured, out: Path | None, *, model: dict[str, Any], notes: tuple[str, ...]) -> None:
    """Print the scores with their definitions and notes; write the result and its report."""
    from dataclasses import replace

    from rich.table import Table

    from smalti.evaluation.results import FEATURES, REPORT, as_plain, format_score, write_result
    from smalti.reports.evaluation_page import TEMPLATE, page_values
    from smalti.reports.report import write_report

    measured = replace(measured, notes=(*notes, *measured.notes))
    table = Table(box=None, pad_edge=False, show_header=False)
    networks: dict[str, None] = {}
    for name, value in measured.scores.items():
        shown = format_score(name, value, deviation=measured.deviations.get(name))
        words, features, network = measured.definitions.get(name, "").partition(FEATURES)
        table.add_row(name, shown, words)
        if features:
            networks.setdefault(network)
    CONSOLE.print(table)
    for network in networks:
        CONSOLE.print(f"features: {network}", soft_wrap=True)
    images = measured.data.get("images")
    CONSOLE.print(
        f"measured on {images if images is not None else '?'} images of {measured.data['name']}", soft_wrap=True
    )
    for note in measured.notes:
        CONSOLE.print(f"note: {note}", soft_wrap=True)
    if out is not None:
        command = " ".join(["smalti", *sys.argv[1:]])
        plain = as_plain(measured, command=command, model=model)
        write_result(out, plain, measured)
        write_report(out / REPORT, TEMPLATE, page_values(measured, plain))
        CONSOLE.print(f"open {out / REPORT}", soft_wrap=True)
