"""The original's checkpoints: what is wrong with a file, and what they cannot hold, is one sentence."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from smalti.checkpoints import taming, taming_writing
from smalti.checkpoints.base import Imported
from smalti.checkpoints.formats import read_foreign
from smalti.conditions.base import Condition
from smalti.conditions.labels import Labels, Unconditional
from smalti.core.errors import SmaltiError
from smalti.model_loading import save_models
from smalti.pipeline import Pipeline
from smalti.prior import Transformer, TransformerSettings
from smalti.tokenizer.vqgan import VQGAN
from tests.checkpoints.test_taming import changed, config_of, gpt, tokenizer, written


def broken(run: Path, how: str) -> tuple[Path, str]:
    config = config_of(run)
    model, part = config["model"], config["model"]["params"]
    if how == "missing layer":
        return changed(run, encoder__conv_in__bias=None), r"do not fit: encoder\.conv_in\.bias is missing"
    if how == "extra layer":
        return changed(run, encoder__down__7__x=torch.ones(1)), r"do not fit: encoder\.down\.7\.x is not known"
    if how == "other shape":
        sentence = r"quantize\.embedding\.weight has the shape \(5, 6\), where its settings require \(24, 6\)"
        return changed(run, quantize__embedding__weight=torch.ones(5, 6)), sentence
    if how == "truncated":
        path = run / "checkpoints" / "last.ckpt"
        path.write_bytes(path.read_bytes()[:2000])
        return run, "is damaged, truncated or no checkpoint"
    if how == "unknown target":
        model["target"] = "taming.models.vqgan.VQModle"
        return changed(run, config), r"the target 'taming\.models\.vqgan\.VQModle' is not known here; .*VQModel"
    if how == "system target":
        model["target"] = "os.system"
        return changed(run, config), r"the target 'os\.system' is not known here"
    if how == "no model":
        return changed(run, {"model": {"target": 3}}), "a section with 'target' and 'params' is needed here"
    if how == "unknown key":
        part["embed_dimension"] = 3
        return changed(run, config), "unknown key 'embed_dimension' of taming.models.vqgan.VQModel"
    if how == "missing key":
        del part["n_embed"]
        return changed(run, config), "the key 'n_embed' is missing"
    if how == "misspelled":
        part["ddconfig"]["ch_mul"] = [1, 1]
        return changed(run, config), "ddconfig: unknown key 'ch_mul'; did you mean 'ch_mult'"
    if how == "variational":
        part["ddconfig"]["double_z"] = True
        return changed(run, config), "double_z = true .* is not supported"
    if how == "linear attention":
        part["ddconfig"]["attn_type"] = "linear"
        return changed(run, config), "attn_type = linear is not supported"
    if how == "no yaml":
        (run / "configs" / "smalti-project.yaml").write_text("model: [", "utf-8")
        return run, "is not YAML"
    if how == "no checkpoint":
        (run / "checkpoints" / "last.ckpt").unlink()
        return run, "has settings of the original but no checkpoint"
    assert how == "no settings"
    shutil.rmtree(run / "configs")
    return run / "checkpoints" / "last.ckpt", "has no YAML beside it"


BREAKS = (
    *("missing layer", "extra layer", "other shape", "truncated", "unknown target", "system target", "no model"),
    *("unknown key", "missing key", "misspelled", "variational", "linear attention", "no yaml", "no checkpoint"),
    "no settings",
)


@pytest.mark.parametrize("how", BREAKS)
def test_what_is_wrong_is_reported(tmp_path: Path, how: str) -> None:
    path, sentence = broken(written(tmp_path / "run", tokenizer()), how)
    with pytest.raises(SmaltiError, match=sentence) as error:
        read_foreign(path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_wrong_with_a_transformer_is_reported(tmp_path: Path) -> None:
    run = written(tmp_path / "run", tokenizer(), gpt(Labels(["0", "1"])), Labels(["0", "1"]))
    whole = config_of(run)

    def refused(sentence: str, **params: Any) -> None:
        config = yaml.safe_load(yaml.safe_dump(whole))
        config["model"]["params"] |= params
        with pytest.raises(SmaltiError, match=sentence):
            read_foreign(changed(run, config))

    refused("unknown key 'pkep'", pkep=0.5)
    refused("downsample_cond_size = 8 is not supported", downsample_cond_size=8)
    refused(r"the target 'a\.B' is not known", cond_stage_config={"target": "a.B"})
    refused(
        "unknown key 'n_heads' of the transformer; did you mean 'n_head'",
        transformer_config={
            "target": "taming.modules.transformer.mingpt.GPT",
            "params": {"vocab_size": 32, "block_size": 17, "n_heads": 2},
        },
    )
    refused(
        "a permuter|permuter is for 8 x 4 codes",
        permuter_config={"target": "taming.modules.transformer.permuter.Random", "params": {"H": 8, "W": 4}},
    )
    with pytest.raises(SmaltiError, match=r"\(transformer\) do not fit: head\.weight is missing"):
        read_foreign(changed(run, whole, transformer__head__weight=None))
    run = written(tmp_path / "again", tokenizer(), gpt(Labels(["0", "1"])), Labels(["0", "1"]))
    with pytest.raises(SmaltiError, match=r"1 are not known, first third_stage_model\.x"):
        read_foreign(changed(run, third_stage_model__x=torch.ones(1)))


def test_what_the_original_cannot_hold_is_refused(tmp_path: Path) -> None:
    def refused(sentence: str, made: VQGAN | None, prior: Any = None, condition: Condition | None = None) -> None:
        with pytest.raises(SmaltiError, match=sentence):
            taming_writing.write(made, prior, condition, tmp_path / "run", about={})
        assert not (tmp_path / "run").exists()

    refused("model.autoencoder.patch_size = 2", tokenizer(patch_size=2))
    refused("do not divide model.autoencoder.base_channels = 40", tokenizer(base_channels=40))
    refused("this tokenizer has model.autoencoder.decoder_base_channels = 64", tokenizer(decoder_base_channels=64))
    refused("this tokenizer has model.autoencoder.decoder_res_blocks = 3", tokenizer(decoder_res_blocks=3))
    refused("model.quantizer.l2_normalize = true", tokenizer(quantizer={"codebook_size": 24, "codebook_dim": 6}))
    modern = Transformer(TransformerSettings(codebook_size=24, grid=(4, 4), layers=1, embed_dim=16, heads=2))
    refused("the prior 'gpt'", tokenizer(), modern, Unconditional())
    refused("holds a prior with its tokenizer", None, gpt(Unconditional(), start_code=0), Unconditional())


def test_a_folder_in_the_way_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(SmaltiError, match=re.escape(str(tmp_path / "run"))):
        written(tmp_path / "run", tokenizer())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_other_folders_are_none_of_theirs(tmp_path: Path) -> None:
    assert taming.read(tmp_path) is None
    (tmp_path / "notes.yaml").write_text("a: 1")
    assert taming.read(tmp_path) is None
    with pytest.raises(SmaltiError, match="is of no format that is read"):
        read_foreign(tmp_path)
    with pytest.raises(SmaltiError, match="there is nothing at"):
        read_foreign(tmp_path / "nowhere")


def test_a_tokenizer_alone_is_no_pipeline(tmp_path: Path) -> None:
    run = written(tmp_path / "run", tokenizer())
    with pytest.raises(SmaltiError, match=r"holds a tokenizer alone \(taming\); to sample, a prior is needed too"):
        Pipeline.from_pretrained(run)
    with pytest.raises(SmaltiError, match="there is a prior alone"):
        save_models(
            Imported("llamagen", None, gpt(Unconditional(), start_code=0), Unconditional(), {}), tmp_path / "out"
        )
