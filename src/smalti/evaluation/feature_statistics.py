"""Feature statistics of a set of images, accumulated in batches and stored as `.npz`.

The usual layout of such files is the mean `mu` (D,) and the covariance `sigma` (D,D) of a network's features; ADM's
files have also those of spatial features, `mu_s` and `sigma_s`, and may hold samples in `arr_0`. A file that smalti
writes has all of these but `arr_0`, the `features` that were kept, and in `smalti` a JSON text of how it was made, by
which it is refused where it does not belong. Other programs read it as well.

B batch, D features, S spatial features, N images.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.core.files import write_atomically
from smalti.data.sources import Source
from smalti.evaluation.distances import CPU, FeatureMoments, Gaussian, InceptionScore
from smalti.evaluation.features import FeatureNetwork
from smalti.evaluation.nearest_neighbors import FeatureReservoir
from smalti.evaluation.prepared_images import ArraySource
from smalti.evaluation.protocols import FeatureProtocol

COMPARING = {"kernel", "precision", "recall", "density", "coverage"}
"""The scores that compare single features, of which some are kept."""


@final
@dataclass(frozen=True, kw_only=True)
class Statistics:
    """The statistics of a set: distributions of its features, and features of single images (N,D)."""

    pool: Gaussian
    spatial: Gaussian | None = None
    features: Tensor | None = None
    made: Mapping[str, Any] | None = None
    """How they were computed, from `write_statistics`; None for a file of another program."""
    notes: tuple[str, ...] = ()
    images: Source | None = None
    """Samples that are in the same file."""


@final
class StatisticsAccumulator:
    """Images of one set, in any order and batch size -> their `Statistics`, and the Inception Score.

    `total` is N, the number of indices. Memory: D x D and S x S numbers and the features kept.
    """

    def __init__(
        self, network: FeatureNetwork, protocol: FeatureProtocol, *, total: int, score: bool, device: torch.device
    ) -> None:
        statistics_device = CPU if device.type == "mps" else device  # Apple's GPUs have no double precision
        wanted = set(protocol.scores)
        self.network = network
        self.pool = FeatureMoments(network.width, device=statistics_device)
        self.spatial = (
            FeatureMoments(network.spatial_width, device=statistics_device) if "spatial_frechet" in wanted else None
        )
        self.reservoir: FeatureReservoir | None = None
        if wanted & COMPARING:
            self.reservoir = FeatureReservoir(
                network.width, limit=protocol.kept, seed=protocol.kept_seed, device=statistics_device
            )
        self.score: InceptionScore | None = None
        if score and "score" in wanted and protocol.splits <= total:
            self.score = InceptionScore(network.classes, images=total, splits=protocol.splits, device=statistics_device)

    def update(self, images: Tensor, indices: Tensor) -> None:
        """Images (B,C,H,W) as `FeatureNetwork` takes them, on its device, and their indices (B,)."""
        output = self.network(images)
        self.pool.update(output.features)
        if self.spatial is not None:
            self.spatial.update(output.spatial)
        if self.reservoir is not None:
            self.reservoir.update(output.features, indices)
        if self.score is not None:
            self.score.update(output.logits, indices)

    def statistics(self, *, made: Mapping[str, Any] | None = None) -> Statistics:
        """What was gathered, on the CPU. Raises `SmaltiError` for fewer than two images."""
        return Statistics(
            pool=_on_cpu(self.pool.gaussian()),
            spatial=None if self.spatial is None else _on_cpu(self.spatial.gaussian()),
            features=None if self.reservoir is None else self.reservoir.features().cpu(),
            made=made,
            notes=() if self.reservoir is None else self.reservoir.notes(),
        )


def _on_cpu(gaussian: Gaussian) -> Gaussian:
    return Gaussian(gaussian.mean.cpu(), gaussian.covariance.cpu(), gaussian.images)


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Write an `.npz` file in the usual layout, whole or not at all. Raises `SmaltiError` if writing fails."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "mu": statistics.pool.mean.numpy(),
        "sigma": statistics.pool.covariance.numpy(),
    }
    if statistics.spatial is not None:
        arrays |= {"mu_s": statistics.spatial.mean.numpy(), "sigma_s": statistics.spatial.covariance.numpy()}
    if statistics.features is not None:
        arrays["features"] = statistics.features.numpy()
    known = {"made": dict(statistics.made or {}), "images": statistics.pool.images, "notes": statistics.notes}
    arrays["smalti"] = np.array(json.dumps(known))

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    write_atomically(path, write)


def holds_statistics(path: Path) -> bool:
    """Whether a path is an `.npz` file with statistics in it."""
    if path.suffix.lower() != ".npz" or not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return "mu.npy" in archive.namelist()


def read_statistics(path: Path) -> Statistics:
    """An `.npz` file of smalti, of ADM's tools or of any program that writes `mu` and `sigma` -> its statistics.

    Nothing in it is executed. Raises `SmaltiError` for a file that is missing, damaged, or holds no statistics.
    """
    if not path.is_file():
        raise SmaltiError(f"there is no file {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: _numbers(file[name], name) for name in file.files if name != "arr_0"}
            samples = "arr_0" in file.files
    except Exception as error:  # damage in its zip file, in the headers of its arrays, or in their numbers: of any kind
        raise SmaltiError(f"{path} cannot be read as an .npz file ({error}); download it again") from error
    if "mu" not in arrays or "sigma" not in arrays:
        there = ", ".join([*arrays, *(["arr_0"] if samples else [])]) or "nothing"
        raise SmaltiError(f"{path} holds no statistics: mu and sigma are needed, and it has {there}")
    known = _known(path, arrays)
    images = known.get("images")
    features = arrays.get("features") if known else None
    return Statistics(
        pool=_gaussian(arrays["mu"], arrays["sigma"], images),
        spatial=_gaussian(arrays["mu_s"], arrays["sigma_s"], images) if {"mu_s", "sigma_s"} <= set(arrays) else None,
        features=None if features is None else torch.from_numpy(features),
        made=known.get("made"),
        notes=tuple(known.get("notes", ())),
        images=ArraySource(path) if samples else None,
    )


def _numbers(array: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """An array of the file -> means and covariances in double precision, others as they are."""
    return np.asarray(array, np.float64) if name.startswith(("mu", "sigma")) else array


def _known(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    if "smalti" not in arrays:
        return {}
    try:
        known = json.loads(str(arrays["smalti"]))
    except ValueError as error:
        raise SmaltiError(f"{path} is damaged: its metadata is not JSON; delete it") from error
    return known if isinstance(known, dict) else {}


def _gaussian(mean: npt.NDArray[Any], covariance: npt.NDArray[Any], images: Any) -> Gaussian:
    number = images if isinstance(images, int) else None
    return Gaussian(torch.from_numpy(mean), torch.from_numpy(covariance), number)
