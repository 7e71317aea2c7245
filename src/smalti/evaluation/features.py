"""Feature networks for the scores of sets of images: images -> features and logits, with one interface for all.

Scores in the features of different networks are different scores, so each network gives them names of its own: FID is
the Frechet distance in the features of one InceptionV3 and of nothing else.

Notation: B batch, C channels (1 or 3), H W pixels, D features, S spatial features, K classes.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.core.errors import SmaltiError, suggestion
from smalti.core.fingerprints import weights_fingerprint
from smalti.core.progress_callback import Progress, no_progress
from smalti.core.published_weights import load_strictly, load_weights
from smalti.evaluation.inception import CLASSES, SIDE, SPATIAL_CHANNELS, InceptionV3
from smalti.evaluation.metrics import levels
from smalti.losses.efficientnet import HEAD_WIDTH, EfficientNetClassifier, efficientnet_classifier
from smalti.losses.efficientnet import SIDE as EFFICIENTNET_SIDE
from smalti.losses.logits import IMAGENET_DEVIATION, IMAGENET_MEAN
from smalti.losses.logits import SIDE as SQUEEZENET_SIDE
from smalti.losses.perceptual import squeezenet, squeezenet_classifier

SCORES = ("frechet", "spatial_frechet", "kernel", "score", "precision", "recall", "density", "coverage")
"""What is computed from a network's features: see `smalti.evaluation.distances` and `.neighbors`."""


class NetworkOutput(NamedTuple):
    """What a network sees in a batch of images; float32."""

    features: Tensor
    """(B,D), for the Frechet and the kernel distance and the measures of neighbors."""
    spatial: Tensor
    """(B,S), features with their positions, for the spatial Frechet distance."""
    logits: Tensor
    """(B,K), for the Inception Score."""


class FeatureNetwork(nn.Module, abc.ABC):
    """Images -> `NetworkOutput`. All parameters are frozen, and there is no training mode."""

    weights: str
    """The name of its published weights, in `smalti.core.published_weights` unless they come with the installation."""
    about: str
    """What it is and how it resizes, as the end of "in the features of ..."."""
    names: ClassVar[Mapping[str, str]]
    """What each of `SCORES` is called in the features of this network."""
    width: int
    """D"""
    spatial_width: int
    """S"""
    classes: int
    """K"""

    @torch.no_grad()
    def forward(self, images: Tensor) -> NetworkOutput:
        """Images (B,C,H,W), uint8, or float in [-1,1], C 1 (seen as gray) or 3, any size -> what is seen in them.

        Floats are rounded to 8 bits first: what is scored is the image as a file holds it. The network computes in
        float32, also under the caller's autocast, and without TF32.

        Raises `SmaltiError` for another channel count.
        """
        if images.shape[1] not in (1, 3):
            raise SmaltiError(f"scores need images of 1 or 3 channels, these have {images.shape[1]}")
        whole = images if images.dtype == torch.uint8 else levels(images).to(torch.uint8)
        with _in_full_precision(images.device):
            return self.extract(whole.expand(-1, 3, -1, -1))

    @abc.abstractmethod
    def extract(self, images: Tensor) -> NetworkOutput:
        """Color images (B,3,H,W) uint8 of any size -> what is seen in them."""

    def fingerprint(self) -> str:
        """As `weights_fingerprint` of its weights: equal for two files that hold the same."""
        return weights_fingerprint(self.state_dict())


@contextmanager
def _in_full_precision(device: torch.device) -> Iterator[None]:
    """Float32 throughout: NVIDIA's TF32 rounds what goes into products to 10 bits, which moves features by about
    1e-3."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)


@final
class InceptionFeatures(FeatureNetwork):
    """InceptionV3 as used for FID: D 2048, S 2023, K 1008; with PyTorch's initial weights."""

    weights = "inception-fid"
    about = f"TensorFlow's InceptionV3 of 2015-12-05; images resized to {SIDE}x{SIDE} as by TensorFlow 1 (bilinear)"
    names: ClassVar[Mapping[str, str]] = {
        "frechet": "fid",
        "spatial_frechet": "sfid",
        "kernel": "kid",
        "score": "inception_score",
        "precision": "precision",
        "recall": "recall",
        "density": "density",
        "coverage": "coverage",
    }
    width = 2048
    spatial_width = 2023
    classes = CLASSES

    def __init__(self) -> None:
        super().__init__()
        self.network = InceptionV3()

    def extract(self, images: Tensor) -> NetworkOutput:
        taps = self.network(images)
        return NetworkOutput(taps.pool2048, taps.spatial, taps.logits_unbiased)

    @classmethod
    def published(cls, *, progress: Progress = no_progress) -> InceptionFeatures:
        """With the published weights, on the CPU. Raises `SmaltiError` as `feature_network` does."""
        made = cls()
        tensors = load_weights(cls.weights, progress=progress)
        # The conversion counts the batches that the normalization has seen, with a meaningless 0.
        kept = {key: tensor for key, tensor in tensors.items() if not key.endswith(".num_batches_tracked")}
        load_strictly(made.network, kept, name=cls.weights)
        return made


@final
class SqueezeNetFeatures(FeatureNetwork):
    """SqueezeNet 1.1, the small replacement if Inception's weights are unavailable: D 512, S 1183, K 1000.

    Its features are the means of the last map over positions, its spatial features 7 channels of that 13x13 map, its
    logits those of ImageNet's classes. With PyTorch's initial weights.
    """

    weights = "squeezenet1_1"
    about = f"SqueezeNet 1.1; images resized to {SQUEEZENET_SIDE}x{SQUEEZENET_SIDE} (bilinear, antialiased)"
    names: ClassVar[Mapping[str, str]] = {score: f"{score}_squeezenet" for score in SCORES}
    width = 512
    spatial_width = SPATIAL_CHANNELS * 13 * 13
    classes = 1000

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = squeezenet().features
        self.classifier = squeezenet_classifier()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(IMAGENET_DEVIATION).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def extract(self, images: Tensor) -> NetworkOutput:
        size = (SQUEEZENET_SIDE, SQUEEZENET_SIDE)
        x = F.interpolate(images.float(), size, mode="bilinear", antialias=True)  # (B,3,224,224)
        x = ((x / 255 - self.mean) / self.deviation).contiguous(memory_format=torch.channels_last)
        x = self.features(x)  # (B,512,13,13)
        logits = self.classifier(x).mean((2, 3))  # (B,1000)
        spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)  # (B,1183)
        return NetworkOutput(x.mean((2, 3)), spatial, logits)

    @classmethod
    def published(cls, *, progress: Progress = no_progress) -> SqueezeNetFeatures:
        """With the published weights, on the CPU. Raises `SmaltiError` as `feature_network` does."""
        made = cls()
        load_strictly(made, load_weights(cls.weights, progress=progress), name=cls.weights)
        return made


@final
class EfficientNetFeatures(FeatureNetwork):
    """EfficientNet-Lite0, whose weights come with the installation: D 1280, S 343, K 1000.

    Its features are the means of the last map over positions, its spatial features 7 channels of that 7x7 map, its
    logits those of ImageNet's classes. With PyTorch's initial weights.
    """

    weights = "efficientnet-lite0"
    about = f"EfficientNet-Lite0; images resized to {EFFICIENTNET_SIDE}x{EFFICIENTNET_SIDE} (bilinear, antialiased)"
    names: ClassVar[Mapping[str, str]] = {score: f"{score}_efficientnet" for score in SCORES}
    width = HEAD_WIDTH
    spatial_width = SPATIAL_CHANNELS * 7 * 7
    classes = 1000

    def __init__(self, network: EfficientNetClassifier) -> None:
        super().__init__()
        self.network = network

    def extract(self, images: Tensor) -> NetworkOutput:
        size = (EFFICIENTNET_SIDE, EFFICIENTNET_SIDE)
        x = F.interpolate(images.float(), size, mode="bilinear", antialias=True) / 127.5 - 1  # (B,3,224,224)
        maps, logits = self.network(x.contiguous(memory_format=torch.channels_last))  # (B,1280,7,7), (B,1000)
        spatial = maps[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)  # (B,343)
        return NetworkOutput(maps.mean((2, 3)), spatial, logits)

    @classmethod
    def published(cls, *, progress: Progress = no_progress) -> EfficientNetFeatures:
        """With the installed weights, on the CPU; nothing is downloaded. Raises `SmaltiError` if the package is
        missing."""
        return cls(efficientnet_classifier())


NETWORKS: dict[str, Callable[..., FeatureNetwork]] = {
    "inception": InceptionFeatures.published,
    "squeezenet": SqueezeNetFeatures.published,
    "efficientnet": EfficientNetFeatures.published,
}


PUBLISHED = {"inception": InceptionFeatures.weights, "squeezenet": SqueezeNetFeatures.weights}
"""Networks whose weights do not come with the installation -> their names in `smalti.core.published_weights`."""


def feature_network(name: str, *, progress: Progress = no_progress) -> FeatureNetwork:
    """A name in `NETWORKS` -> the network with its published weights, on the CPU.

    `progress` watches a download. Raises `SmaltiError` for an unknown name, or when the weights are nowhere and cannot
    be downloaded.
    """
    if name not in NETWORKS:
        raise SmaltiError(f"unknown feature network {name!r}; {suggestion(name, NETWORKS)}")
    return NETWORKS[name](progress=progress)
