"""The original's run folders and checkpoints <-> our models (CompVis/taming-transformers; latent-diffusion's VQ first stages).

A run folder holds `configs/*-project.yaml` (merged in the order of their names) and `checkpoints/last.ckpt`; a published model is
a `.ckpt` with a YAML beside it. All weights of both stages are in one checkpoint, so paths inside the YAML are not followed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

from smalti.checkpoints.base import Imported
from smalti.checkpoints.pickles import read_tensors
from smalti.checkpoints.taming_conditions import Surroundings, condition_of
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
    read_tokenizer,
    resolution,
    take,
)
from smalti.errors import SmaltiError
from smalti.prior import ORDERS as ORDERS_HERE
from smalti.prior.gpt import GPT
from smalti.prior.order import Order

SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")


class Found(NamedTuple):
    """A checkpoint of theirs on this machine."""

    config: dict[str, Any]
    """The YAML, merged."""
    weights: Path
    """The file."""

    @property
    def model(self) -> Part:
        """The section that says what is in the file."""
        known = {**TOKENIZERS, **dict.fromkeys(TRANSFORMERS)}
        return Part.of(self.config.get("model"), where=str(self.weights), known=known)


def find(path: Path) -> Found | None:
    """A run folder, a folder with a YAML and a checkpoint, or a checkpoint with its YAML beside it -> both; None for others.

    Raises `SmaltiError` where there is one half only, and for YAML that is none.
    """
    if path.is_file() and path.suffix in SUFFIXES:
        configs = _configs(path.parent) or _configs(path.parent.parent)
        return Found(_merged(configs), path) if configs else None
    if not path.is_dir():
        return None
    configs = _configs(path)
    files = [file for folder in (path / "checkpoints", path) for file in _files(folder, "*") if file.suffix in SUFFIXES]
    if not configs or (not files and not (path / "configs").is_dir()):
        return None
    if not files:
        raise SmaltiError(
            f"{path} has settings of the original but no checkpoint; put last.ckpt into {path / 'checkpoints'}"
        )
    named = (file for file in files if file.stem in ("last", "model"))
    return Found(_merged(configs), next(named, files[-1]))


def _configs(folder: Path) -> list[Path]:
    inside = folder / "configs"
    found = _files(inside, "*project.yaml") or _files(inside, "*.yaml")
    return found or [file for file in _files(folder, "*.yaml") if _names_a_model(file)]


def _files(folder: Path, pattern: str) -> list[Path]:
    """Files of a folder, sorted; pipes and devices, which may block, are none."""
    return sorted(file for file in folder.glob(pattern) if file.is_file())


def _names_a_model(path: Path) -> bool:
    return "target:" in path.read_text("utf-8", errors="replace")


def _merged(paths: list[Path]) -> dict[str, Any]:
    """YAML files laid over one another, from left to right."""
    whole: dict[str, Any] = {}
    for path in paths:
        try:
            values = yaml.safe_load(path.read_text("utf-8", errors="replace"))
        except yaml.YAMLError as error:
            raise SmaltiError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        if isinstance(values, dict):
            _lay_over(whole, values)
    return whole


def _lay_over(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(below.get(key), dict):
            _lay_over(below[key], value)
        else:
            below[key] = value


def read(path: Path) -> Imported | None:
    """A checkpoint of theirs -> our models, in evaluation mode on the CPU; None where `path` is none of theirs.

    Raises `SmaltiError` for damaged files, unknown targets and settings, and weights that do not fit them, with names.
    """
    found = find(path)
    if found is None:
        return None
    model, where = found.model, str(found.weights)
    weights = read_tensors(found.weights)
    if model.target in TOKENIZERS:
        tokenizer = read_tokenizer(model, weights, prefix="", where=where)
        return Imported("taming", tokenizer, None, None, about(model, where=where))
    return read_net2net(model, weights, data=found.config.get("data") or {}, where=where)


def read_net2net(part: Part, weights: Mapping[str, Tensor], *, data: Mapping[str, Any], where: str) -> Imported:
    """A transformer with both its stages -> tokenizer, prior and condition."""
    params = dict(part.params)
    _check_keys(params, where=where)
    first = Part.of(params.get("first_stage_config"), where=where, known=TOKENIZERS)
    tokenizer = read_tokenizer(first, weights, prefix="first_stage_model.", where=where)
    gpt = Part.of(params.get("transformer_config"), where=where, known=GPTS)
    surroundings = Surroundings(
        params=params,
        data=data,
        weights=weights,
        tokenizer=tokenizer,
        block=int(take(gpt.params, "block_size", where=where)),
        vocabulary=int(take(gpt.params, "vocab_size", where=where)),
        side=resolution(first, where=where) // tokenizer.factor,
        where=where,
    )
    built = condition_of(surroundings)
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
    prior = GPT(settings)
    mine = {key.removeprefix("transformer."): value for key, value in weights.items() if key.startswith("transformer.")}
    gpt_names(prior).read_into(prior, mine, where=f"{where} (transformer)", ignored=MASKS)
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


def _order(params: Mapping[str, Any], weights: Mapping[str, Tensor], grid: tuple[int, int], *, where: str) -> Order:
    """Their permuter -> the name of the order, checked against the indices that the checkpoint holds."""
    config = params.get("permuter_config")
    if not config:
        return "raster"
    part = Part.of(config, where=where, known=ORDERS)
    shape = (int(part.params.get("H", grid[0])), int(part.params.get("W", grid[1])))
    if part.target.endswith("Identity"):
        return "raster"
    if shape != grid:
        raise SmaltiError(
            f"{where}: the permuter is for {shape[0]} x {shape[1]} codes, the window has {grid[0]} x {grid[1]}"
        )
    order = ORDERS[part.target]
    kept = weights.get("permuter.forward_shuffle_idx")
    if kept is not None and not torch.equal(kept.flatten(), ORDERS_HERE[order](*grid)):
        raise SmaltiError(f"{where}: the indices of its permuter are not those of {part.target}")
    return order
