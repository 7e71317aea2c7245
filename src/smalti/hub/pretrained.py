"""Models on disk: a folder with `config.json` (what it is, its settings) and `model.safetensors` (its weights).

Nothing in such a folder is ever executed. A name that is not a folder here is that of a model that comes with smalti,
or is looked for on the Hugging Face Hub.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from smalti.core.errors import SmaltiError
from smalti.core.files import read_json, write_atomically, write_json
from smalti.core.network_building import Network, build_network
from smalti.hub import hugging_face
from smalti.hub.bundled_models import bundled_part, model_path

FORMAT = 1
CONFIG, WEIGHTS = hugging_face.PARTS
_CONVERT = "To convert another program's checkpoint: smalti convert SOURCE DESTINATION"


class Saved(NamedTuple):
    """What a model folder holds."""

    folder: Path
    kind: str
    """"tokenizer" or "prior"."""
    settings: dict[str, Any]
    """Plain values from which the model is built."""
    about: dict[str, Any]
    """Metadata: the version that wrote it, the data, the tokenizer's fingerprint."""


def save_model(
    folder: Path, *, kind: str, settings: Mapping[str, Any], about: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> None:
    """Write a model folder; each file whole or not at all, the weights first: with a config the folder is complete."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    write_atomically(folder / WEIGHTS, lambda path: save_file(tensors, path))
    config = {"smalti": FORMAT, "kind": kind, "settings": dict(settings), "about": dict(about)}
    write_json(folder / CONFIG, config)


def round_to_half_precision(module: nn.Module) -> None:
    """Round the weights of `module`, in place, to half precision, so that `save_in_half_precision` loses nothing."""
    for tensor in module.state_dict().values():
        if tensor.dtype == torch.float32:
            tensor.copy_(tensor.half())


def save_in_half_precision(folder: Path) -> None:
    """Rewrite the float32 weights of all models in `folder` in half precision, at half the size. They are read as
    float32."""
    for path in sorted(folder.rglob(WEIGHTS)):
        weights = load_file(path)
        small = {name: each.half() if each.dtype == torch.float32 else each for name, each in weights.items()}
        write_atomically(path, partial(save_file, small))


def find_model(name: str | Path, *, kind: str) -> Saved:
    """A folder (of a model, a run with a `model` folder inside, or a pipeline with a folder `kind`), or a Hub id ->
    what the model of that kind says about itself.

    Raises `SmaltiError` when there is nothing, when it is another program's folder, or a model of another kind.
    """
    path = resolve_model_path(name)
    folder = locate(path / kind if (path / kind).is_dir() and not (path / CONFIG).is_file() else path)
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("smalti"), int) or "kind" not in config:
        raise SmaltiError(f"{folder / CONFIG} was not written by smalti. {_CONVERT}")
    if config["smalti"] > FORMAT:
        raise SmaltiError(
            f"{folder} was written by a newer smalti (format {config['smalti']}); update smalti to read it"
        )
    if config["kind"] != kind:
        raise SmaltiError(f"{folder} holds a {config['kind']}, a {kind} is needed here")
    if "same_as" in config:  # weights that several bundled models share are stored once
        return find_model(bundled_part(config["same_as"], where=str(folder / CONFIG)), kind=kind)
    if not isinstance(config.get("settings"), dict):
        raise SmaltiError(f"{folder / CONFIG} holds no settings; copy it again or export the model again")
    return Saved(folder, config["kind"], config["settings"], config.get("about", {}))


def locate(name: str | Path) -> Path:
    """A model folder, a run folder or a Hub id -> the folder on this machine that holds `config.json`."""
    path = resolve_model_path(name)
    for folder in (path, path / "model"):
        if (folder / CONFIG).is_file():
            return folder
    if path.is_dir():
        hint = "its training has not written a model yet" if (path / "config.yaml").is_file() else f"it has no {CONFIG}"
        raise SmaltiError(f"{path} is not a model: {hint}. {_CONVERT}")
    convert = f": it is a file. {_CONVERT}" if path.is_file() else ""
    raise SmaltiError(f"there is no model folder {path}{convert}")


def resolve_model_path(name: str | Path) -> Path:
    """A path, or where there is nothing at it the name of a bundled model or a Hub id -> the path, or the folder of
    that model.

    If a local folder has the name of a Hub id's owner, the id is taken for a mistyped path and the Hub is not queried.
    Raises `SmaltiError` for such a name, and when the Hub has no such model.
    """
    path = model_path(name)
    if path.exists() or not hugging_face.is_name(str(name)):
        return path
    if path.parent.is_dir():
        near = difflib.get_close_matches(path.name, [each.name for each in path.parent.iterdir() if each.is_dir()], n=1)
        hint = (
            f"did you mean '{path.parent / near[0]}'?" if near else f"{path.parent} is one, so the Hub was not queried"
        )
        raise SmaltiError(f"there is no folder {path}; {hint}")
    return hugging_face.download(str(name))


def is_smalti_folder(path: Path) -> bool:
    """Whether `path` is a model folder or a run folder that smalti wrote; a run may have no model yet."""
    for config in (path / CONFIG, path / "model" / CONFIG):
        if config.is_file():
            values = read_json(config)
            return isinstance(values, dict) and "smalti" in values
    return (path / "config.yaml").is_file() and (path / "metrics.jsonl").is_file()


def load_weights_into(module: nn.Module, saved: Saved) -> None:
    """Fill `module` from the folder's weights, which must match name for name and shape for shape.

    Raises `SmaltiError` for a missing or damaged file and for weights that do not fit, with the first names.
    """
    path = saved.folder / WEIGHTS
    if not path.is_file():
        raise SmaltiError(f"{saved.folder} has no {WEIGHTS}")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise SmaltiError(
            f"{path} is damaged or truncated ({error}); copy it again or export the model again"
        ) from error
    expected = module.state_dict()
    wrong = sorted(expected.keys() ^ weights.keys()) or sorted(
        name for name in expected if expected[name].shape != weights[name].shape
    )
    if wrong:
        raise SmaltiError(
            f"{path} does not fit its {CONFIG}: {len(wrong)} tensors differ, first {', '.join(wrong[:3])}"
        )
    module.load_state_dict(weights)


def build_saved(build: Callable[[], Network], saved: Saved) -> Network:
    """Build a network of the folder's settings and fill it. Raises as `load_weights_into`, and for settings that no
    network has, or one far larger than the weights."""
    path = saved.folder / WEIGHTS
    stored = path.stat().st_size if path.is_file() else 0  # in bytes, of which each number has one at least
    network = build_network(build, stored=stored, where=str(saved.folder / CONFIG))
    load_weights_into(network, saved)
    return network


def is_pipeline(root: Path) -> bool:
    """Whether a folder holds both stages."""
    return (root / "tokenizer").is_dir() and (root / "prior").is_dir()


def missing_parts_message(root: Path, parts: Sequence[str]) -> str:
    """What a folder that holds only these `parts` of a pipeline lacks, and how to make it."""
    if not root.exists():
        return f"there is no folder {root}; it should hold the folders tokenizer and prior"
    part = "tokenizer" if "tokenizer" not in parts else "prior"
    train = f"smalti train {part} ... --out {root / part}"
    return f"{root} is not a pipeline: it has no folder {part}; train one with: {train}"
