"""Machines without a compiler, homes that nobody may write, and Pythons that are not this one."""

from __future__ import annotations

import ast
import errno
import functools
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from smalti.kernels import causal_attention, decode_block, group_norm, native, winograd
from smalti.pipeline import Pipeline
from tests.small_pipeline import LABELS, pipeline

SOURCES = sorted((Path(__file__).parents[2] / "src").rglob("*.py"))
KERNELS = (causal_attention, decode_block, group_norm, winograd)


def sampled(folder: Path) -> torch.Tensor:
    return Pipeline.from_pretrained(folder).sample(2, label="dusk", seed=3)


@pytest.mark.parametrize("problem", ["no compiler", "a read-only home", "no place at all"])
def test_images_are_generated_all_the_same(problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline(LABELS).save_pretrained(tmp_path / "model", about={})
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SMALTI_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    whole = sampled(tmp_path / "model")
    for kernel in KERNELS:
        monkeypatch.setattr(kernel, "_library", functools.cache(kernel._library.__wrapped__))
    if problem == "no compiler":
        monkeypatch.setenv("CC", "no-such-compiler")
    else:

        def refused(*_: object, **__: object) -> None:
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(native, "make_private_folder", lambda path: False)  # as it answers where it cannot write
        if problem == "no place at all":
            monkeypatch.setattr(tempfile, "TemporaryDirectory", refused)
    images = sampled(tmp_path / "model")
    torch.testing.assert_close(images, whole, atol=1e-4, rtol=1e-4)
    compiled = decode_block.available()
    assert compiled == (problem == "a read-only home" and native._instructions() is not None and _has_compiler())


def _has_compiler() -> bool:
    return shutil.which(os.environ.get("CC", "cc")) is not None and not os.environ.get("SMALTI_DIRECT")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_the_lowest_python_can_read_all_files(path: Path) -> None:
    """Of the grammar alone: what its library lacks is found by running the tests on it."""
    ast.parse(path.read_text("utf-8"), feature_version=(3, 10))
