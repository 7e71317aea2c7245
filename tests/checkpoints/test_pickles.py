"""Foreign checkpoint files: what is read, what becomes a stand-in, and what is refused without being run."""

from __future__ import annotations

import argparse
import collections
import os
import pathlib
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from smalti.checkpoints.pickles import read_pickle, read_tensors
from smalti.core.errors import SmaltiError

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.float16), "c": torch.tensor(3)}


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A class of a package that is installed while a file is written and gone when it is read."""
    module = types.ModuleType("pytorch_lightning.callbacks")

    class ModelCheckpoint:
        def __init__(self, best: float) -> None:
            self.best = best

    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = module.__name__, "ModelCheckpoint"
    module.ModelCheckpoint = ModelCheckpoint  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return ModelCheckpoint


@pytest.mark.parametrize("zipped", [True, False])
def test_lightnings_checkpoints_are_read_without_lightning(
    tmp_path: Path, lightning: Any, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    whole = {
        "epoch": 3,
        "callbacks": {lightning: {"best_model_score": torch.tensor(0.5)}, "object": lightning(0.25)},
        "hyper_parameters": argparse.Namespace(rate=0.1),
        "folder": pathlib.PurePosixPath("logs/run"),
        "score": np.float64(0.5),
        "counts": collections.defaultdict(int, {"a": 1}),
        "state_dict": collections.OrderedDict(WEIGHTS),
    }
    path = tmp_path / "last.ckpt"
    torch.save(whole, path, _use_new_zipfile_serialization=zipped)
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.delitem(sys.modules, name)
    content = read_pickle(path)
    assert content["epoch"] == 3
    assert content["counts"]["a"] == 1
    assert [str(key) for key in content["callbacks"]][1] == "object"
    assert not hasattr(content["callbacks"]["object"], "best"), "a stand-in knows nothing"
    tensors = read_tensors(path)
    assert tensors.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        assert torch.equal(tensors[name], tensor)
        assert tensors[name].dtype == tensor.dtype


@pytest.mark.parametrize("key", ["state_dict", "model", "ema", ""])
def test_weights_are_found_where_programs_put_them(tmp_path: Path, key: str) -> None:
    path = tmp_path / "weights.pt"
    torch.save({key: WEIGHTS, "steps": 7} if key else {**WEIGHTS, "steps": 7}, path)
    assert read_tensors(path).keys() == WEIGHTS.keys()


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "weights.safetensors")
    assert torch.equal(read_tensors(tmp_path / "weights.safetensors")["a.weight"], WEIGHTS["a.weight"])


class Malicious:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def planted(path: Path) -> None:
    """What a malicious file would like to have called."""
    path.write_text("it ran")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("how", ["system", "open", "exec", "getattr", "own", "import", "partial", "reconstructor"])
def test_a_file_that_would_run_code_is_refused(tmp_path: Path, how: str, zipped: bool) -> None:
    target = tmp_path / "written"
    evil = {
        "system": Malicious(os.system, f"echo > {target}"),
        "open": Malicious(open, str(target), "w"),
        "exec": Malicious(exec, f"open({str(target)!r}, 'w')"),
        "getattr": Malicious(getattr, pathlib.Path(target), "touch"),
        "own": Malicious(planted, target),
        "import": Malicious(__import__, "antigravity"),
        "partial": Malicious(types.SimpleNamespace),
        "reconstructor": Malicious(__import__("copyreg")._reconstructor, dict, dict, {}),
    }[how]
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": WEIGHTS, "extra": evil}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(SmaltiError, match=r"was refused: it calls .+, which weights do not need; nothing was executed"):
        read_tensors(path)
    assert not target.exists()


def test_damage_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "whole.ckpt"
    torch.save({"state_dict": WEIGHTS}, path)
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:length])
        with pytest.raises(SmaltiError, match=rf"{re.escape(str(path))} is damaged, truncated or no checkpoint \(.*\)"):
            read_tensors(path)
    path.write_text("<html>not found</html>")
    with pytest.raises(SmaltiError, match="is damaged, truncated or no checkpoint"):
        read_tensors(path)
    with pytest.raises(SmaltiError, match="there is no file"):
        read_tensors(tmp_path / "nowhere.ckpt")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\x00")
    with pytest.raises(SmaltiError, match="is damaged, truncated or missing"):
        read_tensors(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {}}, torch.ones(3)])
def test_files_without_weights_are_reported(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "none.ckpt")
    with pytest.raises(SmaltiError, match="holds no weights by name"):
        read_tensors(tmp_path / "none.ckpt")
