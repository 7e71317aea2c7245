"""Model folders: what is written comes back, and all that is not whole, not ours or not fitting is told in a
sentence."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from smalti.core.errors import SmaltiError
from smalti.core.files import write_json
from smalti.hub import hugging_face
from smalti.hub.bundled_models import SCENES
from smalti.hub.pretrained import (
    CONFIG,
    FORMAT,
    WEIGHTS,
    Saved,
    find_model,
    load_weights_into,
    locate,
    resolve_model_path,
    save_model,
)


def written(folder: Path, *, kind: str = "tokenizer") -> nn.Linear:
    """A model folder with the weights of a linear map 3 -> 2."""
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    save_model(folder, kind=kind, settings={"width": 3}, about={"by": "test"}, weights=module.state_dict())
    return module


def test_a_model_folder_comes_back(tmp_path: Path) -> None:
    module = written(tmp_path / "m")
    assert sorted(os.listdir(tmp_path / "m")) == [CONFIG, WEIGHTS]
    saved = find_model(tmp_path / "m", kind="tokenizer")
    assert saved == Saved(tmp_path / "m", "tokenizer", {"width": 3}, {"by": "test"})
    other = nn.Linear(3, 2)
    load_weights_into(other, saved)
    assert torch.equal(other.weight, module.weight)
    assert torch.equal(other.bias, module.bias)


def test_weights_in_any_layout_are_saved(tmp_path: Path) -> None:
    weight = torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    save_model(tmp_path, kind="tokenizer", settings={}, about={}, weights={"w": weight.requires_grad_()})
    assert torch.equal(load_file(tmp_path / WEIGHTS)["w"], weight)


def test_a_run_folder_stands_for_its_model(tmp_path: Path) -> None:
    written(tmp_path / "model")
    assert locate(tmp_path) == tmp_path / "model"
    assert find_model(str(tmp_path), kind="tokenizer").folder == tmp_path / "model"


def test_without_weights_there_is_no_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(tensors: object, path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("smalti.hub.pretrained.save_file", refuse)
    with pytest.raises(SmaltiError, match="No space left"):
        written(tmp_path)
    assert os.listdir(tmp_path) == []


def test_what_is_no_model_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match=r"there is no model folder .*nowhere"):
        locate(tmp_path / "nowhere")
    with pytest.raises(SmaltiError, match=rf"is not a model: it has no {CONFIG}"):
        locate(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(SmaltiError, match="is not a model: its training has not written a model yet"):
        locate(tmp_path)
    with pytest.raises(SmaltiError, match="there is no model folder"):
        locate(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"architectures": ["GPT2"]}, "was not written by smalti"),
        ([1, 2], "was not written by smalti"),
        ({"smalti": "1", "kind": "tokenizer"}, "was not written by smalti"),
        ({"smalti": FORMAT + 1, "kind": "tokenizer"}, rf"newer smalti \(format {FORMAT + 1}\); update smalti"),
        ({"smalti": FORMAT, "kind": "prior", "settings": {}}, "holds a prior, a tokenizer is needed here"),
        ({"smalti": FORMAT, "kind": "tokenizer"}, "holds no settings"),
        *(
            ({"smalti": FORMAT, "kind": "tokenizer", "same_as": name}, "must name a part of a bundled model, such as")
            for name in ("scenes/../scenes/tokenizer", "/tmp", "scenes/none", "none/tokenizer", "scenes/\0", 7, None)
        ),
    ],
)
def test_configs_of_other_kinds_are_refused(tmp_path: Path, config: object, sentence: str) -> None:
    write_json(tmp_path / CONFIG, config)
    with pytest.raises(SmaltiError, match=sentence):
        find_model(tmp_path, kind="tokenizer")


def test_a_part_of_a_bundled_model_is_the_same_as_that_of_another(tmp_path: Path) -> None:
    write_json(tmp_path / CONFIG, {"smalti": FORMAT, "kind": "tokenizer", "same_as": "scenes/tokenizer"})
    assert find_model(tmp_path, kind="tokenizer") == find_model(SCENES, kind="tokenizer")


def test_damaged_weights_are_reported(tmp_path: Path) -> None:
    written(tmp_path)
    saved = find_model(tmp_path, kind="tokenizer")
    whole = (tmp_path / WEIGHTS).read_bytes()
    for content in (b"", whole[:4], whole[:50], whole[:-1], whole + b"x", b"PK" + whole):
        (tmp_path / WEIGHTS).write_bytes(content)
        with pytest.raises(SmaltiError, match=rf"{WEIGHTS} is damaged or truncated"):
            load_weights_into(nn.Linear(3, 2), saved)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(SmaltiError, match=rf"has no {WEIGHTS}"):
        load_weights_into(nn.Linear(3, 2), saved)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({"weight": torch.zeros(2, 3)}, "1 tensors differ, first bias"),
        (
            {"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "scale": torch.zeros(2)},
            "1 tensors differ, first scale",
        ),
        ({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, "1 tensors differ, first weight"),
        ({name: torch.zeros(1) for name in "abcd"}, "6 tensors differ, first a, b, bias"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, weights: dict[str, torch.Tensor], sentence: str) -> None:
    written(tmp_path)
    save_file(weights, tmp_path / WEIGHTS)
    module = nn.Linear(3, 2)
    before = module.weight.clone()
    with pytest.raises(SmaltiError, match=sentence):
        load_weights_into(module, find_model(tmp_path, kind="tokenizer"))
    assert torch.equal(module.weight, before)


def test_a_name_that_is_no_folder_is_requested_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def given(name: str, *, allow_patterns: list[str]) -> str:
        assert name == "somebody/mosaic"
        assert {CONFIG, WEIGHTS} <= set(allow_patterns)
        return str(tmp_path / "snapshot")

    written(tmp_path / "snapshot")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", given)
    assert find_model("somebody/mosaic", kind="tokenizer").folder == tmp_path / "snapshot"


def test_a_hub_that_does_not_answer_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str, *, allow_patterns: list[str]) -> str:
        raise ConnectionError("no network\nand a long explanation")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refused)
    with pytest.raises(SmaltiError, match=r"no folder some/body, and the Hub did not .* \(no network\)$"):
        locate("some/body")


def test_a_mistyped_folder_is_reported_before_the_hub_is_requested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    requested: list[str] = []

    def download(name: str) -> Path:
        requested.append(name)
        return tmp_path

    monkeypatch.setattr(hugging_face, "download", download)
    written(Path("runs/demo"))
    Path("runs/dmep").touch()  # a file is not a model
    with pytest.raises(SmaltiError, match=r"^there is no folder runs/dmeo; did you mean 'runs/demo'\?$"):
        resolve_model_path("runs/dmeo")
    with pytest.raises(SmaltiError, match=r"^there is no folder runs/photos; runs is one, so the Hub was not queried$"):
        resolve_model_path("runs/photos")
    assert not requested
    assert resolve_model_path("runs/demo") == Path("runs/demo")
    assert resolve_model_path("me/demo") == tmp_path
    assert requested == ["me/demo"]


def test_a_folder_of_several_models_stands_for_the_one_that_is_needed(tmp_path: Path) -> None:
    written(tmp_path / "tokenizer" / "model")
    written(tmp_path / "prior", kind="prior")
    assert find_model(tmp_path, kind="tokenizer").folder == tmp_path / "tokenizer" / "model"
    assert find_model(tmp_path, kind="prior").folder == tmp_path / "prior"
