"""Protocols: everything that decides a score, as named and frozen settings in a literal table.

A score without its protocol cannot be reproduced: the same images give another FID with another number of them,
another resize, another rounding or another network. What is changed with overrides is kept in the result, and two
results are compared only where their settings agree (`smalti.evaluation.results.compare`).

H W pixels, N M images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypeAlias, TypeVar

from pydantic import Field

from smalti.core.errors import SmaltiError, suggestion
from smalti.core.settings import Natural, Positive, ProperFraction, apply_override, as_mapping, parse, settings
from smalti.generation.code_sampler import Sampler

Filter: TypeAlias = Literal["lanczos", "bicubic", "bilinear", "halving"]
"""How images are scaled, each with antialiasing: Pillow's filters, or by ADM's rule: halved by box as long as they are
twice too large, then bicubic."""
Score: TypeAlias = Literal[
    "frechet", "spatial_frechet", "kernel", "score", "precision", "recall", "density", "coverage"
]
ALL_SCORES: tuple[Score, ...] = (
    "frechet",
    "spatial_frechet",
    "kernel",
    "score",
    "precision",
    "recall",
    "density",
    "coverage",
)


@settings
class ImageProtocol:
    """Which images of a source are selected, and how they are resized and cropped.

    - `count`: how many, evenly spread over the source in its order; None takes all.
    - `held_out`: with a fraction above 0, only those that `smalti.data.sources.split` holds out at that fraction: a
      training on the same folder with the same fraction has not seen them.
    - `size`: (H,W) in pixels. The shorter side is scaled until the image covers it, and the middle is cut out. None
      takes each as it is.
    - `filter`: how they are scaled.
    """

    count: Positive | None = None
    held_out: ProperFraction = 0.0
    size: tuple[Positive, Positive] | None = None
    filter: Filter = "lanczos"


@settings
class FeatureProtocol:
    """A feature network, and what is computed of two sets in its features.

    - `network`: a name in `smalti.evaluation.features.NETWORKS`; each network gives the scores names of its own.
    - `kept`, `kept_seed`: the kernel distance and the measures of neighbors compare at most this many images of a
      set, chosen with this seed. All other scores are streams over all images.
    - `subsets`, `subset_size`, `subset_seed`: of the kernel distance.
    - `splits`: parts of the Inception Score.
    - `neighbors`: k of precision and recall; `density_neighbors`: k of density and coverage.
    """

    network: Literal["inception", "squeezenet", "efficientnet"] = "inception"
    scores: tuple[Score, ...] = ALL_SCORES
    kept: Positive = 10_000
    kept_seed: Natural = 0
    subsets: Positive = 100
    subset_size: Annotated[int, Field(ge=2)] = 1000
    subset_seed: Natural = 2020
    splits: Positive = 10
    neighbors: Positive = 3
    density_neighbors: Positive = 5


@settings
class SetProtocol:
    """Two sets of images: how the samples are taken, how the reference, and what is compared."""

    about: str
    samples: ImageProtocol = ImageProtocol()
    reference: ImageProtocol = ImageProtocol()
    features: FeatureProtocol = FeatureProtocol()


@settings
class TokenizerProtocol:
    """Images and what a tokenizer makes of them.

    - `rounding`: how reconstructions become 8 bits before anything is measured: "nearest", or "down" as the original's
      image writer did.
    - `similarity`: measures that need no weights. `lpips`: backbones of the perceptual distance.
    - `features`: scores of the set of reconstructions against the set of originals, or None.
    - `missing`: if weights are unavailable, "refuse" raises the error that says how to get them; "leave_out" goes
      on without that score, and the result says so.
    - `examples`: how many of the worst, of the median and of the best images are kept to be shown.
    """

    about: str
    images: ImageProtocol = ImageProtocol()
    rounding: Literal["nearest", "down"] = "nearest"
    similarity: tuple[Literal["psnr", "ssim", "ms_ssim"], ...] = ("psnr", "ssim", "ms_ssim")
    lpips: tuple[Literal["squeezenet", "vgg16", "alexnet"], ...] = ("squeezenet",)
    features: FeatureProtocol | None = None
    missing: Literal["refuse", "leave_out"] = "refuse"
    examples: Positive = 4


@settings
class PriorProtocol:
    """Images or codes, and how likely a prior finds them; and, with `samples`, images that it generates.

    - `images`: its `size` None is the prior's window, the only size it is measured at.
    - `samples`: how many images are generated, with the seeds `seed`, `seed` + 1, ... and labels spread as in the data,
      to be compared with the data in `features`; 0 generates none. `sampler`, `rounding`: how they are generated and
      become 8 bits.
    - `missing`, `examples`: as in `TokenizerProtocol`; the examples are the least, the median
      and the most likely images.
    """

    about: str
    images: ImageProtocol = ImageProtocol()
    samples: Natural = 0
    sampler: Sampler = Sampler()
    seed: Natural = 0
    rounding: Literal["nearest", "down"] = "nearest"
    features: FeatureProtocol | None = None
    missing: Literal["refuse", "leave_out"] = "refuse"
    examples: Positive = 4


Protocol: TypeAlias = TokenizerProtocol | PriorProtocol | SetProtocol
P = TypeVar("P", TokenizerProtocol, PriorProtocol, SetProtocol)

_STREAMED: tuple[Score, ...] = ("frechet", "spatial_frechet", "score")
_VALIDATION = ImageProtocol(count=50_000, size=(256, 256), filter="halving")

SET_PROTOCOLS: dict[str, SetProtocol] = {
    "folder-vs-folder": SetProtocol(
        about="All images of both sets as they are; the network scales each to its own size.",
    ),
    "folder-vs-folder-squeezenet": SetProtocol(
        about="As folder-vs-folder, in SqueezeNet's features: to be compared with each other only, never with FID.",
        features=FeatureProtocol(network="squeezenet"),
    ),
    "folder-vs-folder-efficientnet": SetProtocol(
        about="As folder-vs-folder, in EfficientNet-Lite0's features, whose weights are installed with smalti: to "
        "be compared with each other only, never with FID.",
        features=FeatureProtocol(network="efficientnet"),
    ),
    "imagenet-val-50k-center256": SetProtocol(
        about="50,000 images of 256x256, reconstructions or samples, against the 50,000 of ImageNet's validation "
        "set, scaled and center-cropped as by ADM.",
        samples=_VALIDATION,
        reference=_VALIDATION,
    ),
    "adm-train-stats": SetProtocol(
        about="50,000 samples against an ADM reference file: FID and sFID against the training set's statistics in "
        "it, precision and recall against the images in it.",
        samples=ImageProtocol(count=50_000),
        features=FeatureProtocol(scores=(*_STREAMED, "precision", "recall")),
    ),
}
"""For `smalti evaluate folders`; the first is the default."""

TOKENIZER_PROTOCOLS: dict[str, TokenizerProtocol] = {
    "tokenizer": TokenizerProtocol(
        about="All images, at the size the tokenizer was trained on; LPIPS and the Frechet distance in SqueezeNet's "
        "features, which are small, and are left out if their weights are unavailable.",
        features=FeatureProtocol(network="squeezenet", scores=("frechet",)),
        missing="leave_out",
    ),
    "tokenizer-rfid": TokenizerProtocol(
        about="All images, at the size the tokenizer was trained on; LPIPS with VGG16 and rFID.",
        lpips=("vgg16",),
        features=FeatureProtocol(scores=_STREAMED),
    ),
    "imagenet-val-50k-center256": TokenizerProtocol(
        about="ImageNet's validation set, scaled and center-cropped to 256x256 as by ADM; rFID against the same "
        "images.",
        images=_VALIDATION,
        lpips=("vgg16",),
        features=FeatureProtocol(scores=_STREAMED),
    ),
}
"""For `smalti evaluate tokenizer`; the first is the default."""

PRIOR_PROTOCOLS: dict[str, PriorProtocol] = {
    "prior": PriorProtocol(about="The likelihood of all images or codes; nothing is sampled."),
    "prior-samples": PriorProtocol(
        about="The likelihood of all images, and 5,000 samples compared with them.",
        samples=5000,
        features=FeatureProtocol(),
    ),
    "prior-samples-squeezenet": PriorProtocol(
        about="As prior-samples, in SqueezeNet's features: to be compared with each other only, never with FID.",
        samples=5000,
        features=FeatureProtocol(network="squeezenet"),
    ),
    "prior-samples-efficientnet": PriorProtocol(
        about="As prior-samples, in EfficientNet-Lite0's features: to be compared with each other only, never "
        "with FID.",
        samples=5000,
        features=FeatureProtocol(network="efficientnet"),
    ),
}
"""For `smalti evaluate prior`; the first is the default."""


def select_protocol(protocols: Mapping[str, P], name: str | None, *, overrides: Sequence[str] = ()) -> P:
    """A name in one of the tables (None: its first, the default), and changes `a.b=value` -> the protocol with them.

    Raises `SmaltiError` for an unknown name (listing those there are), and for changes that are no `a.b=value`, name no
    setting or do not fit it.
    """
    name = next(iter(protocols)) if name is None else name
    if name not in protocols:
        raise SmaltiError(f"there is no protocol {name!r}; {suggestion(name, protocols)}")
    values = as_mapping(protocols[name])
    for override in overrides:
        apply_override(values, override)
    return parse(type(protocols[name]), values, where=f"protocol {name}" + (" with changes" if overrides else ""))
