"""A composition and positions along it -> the relief there: where each fold's crest is and how near it comes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from smalti.scenes.composition import EYE, Composition
from smalti.scenes.textures import Floats, profile


class Fold(NamedTuple):
    """A band of ground, or the lake, at positions (w,): its crest's v, and how far below the horizon its plane lies
    there.

    A point `under` below the crest is `EYE / (under + drop)` meters away.
    """

    crest: Floats
    drop: Floats


def folds(plan: Composition, positions: Floats) -> tuple[Fold, ...]:
    """The folds of the land at `positions` (w,) of u, from far to near; where there is a lake it is the last but one.

    A fold that dips lower than its plane comes nearer there, so that nothing is farther than what it hides.
    """
    found: list[Fold] = []

    def add(crest: Floats, drop: float) -> None:
        least = np.full_like(crest, drop)
        for behind in found:
            least = np.maximum(least, crest - behind.crest + behind.drop)
        found.append(Fold(crest, least))

    for i, band in enumerate(plan.bands):
        if i == len(plan.bands) - 1:
            for lake in plan.lake:
                wobble = profile(plan.bands[1].lattice[:4], positions + 31, frequency=3.0, gain=0.5, smooth=True)
                add((lake.shore + 0.006 * wobble).astype(np.float32), lake.shore - plan.horizon)
        waves = profile(band.lattice, positions + 5, frequency=band.frequency, gain=0.38, smooth=True)
        leaning = band.tilt * 0.5 * np.tanh(2 * positions)
        add((band.crest - leaning - band.rise * waves).astype(np.float32), band.drop)
    return tuple(found)


def distance(scale: Floats) -> Floats:
    """How far below the horizon, in image heights -> meters; the farthest ground is 1600 m away."""
    return np.asarray(EYE / np.maximum(scale, EYE / 1600), dtype=np.float32)
