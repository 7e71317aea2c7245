"""Stage 2: priors, which learn how likely codes are to follow one another, and the laying of new codes with them."""

from smalti.prior.base import Cache, NoCache, Prior, StaticCache, nats, parameter_groups
from smalti.prior.sampling import Sampler, finished, sample, sample_windows, unknown
from smalti.prior.transformer import Transformer, TransformerSettings
from smalti.prior.window import Window, placement

__all__ = [
    "Cache",
    "NoCache",
    "Prior",
    "Sampler",
    "StaticCache",
    "Transformer",
    "TransformerSettings",
    "Window",
    "finished",
    "nats",
    "parameter_groups",
    "placement",
    "sample",
    "sample_windows",
    "unknown",
]
