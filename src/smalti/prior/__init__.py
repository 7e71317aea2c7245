"""Stage 2: priors, which learn how likely codes are to follow one another, and the laying of new codes with them."""

from smalti.prior.base import Cache, NoCache, Prior, StaticCache, nats, parameter_groups
from smalti.prior.gpt import GPT, GPTSettings
from smalti.prior.neighbourhood import Neighbourhood, NeighbourhoodSettings
from smalti.prior.order import ORDERS, Order
from smalti.prior.pixelsnail import PixelSNAIL, PixelSNAILSettings
from smalti.prior.sampling import Sampler, finished, sample, sample_windows, unknown
from smalti.prior.transformer import Transformer, TransformerSettings
from smalti.prior.window import Middle, Window, after_middle, before_middle, placement

__all__ = [
    "GPT",
    "ORDERS",
    "Cache",
    "GPTSettings",
    "Middle",
    "Neighbourhood",
    "NeighbourhoodSettings",
    "NoCache",
    "Order",
    "PixelSNAIL",
    "PixelSNAILSettings",
    "Prior",
    "Sampler",
    "StaticCache",
    "Transformer",
    "TransformerSettings",
    "Window",
    "after_middle",
    "before_middle",
    "finished",
    "nats",
    "parameter_groups",
    "placement",
    "sample",
    "sample_windows",
    "unknown",
]
