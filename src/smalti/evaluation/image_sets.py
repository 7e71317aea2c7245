"""Scores of a set of images against a reference set or its statistics: FID, KID, precision and others.

N images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from smalti.core.errors import SmaltiError
from smalti.core.progress_callback import Progress, no_progress
from smalti.core.published_weights import find_weights, found_weights
from smalti.core.settings import as_mapping
from smalti.data.sources import Source, identity
from smalti.evaluation.feature_statistics import (
    COMPARING,
    Statistics,
    StatisticsAccumulator,
    read_statistics,
    write_statistics,
)
from smalti.evaluation.features import PUBLISHED, FeatureNetwork, feature_network
from smalti.evaluation.measurement import Counter
from smalti.evaluation.prepared_images import ArraySource, PreparedImages
from smalti.evaluation.protocols import SetProtocol
from smalti.evaluation.results import ExampleImage, Measured
from smalti.evaluation.set_scores import score_sets
from smalti.images.io import DamagedImage, read_settings, to_array, to_tensor
from smalti.images.resizing import resize_shorter

SAMPLERS_READ = 16
"""Number of sample files whose settings are read."""

NUM_EXAMPLES, EXAMPLE_SIDE = 8, 160
"""Number of example images of each set for the report, and the largest shorter side in pixels."""


class Available(NamedTuple):
    """A protocol whose network's weights are available."""

    protocol: SetProtocol
    note: str
    """Which network replaces which, or ""."""


def with_available_network(protocol: SetProtocol) -> Available:
    """A protocol -> itself where its network's weights are on this machine or can be downloaded, else that of
    EfficientNet.

    The weights are found, not read: whether they are damaged shows when the network is made. Raises `SmaltiError` for a
    `SMALTI_WEIGHTS` that is not a folder.
    """
    wanted = protocol.features.network
    weights = PUBLISHED.get(wanted)
    if weights is None or found_weights(weights) is not None:
        return Available(protocol, "")
    try:
        find_weights(weights)
    except SmaltiError:
        features = replace(protocol.features, network="efficientnet")
        note = (
            f"measured in EfficientNet-Lite0's features, because the weights of {wanted} are not on this machine: "
            "compare these scores with each other only, never with FID (smalti doctor says which file is missing, and "
            "where it goes)"
        )
        return Available(replace(protocol, features=features), note)
    return Available(protocol, "")


def measure_sets(
    samples: Source,
    reference: Source | Statistics,
    *,
    protocol: SetProtocol,
    device: torch.device,
    progress: Progress = no_progress,
    batch: int = 32,
    statistics: Path | None = None,
) -> Measured:
    """Samples and a reference -> the scores of the protocol.

    The reference is images or statistics. Those of images are kept in the file `statistics`, where one is given, and
    are read from it the next time instead of the images.

    Raises `SmaltiError` for unavailable weights, sets of too few images, statistics of another network, and a
    file that holds other statistics.
    """
    features = protocol.features
    first = PreparedImages(samples, protocol.samples, channels=3)
    network = feature_network(features.network).to(device)
    known, second = _reference(reference, protocol, network, statistics)
    counter = Counter(progress, len(first) + (0 if second is None else len(second)))
    gathered = StatisticsAccumulator(network, features, total=len(first), score=True, device=device)
    _gather(first, gathered, batch=batch, device=device, counter=counter)
    data = None if known is None else _described(known)
    unlike: tuple[str, ...] = ()
    if second is not None:
        other = StatisticsAccumulator(network, features, total=len(second), score=False, device=device)
        _gather(second, other, batch=batch, device=device, counter=counter)
        fresh = other.statistics(made=_provenance(second, protocol, network))
        fresh = replace(fresh, notes=(*second.notes(), *fresh.notes))
        known = fresh if known is None else replace(known, features=fresh.features, notes=fresh.notes)
        data = data or second.described()
        unlike = _size_mismatch_note(first, second)
        if statistics is not None and not isinstance(reference, Statistics):
            write_statistics(statistics, fresh)
    assert known is not None, "a reference is images, statistics or both"
    sample_statistics = gathered.statistics()
    sample_statistics = replace(sample_statistics, notes=(*first.notes(), *sample_statistics.notes))
    scored = score_sets(sample_statistics, known, protocol=features, network=network, score=gathered.score)
    maker, differing = _sample_settings(first)
    return Measured(
        kind="folders",
        scores=scored.values,
        deviations=scored.deviations,
        definitions=scored.definitions,
        protocol=as_mapping(protocol),
        networks={features.network: network.fingerprint()},
        data=data or {},
        samples={**first.described(), "made_by": maker},
        notes=(*_unknown_protocol_note(reference), *unlike, *differing, *scored.notes),
        examples=(*_example_images(first, "sample"), *(() if second is None else _example_images(second, "reference"))),
    )


def _reference(
    given: Source | Statistics, protocol: SetProtocol, network: FeatureNetwork, cache: Path | None
) -> tuple[Statistics | None, PreparedImages | None]:
    """The statistics of the reference that exist already, and the images that must still be read."""
    if isinstance(given, Statistics):
        if given.made is not None:
            _check_provenance(given, _settings(protocol, network), where="the reference file")
        if given.images is not None and given.features is None and COMPARING & set(protocol.features.scores):
            return given, PreparedImages(given.images, protocol.reference, channels=3)
        return given, None
    prepared = PreparedImages(given, protocol.reference, channels=3)
    if cache is None or not cache.is_file():
        return None, prepared
    kept = read_statistics(cache)
    if kept.made is None:
        raise SmaltiError(f"{cache} was not written by smalti; give it as the reference itself, in place of the images")
    _check_provenance(kept, _provenance(prepared, protocol, network), where=str(cache))
    return kept, None


def _check_provenance(statistics: Statistics, wanted: Mapping[str, Any], *, where: str) -> None:
    """Raise `SmaltiError` unless the statistics were computed with the settings `wanted`."""
    made = statistics.made or {}
    for key, value in wanted.items():
        if made.get(key) != value:
            raise SmaltiError(
                f"{where} holds other statistics: {key} is {made.get(key)!r} there and {value!r} here; "
                "name another file, or delete it"
            )


def _provenance(prepared: PreparedImages, protocol: SetProtocol, network: FeatureNetwork) -> dict[str, Any]:
    """Everything that statistics of a reference depend on, as plain values."""
    return {
        "name": prepared.source.path.name,
        "identity": identity(prepared.source),
        **({"spatial": True} if "spatial_frechet" in protocol.features.scores else {}),
        **_settings(protocol, network),
    }


def _settings(protocol: SetProtocol, network: FeatureNetwork) -> dict[str, Any]:
    """The settings that statistics depend on, apart from the images."""
    features = protocol.features
    comparing = {"kept": features.kept, "kept_seed": features.kept_seed} if COMPARING & set(features.scores) else {}
    return {
        "network": features.network,
        "weights": network.fingerprint(),
        "images": as_mapping(protocol.reference),
        **comparing,
    }


def _gather(
    prepared: PreparedImages, accumulator: StatisticsAccumulator, *, batch: int, device: torch.device, counter: Counter
) -> None:
    for indices, pixels in prepared.batches(batch):
        accumulator.update(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device), indices)
        counter.add(len(indices))
    counter.add(len(prepared.left_out))


def _described(statistics: Statistics) -> dict[str, Any]:
    """A reference given as statistics -> its description in a result."""
    images = statistics.pool.images
    if statistics.made is not None:
        return {"name": statistics.made["name"], "identity": statistics.made["identity"], "images": images}
    digest = hashlib.sha256(statistics.pool.mean.numpy().tobytes() + statistics.pool.covariance.numpy().tobytes())
    return {"name": "statistics of another program", "identity": digest.hexdigest()[:16], "images": images}


def _unknown_protocol_note(reference: Source | Statistics) -> tuple[str, ...]:
    if not isinstance(reference, Statistics) or reference.made is not None:
        return ()
    return (
        "the reference's statistics are of another program, which does not say of how many images, how resized, or "
        "with which network they were made",
    )


def _example_images(prepared: PreparedImages, rank: str) -> Iterator[ExampleImage]:
    for name, array in prepared.examples(NUM_EXAMPLES):
        small = array if min(array.shape[:2]) <= EXAMPLE_SIDE else resize_shorter(array, EXAMPLE_SIDE)
        pixels = to_array(to_tensor(small))
        yield ExampleImage(rank, name, {}, pixels, pixels)


def _size_mismatch_note(first: PreparedImages, second: PreparedImages) -> tuple[str, ...]:
    if len(first.sizes) != 1 or len(second.sizes) != 1 or first.sizes == second.sizes:
        return ()
    (a,), (b,) = first.sizes, second.sizes
    return (
        f"the samples are {a[0]}x{a[1]} and the reference {b[0]}x{b[1]} (height x width), and the network scales both "
        "to its own size; set one size for both to make them alike",
    )


def _sample_settings(prepared: PreparedImages) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the samples' files say about the model and the sampler that made them, and a note where they differ."""
    file_settings: list[dict[str, Any]] = []
    for index in sorted({number * len(prepared) // SAMPLERS_READ for number in range(SAMPLERS_READ)}):
        where = None if isinstance(prepared.source, ArraySource) else prepared.source.stream(prepared.images[index])
        try:
            found = read_settings(where) if isinstance(where, Path) and where.suffix.lower() == ".png" else None
        except DamagedImage:
            continue
        file_settings.append({key: value for key, value in (found or {}).items() if key not in ("seed", "label")})
    if any(each != file_settings[0] for each in file_settings):
        return {}, ("the samples' files say that they were made with different settings",)
    return (file_settings[0] if file_settings else {}), ()
