"""Stage 2: priors, autoregressive models of image codes."""

from smalti.prior.base import Prior, nll, parameter_groups
from smalti.prior.cache import Cache, NoCache, StaticCache
from smalti.prior.gpt import GPT, GPTSettings
from smalti.prior.neighborhood import Neighborhood, NeighborhoodSettings
from smalti.prior.order import ORDERS, AnyOrder, Order
from smalti.prior.pixelsnail import PixelSNAIL, PixelSNAILSettings
from smalti.prior.transformer import Transformer, TransformerSettings
from smalti.prior.window import Middle, Window, after_middle, before_middle, placement

__all__ = [
    "GPT",
    "ORDERS",
    "AnyOrder",
    "Cache",
    "GPTSettings",
    "Middle",
    "Neighborhood",
    "NeighborhoodSettings",
    "NoCache",
    "Order",
    "PixelSNAIL",
    "PixelSNAILSettings",
    "Prior",
    "StaticCache",
    "Transformer",
    "TransformerSettings",
    "Window",
    "after_middle",
    "before_middle",
    "nll",
    "parameter_groups",
    "placement",
]
