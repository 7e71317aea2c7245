"""smalti's GPT <-> a folder that `transformers` loads as `GPT2LMHeadModel`, so that its `generate` and engines
built on it generate codes.

The paper's prior is a GPT-2 with a head of its own, so nothing is lost. Besides the network the folder keeps what
GPT-2's format has no place for: the condition and the grid (in `config.json`, under `smalti_prior`) and the tokenizer
(in the folder `vqgan`, in smalti's format). Only folders that smalti wrote are read: the codes of
another GPT-2 have no known images.

Notation: D width, h w grid, K image codes, V codes of condition and image.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from smalti.checkpoints.base import Imported
from smalti.checkpoints.pickles import read_tensors
from smalti.checkpoints.renaming import Renaming, Rule
from smalti.conditions.base import Condition, Grid
from smalti.conditions.condition_registry import build_condition
from smalti.core.errors import SmaltiError
from smalti.core.files import folder_written_atomically, read_json
from smalti.core.network_building import build_network, number_count
from smalti.core.settings import as_mapping, parse
from smalti.hub.pretrained import find_model
from smalti.prior import GPT, GPTSettings, Prior, Transformer
from smalti.tokenizer.vqgan import VQGAN

CONFIG, GENERATION, WEIGHTS = "config.json", "generation_config.json", "model.safetensors"
NOTES = "smalti_prior"
"""The key of `config.json` under which smalti's settings stand."""
TOKENIZER = "vqgan"


def read(path: Path, *, grid: Grid | None = None, prior: bool = True) -> Imported | None:
    """A folder that `write` made -> smalti's models; None if `path` is not one. Without `prior` its tokenizer alone.

    The window is in the file, so `grid` is ignored. Raises `SmaltiError` for damaged files and for weights that
    do not fit, with names.
    """
    config = read_json(path / CONFIG) if (path / CONFIG).is_file() else None
    if not isinstance(config, dict) or not isinstance(config.get(NOTES), dict):
        return None
    notes, where = config[NOTES], str(path / CONFIG)
    for key in ("network", "condition"):
        if not isinstance(notes.get(key), dict):
            raise SmaltiError(f"{where}: {NOTES} holds no {key}; convert the prior again")
    about: dict[str, Any] = {"prior": notes.get("about", {})}
    tokenizer = None
    if (path / TOKENIZER).is_dir():
        tokenizer = VQGAN.from_pretrained(path / TOKENIZER)
        about = {**find_model(path / TOKENIZER, kind="tokenizer").about, **about}
    if not prior:
        return Imported("transformers", tokenizer, None, None, about)
    settings = parse(GPTSettings, notes["network"], where=where)
    weights = _apart(read_tensors(path / WEIGHTS), where=str(path))
    gpt = build_network(lambda: GPT(settings), stored=number_count(weights), where=where)
    _names(gpt).read_into(gpt, weights, where=str(path))
    condition = build_condition(notes["condition"], path)
    return Imported("transformers", tokenizer, gpt.eval().requires_grad_(False), condition, about)


def write(
    tokenizer: VQGAN | None, prior: Prior | None, condition: Condition | None, folder: Path, *, about: Mapping[str, Any]
) -> None:
    """A GPT and its condition -> a folder for `transformers.GPT2LMHeadModel.from_pretrained`, which must not exist yet.

    A tokenizer that comes with them is kept in it, in smalti's format. Raises `SmaltiError` for priors that are no
    GPT-2.
    """
    gpt = _checked(prior)
    assert condition is not None, "a prior has a condition"
    with folder_written_atomically(folder) as temporary:
        weights = _joined(_names(gpt).written_from(gpt))
        save_file(weights, temporary / WEIGHTS, metadata={"format": "pt"})
        notes = {
            "network": as_mapping(gpt.settings),
            "condition": condition.save(temporary),
            "about": about.get("prior", {}),
        }
        for name, values in (
            (CONFIG, {**_config(gpt.settings), NOTES: notes}),
            (GENERATION, _generation(gpt.settings)),
        ):
            (temporary / name).write_text(json.dumps(values, indent=2) + "\n", "utf-8")
        if tokenizer is not None:
            facts = {key: value for key, value in about.items() if key != "prior"}
            tokenizer.save_pretrained(temporary / TOKENIZER, about={**facts, "fingerprint": tokenizer.fingerprint()})


def _checked(prior: Prior | None) -> GPT:
    """A prior, if it is a GPT-2. Raises `SmaltiError` for others, with the reason."""
    if prior is None:
        raise SmaltiError("transformers holds priors, and this is a tokenizer alone; name the pipeline's folder")
    if isinstance(prior, Transformer):
        raise SmaltiError(
            "transformers has no network like this prior (network.name = 'transformer'): its Llama turns queries and "
            "keys by one place in the sequence, this prior by row and column of the image; a prior with "
            "network.name=gpt fits its GPT-2"
        )
    if not isinstance(prior, GPT):
        raise SmaltiError(
            "transformers has no network like this prior; one that is trained with network.name=gpt fits its GPT-2"
        )
    if prior.settings.unmasked > 1:  # a first code that sees "all" of itself is as masked as any
        raise SmaltiError(
            f"transformers' GPT-2 has no place for network.unmasked = {prior.settings.unmasked}: there each code sees "
            "those before it alone; this prior cannot be written as one"
        )
    return prior


def _config(settings: GPTSettings) -> dict[str, Any]:
    """smalti's settings -> those of `GPT2Config`."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": settings.vocab_size,
        "n_positions": settings.block_size,
        "n_embd": settings.embed_dim,
        "n_layer": settings.layers,
        "n_head": settings.heads,
        "activation_function": "gelu",  # the exact one; GPT-2's own is an approximation
        "layer_norm_epsilon": 1e-5,
        "embd_pdrop": settings.embedding_dropout,
        "attn_pdrop": settings.attention_dropout,
        "resid_pdrop": settings.residual_dropout,
        "tie_word_embeddings": False,
        "bos_token_id": settings.start_code,
        "eos_token_id": None,
    }


def _generation(settings: GPTSettings) -> dict[str, Any]:
    """The defaults of `GPT2LMHeadModel.generate`: a whole grid, of image codes alone."""
    values: dict[str, Any] = {
        "max_new_tokens": settings.grid[0] * settings.grid[1],
        "bos_token_id": settings.start_code,
    }
    if settings.vocab_size > settings.codebook_size:
        values["suppress_tokens"] = list(range(settings.codebook_size, settings.vocab_size))
    return values


def _turned(weight: Tensor) -> Tensor:
    """A linear map (out,in) <-> what they call Conv1D (in,out); a bias stays."""
    return weight.T if weight.dim() == 2 else weight


_LINEAR = {"attention.out": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}
_LINEAR |= {f"attention.{part}": f"attn.c_attn.{index}" for index, part in enumerate(("query", "key", "value"))}
_NORMS = {"attention_norm": "ln_1", "mlp_norm": "ln_2"}
_PART = re.compile(r"(.*\.c_attn)\.\d\.(\w+)")


def _names(prior: GPT) -> Renaming:
    """A prior -> the table of its names there; queries, keys and values, which are one tensor there, are its parts 0,
    1, 2."""
    linear, norms = "|".join(map(re.escape, _LINEAR)), "|".join(_NORMS)
    rules = (
        Rule(
            rf"blocks\.(\d+)\.({linear})\.(\w+)",
            lambda m: f"transformer.h.{m[1]}.{_LINEAR[m[2]]}.{m[3]}",
            _turned,
            _turned,
        ),
        Rule(rf"blocks\.(\d+)\.({norms})\.(\w+)", lambda m: f"transformer.h.{m[1]}.{_NORMS[m[2]]}.{m[3]}"),
        Rule(r"embedding\.weight", "transformer.wte.weight"),
        Rule(r"positions\.weight", "transformer.wpe.weight"),
        Rule(r"norm\.(\w+)", r"transformer.ln_f.\1"),
        Rule(r"head\.weight", "lm_head.weight"),
    )
    return Renaming.of(prior, rules)


def _joined(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in the names of `_names` -> GPT-2's: (D,D) three times becomes (D,3D)."""
    together: dict[str, list[Tensor]] = {}
    for name, part in parts.items():
        together.setdefault(_PART.sub(r"\1.\2", name), []).append(part)
    return {name: torch.cat(some, dim=-1) for name, some in together.items()}


def _apart(weights: Mapping[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """The inverse of `_joined`. Raises `SmaltiError` if a tensor is not made of three parts."""
    parts: dict[str, Tensor] = {}
    for name, weight in weights.items():
        home, is_joined, kind = name.partition(".c_attn.")
        if not is_joined:
            parts[name] = weight
            continue
        if weight.dim() == 0 or weight.shape[-1] % 3:
            raise SmaltiError(f"the weights of {where} do not fit: {name} has the shape {tuple(weight.shape)}")
        parts |= {f"{home}.c_attn.{index}.{kind}": part for index, part in enumerate(weight.chunk(3, dim=-1))}
    return parts
