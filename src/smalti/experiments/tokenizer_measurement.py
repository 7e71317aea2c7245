"""The step that evaluates one tokenizer: its scores by a protocol, example reconstructions, and its speed.

H W pixels, f = H/h, K size of the codebook.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from smalti.core.devices import pick_device
from smalti.core.errors import SmaltiError
from smalti.core.evenly_spaced import evenly_spaced
from smalti.core.progress import progress_bar
from smalti.core.published_weights import find_weights
from smalti.core.settings import as_mapping
from smalti.data.sources import open_source
from smalti.evaluation.measures import measure_tokenizer
from smalti.evaluation.prepared_images import PreparedImages
from smalti.evaluation.protocols import FeatureProtocol, ImageProtocol, TokenizerProtocol
from smalti.evaluation.results import as_plain, write_result
from smalti.experiments.base import Step, StepContext
from smalti.experiments.steps import ImageSource
from smalti.experiments.tokenizer_comparison import FEATURES, LPIPS
from smalti.images.io import DamagedImage, save_png, to_tensor

WEIGHTS_OF_SCORES = {LPIPS: ("squeezenet1_1", "lpips-squeeze"), FEATURES: ("squeezenet1_1",)}
"""Scores that need published weights, and which."""
REPEATS = 5
TIMED = 8
"""Images in the batch that is timed."""
OUTCOME = 1
"""Raised when measuring leaves other values behind, so that those of before are not taken for them."""


class TokenizerMeasurement(NamedTuple):
    """How all tokenizers of an experiment are measured."""

    protocol: TokenizerProtocol
    missing: dict[str, str]
    """Scores whose published weights are unavailable, with the reason."""
    shown: int
    """How many images are saved with their reconstructions."""

    @classmethod
    def of(
        cls, experiment: str, *, size: tuple[int, int], count: int, held_out: float, shown: int
    ) -> TokenizerMeasurement:
        """Images of `size` (H,W), at most `count` of them, those held out at a share or with 0 all -> how they are
        measured."""
        found, missing = available_networks()
        protocol = TokenizerProtocol(
            about=f"The experiment `{experiment}`: images of one size, evenly spread over those there are.",
            images=ImageProtocol(held_out=held_out, size=size, count=count),
            similarity=("psnr", "ssim"),
            lpips=("squeezenet",) if LPIPS in found else (),
            features=FeatureProtocol(network="squeezenet", scores=("frechet",)) if FEATURES in found else None,
        )
        return cls(protocol, missing, shown)

    def step(
        self,
        name: str,
        *,
        images: ImageSource,
        described: Mapping[str, Any],
        after: Sequence[str],
        load: Callable[[StepContext], Any],
    ) -> Step:
        """The step that measures the tokenizer `load` finds. Its folder holds `result.json`, `images.csv`, and in
        `shown` some images. `described`: what the settings hold of the tokenizer besides the steps it comes `after`."""
        settings = {"protocol": as_mapping(self.protocol), "shown": self.shown, "outcome": OUTCOME}
        return Step(
            name=f"measure-{name}",
            settings={**images.described, **described, **settings},
            work=lambda context: self.measured(load(context), name, images.path(context), context),
            after=(*images.after, *after),
        )

    def measured(self, tokenizer: Any, name: str, images: Path, context: StepContext) -> dict[str, Any]:
        """A tokenizer, or what has its methods -> its scores; its values on each image, and some images, are set down
        in the step's folder."""
        source, device = open_source(images), pick_device("auto")
        protocol = _at_most(self.protocol, len(PreparedImages(source, _uncounted(self.protocol.images), channels=3)))
        with progress_bar(context.console, title=f"measuring {name}", unit="images") as progress:
            measured = measure_tokenizer(tokenizer, source, protocol=protocol, device=device, progress=progress)
        plain = as_plain(measured)
        write_result(context.folder, plain, measured)
        prepared = PreparedImages(source, protocol.images, channels=tokenizer.settings.autoencoder.channels)
        height, width = protocol.images.size or (0, 0)
        f, K = tokenizer.factor, tokenizer.size
        return {
            "factor": f,
            "codes": K,
            "channels": tokenizer.settings.autoencoder.channels,
            "bits_per_image": height // f * (width // f) * math.log2(K),
            "bits_per_pixel": math.log2(K) / f**2,
            "parameters": sum(parameter.numel() for parameter in tokenizer.parameters()),
            "shown": _write_examples(tokenizer, prepared, context.folder / "shown", count=self.shown),
            **_timed(tokenizer, (height, width), device),
            "missing": dict(self.missing),
            "result": plain,
        }


def available_networks() -> tuple[list[str], dict[str, str]]:
    """The names of the scores whose published weights are available, and the reasons for the others."""
    found: list[str] = []
    missing: dict[str, str] = {}
    for score, weights in WEIGHTS_OF_SCORES.items():
        try:
            for name in weights:
                find_weights(name)
            found.append(score)
        except SmaltiError as error:
            missing[score] = str(error)
    return found, missing


def _uncounted(images: ImageProtocol) -> ImageProtocol:
    return ImageProtocol(held_out=images.held_out, size=images.size)


def _at_most(protocol: TokenizerProtocol, available: int) -> TokenizerProtocol:
    """The protocol with no more images than there are."""
    images = protocol.images
    count = min(images.count or available, available)
    fewer = ImageProtocol(held_out=images.held_out, size=images.size, count=count)
    return TokenizerProtocol(
        about=protocol.about,
        images=fewer,
        similarity=protocol.similarity,
        lpips=protocol.lpips,
        features=protocol.features,
    )


@torch.no_grad()
def _write_examples(tokenizer: Any, prepared: PreparedImages, folder: Path, *, count: int) -> list[dict[str, Any]]:
    """Write `count` of the images, evenly spread, and what the tokenizer makes of them, as PNG files -> their names."""
    device = next(tokenizer.parameters()).device
    found: list[dict[str, Any]] = []
    for number, at in enumerate(evenly_spaced(len(prepared), count)):
        try:
            original = to_tensor(prepared.read(at))
        except DamagedImage:
            continue  # the measurement has reported it
        back = tokenizer(original.unsqueeze(0).to(device))[0][0].clamp(-1, 1).cpu()
        save_png(folder / f"{number:03d}-original.png", original)
        save_png(folder / f"{number:03d}.png", back)
        found.append({"number": number, "index": at, "name": prepared.images[at].key})
    return found


@torch.no_grad()
def _timed(tokenizer: Any, size: tuple[int, int], device: torch.device) -> dict[str, Any]:
    """Seconds an image of `size` takes, to codes and back, in a batch of `TIMED`: the median of some repeats after
    one."""
    images = torch.zeros(TIMED, tokenizer.settings.autoencoder.channels, *size, device=device)
    took = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        float(tokenizer(images)[0].sum())  # reading a number waits for the device
        took.append((time.perf_counter() - began) / TIMED)
    return {"seconds_per_image": statistics.median(took[1:]), "device": str(device)}
