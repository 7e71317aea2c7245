"""A kind of tree -> its image, drawn leaf by leaf once per process and then only scaled.

A tree is kept without color, so that season and light can color it later. Its four channels, 0 to 255, are
tone (shade to light, lit from the left and above), wood (leaf to bark), crown (a value of its own for each tuft of
leaves; on firs and bare trees: where snow lies) and cover (the silhouette).
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

KINDS = ("leafy", "poplar", "fir", "bare", "bush")
VARIANTS = 8

_HEIGHT = 352  # pixels a tree is drawn high
_WIDTH = 352


@cache
def tree(kind: str, variant: int) -> tuple[Image.Image, ...]:
    """The tree's image (RGBA, cut to what is covered) and copies of it, each half as high as the one before."""
    draw = {"leafy": _leafy, "poplar": _poplar, "fir": _fir, "bare": _bare, "bush": _bush}[kind]
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([KINDS.index(kind), variant])))
    image = Image.new("RGBA", (_WIDTH, _HEIGHT), (90, 0, 0, 0))
    draw(ImageDraw.Draw(image), generator)
    image = image.crop(image.getbbox(alpha_only=True))
    copies = [image]
    while copies[-1].height > 24:
        last = copies[-1]
        copies.append(last.resize((max(last.width // 2, 1), max(last.height // 2, 1)), Image.Resampling.BOX))
    return tuple(copies)


def scaled(kind: str, variant: int, *, height: int, stretch: float, mirrored: bool) -> Image.Image:
    """The tree at `height` pixels, its width times `stretch`, lit from the right where `mirrored`."""
    copies = tree(kind, variant)
    source = next((copy for copy in reversed(copies) if copy.height >= height), copies[0])
    width = max(round(height * copies[0].width / copies[0].height * stretch), 1)
    image = source.resize((width, height), Image.Resampling.BILINEAR)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image


def _branches(
    generator: np.random.Generator, *, levels: int, spread: float, length: float, upward: float
) -> list[tuple[float, float, float, float, float, int]]:
    """Grow a tree: (x0, y0, x1, y1, width, level) of each branch, in pixels, trunk first."""
    found: list[tuple[float, float, float, float, float, int]] = []

    def grow(x: float, y: float, angle: float, size: float, width: float, level: int) -> None:
        tip_x, tip_y = x + size * math.sin(angle), y - size * math.cos(angle)
        found.append((x, y, tip_x, tip_y, width, level))
        if level == levels:
            return
        count = int(generator.integers(2, 4))
        for turn in np.linspace(-1, 1, count):
            wander = float(generator.normal(0, 0.18))
            bent = angle * upward + float(turn) * spread + wander
            share = float(generator.uniform(0.66, 0.86))
            start = float(generator.uniform(0.75, 1.0)) if level else 1.0
            grow(x + (tip_x - x) * start, y + (tip_y - y) * start, bent, size * share, width * 0.66, level + 1)

    grow(_WIDTH / 2, _HEIGHT - 2.0, float(generator.normal(0, 0.05)), length, length * 0.21, 0)
    return found


def _draw_branches(draw: ImageDraw.ImageDraw, branches: list[tuple[float, float, float, float, float, int]]) -> None:
    for x0, y0, x1, y1, width, level in branches:
        thick = max(round(width), 1)
        flare = 1.5 if level == 0 else 1.0
        nx, ny = y1 - y0, x0 - x1
        norm = max(math.hypot(nx, ny), 1e-6)
        nx, ny = nx / norm * width / 2, ny / norm * width / 2
        if thick > 2:
            outline = [(x0 - nx * flare, y0 - ny * flare), (x1 - nx * 0.7, y1 - ny * 0.7)]
            outline += [(x1 + nx * 0.7, y1 + ny * 0.7), (x0 + nx * flare, y0 + ny * flare)]
            draw.polygon(outline, fill=(80, 255, 0, 255))
            draw.line(
                [(x0 + nx * 0.6, y0 + ny * 0.6), (x1 + nx * 0.4, y1 + ny * 0.4)],
                fill=(165, 255, 0, 255),
                width=max(thick // 3, 1),
            )
        else:
            draw.line([(x0, y0), (x1, y1)], fill=(95, 255, 0, 255), width=thick)


def _tufts(
    draw: ImageDraw.ImageDraw,
    generator: np.random.Generator,
    centers: npt.NDArray[np.float64],
    radii: npt.NDArray[np.float64],
    *,
    dabs: int,
    leaf: float,
) -> None:
    """Cover round tufts of leaves with dabs, dark ones first, so that the light ones lie on top."""
    count = len(centers)
    owner = np.repeat(np.arange(count), dabs)
    angle = generator.uniform(0, 2 * math.pi, len(owner))
    reach = np.sqrt(generator.uniform(0, 1, len(owner)))
    normal = np.stack([np.cos(angle) * reach, np.sin(angle) * reach], axis=1)
    position = centers[owner] + normal * radii[owner, None]
    center, extent = centers.mean(axis=0), np.maximum(np.ptp(centers, axis=0), 1.0)
    whole = (position - center) / extent
    light = -0.55 * normal[:, 0] - 0.8 * normal[:, 1]
    tone = 118 + 62 * light - 70 * (0.6 * whole[:, 0] + 0.9 * whole[:, 1]) + generator.normal(0, 16, len(owner))
    crown = generator.integers(0, 256, count)[owner] * 0.6 + generator.integers(0, 256, len(owner)) * 0.4
    size = leaf * generator.uniform(0.7, 1.4, len(owner))
    tone = np.clip(tone, 8, 250).astype(int)
    for i in np.argsort(tone + generator.normal(0, 26, len(owner))):
        x, y, r = position[i, 0], position[i, 1], size[i]
        draw.ellipse((x - r, y - r * 0.8, x + r, y + r * 0.8), fill=(int(tone[i]), 0, int(crown[i]), 255))


def _leafy(draw: ImageDraw.ImageDraw, generator: np.random.Generator) -> None:
    branches = _branches(
        generator, levels=4, spread=0.62, length=_HEIGHT * float(generator.uniform(0.22, 0.27)), upward=0.8
    )
    _draw_branches(draw, branches)
    tips = np.array([(x1, y1) for _, _, x1, y1, _, level in branches if level >= 2])
    keep = tips[generator.permutation(len(tips))[:60]]
    _tufts(draw, generator, keep, generator.uniform(22, 36, len(keep)), dabs=36, leaf=4.6)


def _poplar(draw: ImageDraw.ImageDraw, generator: np.random.Generator) -> None:
    middle = _WIDTH / 2
    draw.polygon(
        [(middle - 8, _HEIGHT), (middle - 3, 60), (middle + 3, 60), (middle + 8, _HEIGHT)], fill=(100, 255, 0, 255)
    )
    up = np.sort(generator.uniform(0, 1, 46))
    half = 46 * np.sin(np.pi * np.clip(up, 0.03, 1) ** 0.75) + 6
    centers = np.stack([middle + generator.uniform(-1, 1, 46) * half, 22 + up * 0.78 * _HEIGHT], axis=1)
    _tufts(draw, generator, centers, generator.uniform(12, 20, 46), dabs=26, leaf=4.0)


def _bush(draw: ImageDraw.ImageDraw, generator: np.random.Generator) -> None:
    count = 22
    angle, reach = generator.uniform(0, np.pi, count), np.sqrt(generator.uniform(0, 1, count))
    across, up = 118 * np.cos(angle) * reach, 120 * np.sin(angle) * reach * generator.uniform(0.6, 1.1)
    centers = np.stack([_WIDTH / 2 + across, _HEIGHT - 36 - up], axis=1)
    _tufts(draw, generator, centers, generator.uniform(24, 42, count), dabs=34, leaf=7.0)


def _bare(draw: ImageDraw.ImageDraw, generator: np.random.Generator) -> None:
    branches = _branches(
        generator, levels=6, spread=0.5, length=_HEIGHT * float(generator.uniform(0.2, 0.25)), upward=0.82
    )
    _draw_branches(draw, branches)
    for x0, y0, x1, y1, width, level in branches:  # snow on what does not stand too steep
        if level and abs(x1 - x0) > 0.45 * abs(y1 - y0):
            lift = width / 2 + 1
            draw.line([(x0, y0 - lift), (x1, y1 - lift)], fill=(225, 255, 255, 255), width=max(round(width * 0.5), 2))


def _fir(draw: ImageDraw.ImageDraw, generator: np.random.Generator) -> None:
    middle, slender = _WIDTH / 2, float(generator.uniform(0.2, 0.3))
    draw.polygon(
        [(middle - 9, _HEIGHT), (middle - 2, 20), (middle + 2, 20), (middle + 9, _HEIGHT)], fill=(90, 255, 0, 255)
    )
    levels = int(generator.integers(11, 16))
    for step in reversed(range(levels)):  # from the ground up: an upper branch lies over the one below
        share = (step + 1) / levels
        y = 6 + (0.9 * _HEIGHT - 6) * share**0.95
        half = slender * _HEIGHT * share**0.9 * float(generator.uniform(0.88, 1.1)) + 3
        drop = 0.9 * _HEIGHT / levels
        teeth = max(int(7 + 9 * share), 6)
        along = np.linspace(-1, 1, teeth * 2 + 1)
        hang = y + drop * (
            0.55
            - 0.3 * along**2
            + np.where(np.arange(len(along)) % 2, -0.3, 0.3)
            + generator.normal(0, 0.1, len(along))
        )
        hang += drop * 0.45 * np.abs(along)
        outline = [(middle + half * float(a), float(b)) for a, b in zip(along, hang, strict=True)]
        draw.polygon([(middle, y - drop * 1.5), *outline], fill=(52, 0, 40, 255))
        for _ in range(int(14 + 26 * share)):
            a = float(generator.uniform(-0.97, 0.97))
            start, end = float(generator.uniform(0.1, 0.6)), float(generator.uniform(0.75, 1.05))
            tip = float(np.interp(a, along, hang))
            top = y - drop * 1.5
            points = [(middle + half * a * s, top + (tip - top) * s**1.25) for s in (start, (start + end) / 2, end)]
            tone = int(np.clip(112 - 62 * a + generator.normal(0, 24), 20, 250))
            snow = 255 if generator.uniform() < 0.5 else int(generator.integers(0, 90))
            draw.line(points, fill=(tone, 0, snow, 255), width=3)
    draw.line([(middle, 2), (middle, 26)], fill=(120, 0, 200, 255), width=3)
