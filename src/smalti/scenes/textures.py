"""Noise textures for the surfaces of the scenes: coordinates -> noise.

Four periodic noise tiles with mipmaps (copies at half the resolution, a quarter, and so on) are computed once per
process from fixed seeds. Images sample them at their own offsets and scales. The mipmap level follows from the spacing
of the coordinates, so a window of a tile looks alike at every resolution.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_SIDE = 1024  # points along a side of the finest tile
_MIPMAP_LEVELS = 6
_PERIOD = 64  # lattice points of a profile before it repeats

# name -> (amplitude falls with frequency to this power, waves per tile below which there is nothing)
_SPECTRA = {"billow": (1.75, 2.0), "rough": (1.25, 5.0), "grain": (0.5, 24.0), "slope": (0.85, 4.0)}


@cache
def _tile(name: str) -> tuple[Floats, ...]:
    """The mipmaps of the tile `name`, the finest first, with mean 0 and standard deviation 1."""
    power, lowest = _SPECTRA[name]
    generator = np.random.Generator(np.random.PCG64(sum(name.encode())))
    spectrum = np.fft.rfft2(generator.standard_normal((_SIDE, _SIDE)))
    rows, columns = np.fft.fftfreq(_SIDE, 1 / _SIDE)[:, None], np.fft.rfftfreq(_SIDE, 1 / _SIDE)[None, :]
    frequency = np.hypot(rows, columns)
    shaped = spectrum * np.where(frequency < lowest, 0.0, np.maximum(frequency, 1.0) ** -power)
    if name == "slope":  # shading of ridged ground lit from the upper left: facets instead of clouds
        ridged = -np.abs(np.fft.irfft2(shaped * np.maximum(frequency, 1.0) ** -0.75, s=(_SIDE, _SIDE)))
        field = 2 * ridged - np.roll(ridged, 2, axis=1) - np.roll(ridged, 1, axis=0)
    else:
        field = np.fft.irfft2(shaped, s=(_SIDE, _SIDE))
    field = np.clip((field - field.mean()) / field.std(), -3.0, 3.0)
    copies = [field.astype(np.float32)]
    for _ in range(_MIPMAP_LEVELS):
        last = copies[-1]
        copies.append((last[::2, ::2] + last[1::2, ::2] + last[::2, 1::2] + last[1::2, 1::2]) / np.float32(4))
    return tuple(copies)


def clamp(values: npt.ArrayLike, low: float, high: float) -> Floats:
    """`values` clamped to [`low`, `high`]; several times faster than `numpy.clip` on small arrays."""
    clamped = np.asarray(np.maximum(values, low), dtype=np.float32)
    return np.minimum(clamped, high, out=clamped)


def _weights(positions: Floats, side: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Floats]:
    scaled = positions * np.float32(side) - np.float32(0.5)
    floor = np.floor(scaled)
    low = floor.astype(np.intp) % side
    return low, (low + 1) % side, (scaled - floor).astype(np.float32)


def texture(name: str, rows: Floats, columns: Floats) -> Floats:
    """Places (h,) and (w,), in tiles (1 is a whole tile, after which it repeats) -> noise (h, w), mean 0,
    deviation 1."""
    copies = _tile(name)
    steps = np.array(
        [abs(rows[-1] - rows[0]) / max(len(rows) - 1, 1), abs(columns[-1] - columns[0]) / max(len(columns) - 1, 1)]
    )
    step = float(np.sqrt(np.maximum(steps[0], 1e-6) * np.maximum(steps[1], 1e-6))) * _SIDE
    level = copies[int(np.clip(np.floor(np.log2(max(step, 1.0)) + 0.25), 0, _MIPMAP_LEVELS))]
    side = len(level)
    low, high, share = _weights(rows, side)
    across = _lerp(level.take(low, axis=0), level.take(high, axis=0), share[:, None])
    low, high, share = _weights(columns, side)
    return _lerp(across.take(low, axis=1), across.take(high, axis=1), share[None, :])


def _lerp(first: Floats, second: Floats, share: Floats) -> Floats:
    """Linear interpolation from `first` (share 0) to `second` (share 1); overwrites both arrays."""
    second -= first
    second *= share
    first += second
    return first


def profile(lattice: Floats, positions: Floats, *, frequency: float, gain: float, smooth: bool) -> Floats:
    """A lattice (octaves, 64) of values and positions (w,) -> a fractal line (w,), about in the lattice's own range.

    `frequency` is lattice points per unit of the first octave; each next octave has twice that and `gain` times the
    height.
    """
    octaves = np.arange(len(lattice))
    scaled = positions[None, :] * (frequency * 2.0**octaves)[:, None] + 17.0 * octaves[:, None]
    floor = np.floor(scaled)
    share = scaled - floor
    if smooth:
        share = share * share * (3 - 2 * share)
    low = floor.astype(np.intp) % _PERIOD
    left = lattice[octaves[:, None], low]
    right = lattice[octaves[:, None], (low + 1) % _PERIOD]
    heights = gain**octaves
    line = (heights[:, None] * (left + share * (right - left))).sum(axis=0) / heights.sum() * 1.5
    return np.asarray(line, dtype=np.float32)


def lattice(generator: np.random.Generator, octaves: int) -> Floats:
    """Random values in [-1, 1] for `profile`, (octaves, 64)."""
    return generator.uniform(-1, 1, (octaves, _PERIOD)).astype(np.float32)
