"""Which files of a folder belong together: settings and weights of one model among others, shards, variants, wrapped
names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from smalti.checkpoints import diffusers, llamagen
from smalti.checkpoints.formats import read_foreign
from smalti.checkpoints.pickles import read_tensors
from smalti.core.errors import SmaltiError
from smalti.tokenizer.vqgan import VQGAN
from tests.checkpoints.test_taming import REFERENCE, changed, config_of, tokenizer, written

CODES = {"a": 24, "b": 12}


def made(name: str) -> VQGAN:
    return tokenizer(quantizer={"codebook_size": CODES[name], "codebook_dim": 6, **REFERENCE})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `a` and `b`, which differ in their settings."""
    folder = tmp_path_factory.mktemp("runs")
    for name in CODES:
        written(folder / name, made(name))
    return folder


def put(runs: Path, run: str, checkpoint: Path, config: Path | None) -> None:
    """Copies of a run's checkpoint and settings."""
    for source, file in ((runs / run / "checkpoints" / "last.ckpt", checkpoint), (_config(runs / run), config)):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, file)


def _config(run: Path) -> Path:
    return run / "configs" / "smalti-project.yaml"


def codes(path: Path) -> int:
    read = read_foreign(path).tokenizer
    assert read is not None
    return read.size


# --- settings of one model among others ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("checkpoints", "configs"), [("", ""), ("checkpoints", "configs"), ("", "configs"), ("models", "configs")]
)
@pytest.mark.parametrize("suffix", ["yaml", "yml"])
def test_each_checkpoint_has_the_settings_of_its_name(
    runs: Path, tmp_path: Path, checkpoints: str, configs: str, suffix: str
) -> None:
    """As published models lie: vqgan_a.ckpt and vqgan_a.yaml beside vqgan_b.ckpt and vqgan_b.yaml."""
    for name in CODES:
        put(runs, name, tmp_path / checkpoints / f"vqgan_{name}.ckpt", tmp_path / configs / f"vqgan_{name}.{suffix}")
    (tmp_path / configs / "a-server.yaml").write_text("image: {target: x}\nmodels: {}\n", "utf-8")
    for name, count in CODES.items():
        assert codes(tmp_path / checkpoints / f"vqgan_{name}.ckpt") == count
    if checkpoints in ("", "checkpoints"):
        with pytest.raises(
            SmaltiError, match=r"holds 2 models of the original \(vqgan_a\.ckpt, vqgan_b\.ckpt\); name one"
        ):
            read_foreign(tmp_path)


def test_settings_of_another_checkpoint_are_not_taken(runs: Path, tmp_path: Path) -> None:
    put(runs, "a", tmp_path / "a.ckpt", None)
    put(runs, "b", tmp_path / "b.ckpt", tmp_path / "b.yaml")
    with pytest.raises(SmaltiError, match=r"a\.ckpt has no YAML beside it"):
        read_foreign(tmp_path / "a.ckpt")
    put(runs, "a", tmp_path / "a.ckpt", tmp_path / "config.yaml")
    assert (codes(tmp_path / "a.ckpt"), codes(tmp_path / "b.ckpt")) == (24, 12)
    assert codes(tmp_path) == 12  # the only pair


def test_several_settings_of_other_names_are_refused(runs: Path, tmp_path: Path) -> None:
    put(runs, "a", tmp_path / "model.ckpt", tmp_path / "one.yaml")
    put(runs, "b", tmp_path / "model.ckpt", tmp_path / "two.yaml")
    for path in (tmp_path / "model.ckpt", tmp_path):
        with pytest.raises(
            SmaltiError, match=r"which of one\.yaml, two\.yaml in .*; give that one the name model\.yaml"
        ):
            read_foreign(path)


def test_a_run_is_not_read_with_what_lies_above_it(runs: Path, tmp_path: Path) -> None:
    """Neither the settings of a model in the folder above, nor those of one that has the same name there."""
    put(runs, "a", tmp_path / "last.ckpt", tmp_path / "last.yaml")
    for run in (tmp_path / "run", tmp_path):
        put(runs, "b", run / "checkpoints" / "last.ckpt", None)
        with pytest.raises(SmaltiError, match="has no YAML beside it"):
            read_foreign(run / "checkpoints" / "last.ckpt")
    put(runs, "b", tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "run" / "configs" / "2021-project.yaml")
    assert codes(tmp_path / "run") == codes(tmp_path / "run" / "checkpoints" / "last.ckpt") == 12
    assert codes(tmp_path / "last.ckpt") == 24


def test_the_checkpoints_of_one_run_share_its_settings(runs: Path, tmp_path: Path) -> None:
    for epoch in ("epoch=000003", "epoch=000012", "last"):
        put(runs, "a", tmp_path / "checkpoints" / f"{epoch}.ckpt", tmp_path / "configs" / "2021-project.yaml")
        assert codes(tmp_path / "checkpoints" / f"{epoch}.ckpt") == 24
    changed(shutil.copytree(runs / "b", tmp_path / "other"), config_of(runs / "b"))
    shutil.copy(runs / "b" / "checkpoints" / "last.ckpt", tmp_path / "checkpoints" / "epoch=000012.ckpt")
    assert codes(tmp_path) == 24  # of last.ckpt; the one of another epoch would not fit


def test_what_the_weights_say_counts_more_than_a_yaml_nearby(runs: Path, tmp_path: Path) -> None:
    """LlamaGen's files say what they are; a YAML that lies with them is about something else."""
    theirs = tokenizer(
        channel_multipliers=[1, 2], attention_levels=[1], quantizer={"codebook_size": 40, "codebook_dim": 6}
    )
    llamagen.write(theirs, None, None, tmp_path / "llamagen", about={})
    (file,) = (tmp_path / "llamagen").glob("*.pt")
    shutil.copy(_config(runs / "a"), tmp_path / "llamagen" / "vqgan.yaml")
    for path in (file, tmp_path / "llamagen"):
        assert codes(path) == 40
    put(runs, "b", tmp_path / "llamagen" / "vqgan.ckpt", tmp_path / "llamagen" / "vqgan.yaml")
    assert (codes(file), codes(tmp_path / "llamagen" / "vqgan.ckpt")) == (40, 12)


# --- shards and variants -------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder of diffusers' VQModel."""
    diffusers.write(tokenizer(), None, None, tmp_path / "vqvae", about={})
    return tmp_path / "vqvae"


def sharded(folder: Path, *, variant: str = "", binary: bool = False) -> Path:
    """The weights in two shards and their index, as diffusers names them."""
    whole = load_file(folder / diffusers.WEIGHTS[0])
    (folder / diffusers.WEIGHTS[0]).unlink()
    suffix, stem = "bin" if binary else "safetensors", f"diffusion_pytorch_model{variant}"
    places: dict[str, str] = {}
    for number, names in enumerate((sorted(whole)[::2], sorted(whole)[1::2]), 1):
        file = f"{stem}-{number:05d}-of-00002.{suffix}"
        part = {name: whole[name] for name in names}
        if binary:
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file)
        places |= dict.fromkeys(names, file)
    index = folder / f"diffusion_pytorch_model.{suffix}.index{variant}.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}), "utf-8")
    return index


@pytest.mark.parametrize(("variant", "binary"), [("", False), ("", True), (".fp16", False)])
def test_shards_are_one_model(model: Path, variant: str, binary: bool) -> None:
    expected = read_foreign(model).tokenizer
    index = sharded(model, variant=variant, binary=binary)
    shard = next(model.glob("*-00001-of-*"))
    for path in (model, model.parent, index, shard, model / "config.json"):
        read = read_foreign(path).tokenizer
        assert read is not None
        assert expected is not None
        assert read.fingerprint() == expected.fingerprint()


def test_a_shard_that_is_missing_is_named(model: Path) -> None:
    index = sharded(model)
    (model / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        SmaltiError, match=r"names 2 shards, of which 1 are missing, first .*-00002-of-00002\.safetensors; put"
    ):
        read_foreign(model)
    index.unlink()
    with pytest.raises(
        SmaltiError, match=r"1 shards of weights without their index; put diffusion_pytorch_model\.safetensors\.ind"
    ):
        read_foreign(model)
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}), "utf-8")
    with pytest.raises(SmaltiError, match="names no shards in its folder"):
        read_foreign(model)


def test_the_file_that_was_named_is_read(model: Path) -> None:
    """Not the one that its folder would give."""
    whole = load_file(model / diffusers.WEIGHTS[0])
    torch.save({name: tensor + 1 for name, tensor in whole.items()}, model / diffusers.WEIGHTS[1])
    read = [read_foreign(model / name).tokenizer for name in diffusers.WEIGHTS]
    assert read[0] is not None
    assert read[1] is not None
    torch.testing.assert_close(read[1].encoder.conv_in.weight, read[0].encoder.conv_in.weight + 1)
    for variant in ("fp16", "non_ema"):
        shutil.copy(model / diffusers.WEIGHTS[0], model / f"diffusion_pytorch_model.{variant}.safetensors")
    for name in diffusers.WEIGHTS:
        (model / name).unlink()
    with pytest.raises(SmaltiError, match=r"several variants of its weights \(.*fp16.*, .*non_ema.*\); name one"):
        read_foreign(model)
    assert read_foreign(model / "diffusion_pytorch_model.fp16.safetensors").tokenizer is not None


def test_two_tokenizers_in_one_pipeline_are_refused(model: Path) -> None:
    shutil.copytree(model, model.with_name("movq"))
    with pytest.raises(SmaltiError, match=r"holds 2 VQModels of diffusers; name one of .*vqvae, .*movq"):
        read_foreign(model.parent)


# --- wrapped names -------------------------------------------------------------------------------------------------

WRAPPED: dict[str, Callable[[str], str]] = {
    "DistributedDataParallel": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "a part": lambda name: name.replace("encoder.", "encoder._orig_mod."),
    "half of them": lambda name: f"module.{name}" if name.startswith("decoder") else name,
}


def renamed(path: Path, name: Callable[[str], str]) -> None:
    weights = {name(key): tensor for key, tensor in read_tensors(path).items()}
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save({"model" if path.suffix == ".pt" else "state_dict": weights}, path)


@pytest.mark.parametrize("how", WRAPPED)
def test_wrappers_are_taken_off(runs: Path, model: Path, tmp_path: Path, how: str) -> None:
    put(runs, "a", tmp_path / "a.ckpt", tmp_path / "a.yaml")
    theirs = tokenizer(
        channel_multipliers=[1, 2], attention_levels=[1], quantizer={"codebook_size": 40, "codebook_dim": 6}
    )
    llamagen.write(theirs, None, None, tmp_path / "llamagen", about={})
    (file,) = (tmp_path / "llamagen").glob("*.pt")
    for path, expected in (
        (tmp_path / "a.ckpt", made("a")),
        (model / diffusers.WEIGHTS[0], tokenizer()),
        (file, theirs),
    ):
        renamed(path, WRAPPED[how])
        read = read_foreign(path).tokenizer
        assert read is not None
        assert read.fingerprint() == expected.fingerprint()


def test_names_that_only_a_wrapper_reports_apart_stay(tmp_path: Path) -> None:
    weights: dict[str, Tensor] = {"module.a": torch.zeros(1), "a": torch.ones(1)}
    save_file(weights, tmp_path / "x.safetensors")
    assert read_tensors(tmp_path / "x.safetensors").keys() == weights.keys()


def test_another_prefix_is_reported(runs: Path, tmp_path: Path) -> None:
    """Not "encoder.conv_in.weight is missing, and 358 more" alone."""
    put(runs, "a", tmp_path / "a.ckpt", tmp_path / "a.yaml")
    renamed(tmp_path / "a.ckpt", lambda name: f"generator.net.{name}")
    with pytest.raises(
        SmaltiError, match=r"do not fit \(\d+ of its names begin with 'generator\.net\.', .*take it off\): "
    ):
        read_foreign(tmp_path / "a.ckpt")


def test_settings_that_are_no_mapping_are_one_sentence(runs: Path, tmp_path: Path) -> None:
    put(runs, "a", tmp_path / "a.ckpt", None)
    (tmp_path / "a.yaml").write_text(yaml.safe_dump([{"model": {"target": "x"}}]), "utf-8")
    with pytest.raises(SmaltiError, match=r"a section with 'target' and 'params' is needed here|has no YAML beside it"):
        read_foreign(tmp_path / "a.ckpt")
