"""LlamaGen's tokenizers and class-conditional GPTs <-> smalti's models: `.pt` files that hold nothing but weights.

Settings follow from the shapes of the weights. What shapes do not show (the heads, the grid) comes from the published
table of sizes and from the name of the file, such as `c2i_L_384.pt`. Source: Sun et al. 2024, "Autoregressive Model
Beats Diffusion: Llama for Scalable Image Generation" (arXiv 2406.06525).

Notation: D width, N heads, d = D / N, K image codes, C classes, h w grid of codes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from smalti.checkpoints.base import Imported
from smalti.checkpoints.llamagen_files import IGNORED, LlamaGenFile, files_in
from smalti.checkpoints.llamagen_tokenizer import check_tokenizer, read_tokenizer, tokenizer_names
from smalti.checkpoints.renaming import Renaming, Rule
from smalti.conditions.base import Condition, Grid, grid_text
from smalti.conditions.labels import Labels
from smalti.core.errors import SmaltiError
from smalti.core.files import folder_written_atomically
from smalti.core.network_building import build_network, number_count
from smalti.core.settings import Positive, ProperFraction, as_mapping, parse, settings
from smalti.prior import Prior, Transformer, TransformerSettings
from smalti.tokenizer.vqgan import VQGAN

SIZES: dict[str, tuple[int, int, int]] = {
    "B": (12, 12, 768),
    "L": (24, 16, 1024),
    "XL": (36, 20, 1280),
    "XXL": (48, 24, 1536),
    "XXXL": (48, 40, 2560),
    "1B": (22, 32, 2048),
    "3B": (24, 32, 3200),
    "7B": (32, 32, 4096),
}
"""LlamaGen's models: layers, heads, width."""

GRID, FACTOR = 16, 16
"""Defaults of the grid's side, and of f where there is no tokenizer: those of most of LlamaGen's models."""

REFERENCE_GPT: dict[str, Any] = {
    "prefix_length": 1,
    "order": "raster",
    "query_key_norm": False,
    "rotary_base": 10000.0,
    "prefix_rotation": "erased",
    "norm_epsilon": 1e-5,
}
"""LlamaGen's GPT in the settings of smalti's transformer."""


@settings
class Notes:
    """What the weights of a GPT do not show; written beside them under `smalti`, which LlamaGen's programs ignore."""

    heads: Positive
    grid: tuple[Positive, Positive]
    labels: Annotated[tuple[str, ...], Field(min_length=1)]
    dropout: ProperFraction


def read(path: Path, *, grid: Grid | None = None, prior: bool = True) -> Imported | None:
    """A LlamaGen file, or a folder with a tokenizer, a GPT or both -> smalti's models; None if there is no such file.

    `grid` and `prior` as in `FormatReader`. Raises `SmaltiError` for damaged files, weights of another shape, several
    models of one kind, a tokenizer and a GPT with different numbers of codes, and text-conditional GPTs.
    """
    files = files_in(path)
    if not files:
        return None
    tokenizer = read_tokenizer(files["tokenizer"]) if "tokenizer" in files else None
    about: dict[str, Any] = {"imported_from": "LlamaGen"}
    if "GPT" not in files or not prior:
        return Imported("llamagen", tokenizer, None, None, about)
    factor = tokenizer.factor if tokenizer is not None else FACTOR
    gpt, condition, sources = _read_gpt(files["GPT"], factor=factor, grid=grid)
    if tokenizer is not None and tokenizer.size != gpt.size:
        raise SmaltiError(
            f"{files['GPT'].path} is of {gpt.size} codes and {files['tokenizer'].path} has {tokenizer.size}; "
            "they do not belong together"
        )
    about |= {"size": [side * factor for side in gpt.grid], "prior": {"imported_from": "LlamaGen", **sources}}
    return Imported("llamagen", tokenizer, gpt, condition, about)


def write(
    tokenizer: VQGAN | None, prior: Prior | None, condition: Condition | None, folder: Path, *, about: Mapping[str, Any]
) -> None:
    """A tokenizer, a prior conditioned on labels, or both -> a folder of `.pt` files, which must not exist yet.

    Widths and depths that LlamaGen does not offer are written too. `about` is not written. Raises `SmaltiError` for
    settings that LlamaGen's networks cannot have, with the name of the setting.
    """
    contents: dict[str, dict[str, Any]] = {}
    if tokenizer is not None:
        check_tokenizer(tokenizer)
        weights = tokenizer_names(tokenizer).written_from(tokenizer)
        # A record of the codes that training used last; LlamaGen's loader requires it.
        weights["quantize.codebook_used"] = torch.zeros(65536)
        contents[f"vq_ds{tokenizer.factor}_c2i.pt"] = {"model": weights}
    if prior is not None:
        gpt, labels = _checked_gpt(prior, condition)
        known = gpt.settings
        notes = Notes(heads=known.heads, grid=known.grid, labels=labels.names, dropout=known.dropout)
        published = (known.layers, known.heads, known.embed_dim)
        name = next((name for name, size in SIZES.items() if size == published), f"{known.layers}x{known.embed_dim}")
        side = known.grid[0] * (tokenizer.factor if tokenizer is not None else FACTOR)
        contents[f"c2i_{name}_{side}.pt"] = {"model": _gpt_weights(gpt), "smalti": as_mapping(notes)}
    with folder_written_atomically(folder) as temporary:
        for name, content in contents.items():
            torch.save(content, temporary / name)


def _read_gpt(file: LlamaGenFile, *, factor: int, grid: Grid | None) -> tuple[Transformer, Labels, dict[str, str]]:
    """A file -> the prior, its classes, and where its heads and grid are known from."""
    if "cls_embedding.cap_proj.fc1.weight" in file.weights:
        raise SmaltiError(
            f"{file.path} is LlamaGen's GPT for texts, which needs T5's features; those for classes are read"
        )
    size, width = file.shape("tok_embeddings.weight", axes=2)
    classes = file.shape("cls_embedding.embedding_table.weight", axes=2)[0] - 1  # the last row is the unconditional one
    layers = file.count(r"layers\.(\d+)\..*")
    for layer in range(layers):
        rows = file.shape(f"layers.{layer}.attention.wqkv.weight", axes=2)[0]
        if rows != 3 * width:
            shared = "; keys shared by several heads (n_kv_head) are not supported" if rows < 3 * width else ""
            raise file.does_not_fit(f"layers.{layer}.attention.wqkv.weight has {rows} rows and not 3 x {width}{shared}")
    notes, sources = _notes(file, width=width, classes=classes, factor=factor, grid=grid)
    values = {
        **REFERENCE_GPT,
        "codebook_size": size,
        "condition_size": classes,
        "grid": notes.grid,
        "layers": layers,
        "embed_dim": width,
        "heads": notes.heads,
        "mlp_dim": file.shape("layers.0.feed_forward.w1.weight", axes=2)[0],
        "dropout": notes.dropout,
    }
    weights, settings = _with_concatenated(file), parse(TransformerSettings, values, where=str(file.path))
    stored = number_count(weights)
    prior = build_network(lambda: Transformer(settings), stored=stored, where=str(file.path))
    _gpt_names(prior).read_into(prior, weights, where=str(file.path), ignored=IGNORED)
    nn.init.zeros_(prior.prefix_positions.weight)  # LlamaGen's classes have no position
    return prior.eval().requires_grad_(False), Labels(notes.labels), sources


def _notes(
    file: LlamaGenFile, *, width: int, classes: int, factor: int, grid: Grid | None
) -> tuple[Notes, dict[str, str]]:
    """What the shapes do not show, and where heads and grid are known from."""
    if file.notes is not None:
        notes = parse(Notes, file.notes, where=f"{file.path}, 'smalti'")
        if len(notes.labels) != classes:
            raise file.does_not_fit(f"there are {len(notes.labels)} labels and {classes} classes")
        return notes, {"heads_from": "the file", "grid_from": "the file"}
    table = {width: heads for _, heads, width in SIZES.values()}
    heads, heads_from = table.get(width, 0), "the published sizes"
    if not heads and width % 64 == 0:  # as in most of those
        heads, heads_from = width // 64, "nothing; 64 numbers a head were taken"
    side, grid_from = GRID, f"nothing; {GRID}x{GRID} was taken"
    named = re.search(r"_(256|384|512)", file.path.stem)
    if named is not None and int(named[1]) % factor == 0:
        side, grid_from = int(named[1]) // factor, "the file's name"
    if "freqs_cis" in file.weights:  # one row for the class and one for each code, of d / 2 cosines and sines
        rows, pairs, _ = file.shape("freqs_cis", axes=3)
        heads, side, heads_from = width // (2 * pairs), math.isqrt(rows - 1), "its table of rotations"
        grid_from = heads_from
        if grid is not None and grid[0] * grid[1] != rows - 1:
            raise file.does_not_fit(
                f"its table of rotations is of {rows - 1} codes, the grid given of {grid_text(grid)}"
            )
    if grid is not None:
        grid_from = "the grid given"
    if not heads:
        raise file.does_not_fit(f"how many heads a GPT of width {width} has is not known here")
    labels = tuple(str(label) for label in range(classes))
    # LlamaGen's dropout is 0.1 everywhere but in attention; smalti's is the same everywhere.
    values = {"heads": heads, "grid": grid or (side, side), "labels": labels, "dropout": 0.1}
    return parse(Notes, values, where=str(file.path)), {"heads_from": heads_from, "grid_from": grid_from}


def _checked_gpt(prior: Prior, condition: Condition | None) -> tuple[Transformer, Labels]:
    """A prior and its condition, if they are what LlamaGen has. Raises `SmaltiError` for others, naming the setting."""
    if not isinstance(prior, Transformer):
        raise SmaltiError("LlamaGen's GPT is the prior 'transformer'; this one is of another kind")
    if not isinstance(condition, Labels):
        raise SmaltiError("LlamaGen's GPT is conditioned on class labels; this prior is not")
    plain = as_mapping(prior.settings)
    for key, value in REFERENCE_GPT.items():
        if plain[key] != value:
            raise SmaltiError(f"LlamaGen's GPT has network.{key} = {value}, this prior has {plain[key]}")
    rows, columns = prior.grid
    if rows != columns:
        raise SmaltiError(f"LlamaGen's grids are squares, this prior's has {rows}x{columns} codes (network.grid)")
    return prior, condition


_CONCATENATED = (
    (r"tok_embeddings\.weight", r"cls_embedding.embedding_table.weight"),
    (r"(layers\.\d+\.feed_forward)\.w1\.weight", r"\1.w3.weight"),
)
"""LlamaGen's pairs of weights that are one weight in smalti; the table of names has the first."""


def _second_of(name: str) -> str | None:
    matches = ((re.fullmatch(first, name), second) for first, second in _CONCATENATED)
    return next((match.expand(second) for match, second in matches if match), None)


def _with_concatenated(file: LlamaGenFile) -> dict[str, Tensor]:
    """LlamaGen's weights -> the same with each second of a pair concatenated to its first."""
    weights = dict(file.weights)
    for name in file.weights:
        second = _second_of(name)
        if second is not None:
            first = file.shape(name, axes=2)
            if file.shape(second, axes=2)[1] != first[1]:
                raise file.does_not_fit(f"{second} has the shape {tuple(weights[second].shape)} and {name} has {first}")
            weights[name] = torch.cat((weights[name], weights.pop(second)))
    return weights


def _gpt_weights(prior: Transformer) -> dict[str, Tensor]:
    """A prior -> LlamaGen's weights. The learned position of its prefix is added to the
    classes, which have no other."""
    weights = _gpt_names(prior).written_from(prior)
    for name in list(weights):
        second = _second_of(name)
        if second is not None:
            rows = prior.size if name == "tok_embeddings.weight" else len(weights[name]) // 2
            # Copies, for a part of a tensor would take the whole of it along to the file.
            weights[second], weights[name] = weights[name][rows:].clone(), weights[name][:rows].clone()
    weights["cls_embedding.embedding_table.weight"] += prior.prefix_positions.weight.detach()
    return weights


def _of_queries_and_keys(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A change to the rows of queries or keys -> the same for both in the joined rows (3D,D) of q, k and v."""

    def both(rows: Tensor) -> Tensor:
        queries, keys, values = rows.chunk(3)
        return torch.cat((change(queries), change(keys), values))

    return both


def _gpt_names(prior: Transformer) -> Renaming:
    """A prior -> the table of LlamaGen's names.

    LlamaGen's rotation pairs each row of a head's d with its neighbor, smalti's with the row d / 2 further on. The
    order of the pairs is the same: first those that the row of the grid turns, then those of the column.
    """
    heads = prior.settings.heads
    project = Rule(
        r"blocks\.(\d+)\.attention\.project\.weight",
        r"layers.\1.attention.wqkv.weight",
        _of_queries_and_keys(lambda rows: rows.reshape(heads, -1, 2, rows.shape[1]).transpose(1, 2).flatten(0, 2)),
        _of_queries_and_keys(lambda rows: rows.reshape(heads, 2, -1, rows.shape[1]).transpose(1, 2).flatten(0, 2)),
    )
    rules = (
        project,
        Rule(r"blocks\.(\d+)\.attention\.out\.weight", r"layers.\1.attention.wo.weight"),
        Rule(r"blocks\.(\d+)\.up\.weight", r"layers.\1.feed_forward.w1.weight"),
        Rule(r"blocks\.(\d+)\.down\.weight", r"layers.\1.feed_forward.w2.weight"),
        Rule(r"blocks\.(\d+)\.attention_norm\.weight", r"layers.\1.attention_norm.weight"),
        Rule(r"blocks\.(\d+)\.mlp_norm\.weight", r"layers.\1.ffn_norm.weight"),
        Rule(r"embedding\.weight", "tok_embeddings.weight"),
        Rule(r"prefix_positions\.weight", None),
        Rule(r"norm\.weight", "norm.weight"),
        Rule(r"head\.weight", "output.weight"),
    )
    return Renaming.of(prior, rules)
