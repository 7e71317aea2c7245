"""The priors that can be trained: the settings of each, except what the codes decide, and how it is built
for some codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, get_args

from pydantic import BeforeValidator, Field

from smalti.core.errors import SmaltiError
from smalti.core.settings import LayerCount, Natural, Positive, ProperFraction, as_mapping, parse, settings
from smalti.prior import (
    GPT,
    AnyOrder,
    GPTSettings,
    Neighborhood,
    NeighborhoodSettings,
    Order,
    PixelSNAIL,
    PixelSNAILSettings,
    Transformer,
    TransformerSettings,
)


@settings
class TransformerNetwork:
    """The modern transformer."""

    name: Literal["transformer"] = "transformer"
    layers: LayerCount = 6
    embed_dim: Positive = 256
    heads: Positive = 4
    dropout: ProperFraction = 0.1
    tied: bool = False
    """Whether the head scores codes by their embeddings."""
    order: AnyOrder = "raster"
    """How the codes of an image follow one another. "any": the prior learns every order, as `orders` says, and
    completes holes of any shape."""


@settings
class GPTNetwork:
    """The paper's GPT, whose condition codes and image codes have one vocabulary."""

    name: Literal["gpt"] = "gpt"
    vocab_size: Natural = 0
    """How many codes it knows; 0: as many as the tokenizer or the condition has, whichever has more."""
    block_size: Natural = 0
    """Learned positions; 0: as many as prefix and image need."""
    layers: LayerCount = 24
    embed_dim: Positive = 1024
    heads: Positive = 16
    embedding_dropout: ProperFraction = 0.0
    attention_dropout: ProperFraction = 0.0
    residual_dropout: ProperFraction = 0.0
    unmasked: Natural = 0
    """How many of the first condition codes see one another, and not only those before them."""
    start_code: Natural = 0
    """The code that a prior without a condition begins with."""
    order: Order = "raster"
    """How the codes of an image follow one another."""


@settings
class PixelSNAILNetwork:
    """Causal convolutions with attention between them: the prior that the paper compares its own with."""

    name: Literal["pixelsnail"] = "pixelsnail"
    layers: LayerCount = 4
    """Blocks that end in attention."""
    res_blocks: LayerCount = 2
    """Gated residual blocks of convolutions in each."""
    embed_dim: Positive = 128
    heads: Positive = 4
    kernel_size: Annotated[int, Field(ge=2)] = 2
    dropout: ProperFraction = 0.1
    order: Order = "raster"
    """Raster, and no other."""


@settings
class NeighborhoodNetwork:
    """A transformer that sees the codes near a code alone, for images of any size."""

    name: Literal["neighborhood"] = "neighborhood"
    radius: Positive = 4
    """Rows above a code, and columns to both sides of it, that a layer sees."""
    layers: LayerCount = 6
    embed_dim: Positive = 256
    heads: Positive = 4
    dropout: ProperFraction = 0.1


def _named(values: Any) -> Any:
    """Plain values without a name are those of the default, the transformer."""
    return {"name": "transformer", **values} if isinstance(values, Mapping) else values


AnyNetwork: TypeAlias = TransformerNetwork | GPTNetwork | PixelSNAILNetwork | NeighborhoodNetwork

NetworkSettings = Annotated[AnyNetwork, Field(discriminator="name"), BeforeValidator(_named)]
"""The settings of any prior; their `name` selects one."""


class CodesRead(NamedTuple):
    """What a prior reads."""

    size: int
    """Image codes K."""
    grid: tuple[int, int]
    """(h, w)."""
    condition_size: int
    """Condition codes, 0 for none."""
    prefix: int
    """Condition codes that stand before an image, P; 1 without a condition."""
    maps: tuple[int, ...] = ()
    """Where among them a map of the window begins, a code for each of its codes."""


class Network(NamedTuple):
    """A prior that has learned nothing yet."""

    prior: Transformer | GPT | PixelSNAIL | Neighborhood
    vocabulary: int
    """Codes below it can replace an image code."""


def _read(codes: CodesRead) -> dict[str, Any]:
    """As the settings of the transformer and of PixelSNAIL call it."""
    return {
        "codebook_size": codes.size,
        "condition_size": codes.condition_size,
        "prefix_length": codes.prefix,
        "grid": codes.grid,
    }


def _transformer(network: TransformerNetwork, codes: CodesRead) -> Network:
    sizes = parse(TransformerSettings, {**as_mapping(network), **_read(codes), "maps": codes.maps}, where="network")
    return Network(Transformer(sizes), codes.size)


def _pixelsnail(network: PixelSNAILNetwork, codes: CodesRead) -> Network:
    sizes = parse(PixelSNAILSettings, {**as_mapping(network), **_read(codes)}, where="network")
    return Network(PixelSNAIL(sizes), codes.size)


def _neighborhood(network: NeighborhoodNetwork, codes: CodesRead) -> Network:
    sizes = parse(NeighborhoodSettings, {**as_mapping(network), **_read(codes), "maps": codes.maps}, where="network")
    return Network(Neighborhood(sizes), codes.size)


def _gpt(network: GPTNetwork, codes: CodesRead) -> Network:
    return Network(GPT(gpt_settings(network, codes)), gpt_settings(network, codes).vocab_size)


def gpt_settings(network: GPTNetwork, codes: CodesRead) -> GPTSettings:
    """The sizes of a GPT that reads these codes. Raises `SmaltiError` if its vocabulary or its positions are too
    few."""
    most = max(codes.size, codes.condition_size)
    if network.vocab_size and network.vocab_size < most:
        raise SmaltiError(
            f"network.vocab_size = {network.vocab_size}, but the tokenizer has {codes.size} codes and the condition "
            f"{codes.condition_size}; make it {most} or more, or 0 for as many as are needed"
        )
    values = {
        **as_mapping(network),
        "vocab_size": network.vocab_size or most,
        "block_size": network.block_size
        or codes.prefix + codes.grid[0] * codes.grid[1] - 1,  # the last code is not read
        "codebook_size": codes.size,
        "prefix_length": codes.prefix,
        "grid": codes.grid,
        "start_code": None if codes.condition_size else network.start_code,
    }
    return parse(GPTSettings, values, where="network")


def network_of(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a saved prior -> those of its network that the codes do not decide, as plain values."""
    network = next(each for each in get_args(AnyNetwork) if each.name == saved["name"])
    return {each.name: saved[each.name] for each in fields(network) if saved.get(each.name) is not None}


NETWORKS: dict[str, Callable[[Any, CodesRead], Network]] = {
    "transformer": _transformer,
    "gpt": _gpt,
    "pixelsnail": _pixelsnail,
    "neighborhood": _neighborhood,
}


def build_network(network: AnyNetwork, codes: CodesRead) -> Network:
    """Settings and what is to be read -> a prior. Raises `SmaltiError` if they do not go together."""
    return NETWORKS[network.name](network, codes)
