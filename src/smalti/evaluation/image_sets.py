"""Scores of a set of images against a reference set or its statistics: FID, KID, precision and others.

N images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
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
    samples_prepared = PreparedImages(samples, protocol.samples, channels=3)
    network = feature_network(features.network).to(device)
    reference_statistics, reference_prepared = _reference(reference, protocol, network, statistics)
    counter = Counter(progress, len(samples_prepared) + (0 if reference_prepared is None else len(reference_prepared)))
    gather = partial(_gather, network=network, protocol=protocol, batch=batch, device=device, counter=counter)
    sample_accumulator = gather(samples_prepared, score=True)
    data = None if reference_statistics is None else _described(reference_statistics)
    size_note: tuple[str, ...] = ()
    if reference_prepared is not None:
        computed = gather(reference_prepared, score=False).statistics(
            made=_provenance(reference_prepared, protocol, network)
        )
        computed = replace(computed, notes=(*reference_prepared.notes(), *computed.notes))
        if statistics is not None and not isinstance(reference, Statistics):
            write_statistics(statistics, computed)
        if reference_statistics is None:
            reference_statistics = computed
        else:  # statistics without features, whose images are known
            reference_statistics = replace(reference_statistics, features=computed.features, notes=computed.notes)
        data = data or reference_prepared.described()
        size_note = _size_mismatch_note(samples_prepared, reference_prepared)
    assert reference_statistics is not None, "a reference is images, statistics or both"
    sample_statistics = sample_accumulator.statistics()
    sample_statistics = replace(sample_statistics, notes=(*samples_prepared.notes(), *sample_statistics.notes))
    scored = score_sets(
        sample_statistics, reference_statistics, protocol=features, network=network, score=sample_accumulator.score
    )
    made_by, settings_note = _sample_settings(samples_prepared)
    return Measured(
        kind="folders",
        scores=scored.values,
        deviations=scored.deviations,
        definitions=scored.definitions,
        protocol=as_mapping(protocol),
        networks={features.network: network.fingerprint()},
        data=data or {},
        samples={**samples_prepared.described(), "made_by": made_by},
        notes=(*_unknown_protocol_note(reference), *size_note, *settings_note, *scored.notes),
        examples=(
            *_example_images(samples_prepared, "sample"),
            *(() if reference_prepared is None else _example_images(reference_prepared, "reference")),
        ),
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
    prepared: PreparedImages,
    *,
    network: FeatureNetwork,
    protocol: SetProtocol,
    score: bool,
    batch: int,
    device: torch.device,
    counter: Counter,
) -> StatisticsAccumulator:
    """Compute the features of all images. `score`: as of `StatisticsAccumulator`."""
    accumulator = StatisticsAccumulator(network, protocol.features, total=len(prepared), score=score, device=device)
    for indices, pixels in prepared.batches(batch):
        accumulator.update(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device), indices)
        counter.add(len(indices))
    counter.add(len(prepared.left_out))
    return accumulator


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
