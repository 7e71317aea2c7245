"""Shared parts of measurements: progress, per-image values, pretrained networks, and examples.

B batch, N images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar, final

import torch
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.core.fingerprints import weights_fingerprint
from smalti.core.progress_callback import Progress
from smalti.evaluation.features import FeatureNetwork, feature_network
from smalti.evaluation.metrics import CodeUse
from smalti.evaluation.protocols import FeatureProtocol
from smalti.losses.perceptual import Perceptual, perceptual

T = TypeVar("T")


@final
class Counter:
    """Counts images for a `Progress`."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def add(self, count: int) -> None:
        """So many more are done."""
        if count:
            self._done += count
            self._progress(self._done, self._total)


@final
class ImageValues:
    """Numbers of single images, by name: (N,) float32 each, NaN where there is none."""

    def __init__(self, images: int) -> None:
        self.images = images
        self.columns: dict[str, Tensor] = {}

    def put(self, name: str, indices: Tensor, values: Tensor) -> None:
        """The values (B,) of the images at the indices (B,)."""
        column = self.columns.setdefault(name, torch.full((self.images,), torch.nan))
        column[indices] = values.detach().float().cpu()

    def means(self) -> dict[str, float]:
        """The mean of each over the images that have one."""
        return {name: float(column.double().nanmean()) for name, column in self.columns.items()}

    def at(self, index: int) -> dict[str, float]:
        """The numbers of one image."""
        return {name: float(column[index]) for name, column in self.columns.items() if not column[index].isnan()}


class PretrainedNetworks(NamedTuple):
    """Pretrained networks of scores; `notes` names missing ones."""

    lpips: dict[str, Perceptual]
    network: FeatureNetwork | None
    notes: tuple[str, ...]


def load_networks(
    lpips: tuple[str, ...], features: FeatureProtocol | None, *, missing: str, device: torch.device
) -> PretrainedNetworks:
    """Names of LPIPS's backbones and a protocol -> the networks, on the device.

    Raises `SmaltiError` for unavailable weights; with `missing` "leave_out" they are left out and noted.
    """
    notes: list[str] = []

    def found(make: Callable[[str], T], name: str, what: str) -> T | None:
        try:
            return make(name)
        except SmaltiError as error:
            if missing == "refuse":
                raise
            notes.append(f"{what} left out: {error}")
            return None

    distances = {name: found(perceptual, name, f"lpips_{name} is") for name in lpips}
    kept = {name: network.to(device).eval() for name, network in distances.items() if network is not None}
    network = None
    if features is not None:
        network = found(feature_network, features.network, f"the scores in {features.network}'s features are")
    return PretrainedNetworks(kept, None if network is None else network.to(device), tuple(notes))


def fingerprints(networks: PretrainedNetworks) -> dict[str, str]:
    """The networks -> the fingerprints of their weights, by their names in a result."""
    found = {f"lpips_{name}": weights_fingerprint(network.state_dict()) for name, network in networks.lpips.items()}
    if networks.network is not None:
        found[networks.network.weights] = networks.network.fingerprint()
    return found


def ranked(values: Tensor, *, count: int, lower_is_better: bool) -> list[tuple[str, int]]:
    """Numbers (N,) of images, NaN where there is none -> ("worst" | "median" | "best", index), `count` of each or
    fewer.

    No image comes twice. Within a rank the worse come first.
    """
    known = (~values.isnan()).nonzero().flatten()
    order = known[values[known].argsort(descending=lower_is_better, stable=True)].tolist()
    count = max(1, min(count, len(order) // 3))
    middle = (len(order) - count) // 2
    ranks = {"worst": order[:count], "median": order[middle : middle + count], "best": order[-count:]}
    chosen: dict[int, str] = {}
    for rank, indices in ranks.items():
        for index in indices:
            chosen.setdefault(index, rank)
    return [(rank, index) for index, rank in chosen.items()]


def sparse_codebook_note(use: CodeUse) -> tuple[str, ...]:
    """A note where there were too few codes for reliable usage statistics."""
    seen, size = int(use.counts.sum()), len(use.counts)
    if seen >= 10 * size:
        return ()
    return (
        f"{seen:,} codes were measured for a codebook of {size:,}: usage, entropy and perplexity grow with more images",
    )
