"""A painted landscape -> what can be seen in it: the facts that captions state.

An object counts as visible by the fraction of the image's pixels that show it. Shares are of the whole image,
from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from smalti.scenes.composition import Home, Tree
from smalti.scenes.painter import LABELS, Scene, SceneObject
from smalti.scenes.palettes import ROOFS, SEASON, WALLS

Side: TypeAlias = Literal["left", "middle", "right"]

WATER, MOUNTAINS, SNOW, STARS, WOODS = 0.005, 0.02, 0.05, 0.1, 0.012
"""Smallest visible fractions; of snow the ground's, of stars the open sky's, of woods that of trees that are not
objects."""
TREES = 0.012
"""The smallest fraction of a group of trees."""
UNCOUNTED, HALF_HIDDEN = 0.001, 0.005
"""Shares of houses that are too hidden to be objects: from the first on houses are not counted, from the second on one
is seen even where there is no other."""
_COLORED, _DETAILED = 0.006, 0.004  # share of a house whose color, and whose windows, can be seen
_TALL = 0.3  # heights of the image
_OPEN = 0.6  # the visible fraction of a house of which windows, roof and color can be seen

_WALLS = dict(zip(WALLS, ("red", "cream", "white", "brown", "yellow", "gray", "blue", ""), strict=True))
_ROOFS = dict(zip(ROOFS, ("red", "dark", "brown", "gray", "orange"), strict=True))
_LEAVES = {
    **dict(zip(SEASON["autumn"].leaves, ("orange", "red", "golden", "brown"), strict=True)),
    SEASON["spring"].leaves[1]: "pink",
    SEASON["spring"].leaves[3]: "white",
}


class VisibleHouse(NamedTuple):
    """A house. `wall` and `roof`: colors, "" if they cannot be seen. `far`: it is on the far shore of the lake."""

    side: Side
    wall: str
    roof: str
    lit: bool
    smoke: bool
    snowy: bool
    far: bool


class TreeGroup(NamedTuple):
    """Trees of one kind on one side. `kind` as in `flora.KINDS`; `leaves`: the color of all of them, "" if they differ
    or it cannot be seen."""

    kind: str
    side: Side
    number: int
    tall: bool
    leaves: str
    share: float


class Visible(NamedTuple):
    """What can be seen in a landscape."""

    season: str
    time: str
    houses: tuple[VisibleHouse, ...]
    counted: bool
    """Whether `houses` are all houses of which something can be seen."""
    half_hidden: bool
    """Whether there is a house besides, which is mostly hidden."""
    water: bool
    frozen: bool
    disc: Literal["", "sun", "moon", "full moon", "crescent moon"]
    disc_side: Side
    clouds: float | None
    """The share of the sky that clouds cover; None without sky."""
    stars: bool
    mountains: bool
    snow: bool
    """Whether snow lies on the ground."""
    woods: bool
    """Whether there are trees in the distance."""
    trees: tuple[TreeGroup, ...]
    """The largest first."""


def visible(scene: Scene) -> Visible:
    """A scene -> what can be seen in it."""
    season, time = scene.label.split("-")
    counts = np.bincount(scene.segmentation.ravel(), minlength=len(LABELS))
    share = dict(zip(LABELS, (counts / scene.segmentation.size).tolist(), strict=True))
    homes = [(item, item.plan) for item in scene.objects if isinstance(item.plan, Home)]
    trees = [(item, item.plan) for item in scene.objects if isinstance(item.plan, Tree)]
    hidden = share["house"] - sum(item.share for item, _ in homes)
    scattered = share["tree"] - sum(item.share for item, _ in trees)
    disc = next((item for item in scene.objects if item.label in ("sun", "moon")), None)
    sky = share["sky"] + share["cloud"] + share["sun"] + share["moon"]
    return Visible(
        season=season,
        time=time,
        houses=tuple(_house(scene, item, home) for item, home in homes),
        counted=hidden < UNCOUNTED,
        half_hidden=hidden >= HALF_HIDDEN,
        water=share["water"] >= WATER,
        frozen=any(lake.frozen >= 0.55 for lake in scene.plan.lake) and share["water"] >= WATER,
        disc=_disc(scene, disc),
        disc_side="middle" if disc is None else _side(disc),
        clouds=share["cloud"] / sky if sky > 0.05 else None,
        stars=time == "night" and share["sky"] >= STARS,
        mountains=share["mountain"] >= MOUNTAINS,
        snow=season == "winter" and share["ground"] >= SNOW,
        woods=scattered >= WOODS and any(band.woods > 0.3 for band in scene.plan.bands),
        trees=_groups(trees, time=time),
    )


def _side(item: SceneObject) -> Side:
    center = item.box[0] + item.box[2] / 2
    return "left" if center < 0.38 else "right" if center > 0.62 else "middle"


def _house(scene: Scene, item: SceneObject, home: Home) -> VisibleHouse:
    """Evening light is red and moonlight blue: then only red walls look like their color."""
    day, winter = scene.label.endswith("day"), scene.label.startswith("winter")
    is_open = item.visible >= _OPEN
    wall = _WALLS[home.house.wall] if item.share >= _COLORED and is_open else ""
    return VisibleHouse(
        side=_side(item),
        wall=wall if day or wall == "red" else "",
        roof=_ROOFS[home.house.roof] if wall and day and not winter else "",
        lit=home.house.lit and item.share >= _DETAILED and is_open,
        smoke=home.smoke > 0 and item.share >= _DETAILED and item.visible >= 0.9,
        snowy=home.house.snow and item.share >= _DETAILED and is_open,
        far=bool(scene.plan.lake) and home.band == 1,
    )


def _disc(scene: Scene, disc: SceneObject | None) -> Literal["", "sun", "moon", "full moon", "crescent moon"]:
    if disc is None:
        return ""
    if disc.label == "sun":
        return "sun"
    if disc.visible < 0.75:  # behind clouds or mountains its shape is not seen
        return "moon"
    return "full moon" if abs(scene.plan.sky.phase) >= 2 else "crescent moon"


def _groups(trees: Iterable[tuple[SceneObject, Tree]], *, time: str) -> tuple[TreeGroup, ...]:
    members: dict[tuple[str, Side], list[tuple[SceneObject, Tree]]] = {}
    for item, tree in trees:
        members.setdefault((tree.kind, _side(item)), []).append((item, tree))
    groups = [
        TreeGroup(
            kind=kind,
            side=side,
            number=len(listed),
            tall=all(item.box[3] >= _TALL for item, _ in listed),
            leaves=_leaves([tree for _, tree in listed]) if time != "night" else "",
            share=sum(item.share for item, _ in listed),
        )
        for (kind, side), listed in members.items()
    ]
    return tuple(sorted((group for group in groups if group.share >= TREES), key=lambda group: -group.share))


def _leaves(trees: Sequence[Tree]) -> str:
    """The color that the leaves of all trees have, "" if they differ or have none of their own."""
    colors = {_LEAVES.get(leaf, "") for tree in trees for leaf in tree.leaves}
    return colors.pop() if len(colors) == 1 else ""
