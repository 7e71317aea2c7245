"""Two sets of images by their statistics -> the scores of a protocol, named after the feature network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

from torch import Tensor

from smalti.evaluation.distances import InceptionScore, frechet
from smalti.evaluation.feature_statistics import COMPARING, Statistics
from smalti.evaluation.features import FeatureNetwork
from smalti.evaluation.nearest_neighbors import kernel_distance, manifold
from smalti.evaluation.protocols import FeatureProtocol
from smalti.evaluation.results import FEATURE_DEFINITIONS, FEATURES

Names: TypeAlias = Mapping[str, str]
"""A score in a protocol -> its name in the features of a network."""


class Scores(NamedTuple):
    """Scores by name, with their spreads, meanings and remarks."""

    values: dict[str, float]
    deviations: dict[str, float]
    definitions: dict[str, str]
    notes: list[str]


def score_sets(
    samples: Statistics,
    reference: Statistics,
    *,
    protocol: FeatureProtocol,
    network: FeatureNetwork,
    score: InceptionScore | None,
    named: Callable[[str], str] = str,
) -> Scores:
    """The statistics of two sets, and what was gathered for the Inception Score -> the scores of the protocol.

    They are called as the network calls them, changed by `named`. What cannot be computed of so few images is left
    out, and a note says what to do. Raises `SmaltiError` for statistics of another network.
    """
    names = {each: named(name) for each, name in network.names.items()}
    found = Scores({}, {}, {}, [*_unequal(samples, reference)])
    found.notes.extend(f"samples: {note}" for note in samples.notes)
    found.notes.extend(f"reference: {note}" for note in reference.notes)
    _put_distances(found, samples, reference, protocol, names)
    if "score" in protocol.scores:
        if score is None:
            count = samples.pool.images
            found.notes.append(
                f"{names['score']} is left out: {count} images cannot be divided into {protocol.splits} parts; "
                "ask for fewer splits"
            )
        else:
            spread = score.score()
            _put(found, names, "score", spread.mean, spread.deviation)
            found.notes.extend(spread.notes)
    if COMPARING & set(protocol.scores):
        _put_comparisons(found, samples, reference, protocol, names)
    for name, words in found.definitions.items():
        found.definitions[name] = f"{words}{FEATURES}{network.about}"
    return found


def _unequal(samples: Statistics, reference: Statistics) -> Iterator[str]:
    first, second = samples.pool.images, reference.pool.images
    if first is not None and second is not None and first != second:
        yield f"the sets have {first:,} and {second:,} images; most scores depend on both numbers"


def _put(found: Scores, names: Names, score: str, value: float, deviation: float | None = None) -> None:
    name = names[score]
    found.values[name] = value
    found.definitions[name] = FEATURE_DEFINITIONS[score]
    if deviation is not None:
        found.deviations[name] = deviation


def _put_distances(
    found: Scores, samples: Statistics, reference: Statistics, protocol: FeatureProtocol, names: Names
) -> None:
    if "frechet" in protocol.scores:
        distance = frechet(samples.pool, reference.pool)
        _put(found, names, "frechet", distance.value)
        found.notes.extend(f"{names['frechet']}: {note}" for note in distance.notes)
    if "spatial_frechet" in protocol.scores:
        if samples.spatial is None or reference.spatial is None:
            found.notes.append(f"{names['spatial_frechet']} is left out: the reference file has no mu_s and sigma_s")
        else:
            distance = frechet(samples.spatial, reference.spatial)
            _put(found, names, "spatial_frechet", distance.value)
            found.notes.extend(f"{names['spatial_frechet']}: {note}" for note in distance.notes)


def _put_comparisons(
    found: Scores, samples: Statistics, reference: Statistics, protocol: FeatureProtocol, names: Names
) -> None:
    a, b = samples.features, reference.features
    requested = [names[score] for score in protocol.scores if score in COMPARING]
    if a is None or b is None:
        found.notes.append(f"{', '.join(requested)}: left out, since the reference holds no features of single images")
        return
    _put_kernel(found, a, b, protocol, names)
    _put_manifold(found, a, b, protocol, names)


def _put_kernel(found: Scores, a: Tensor, b: Tensor, protocol: FeatureProtocol, names: Names) -> None:
    least = min(len(a), len(b))
    if "kernel" not in protocol.scores:
        return
    if least < protocol.subset_size:
        found.notes.append(
            f"{names['kernel']} is left out: it draws subsets of {protocol.subset_size} images, and there are "
            f"{least}; ask for a smaller subset_size, which is another protocol"
        )
        return
    spread = kernel_distance(a, b, subsets=protocol.subsets, size=protocol.subset_size, seed=protocol.subset_seed)
    _put(found, names, "kernel", spread.mean, spread.deviation)


def _put_manifold(found: Scores, a: Tensor, b: Tensor, protocol: FeatureProtocol, names: Names) -> None:
    wanted = [score for score in ("precision", "recall", "density", "coverage") if score in protocol.scores]
    most, least = max(protocol.neighbors, protocol.density_neighbors), min(len(a), len(b))
    if wanted and least <= most:
        listed = ", ".join(names[score] for score in wanted)
        found.notes.append(f"{listed}: left out, since {least} images have no {most} neighbors each")
    elif wanted:
        measured = manifold(a, b, neighbors=protocol.neighbors, density_neighbors=protocol.density_neighbors)._asdict()
        for score in wanted:
            _put(found, names, score, measured[score])
