"""LlamaGen's checkpoints: what does not fit is told by name, and what theirs cannot be is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from smalti.checkpoints.llamagen import REFERENCE_GPT, read, write
from smalti.conditions.labels import Labels, Unconditional
from smalti.core.errors import SmaltiError
from smalti.prior import GPT, GPTSettings, Transformer, TransformerSettings
from smalti.tokenizer.encoder import AutoencoderSettings
from smalti.tokenizer.quantizers import GumbelSettings, RemapSettings, VQSettings
from smalti.tokenizer.vqgan import VQGAN, VQGANSettings
from tests.checkpoints.test_llamagen import (
    Net,
    Shapes,
    Tokenizer,
    gpt_shapes,
    imported,
    random_weights,
    save,
    tokenizer_shapes,
)

VQ_SHAPES, GPT_SHAPES = tokenizer_shapes(Tokenizer()), gpt_shapes(Net())
DAMAGES: list[tuple[Shapes, str, tuple[int, ...], str]] = [  # a weight of another shape, () for none
    (VQ_SHAPES, "decoder.mid.1.q.weight", (), "decoder.mid.1.q.weight is missing"),
    (VQ_SHAPES, "encoder.conv_blocks.1.res.0.conv2.weight", (), "conv_blocks.1.res.0.conv2.weight is missing"),
    (VQ_SHAPES, "more", (1,), "more is not known"),
    (VQ_SHAPES, "encoder.conv_blocks.1.res.0.conv2.weight", (48, 32, 3, 3), "of 32, these are 32 and 32, 48"),
    (GPT_SHAPES, "cls_embedding.embedding_table.weight", (), "cls_embedding.embedding_table.weight is missing"),
    (GPT_SHAPES, "cls_embedding.embedding_table.weight", (3, 8), "cls_embedding.embedding_table.weight has the shape"),
    (GPT_SHAPES, "layers.1.feed_forward.w3.weight", (), "layers.1.feed_forward.w3.weight is missing"),
    (GPT_SHAPES, "lm_head", (1,), "lm_head is not known"),
    (GPT_SHAPES, "layers.1.attention.wqkv.weight", (64, 32), "64 rows and not 3 x 32; keys shared by several heads"),
    (GPT_SHAPES, "cls_embedding.cap_proj.fc1.weight", (2, 2), "is LlamaGen's GPT for texts"),
    (GPT_SHAPES, "freqs_cis", (), "how many heads a GPT of width 32 has is not known"),
]


@pytest.mark.parametrize(("shapes", "name", "shape", "message"), DAMAGES)
def test_what_does_not_fit_is_reported_by_name(
    shapes: Shapes, name: str, shape: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    others = {other: size for other, size in shapes.items() if other != name}
    path = save(tmp_path / "model.pt", random_weights({**others, name: shape} if shape else others))
    with pytest.raises(SmaltiError, match=re.escape(message)):
        read(path)


def test_damaged_files_are_reported_and_others_left_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "vq.pt", random_weights(tokenizer_shapes(Tokenizer())))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(SmaltiError, match=r"vq\.pt is damaged"):
        read(path)
    labels = {"heads": 2, "grid": [4, 4], "labels": ["a"], "dropout": 0.0}
    with pytest.raises(SmaltiError, match="1 labels and 5 classes"):
        read(save(tmp_path / "gpt.pt", random_weights(gpt_shapes(Net())), smalti=labels))
    torch.save([1, 2], tmp_path / "list.pt")
    save(tmp_path / "other.pt", {"a": torch.ones(1)})
    others = [tmp_path / name for name in ("other.pt", "list.pt", "none.pt")]
    assert [read(other) for other in (*others, tmp_path.parent)] == [None] * 4


VQ_REFUSED: dict[str, tuple[dict[str, Any], Any, str]] = {
    "distance": ({}, VQSettings(codebook_size=8, l2_normalize=False), r"quantizer\.l2_normalize = false"),
    "gumbel": ({}, GumbelSettings(codebook_size=8), r"quantizer\.name = 'gumbel'"),
    "remap": ({}, VQSettings(codebook_size=8, remap=RemapSettings(used=3)), r"remap\.used = 3"),
    "patch_size": ({"patch_size": 2}, VQSettings(codebook_size=8), "patch_size = 2"),
    "resampling": (
        {"convolutional_resampling": False},
        VQSettings(codebook_size=8),
        "convolutional_resampling = false",
    ),
    "middle": ({"middle_attention": False}, VQSettings(codebook_size=8), "middle_attention = false"),
    "attention_levels": (
        {"attention_levels": (0,)},
        VQSettings(codebook_size=8),
        r"attention_levels = \[0\], where LlamaGen has \[1\]",
    ),
    "widths": ({"channel_multipliers": (2, 1)}, VQSettings(codebook_size=8), "the widths 64, 32"),
    **{
        name: ({name: 16}, VQSettings(codebook_size=8), f"{name} = 16")
        for name in ("decoder_base_channels", "decoder_res_blocks")
    },
}


@pytest.mark.parametrize(("autoencoder", "quantizer", "message"), VQ_REFUSED.values(), ids=VQ_REFUSED.keys())
def test_tokenizers_that_theirs_cannot_be_are_refused(
    autoencoder: dict[str, Any], quantizer: Any, message: str, tmp_path: Path
) -> None:
    values = {
        "base_channels": 32,
        "channel_multipliers": (1, 1),
        "res_blocks": 1,
        "attention_levels": (1,),
        "latent_channels": 4,
        **autoencoder,
    }
    tokenizer = VQGAN(VQGANSettings(autoencoder=AutoencoderSettings(**values), quantizer=quantizer))
    with pytest.raises(SmaltiError, match=message):
        write(tokenizer, None, None, tmp_path / "out", about={})
    assert not (tmp_path / "out").exists()


def small_prior(**values: Any) -> Transformer:
    sizes: dict[str, Any] = {
        "codebook_size": 6,
        "condition_size": 2,
        "grid": (3, 3),
        "layers": 1,
        "embed_dim": 16,
        "heads": 2,
    }
    return Transformer(TransformerSettings(**{**sizes, **REFERENCE_GPT, **values})).eval()


@pytest.mark.parametrize(
    "values",
    [{"query_key_norm": True}, {"prefix_length": 2}, {"order": "spiral_in"}, {"order": "any"}, {"grid": (2, 3)}],
)
def test_priors_that_theirs_cannot_be_are_refused(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match=f"network.{next(iter(values))}"):
        write(None, small_prior(**values), Labels(["a", "b"]), tmp_path / "out", about={})
    gpt = GPT(
        GPTSettings(
            vocab_size=6, codebook_size=6, prefix_length=1, grid=(2, 2), block_size=5, layers=1, heads=1, embed_dim=8
        )
    )
    with pytest.raises(SmaltiError, match="the prior 'transformer'"):
        write(None, gpt, Labels(["a"]), tmp_path / "out", about={})
    with pytest.raises(SmaltiError, match="conditioned on class labels; this prior is not"):
        write(None, small_prior(), Unconditional(), tmp_path / "out", about={})


@torch.no_grad()
def test_a_position_that_the_prefix_has_learned_goes_into_the_classes(tmp_path: Path) -> None:
    prior = small_prior()
    write(None, prior, Labels(["a", "b"]), tmp_path / "out", about={})
    again = imported(tmp_path / "out")
    assert again.condition.names == ("a", "b")
    sequence = prior.join(torch.tensor([[0], [2]]), torch.tensor([[1, 2, 3], [4, 5, 0]]))
    assert torch.equal(again.prior(sequence), prior(sequence))
