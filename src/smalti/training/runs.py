"""Train a model from settings and paths, as the command line, `smalti fit`, the demo and the experiments do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from smalti.conditions.base import Condition, condition_keys
from smalti.conditions.condition_registry import build_condition
from smalti.conditions.labels import Labels, Unconditional
from smalti.core.devices import multiplies_bfloat16, pick_device
from smalti.core.errors import SmaltiError
from smalti.core.lost_processes import lost_processes_explained
from smalti.core.progress import SINGLE, ProgressReporter, WorkPlan, say
from smalti.core.settings import as_mapping
from smalti.core.version import __version__
from smalti.data.code_shards import CodeShards, open_codes
from smalti.data.contents import CONTENTS, contents
from smalti.data.file_types import FILE_TYPES, FileType, file_type_of
from smalti.data.loader import Crops
from smalti.data.sources import open_source
from smalti.data.splits import split_crops, with_readable_held_out
from smalti.encoding.annotators import ANNOTATORS
from smalti.encoding.code_writer import ImageSets, WritingSettings, write_codes
from smalti.encoding.condition_encoding import ConditionSource, paired_images, tokenizer_encoder
from smalti.losses.pixel import LABEL_LOSSES
from smalti.model_loading import load_tokenizer, read_tokenizer
from smalti.tokenizer.vqgan import VQGAN
from smalti.training.config import CopiesSettings, PriorTraining, RunSettings, TokenizerTraining, as_yaml
from smalti.training.initialization import PriorStart, TokenizerStart
from smalti.training.launcher import is_one_of_several_processes, launch, on_first_process
from smalti.training.loop import Stage, train_stage
from smalti.training.run_folder import RunFolder
from smalti.training.run_page import write_page
from smalti.training.stage1 import TokenizerStage
from smalti.training.stage2 import PriorStage, blocks

WITHOUT_CODES = ("auto", "labels", "unconditional")
"""The values of the setting `condition` for code shards without condition codes."""

SELF_CONTAINED = ("labels", "coordinates", "text")
"""Conditions that follow from the folder of the images, without a tokenizer or files of their own."""

_SLOW = (
    "warning: run.precision = bf16-mixed, but no bfloat16 instructions of this machine are known: a step may take "
    "twenty times as long; set run.precision=32-true"
)


def show_settings(settings: TokenizerTraining | PriorTraining, console: Console) -> None:
    """Print the settings as they were resolved, before they are used."""
    say(console, as_yaml(settings))


def train_tokenizer(
    data: Path,
    out: Path,
    *,
    settings: TokenizerTraining,
    console: Console,
    start: TokenizerStart | None = None,
    work: WorkPlan = SINGLE,
) -> None:
    """Images -> a run folder with a tokenizer in `out/model`. Resumes the run if there is one.

    `start`: the tokenizer that training begins with, to which `settings` belong; without one, training starts from
    scratch. `work`: the position of the run in a longer work, for the progress.

    Raises `SmaltiError` for data without images, for an objective that does not suit the file type, for a folder with
    other content, and on a signal to stop.
    """
    file_type = _file_type_of_training(settings)
    source = open_source(data, file_type=file_type)
    origin = {} if start is None else {"from": start.described()}
    config = {
        "smalti": __version__,
        "stage": "tokenizer",
        "data": str(data.resolve()),
        CONTENTS: contents(source),
        **origin,
        **as_mapping(settings),
    }
    fabric = launch(settings.run)
    folder = on_first_process(fabric, lambda: RunFolder(out, config))
    about = {
        "smalti": __version__,
        "data": data.name,
        "images": len(source.images),
        "size": list(settings.images.size),
        **file_type.described(),
        **origin,
    }
    weights = {} if start is None else start.weights
    stage = TokenizerStage(settings, source, fabric=fabric, about=about, weights=weights)
    _run(stage, folder, config, run=settings.run, fabric=fabric, console=console, work=work)


def _file_type_of_training(settings: TokenizerTraining) -> FileType:
    """The file type that a tokenizer is trained on. Raises `SmaltiError` if its channels or its objective do not
    suit it."""
    images, objective, channels = settings.images, settings.objective, settings.model.autoencoder.channels
    if (images.file_type == "labels") != (objective.pixel in LABEL_LOSSES):
        losses = f"{' or '.join(LABEL_LOSSES)}, objective.perceptual=none and objective.adversarial.weight=0"
        raise SmaltiError(
            f"objective.pixel = {objective.pixel} is {'not ' * (images.file_type == 'labels')}for label maps, and "
            f"images.file_type = {images.file_type}; for label maps set images.file_type=labels, "
            f"objective.pixel={losses}, for images images.file_type=color and objective.pixel=l1"
        )
    file_type = FILE_TYPES[images.file_type](images.unlabeled)
    file_type.check(channels)
    if channels == 4 and "perceptual" in objective.terms:
        raise SmaltiError(
            f"objective.perceptual = {objective.perceptual} is for images of 1 or 3 channels, and the model has 4; set "
            "objective.perceptual=none, or model.autoencoder.channels=3, which composites images over white"
        )
    return file_type


def train_prior(
    shards: CodeShards,
    tokenizer: Path,
    out: Path,
    *,
    settings: PriorTraining,
    console: Console,
    start: PriorStart | None = None,
    work: WorkPlan = SINGLE,
) -> None:
    """Code shards and their tokenizer -> a run folder with a prior in `out/model`. Resumes the run if there is one.

    `start`: the prior that training begins with, to which `settings` belong; without one, training starts from scratch.

    Raises `SmaltiError` for codes of another tokenizer, for conditions that the shards do not hold, for a folder with
    other content, and on a signal to stop.
    """
    model = load_tokenizer(tokenizer)
    shards.check_fingerprint(model.fingerprint())
    condition = condition_of(shards, settings.condition)
    if settings.condition_dropout and condition.size and settings.network.name == "gpt":
        raise SmaltiError(
            f"condition_dropout = {settings.condition_dropout:g}, but a GPT has no code for an empty condition; set "
            "condition_dropout=0, or network.name=transformer"
        )
    check_part_dropout(settings.part_dropout, condition)
    train_prior_on(shards, model, condition, out, settings=settings, console=console, start=start, work=work)


def check_part_dropout(part_dropout: Mapping[str, float], condition: Condition) -> None:
    """Raise `SmaltiError` for a key that is not one of several conditions."""
    keys = [part.key for part in condition.parts]
    for key in part_dropout:
        if not keys:
            raise SmaltiError(
                f"part_dropout.{key} is for priors with several conditions; set condition_dropout, or leave it out"
            )
        if key not in keys:
            raise SmaltiError(f"part_dropout.{key} is for another prior: the conditions here are {', '.join(keys)}")


def train_prior_on(
    shards: CodeShards,
    tokenizer: Any,
    condition: Condition,
    out: Path,
    *,
    settings: PriorTraining,
    console: Console,
    start: PriorStart | None = None,
    work: WorkPlan = SINGLE,
) -> None:
    """As `train_prior`, with the tokenizer of the codes (or an object with its methods) and a condition that the shards
    hold."""
    meta = shards.meta
    codes = {"fingerprint": meta.fingerprint, "size": meta.size, "grid": list(meta.grid), "labels": list(meta.labels)}
    if meta.prefix is not None:
        codes["condition_fingerprint"] = meta.prefix.fingerprint
    origin = {} if start is None else {"from": start.described()}
    config = {"smalti": __version__, "stage": "prior", "codes": codes, **origin, **as_mapping(settings)}
    fabric = launch(settings.run, blocks=blocks)
    folder = on_first_process(fabric, lambda: RunFolder(out, config))
    about = {"smalti": __version__, "images": len(shards.training), **origin}
    stage = PriorStage(settings, shards, condition, tokenizer, fabric=fabric, about=about, start=start)
    _run(stage, folder, config, run=settings.run, fabric=fabric, console=console, work=work)


def _run(
    stage: Stage,
    folder: RunFolder,
    config: Mapping[str, Any],
    *,
    run: RunSettings,
    fabric: Any,
    console: Console,
    work: WorkPlan,
) -> None:
    """Train to the end, and write the run's page."""
    tensorboard = folder.tensorboard if run.tensorboard else None
    progress = ProgressReporter(
        console, title=config["stage"], tensorboard=tensorboard, quiet=not fabric.is_global_zero, work=work
    )
    if fabric.is_global_zero and run.precision == "bf16-mixed" and not multiplies_bfloat16(fabric.device):
        say(console, _SLOW)
    with lost_processes_explained():
        train_stage(stage, folder, run=run, fabric=fabric, progress=progress)
    if fabric.is_global_zero:
        write_page(folder.path, config, unit=stage.unit)


def condition_of(shards: CodeShards, name: str) -> Condition:
    """The condition that a prior on these codes learns. Raises `SmaltiError` if another is requested than they hold."""
    labels = shards.meta.labels
    if name not in WITHOUT_CODES or (name == "auto" and shards.meta.prefix is not None):
        return _stored_condition(shards, name)
    if name == "labels" and not labels:
        raise SmaltiError(f"the images of {shards.path} have no labels (no sub-folders); set condition=unconditional")
    if name == "unconditional" or not labels:
        return Unconditional()
    if (shards.training.labels < 0).any():
        raise SmaltiError(
            f"some images of {shards.path} are in sub-folders and some are not, so that some have no label; "
            "move them, or set condition=unconditional"
        )
    return Labels(labels)


def _stored_condition(shards: CodeShards, name: str) -> Condition:
    """The condition whose codes the shards hold. Raises `SmaltiError` if it is not the one called `name`."""
    stored = shards.meta.prefix
    if stored is None:
        raise SmaltiError(
            f"condition = {name}, and the codes in {shards.path} were made without one; make them with: smalti encode "
            f"... --condition {' --condition '.join(_names(name))}, or set condition=auto"
        )
    condition = build_condition(stored.condition, shards.path)
    made = condition_keys(condition)
    wanted = {_KEYS.get(each, each) for each in _names(name)}
    if name != "auto" and set(made) != wanted:
        raise SmaltiError(
            f"condition = {name}, and the codes in {shards.path} were made with {' and '.join(made)}; set "
            f"condition={made[0] if len(made) == 1 else 'auto'}"
        )
    return condition


_KEYS = {"labels": "label"}
"""Name of a condition in settings -> its key, where they differ."""


def _names(condition: str) -> tuple[str, ...]:
    """The setting `condition`, a name or several with commas -> the names."""
    return tuple(dict.fromkeys(name.strip() for name in condition.split(",")))


def codes_of(
    data: Path, tokenizer: Path, out: Path, *, settings: PriorTraining, progress: Callable[[int, int], object]
) -> CodeShards:
    """Codes, or images that are encoded into `out` first -> codes. Raises as `train_prior` and `encode_images`, and
    where several processes that were started together would all encode."""
    if (data / "codes.json").is_file():
        return open_codes(data)
    names = () if settings.condition in WITHOUT_CODES else _names(settings.condition)
    others = [name for name in names if name not in SELF_CONTAINED]
    if others:
        options = ["--condition-data" if name in ANNOTATORS else "--condition-tokenizer" for name in others]
        sources = [f"{name}=..." if len(names) > 1 else "..." for name in others]
        words = [*(f"--condition {name}" for name in names), *map(" ".join, zip(options, sources, strict=True))]
        raise SmaltiError(
            f"condition = {settings.condition} has codes of its own, which are made together with those of the images: "
            f"first smalti encode {tokenizer} {data} {' '.join(words)} --out CODES; then train on CODES"
        )
    conditions = [ConditionSource(name) for name in names]
    if is_one_of_several_processes() and not (out / "codes.json").is_file():
        raise SmaltiError(
            f"{data} holds images, which one process is to encode for all: first smalti encode {tokenizer} {data} "
            f"--out {out}, then train on {out}"
        )
    encode_images(
        tokenizer, data, out, settings=settings.encode, seed=settings.run.seed, progress=progress, conditions=conditions
    )
    return open_codes(out)


def encode_images(
    tokenizer: Path,
    data: Path,
    out: Path,
    *,
    settings: CopiesSettings,
    seed: int,
    progress: Callable[[int, int], object],
    device: str = "auto",
    workers: int = 0,
    conditions: Sequence[ConditionSource] = (),
) -> bool:
    """Encode images into code shards in `out` -> True; False if `out` already holds them, made with the same settings.

    The file type is that of the tokenizer if smalti trained it, else that of `settings.images`. `conditions`: the
    conditions whose codes precede the codes of the images.

    Raises `SmaltiError` for data without images, for a path without a tokenizer, and for an `out` with other content.
    """
    model, about = read_tokenizer(tokenizer)
    model.to(pick_device(device))
    # All copies of an image are encoded in a row, so that none is read again: a cache would only grow.
    channels, crops = model.settings.autoencoder.channels, replace(settings.images, cache_mib=0)
    default_type = {} if crops.file_type == "color" else {"kind": crops.file_type, "unlabeled": crops.unlabeled}
    source = open_source(data, file_type=file_type_of({**default_type, **about}, channels=channels))
    parts = split_crops(source, crops, channels=channels, seed=seed)
    if conditions:
        images = _with_conditions(parts, conditions, tokenizer=model, labels=source.labels)
    else:
        images = ImageSets(training=parts[0], validation=parts[1], labels=source.labels)
    with lost_processes_explained():
        return write_codes(
            out,
            images,
            encoder=tokenizer_encoder(model, parts[0].to_images),
            settings=WritingSettings(copies=settings.copies, seed=seed, workers=workers),
            progress=progress,
        )


def _with_conditions(
    parts: tuple[Crops, Crops], conditions: Sequence[ConditionSource], *, tokenizer: VQGAN, labels: Sequence[str]
) -> ImageSets:
    """Training and held-out images of the tokenizer -> the same with their conditions, at least one held-out image with
    a condition that can be read."""
    device = next(tokenizer.parameters()).device
    pairs = paired_images(conditions, parts, factor=tokenizer.factor, device=device)
    readable = with_readable_held_out(parts, (pairs.training, pairs.validation))
    if readable is not parts:
        pairs = paired_images(conditions, readable, factor=tokenizer.factor, device=device)
    return ImageSets(training=pairs.training, validation=pairs.validation, labels=labels, prefix=pairs.prefix)
