"""Tokenizers whose quantizer another program does not know are refused by its format in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from smalti.checkpoints.formats import FORMATS
from smalti.core.errors import SmaltiError
from smalti.core.settings import parse
from smalti.tokenizer.quantizers import QUANTIZERS
from smalti.tokenizer.vqgan import VQGAN, VQGANSettings

KNOWN = {"taming": {"vq", "gumbel"}, "llamagen": {"vq"}, "diffusers": {"vq"}}
"""Format -> the quantizers that it has a place for."""


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("format", KNOWN)
def test_a_format_refuses_the_quantizers_it_does_not_know(format: str, name: str, tmp_path: Path) -> None:
    if name in KNOWN[format]:
        return
    autoencoder = {
        "base_channels": 32,
        "channel_multipliers": [1, 1],
        "res_blocks": 1,
        "latent_channels": 6,
        "attention_levels": [1],
    }
    tokenizer = VQGAN(parse(VQGANSettings, {"autoencoder": autoencoder, "quantizer": {"name": name}}, where="test"))
    with pytest.raises(
        SmaltiError, match=rf"no place for model\.quantizer\.name = '{name}'.* cannot be written (as one|in its)"
    ):
        FORMATS[format].write(tokenizer, None, None, tmp_path / "out", about={})
    assert not (tmp_path / "out").exists()
