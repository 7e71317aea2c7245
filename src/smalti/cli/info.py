"""`smalti info`: describe a model, run, data set or image; and `smalti recipes`."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smalti.cli.console import CONSOLE
from smalti.cli.model_options import GridOption, announce_default, grid_option
from smalti.core.errors import SmaltiError
from smalti.hub.bundled_models import SCENES, model_path

if TYPE_CHECKING:
    from smalti.checkpoints.base import Imported
    from smalti.conditions.base import Condition
    from smalti.data.sources import Source


def info(
    path: Annotated[
        Path,
        typer.Argument(
            help="A model, run, pipeline, code shard or image folder, or an image; the bundled model by default.",
            show_default=False,
        ),
    ] = SCENES,
    grid: GridOption = None,
) -> None:
    """Describe a checkpoint, run, code shard folder, image folder or image."""
    announce_default(path)
    described = _described(model_path(path), grid=grid_option(grid))
    if grid is not None and "checkpoint" not in described:
        raise SmaltiError(f"{path} is not a checkpoint of another program; --grid is for those; omit it")
    from smalti.core.settings import flattened

    rows = [(key, _text(value)) for key, value in flattened(described)]
    width = max(len(key) for key, _ in rows) + 1
    for key, text in rows:
        CONSOLE.print(f"{key + ':':{width}} {text}", soft_wrap=True)


def _text(value: Any) -> str:
    """A plain value -> its text in a table: lists without brackets, `none` for None and for empty lists."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return (
            ", ".join(f"({_text(each)})" if isinstance(each, list | tuple | dict) else _text(each) for each in value)
            or "none"
        )
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_text(each)}" for key, each in value.items())
    return "none" if value is None else str(value)


def recipes() -> None:
    """List the recipes for `smalti train`."""
    from smalti.training.config import recipes as listed

    for name, about in listed().items():
        CONSOLE.print(f"{name}: {about}", soft_wrap=True)


def _described(path: Path, *, grid: tuple[int, int] | None = None) -> dict[str, Any]:
    from smalti.checkpoints.formats import find_foreign
    from smalti.core.files import read_json
    from smalti.data.sources import holds_many, is_pattern
    from smalti.generation.generation_checkpoint import SUFFIX
    from smalti.hub.pretrained import is_smalti_folder

    if is_pattern(path):
        return _images(path)
    if not path.exists():
        raise SmaltiError(f"there is nothing at {path}")
    if path.suffix == SUFFIX:
        return _generation_checkpoint(path)
    if (path / "codes.json").is_file():
        return _codes(path)
    if (path / "tokenizer").is_dir() and (path / "prior").is_dir():
        return {"pipeline": path, **_prefixed("tokenizer", path / "tokenizer"), **_prefixed("prior", path / "prior")}
    if (path / "config.yaml").is_file():
        return _run(path)
    if (path / "config.json").is_file() and is_smalti_folder(path):
        return _model(path, read_json(path / "config.json"))
    foreign = find_foreign(path, grid=grid)
    if foreign is not None:
        return _foreign(path, foreign)
    if not holds_many(path):
        return _image(path)
    if (path / "scenes.json").is_file():
        return {"scenes": path, **_images(path / "images")}
    return _images(path)


def _prefixed(name: str, path: Path) -> dict[str, Any]:
    return {f"{name} {key}": value for key, value in _described(path).items()}


def _image(path: Path) -> dict[str, Any]:
    from PIL import Image

    from smalti.images.io import read_image, read_settings
    from smalti.images.png_stream import read_head

    head = read_head(path)
    if (
        head and head.settings and head.size[0] * head.size[1] > (Image.MAX_IMAGE_PIXELS or 0)
    ):  # a PNG that smalti wrote, too large for Pillow
        return {"image": path, "size": f"{head.size[0]}x{head.size[1]} (height x width)", **head.settings}
    height, width, _ = read_image(path, channels=3, name=str(path)).shape
    made = read_settings(path) if path.suffix.lower() == ".png" else None
    return {"image": path, "size": f"{height}x{width} (height x width)", **(made or {"made by": "another program"})}


def _generation_checkpoint(path: Path) -> dict[str, Any]:
    from smalti.generation.generation_checkpoint import read_generation

    saved = read_generation(path)
    count, rows, columns = saved.codes.shape
    generated = int((saved.codes >= 0).sum())
    return {
        "generation": f"{path}, stopped; run the same command with --resume to continue",
        "generated": f"{generated:,} of {saved.codes.numel():,} codes, {count} x {rows} x {columns} (images x rows x "
        "columns)",
        **saved.settings,
    }


def _codes(path: Path) -> dict[str, Any]:
    from smalti.conditions.condition_registry import build_condition
    from smalti.data.code_shards import entropy, open_codes

    shards = open_codes(path)
    meta = shards.meta
    return {
        "codes": path,
        "training images": f"{len(shards.training)} x {meta.training.copies} copies, {meta.training.damaged} left "
        "out as damaged",
        "validation images": f"{len(shards.validation)}, {meta.validation.damaged} skipped as damaged",
        "grid": f"{meta.grid[0]}x{meta.grid[1]} codes of {meta.factor}x{meta.factor} pixels",
        "codebook": meta.size,
        "entropy": f"{entropy(shards.training, meta.size):.3f} nats per code",
        "labels": ", ".join(meta.labels) or "none",
        "condition": "none"
        if meta.prefix is None
        else _condition_summary(build_condition(meta.prefix.condition, path)),
        "tokenizer": meta.fingerprint,
    }


def _run(path: Path) -> dict[str, Any]:
    from smalti.core.files import read_json
    from smalti.core.settings import read_yaml
    from smalti.training.run_folder import read_metrics

    config = read_yaml(path / "config.yaml")
    if not isinstance(config, dict) or "smalti" not in config:
        raise SmaltiError(f"{path} holds the run of another program")
    metrics = read_metrics(path)
    run = config["run"]
    length = run["images"] if "images" in run else run["codes"]
    last: dict[str, Any] = {}
    for line in metrics:
        last[line["part"]] = {key: value for key, value in line.items() if key not in ("part", "time")}
    seen = max((line["seen"] for line in metrics), default=0)
    model = path / "model" / "config.json"
    return {
        "run": f"{path}, {config['stage']}, smalti {config['smalti']}",
        "data": config.get("data", config.get("codes")),
        "progress": f"{seen:,} of {length:,} {'codes' if config['stage'] == 'prior' else 'images'}",
        **{f"last {part}": ", ".join(f"{k} {v:.4g}" for k, v in values.items()) for part, values in last.items()},
        **(_model(path / "model", read_json(model)) if model.is_file() else {"model": "not written yet"}),
    }


def _model(path: Path, config: Any) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    from smalti.hub.pretrained import WEIGHTS, find_model

    if not isinstance(config, dict) or "smalti" not in config:
        raise SmaltiError(f"{path} holds a model of another program")
    saved = find_model(path, kind=str(config.get("kind")))
    weights = saved.folder / WEIGHTS
    if not weights.is_file():
        raise SmaltiError(f"{path} has no {WEIGHTS}")
    try:
        with safe_open(weights, "pt") as file:
            slices = (file.get_slice(name).get_shape() for name in file.keys())  # noqa: SIM118, not a dict
            count = sum(math.prod(shape) for shape in slices)
    except SafetensorError as error:
        raise SmaltiError(f"{weights} is damaged or truncated ({error})") from error
    return {"model": f"{saved.kind}, {count:,} parameters", **saved.settings, **saved.about}


def _condition_summary(condition: Condition) -> str:
    """The keys of a condition, the number of its codes and of their values."""
    from smalti.conditions.base import condition_keys

    names = ", ".join(condition_keys(condition))
    return f"{names}, {condition.length} codes with {condition.size} values" if names else "none"


def _foreign(path: Path, models: Imported) -> dict[str, Any]:
    from smalti.core.settings import as_mapping

    parts: dict[str, Any] = {"checkpoint": path, "format": models.format}
    if models.tokenizer is not None:
        count = sum(parameter.numel() for parameter in models.tokenizer.parameters())
        tiles = f"f = {models.tokenizer.factor}, {models.tokenizer.size} codes"
        parts["tokenizer"] = f"{count:,} parameters, {tiles}"
        parts |= {f"tokenizer {key}": value for key, value in as_mapping(models.tokenizer.settings).items()}
    if models.prior is not None and models.condition is not None:
        count = sum(parameter.numel() for parameter in models.prior.parameters())
        rows, columns = models.prior.grid
        parts["prior"] = f"{count:,} parameters, a window of {rows}x{columns} codes"
        parts["condition"] = _condition_summary(models.condition)
    return {**parts, "about": models.about}


def _images(path: Path) -> dict[str, Any]:
    from smalti.core.errors import SmaltiError
    from smalti.data.file_types import Depth
    from smalti.data.sources import open_source

    try:
        source = open_source(path, file_type=Depth())  # accepts the most files of all types
    except SmaltiError:
        source = open_source(path)  # whose error message is about images
    labels = Counter(image.label for image in source.images)
    counted = ", ".join(f"{label} ({labels[label]})" for label in source.labels)
    return {"images": path, "count": len(source.images), "first": _first(source), "labels": counted or "none"}


def _first(source: Source) -> str:
    """A description of the first of many files; a gray image, a label map and a depth map look alike."""
    from smalti.images.io import DamagedImage
    from smalti.images.label_maps import read_any

    image = source.images[0]
    try:
        numbers = read_any(source.stream(image), name=image.key)
    except DamagedImage as error:
        return str(error)
    height, width, channels = (*numbers.shape, 1)[:3]
    what = f"{numbers.dtype.itemsize * 8}-bit {'floats' if numbers.dtype.kind == 'f' else 'numbers'}"
    return (
        f"{image.key}, {height}x{width} (height x width), {channels} x {what}, {numbers.min():g} to {numbers.max():g}"
    )
