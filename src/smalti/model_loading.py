"""Models of any format: a name -> the models that it holds, and models -> a smalti folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smalti.checkpoints.base import Imported, check_window
from smalti.checkpoints.formats import read_foreign
from smalti.conditions.base import Grid
from smalti.core.errors import SmaltiError
from smalti.core.files import folder_written_atomically
from smalti.hub.pretrained import find_model, is_pipeline, is_smalti_folder, resolve_model_path
from smalti.pipeline import Pipeline
from smalti.tokenizer.vqgan import VQGAN


def read_models(name: str | Path, *, grid: Grid | None = None, prior: bool = True) -> Imported:
    """A model, run or pipeline folder of smalti, a Hub id, or a checkpoint of a foreign format
    -> all models in it, on the CPU.

    `grid` as in `Pipeline.from_pretrained`; without `prior` the tokenizer of a foreign one alone. Raises `SmaltiError`
    as there.
    """
    path = resolve_model_path(name)
    if is_pipeline(path):
        whole = Pipeline.from_pretrained(path, grid=grid)
        about = find_model(path / "tokenizer", kind="tokenizer").about
        about = {**about, "prior": find_model(path / "prior", kind="prior").about}
        return Imported("smalti", whole.tokenizer, whole.prior, whole.condition, about)
    if path.exists() and not is_smalti_folder(path):
        return read_foreign(path, grid=grid, prior=prior)
    check_window(None, grid, where=path)
    return Imported("smalti", VQGAN.from_pretrained(path), None, None, find_model(path, kind="tokenizer").about)


def read_tokenizer(name: str | Path) -> tuple[VQGAN, Mapping[str, Any]]:
    """As `read_models`, the tokenizer and what its folder says about it. Raises `SmaltiError` also where there is a
    prior alone."""
    models = read_models(name, prior=False)
    if models.tokenizer is None:
        raise SmaltiError(f"{name} holds a prior alone; a tokenizer is needed here")
    return models.tokenizer, models.about


def load_tokenizer(name: str | Path) -> VQGAN:
    """As `read_tokenizer`, the tokenizer alone."""
    return read_tokenizer(name)[0]


def save_models(models: Imported, folder: Path) -> None:
    """Models -> a smalti folder that does not exist yet: a pipeline, or a tokenizer alone.

    Raises `SmaltiError` for a prior alone, whose codes would mean nothing.
    """
    if models.tokenizer is None:
        raise SmaltiError("there is a prior alone; put its tokenizer into the same folder, and convert the folder")
    if models.prior is not None and models.condition is not None:
        Pipeline(models.tokenizer, models.prior, models.condition).save_pretrained(folder, about=models.about)
        return
    about = {**models.about, "fingerprint": models.tokenizer.fingerprint()}
    with folder_written_atomically(folder) as temporary:
        models.tokenizer.save_pretrained(temporary, about=about)
