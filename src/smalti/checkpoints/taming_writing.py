"""smalti's models -> the original's layout: `configs/smalti-project.yaml` and `checkpoints/last.ckpt`, which the
original's own loader reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from smalti.checkpoints.taming import NOTES
from smalti.checkpoints.taming_conditions import section_of
from smalti.checkpoints.taming_parts import ORDERS, gpt_names, mask, section_weights, tokenizer_section
from smalti.conditions.base import Condition
from smalti.core.errors import SmaltiError
from smalti.core.files import folder_written_atomically
from smalti.prior import ORDERS as ORDERS_HERE
from smalti.prior import Prior
from smalti.prior.gpt import GPT
from smalti.tokenizer.vqgan import VQGAN


def write(
    tokenizer: VQGAN | None, prior: Prior | None, condition: Condition | None, folder: Path, *, about: Mapping[str, Any]
) -> None:
    """A tokenizer, alone or with its prior and condition -> a run folder of the original, which must not exist yet.

    Raises `SmaltiError` for what the original cannot express, naming the setting.
    """
    if tokenizer is None:
        raise SmaltiError(
            "a checkpoint of the original holds a prior with its tokenizer; convert the folder of the pipeline"
        )
    if prior is None or condition is None:
        model = tokenizer_section(tokenizer, about=about)
        weights = section_weights(tokenizer, model)
    else:
        model, weights = _net2net(tokenizer, prior, condition, about=about)
    with folder_written_atomically(folder) as temporary:
        (temporary / "configs").mkdir()
        (temporary / "checkpoints").mkdir()
        whole: dict[str, Any] = {"model": {"base_learning_rate": 4.5e-06, **model}}
        if isinstance(prior, GPT):  # the original infers the grid from its images, and its programs ignore this section
            whole[NOTES] = {"grid": list(prior.settings.grid)}
        text = yaml.safe_dump(whole, sort_keys=False)
        (temporary / "configs" / "smalti-project.yaml").write_text(text, "utf-8")
        state = {"epoch": 0, "global_step": 0, "state_dict": weights}
        torch.save(state, temporary / "checkpoints" / "last.ckpt")


def _net2net(
    tokenizer: VQGAN, prior: Prior, condition: Condition, *, about: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Both stages -> the `model` section of the YAML, and all weights by the original's names."""
    if not isinstance(prior, GPT):
        raise SmaltiError(f"the original's transformer is the prior 'gpt', not {type(prior).__name__}")
    settings = prior.settings
    transformer = {
        "vocab_size": settings.vocab_size,
        "block_size": settings.block_size,
        "n_layer": settings.layers,
        "n_head": settings.heads,
        "n_embd": settings.embed_dim,
        "embd_pdrop": settings.embedding_dropout,
        "resid_pdrop": settings.residual_dropout,
        "attn_pdrop": settings.attention_dropout,
        "n_unmasked": settings.unmasked,
    }
    first = tokenizer_section(tokenizer, about=about)
    section, condition_weights = section_of(condition, start=settings.start_code)
    permuter = next(target for target, order in ORDERS.items() if order == settings.order)
    rows, columns = settings.grid
    shape = {} if settings.order == "raster" else {"H": rows, "W": columns}
    params = {
        "transformer_config": {"target": "taming.modules.transformer.mingpt.GPT", "params": transformer},
        "first_stage_config": first,
        "permuter_config": {"target": permuter, "params": shape},
        **section,
    }
    weights = {f"first_stage_model.{name}": tensor for name, tensor in section_weights(tokenizer, first).items()}
    weights |= {f"cond_stage_model.{name}": tensor for name, tensor in condition_weights.items()}
    weights |= {f"transformer.{name}": tensor for name, tensor in gpt_names(prior).written_from(prior).items()}
    visible = mask(prior)
    weights |= {f"transformer.blocks.{layer}.attn.mask": visible for layer in range(settings.layers)}
    if settings.order != "raster":
        order = ORDERS_HERE[settings.order](rows, columns)
        weights["permuter.forward_shuffle_idx"] = order
        weights["permuter.backward_shuffle_idx"] = order.argsort()
    return {"target": "taming.models.cond_transformer.Net2NetTransformer", "params": params}, weights
