"""The original's run folders and checkpoints <-> smalti's models (CompVis/taming-transformers; latent-diffusion's
VQ first stages).

A run folder holds `configs/*-project.yaml` (merged in the order of their names) and `checkpoints/last.ckpt`; a
published model is a `.ckpt` with a YAML of the same name beside it. All weights of both stages are in one checkpoint,
so paths inside the YAML are not followed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

from smalti.checkpoints import llamagen_files
from smalti.checkpoints.base import Imported
from smalti.checkpoints.pickles import read_tensors
from smalti.checkpoints.taming_conditions import ConditionStage, read_condition_stage
from smalti.checkpoints.taming_parts import (
    GPTS,
    MASKS,
    ORDERS,
    TOKENIZERS,
    TRANSFORMERS,
    Part,
    about,
    gpt_names,
    gpt_settings,
    read_first_stage,
    resolution,
    take,
)
from smalti.conditions.base import Grid, grid_text
from smalti.core.errors import SmaltiError
from smalti.core.network_building import build_network, number_count
from smalti.core.settings import parse_yaml
from smalti.prior import ORDERS as ORDERS_HERE
from smalti.prior.gpt import GPT
from smalti.prior.order import Order

SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")
NOTES = "smalti"
"""The section of a YAML in which smalti keeps what the original has no place for."""


class Found(NamedTuple):
    """A checkpoint of the original code on this machine."""

    config: dict[str, Any]
    """The YAML, merged."""
    weights: Path
    """The file."""
    own: bool
    """Whether the YAML has the name of the checkpoint; otherwise it is near it, and belongs to no other checkpoint."""

    @property
    def model(self) -> Part:
        """The section that says what is in the file."""
        known = {**TOKENIZERS, **dict.fromkeys(TRANSFORMERS)}
        return Part.of(self.config.get("model"), where=str(self.weights), known=known)

    @property
    def grid(self) -> Grid | None:
        """The window that smalti noted in the YAML, where the original has no place for it."""
        notes = self.config.get(NOTES)
        grid = notes.get("grid") if isinstance(notes, Mapping) else None
        return (int(grid[0]), int(grid[1])) if isinstance(grid, list) and len(grid) == 2 else None


def find(path: Path) -> Found | None:
    """A run folder, a folder with a YAML and a checkpoint, or a checkpoint with its YAML beside it -> both; None for
    others.

    Raises `SmaltiError` if there is one half only, where a folder holds several models, where it is not known which
    of several YAML files belongs to a checkpoint, and for invalid YAML.
    """
    if path.is_file() and path.suffix in SUFFIXES:
        return _found(path, home=path.parent.parent)
    if not path.is_dir():
        return None
    files = [file for folder in (path / "checkpoints", path) for file in _checkpoints(folder)]
    if not files:
        if _model_yamls(path / "configs"):
            raise SmaltiError(
                f"{path} has settings of the original but no checkpoint; put last.ckpt into {path / 'checkpoints'}"
            )
        return None
    pairs = [file for file in files if _own(file, home=path)]
    if len(pairs) > 1:
        names = ", ".join(file.name for file in pairs)
        raise SmaltiError(f"{path} holds {len(pairs)} models of the original ({names}); name one of these files")
    if not pairs:  # a run: its checkpoints share its settings, and the last one counts
        pairs = [*(file for file in files if file.stem in ("last", "model")), files[-1]]
    return _found(pairs[0], home=path)


def _found(file: Path, *, home: Path) -> Found | None:
    own = _own(file, home=home)
    configs = [own] if own else _shared(file, home=home)
    return Found(_merged(configs), file, bool(own)) if configs else None


def _checkpoints(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.glob("*")) if file.suffix in SUFFIXES and file.is_file()]


def _model_yamls(folder: Path) -> list[Path]:
    """The YAML files in `folder` that describe a model, in the order of their names."""
    files = sorted(file for file in folder.glob("*") if file.suffix in (".yaml", ".yml") and file.is_file())
    return [file for file in files if _describes_a_model(file.read_text("utf-8", errors="replace"))]


def _describes_a_model(text: str) -> bool:
    return re.search(r"(?m)(^|\{)\s*[\"']?model[\"']?\s*:", text) is not None


def _config_folders(file: Path, *, home: Path) -> list[Path]:
    """The folders inside `home` where the settings of a checkpoint may lie, the nearest first."""
    same_folder, above = file.parent, file.parent.parent
    candidates = (
        same_folder,
        same_folder / "configs",
        above / "configs",
        *([above] if same_folder.name == "checkpoints" else []),
    )
    return [path for path in candidates if path.is_relative_to(home)]


def _owners(config: Path, *, near: Path) -> list[Path]:
    """The checkpoints that a YAML file belongs to by its name: beside it, else in its run, or where `near` is."""
    home = config.parent.parent if config.parent.name == "configs" else config.parent
    folders = dict.fromkeys((config.parent, home, home / "checkpoints", near.parent))
    named = [folder / f"{config.stem}{suffix}" for folder in folders for suffix in SUFFIXES]
    found = [file for file in named if file.is_file()]
    return [file for file in found if file.parent == config.parent] or found


def _own(file: Path, *, home: Path) -> Path | None:
    """The YAML file that has the name of a checkpoint, or None."""
    named = (config for folder in _config_folders(file, home=home) for config in _model_yamls(folder))
    return next((config for config in named if config.stem == file.stem and file in _owners(config, near=file)), None)


def _shared(file: Path, *, home: Path) -> list[Path]:
    """The YAML files near a checkpoint that are no other checkpoint's; several are those of one run that was
    resumed."""
    for folder in _config_folders(file, home=home):
        free = [config for config in _model_yamls(folder) if not _owners(config, near=file)]
        if folder.name == "configs" and (of_runs := [config for config in free if config.stem.endswith("project")]):
            return of_runs
        if len(free) > 1:
            names = ", ".join(config.name for config in free)
            raise SmaltiError(
                f"which of {names} in {folder} describes {file} is not known; give that one the name {file.stem}.yaml"
            )
        if free:
            return free
    return []


def _merged(paths: list[Path]) -> dict[str, Any]:
    """YAML files merged from left to right."""
    whole: dict[str, Any] = {}
    for path in paths:
        try:
            values = parse_yaml(path.read_text("utf-8", errors="replace"))
        except yaml.YAMLError as error:
            raise SmaltiError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        if isinstance(values, dict):
            _merge_settings(whole, values)
    return whole


def _merge_settings(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(below.get(key), dict):
            _merge_settings(below[key], value)
        else:
            below[key] = value


def read(path: Path, *, grid: Grid | None = None, prior: bool = True) -> Imported | None:
    """A checkpoint of the original code -> smalti's models, in evaluation mode on the CPU; None if `path` is not one.

    `grid` and `prior` as in `FormatReader`. Raises `SmaltiError` for damaged files, unknown targets and settings, for
    weights of another shape (with their names), and for a transformer whose grid is unknown.
    """
    if path.is_file() and not _own(path, home=path.parent.parent) and llamagen_files.knows(path):
        return None  # what its weights say counts more than a YAML nearby
    found = find(path)
    if found is None:
        return None
    weights = read_tensors(found.weights)
    if not found.own and llamagen_files.kind_of(weights):
        return None
    model, where = found.model, str(found.weights)
    if model.target in TOKENIZERS:
        tokenizer = read_first_stage(model, weights, prefix="", where=where)
        return Imported("taming", tokenizer, None, None, about(model, where=where))
    if not prior:
        first = _first_stage(model, where=where)
        tokenizer = read_first_stage(first, weights, prefix=FIRST, where=where)
        return Imported("taming", tokenizer, None, None, about(first, where=where))
    data = found.config.get("data") or {}
    return read_net2net(model, weights, data=data, where=where, grid=_agreed(grid, found.grid, where=where))


def _agreed(given: Grid | None, noted: Grid | None, *, where: str) -> Grid | None:
    """The one of two grids that is known. Raises `SmaltiError` if they differ."""
    if given is not None and noted is not None and given != noted:
        raise SmaltiError(
            f"{where} is of a window of {grid_text(noted)} codes, the grid given is {grid_text(given)}; leave it out"
        )
    return noted if given is None else given


FIRST = "first_stage_model."
"""What the names of the weights of a transformer's first stage begin with."""


def _first_stage(part: Part, *, where: str) -> Part:
    return Part.of(part.params.get("first_stage_config"), where=where, known=TOKENIZERS)


def read_net2net(
    part: Part, weights: Mapping[str, Tensor], *, data: Mapping[str, Any], where: str, grid: Grid | None = None
) -> Imported:
    """A transformer with both its stages -> tokenizer, prior and condition.

    The window is that of its permuter; where it has none, `grid` (h,w) in codes; where that is None too, the square
    that its positions make. Raises `SmaltiError` if they contradict one another, and where the positions make no
    square.
    """
    params = dict(part.params)
    _check_keys(params, where=where)
    first = _first_stage(part, where=where)
    tokenizer = read_first_stage(first, weights, prefix=FIRST, where=where)
    gpt = Part.of(params.get("transformer_config"), where=where, known=GPTS)
    stage = ConditionStage(
        params=params,
        data=data,
        weights=weights,
        tokenizer=tokenizer,
        block=int(take(gpt.params, "block_size", where=where)),
        vocabulary=int(take(gpt.params, "vocab_size", where=where)),
        grid=_window(params, grid, where=where),
        side=resolution(first, where=where) // tokenizer.factor,
        where=where,
    )
    built = read_condition_stage(stage)
    order = _order(params, weights, built.grid, where=where)
    settings = gpt_settings(
        gpt,
        codes=tokenizer.size,
        prefix=built.condition.length,
        grid=built.grid,
        start=built.start,
        order=order,
        where=where,
    )
    prior = build_network(lambda: GPT(settings), stored=number_count(weights), where=where)
    gpt_weights = {
        key.removeprefix("transformer."): value for key, value in weights.items() if key.startswith("transformer.")
    }
    gpt_names(prior).read_into(prior, gpt_weights, where=f"{where} (transformer)", ignored=MASKS)
    _check_rest(weights, where=where)
    described = {"imported_from": part.target, "pkeep": params.get("pkeep", 1.0)}
    facts = {**about(first, where=where), "prior": described}
    return Imported("taming", tokenizer, prior.eval().requires_grad_(False), built.condition, facts)


_PARAMS = (
    *("transformer_config", "first_stage_config", "cond_stage_config", "permuter_config", "ckpt_path", "ignore_keys"),
    *("first_stage_key", "cond_stage_key", "downsample_cond_size", "pkeep", "sos_token", "unconditional", "monitor"),
)


def _check_keys(params: Mapping[str, Any], *, where: str) -> None:
    for key in params:
        if key not in _PARAMS:
            raise SmaltiError(f"{where}: unknown key {key!r} of the model; known are {', '.join(_PARAMS)}")
    if params.get("downsample_cond_size", -1) > -1:
        raise SmaltiError(f"{where}: downsample_cond_size = {params['downsample_cond_size']} is not supported")


def _check_rest(weights: Mapping[str, Tensor], *, where: str) -> None:
    """Names outside all stages are unknown."""
    known = ("first_stage_model.", "cond_stage_model.", "transformer.", "permuter.", "loss.")
    rest = [name for name in weights if not name.startswith(known)]
    if rest:
        raise SmaltiError(f"the weights of {where} do not fit: {len(rest)} are not known, first {', '.join(rest[:3])}")


def _permuter(params: Mapping[str, Any], *, where: str) -> Part | None:
    config = params.get("permuter_config")
    return Part.of(config, where=where, known=ORDERS) if config else None


def _window(params: Mapping[str, Any], given: Grid | None, *, where: str) -> Grid | None:
    """The grid of codes that the permuter is for, else the one given. Raises `SmaltiError` if they differ."""
    permuter = _permuter(params, where=where)
    if permuter is None or not {"H", "W"} <= permuter.params.keys():
        return given
    shape = (int(permuter.params["H"]), int(permuter.params["W"]))
    if given is not None and given != shape:
        raise SmaltiError(
            f"{where}: the permuter is for {shape[0]} x {shape[1]} codes, the grid given is {given[0]} x "
            f"{given[1]}; leave it out"
        )
    return shape


def _order(params: Mapping[str, Any], weights: Mapping[str, Tensor], grid: Grid, *, where: str) -> Order:
    """Their permuter -> the name of the order, checked against the indices that the checkpoint holds."""
    permuter = _permuter(params, where=where)
    if permuter is None:
        return "raster"
    order = ORDERS[permuter.target]
    stored = weights.get("permuter.forward_shuffle_idx")
    if stored is not None and not torch.equal(stored.flatten(), ORDERS_HERE[order](*grid)):
        raise SmaltiError(
            f"{where}: the indices of its permuter are not those of {permuter.target} over {grid_text(grid)} codes"
        )
    return order
