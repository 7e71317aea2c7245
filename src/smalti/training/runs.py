"""From settings and paths to a trained model: what the command line, the demo and the experiments all call."""

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
from smalti.data.loader import first_readable
from smalti.data.sources import held_out_order, open_source
from smalti.data.splits import holding_out, split_crops
from smalti.encoding.annotators import ANNOTATORS
from smalti.encoding.code_writer import ImageSets, WritingSettings, write_codes
from smalti.encoding.condition_encoding import ConditionSource, paired_images, tokenizer_encoder
from smalti.losses.pixel import LABEL_LOSSES
from smalti.model_loading import load_tokenizer, read_tokenizer
from smalti.training.config import CopiesSettings, PriorTraining, RunSettings, TokenizerTraining, as_yaml
from smalti.training.initialization import Start
from smalti.training.launcher import first_alone, is_started_with_others, launch
from smalti.training.loop import Stage, fit
from smalti.training.run_folder import RunFolder
from smalti.training.run_page import write_page
from smalti.training.stage1 import TokenizerStage
from smalti.training.stage2 import PriorStage, blocks

OWN = ("auto", "labels", "unconditional")
"""What can be said about a prior's condition without codes of one."""

ALONE = ("labels", "coordinates", "text")
"""Conditions whose codes are made of the images and what is beside them, with nothing else given."""

_SLOW = (
    "warning: run.precision = bf16-mixed, which this machine is not known to multiply by itself: a step may take "
    "twenty times as "
    "long; set run.precision=32-true"
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
    start: Start | None = None,
    work: WorkPlan = SINGLE,
) -> None:
    """Images -> a run folder with a tokenizer in `out/model`. Goes on with the run if there is one.

    `start`: the tokenizer that training begins with, to which `settings` belong;
    without one it starts from scratch. `work`:
    the position of the run in a longer work, for the progress.

    Raises `SmaltiError` for data without images, for an objective that is not for their kind, for a folder that holds
    something else, and when it is asked to stop.
    """
    kind = _file_type_of_training(settings)
    source = open_source(data, file_type=kind)
    begun = {} if start is None else {"from": start.described()}
    config = {
        "smalti": __version__,
        "stage": "tokenizer",
        "data": str(data.resolve()),
        CONTENTS: contents(source),
        **begun,
        **as_mapping(settings),
    }
    fabric = launch(settings.run)
    folder = first_alone(fabric, lambda: RunFolder(out, config))
    about = {
        "smalti": __version__,
        "data": data.name,
        "images": len(source.images),
        "size": list(settings.images.size),
        **kind.described(),
        **begun,
    }
    weights = {} if start is None else start.weights
    stage = TokenizerStage(settings, source, fabric=fabric, about=about, weights=weights)
    _run(stage, folder, config, run=settings.run, fabric=fabric, console=console, work=work)


def _file_type_of_training(settings: TokenizerTraining) -> FileType:
    """What a tokenizer is to be trained on. Raises `SmaltiError` if its channels or its objective are
    for something else."""
    images, objective, channels = settings.images, settings.objective, settings.model.autoencoder.channels
    if (images.file_type == "labels") != (objective.pixel in LABEL_LOSSES):
        losses = f"{' or '.join(LABEL_LOSSES)}, objective.perceptual=none and objective.adversarial.weight=0"
        raise SmaltiError(
            f"objective.pixel = {objective.pixel} is {'not ' * (images.file_type == 'labels')}for label maps, and "
            f"images.file_type = {images.file_type}; for label maps set images.file_type=labels, "
            f"objective.pixel={losses}, for images "
            "images.file_type=color and objective.pixel=l1"
        )
    file_type = FILE_TYPES[images.file_type](images.unlabeled)
    file_type.check(channels)
    if channels == 4 and "perceptual" in objective.terms:
        raise SmaltiError(
            f"objective.perceptual = {objective.perceptual} knows images of 1 or 3 channels, and the model has 4; set "
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
    work: WorkPlan = SINGLE,
) -> None:
    """Code shards and their tokenizer -> a run folder with a prior in `out/model`. Goes on
    with the run if there is one.

    Raises `SmaltiError` for codes of another tokenizer, for conditions that they do not hold, for a folder that holds
    something else, and when it is asked to stop.
    """
    model = load_tokenizer(tokenizer)
    shards.check_fingerprint(model.fingerprint())
    condition = condition_of(shards, settings.condition)
    if settings.condition_dropout and condition.size and settings.network.name == "gpt":
        raise SmaltiError(
            f"condition_dropout = {settings.condition_dropout:g}, but a GPT has no code for an empty condition; "
            "set condition_dropout=0, "
            "or network.name=transformer"
        )
    train_prior_on(shards, model, condition, out, settings=settings, console=console, work=work)


def train_prior_on(
    shards: CodeShards,
    tokenizer: Any,
    condition: Condition,
    out: Path,
    *,
    settings: PriorTraining,
    console: Console,
    work: WorkPlan = SINGLE,
) -> None:
    """As `train_prior`, with the codes' tokenizer, or what has its methods, and a condition that they hold."""
    meta = shards.meta
    codes = {"fingerprint": meta.fingerprint, "size": meta.size, "grid": list(meta.grid), "labels": list(meta.labels)}
    if meta.prefix is not None:
        codes["condition_fingerprint"] = meta.prefix.fingerprint
    config = {"smalti": __version__, "stage": "prior", "codes": codes, **as_mapping(settings)}
    fabric = launch(settings.run, blocks=blocks)
    folder = first_alone(fabric, lambda: RunFolder(out, config))
    about = {"smalti": __version__, "images": len(shards.training)}
    stage = PriorStage(settings, shards, condition, tokenizer, fabric=fabric, about=about)
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
        fit(stage, folder, run=run, fabric=fabric, progress=progress)
    if fabric.is_global_zero:
        write_page(folder.path, config, unit=stage.unit)


def condition_of(shards: CodeShards, name: str) -> Condition:
    """The condition that a prior on these codes learns. Raises `SmaltiError` if another is requested than they hold."""
    labels, kept = shards.meta.labels, shards.meta.prefix
    if name not in OWN or (name == "auto" and kept is not None):
        return _kept_condition(shards, name)
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


def _kept_condition(shards: CodeShards, name: str) -> Condition:
    kept = shards.meta.prefix
    if kept is None:
        raise SmaltiError(
            f"condition = {name}, and the codes in {shards.path} were made without one; make them with: smalti encode "
            "... "
            f"--condition {' --condition '.join(_names(name))}, or set condition=auto"
        )
    condition = build_condition(kept.condition, shards.path)
    made = condition_keys(condition)
    wanted = {_KEYS.get(each, each) for each in _names(name)}
    if name != "auto" and set(made) != wanted:
        raise SmaltiError(
            f"condition = {name}, and the codes in {shards.path} were made with {' and '.join(made)}; set "
            f"condition={made[0] if len(made) == 1 else 'auto'}"
        )
    return condition


_KEYS = {"labels": "label"}
"""The names of conditions in settings whose option in generation has another name."""


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
    names = () if settings.condition in OWN else _names(settings.condition)
    others = [name for name in names if name not in ALONE]
    if others:
        options = ["--condition-data" if name in ANNOTATORS else "--condition-tokenizer" for name in others]
        sources = [f"{name}=..." if len(names) > 1 else "..." for name in others]
        words = [*(f"--condition {name}" for name in names), *map(" ".join, zip(options, sources, strict=True))]
        raise SmaltiError(
            f"condition = {settings.condition} has codes of its own, which are made together with those of the images: "
            "first "
            f"smalti encode {tokenizer} {data} {' '.join(words)} --out CODES; then train on CODES"
        )
    conditions = [ConditionSource(name) for name in names]
    if is_started_with_others() and not (out / "codes.json").is_file():
        raise SmaltiError(
            f"{data} holds images, which one process is to encode for all: first smalti encode {tokenizer} {data} "
            f"--out {out}, "
            f"then train on {out}"
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
    """Images -> code shards in `out`; False when they are there already, made by the same settings.

    Their file type is that of the tokenizer, where it was trained by smalti, else that of `settings.images`.
    `conditions`:
    those whose codes precede the codes of the images.

    Raises `SmaltiError` for data without images, a tokenizer that is none, and a folder that holds other things.
    """
    model, about = read_tokenizer(tokenizer)
    model.to(pick_device(device))
    channels, cut = model.settings.autoencoder.channels, settings.images
    stored = {} if cut.file_type == "color" else {"kind": cut.file_type, "unlabeled": cut.unlabeled}
    source = open_source(data, file_type=file_type_of({**stored, **about}, channels=channels))
    parts = split_crops(source, cut, channels=channels, seed=seed)
    model_device = next(model.parameters()).device
    pairs = paired_images(conditions, parts, factor=model.factor, device=model_device) if conditions else None
    if pairs is not None and len(parts[0]) > 1 and first_readable(pairs.validation) is None:
        other = first_readable(pairs.training, held_out_order(parts[0].images))
        if other is not None:  # one held-out image whose condition can be read too
            parts = holding_out(parts, other)
            pairs = paired_images(conditions, parts, factor=model.factor, device=model_device)
    images = ImageSets(training=parts[0], validation=parts[1], labels=source.labels)
    if pairs is not None:
        images = replace(images, training=pairs.training, validation=pairs.validation, prefix=pairs.prefix)
    with lost_processes_explained():
        return write_codes(
            out,
            images,
            encoder=tokenizer_encoder(model, parts[0].to_images),
            settings=WritingSettings(copies=settings.copies, seed=seed, workers=workers),
            progress=progress,
        )
