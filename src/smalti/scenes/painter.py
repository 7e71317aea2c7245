"""(seed, index, size) -> a painted landscape with everything that can be known about it.

Season and time of day are its twelve classes; segmentation, depth, edges, boxes and keypoints come from the same
painting and are exact. The same index at another size is the same landscape: finer where it is higher, more of the land
where it is wider.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from smalti.core.errors import SmaltiError
from smalti.scenes import landscape
from smalti.scenes.canvas import Canvas
from smalti.scenes.composition import Composition, Home, Tree, compose, inhabitants
from smalti.scenes.palettes import SEASONS, TIMES
from smalti.scenes.textures import Floats

CLASSES: tuple[str, ...] = tuple(f"{season}-{time}" for season in SEASONS for time in TIMES)
LABELS: tuple[str, ...] = ("sky", "sun", "moon", "cloud", "mountain", "ground", "water", "tree", "house")
COLORS: tuple[tuple[int, int, int], ...] = (
    (126, 182, 238), (255, 214, 64), (236, 236, 200), (232, 240, 248), (140, 126, 132),
    (122, 178, 84), (44, 104, 176), (28, 98, 52), (204, 72, 56),
)  # fmt: skip
KEYPOINTS: tuple[str, ...] = ("apex", "left eave", "right eave", "right foot", "left foot")

_FINER = 2  # grid points painted per pixel, across and down
_MIN_SIDE, _MAX_SIDE = 16, 4096
_VISIBLE = 0.15  # an object of which less is seen is not listed
_AREA = 0.0008  # nor one that covers less than this fraction of a square of the image's height


class SceneObject(NamedTuple):
    """One object of an image, positions and sizes relative to the image (0 to 1, origin at the left top).

    `box` is (x, y, w, h) of the part that is seen; `distance` is in meters. `keypoints` are (x, y) of `KEYPOINTS` for a
    house (those of a house that is cut by the border lie outside 0 to 1; some may be hidden), and empty for everything
    else. `share` is that of the image's pixels which show it, `visible` the fraction of the object that is seen, and
    `plan` what a tree or a house was painted from.
    """

    label: str
    box: tuple[float, float, float, float]
    distance: float
    keypoints: tuple[tuple[float, float], ...]
    share: float
    visible: float
    plan: Tree | Home | None


class Scene(NamedTuple):
    """A landscape: `image` (H,W,3) uint8; `segmentation` (H,W) uint8 into `LABELS`; `depth` (H,W) float32 meters, the
    sky at `FAR`; `edges` (H,W) uint8, 0 or 255; `objects` from far to near; `label` one of `CLASSES`; `plan` what it
    was painted from."""

    image: npt.NDArray[np.uint8]
    segmentation: npt.NDArray[np.uint8]
    depth: Floats
    edges: npt.NDArray[np.uint8]
    objects: tuple[SceneObject, ...]
    label: str
    plan: Composition


def scene_class(seed: int, index: int) -> str:
    """The class of image `index`: each run of twelve images holds each class once, in an order of its own."""
    return CLASSES[_order(seed, index // len(CLASSES))[index % len(CLASSES)]]


@lru_cache(maxsize=64)
def _order(seed: int, block: int) -> tuple[int, ...]:
    return tuple(int(i) for i in _generator(seed, block, 0, len(CLASSES)).permutation(len(CLASSES)))


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def paint(seed: int, index: int, *, size: tuple[int, int]) -> Scene:
    """Image `index` of the data set `seed`, at `size` (height, width) pixels; nothing else goes in.

    Raises `SmaltiError` for a negative seed or index and for a side outside 16 to 4096.
    """
    check(seed, size)
    if index < 0:
        raise SmaltiError(f"a scene's index is 0 or more, not {index}")
    height, width = size
    label = scene_class(seed, index)
    season, time = label.split("-")
    plan = compose(_generator(seed, index), season, time)
    # Trees that stand on a stretch of land just outside the image may reach into it.
    reach = int(np.ceil(width / height / 2 + 0.3))
    items: list[Tree | Home] = []
    for cell in range(-reach, reach + 1):
        code = 2 * cell + 1 if cell >= 0 else -2 * cell
        items += inhabitants(plan, _generator(seed, index, code), cell)
    canvas = landscape.paint_landscape(plan, items, height * _FINER, width * _FINER)
    return _developed(canvas, plan, label)


def check(seed: int, size: tuple[int, int]) -> None:
    """Raise `SmaltiError` for a seed or a size (height, width) that scenes cannot have."""
    if seed < 0:
        raise SmaltiError(f"a seed is 0 or more, not {seed}")
    for side in size:
        if not _MIN_SIDE <= side <= _MAX_SIDE:
            raise SmaltiError(
                f"scenes are painted from {_MIN_SIDE} to {_MAX_SIDE} pixels a side, not {size[0]}x{size[1]}"
            )


def _developed(canvas: Canvas, plan: Composition, label: str) -> Scene:
    """The canvas at the image's resolution: colors averaged, everything else that of one of the four points."""
    color = canvas.color
    summed = color[:, ::2, ::2] + color[:, 1::2, ::2] + color[:, ::2, 1::2] + color[:, 1::2, 1::2]
    image = np.clip(summed * np.float32(255 / 4) + np.float32(0.5), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    identity, depth = _majority(canvas)
    segmentation = np.asarray(canvas.labels, dtype=np.uint8)[identity]
    edges = _edges(identity, image)
    return Scene(np.ascontiguousarray(image), segmentation, depth, edges, _objects(canvas, identity), label, plan)


def _majority(canvas: Canvas) -> tuple[npt.NDArray[np.int16], Floats]:
    """Canvas -> `identity` (H,W) and `depth` (H,W) of the pixels: those of the second nearest of each pixel's four
    points.

    That is the item that three of them show, and the nearer one of two against two.
    """
    four = [(canvas.identity[y::2, x::2], canvas.depth[y::2, x::2]) for y in (0, 1) for x in (0, 1)]
    # Few pixels lie on a border; for all others this is the third of four equal ones.
    identity, depth = four[2][0].copy(), four[2][1].copy()
    border = np.nonzero((four[0][0] != identity) | (four[1][0] != identity) | (four[3][0] != identity))
    identities, depths = (np.stack([point[i][border] for point in four]) for i in (0, 1))
    chosen = np.argsort(identities, axis=0, kind="stable")[2:3]
    identity[border] = np.take_along_axis(identities, chosen, axis=0)[0]
    depth[border] = np.take_along_axis(depths, chosen, axis=0)[0]
    return identity, depth


def _edges(identity: npt.NDArray[np.int16], image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Where a item borders on another, and where the brightness jumps."""
    edges = np.zeros(identity.shape, dtype=bool)
    edges[:, :-1] |= identity[:, :-1] != identity[:, 1:]
    edges[:-1] |= identity[:-1] != identity[1:]
    bright = image.astype(np.int16).sum(axis=2)
    edges[:, :-1] |= np.abs(bright[:, :-1] - bright[:, 1:]) > 190
    edges[:-1] |= np.abs(bright[:-1] - bright[1:]) > 190
    return np.where(edges, 255, 0).astype(np.uint8)


def _objects(canvas: Canvas, identity: npt.NDArray[np.int16]) -> tuple[SceneObject, ...]:
    height, width = identity.shape
    counts = np.bincount(identity.ravel(), minlength=len(canvas.labels)) * _FINER**2
    smallest = _AREA * canvas.height**2
    found = []
    for item in canvas.standing:
        if counts[item.identity] < max(_VISIBLE * item.whole, smallest):
            continue
        visible = identity == item.identity
        rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
        x, y = float(columns[0] / width), float(rows[0] / height)
        box = (x, y, float((columns[-1] + 1) / width) - x, float((rows[-1] + 1) / height) - y)
        points = tuple((px / canvas.width, py / canvas.height) for px, py in item.keypoints)
        share = float(counts[item.identity] / (canvas.height * canvas.width))
        visible = float(counts[item.identity] / item.whole)
        found.append(SceneObject(LABELS[item.label], box, item.distance, points, share, visible, item.plan))
    return tuple(found)
