"""A painted landscape -> captions of it, in many words and orders, each of them true.

Every caption states the houses, the water and the moon that can be seen, so that a caption without them is that of a
landscape without them. Nearly all state the season and the time of day. The sky, the sun, trees, mountains and details
of houses are stated now and then.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import TypeAlias

from smalti.scenes.painter import Scene
from smalti.scenes.visible import TreeGroup, Visible, VisibleHouse, visible

Rng: TypeAlias = random.Random

CAPTIONS = 5
"""Captions of each scene."""
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven")

_SEASONS = {"spring": ("spring",), "summer": ("summer",), "autumn": ("autumn", "autumn", "fall"), "winter": ("winter",)}
_TIMES = {"day": ("day",), "dusk": ("evening", "sunset", "dusk"), "night": ("night",)}
_AT = {
    "day": ("by day", "in daylight", "in the daytime", "during the day"),
    "dusk": ("at dusk", "at sunset", "in the evening", "at nightfall"),
    "night": ("at night", "at night", "in the dark of night", "by night"),
}
_PLAIN_AT = {"day": ("day", "daylight"), "dusk": ("dusk", "sunset", "evening"), "night": ("night",)}
_PLURALS = {"fir": "firs", "tree": "trees", "bare tree": "bare trees", "poplar": "poplars", "bush": "bushes"}
_KINDS = {"fir": "fir", "leafy": "tree", "bare": "bare tree", "poplar": "poplar", "bush": "bush"}


def captions(scene: Scene, *, seed: int, index: int, count: int = CAPTIONS) -> tuple[str, ...]:
    """Scene `index` of the data set `seed` -> `count` captions, always the same; a few may be equal."""
    facts = visible(scene)
    return tuple(_caption(facts, random.Random(f"{seed} {index} {number}")) for number in range(count))


def caption_row(scene: Scene, *, seed: int, index: int, file_name: str) -> str:
    """A scene -> its line of `metadata.jsonl`, as the Hugging Face Hub's image folders have them."""
    return json.dumps({"file_name": file_name, "text": list(captions(scene, seed=seed, index=index))})


def _caption(facts: Visible, rng: Rng) -> str:
    main = _subject(facts, rng)
    rest = [detail for detail in _details(facts, rng) if "mountain" not in detail or "mountain" not in main]
    if rng.random() < 0.3:  # a list of words
        words = [main, *rest, *_plain_setting(facts, rng)]
        tail = words[1:]
        rng.shuffle(tail)
        return ", ".join([words[0], *tail])
    kind = rng.random()
    if kind < 0.3:
        sentence = f"{_setting(facts, rng)}: {main}"
    elif kind < 0.55:
        sentence = f"{main} {_on(facts, rng)}"
    elif kind < 0.8:
        sentence = f"{main} {rng.choice(_AT[facts.time])} in {_season(facts, rng)}"
    elif kind < 0.9:
        sentence = f"{main} in {_season(facts, rng)}"
    else:
        sentence = f"{main} {rng.choice(_AT[facts.time])}"
    sentence = ", ".join([sentence, *rest])
    return f"{sentence[0].upper()}{sentence[1:]}." if rng.random() < 0.5 else sentence


# --- season and time -----------------------------------------------------------------------------------------------


def _season(facts: Visible, rng: Rng) -> str:
    return rng.choice(_SEASONS[facts.season])


def _an(words: str) -> str:
    return f"{'an' if words[0] in 'aeio' else 'a'} {words}"


def _setting(facts: Visible, rng: Rng) -> str:
    season, time = _season(facts, rng), rng.choice(_TIMES[facts.time])
    view = rng.choice(("landscape", "scene", "view"))
    choices = [_an(f"{season} {time}"), _an(f"{season} {view} {rng.choice(_AT[facts.time])}")]
    if facts.time != "day":
        choices.append(f"{time} in {season}")
    if facts.snow:
        choices.append(f"a snowy {time}")
    return rng.choice(choices)


def _on(facts: Visible, rng: Rng) -> str:
    snowy = "snowy " if facts.snow and rng.random() < 0.3 else ""
    adjective = snowy or rng.choice(("", "", "calm ", "quiet "))
    return f"on {_an(f'{adjective}{_season(facts, rng)} {_TIMES[facts.time][0]}')}"


def _plain_setting(facts: Visible, rng: Rng) -> list[str]:
    season = "snow" if facts.snow and rng.random() < 0.3 else _season(facts, rng)
    kept = [season, rng.choice(_PLAIN_AT[facts.time])]
    return kept if rng.random() < 0.85 else [rng.choice(kept)]


# --- houses and water ----------------------------------------------------------------------------------------------


def _subject(facts: Visible, rng: Rng) -> str:
    """What stands or lies there: houses, water, or the land alone."""
    houses = _houses(facts, rng)
    if facts.water and houses:
        lake = _lake(facts, rng)
        if rng.random() < 0.2:
            return f"{houses} by the water"
        if all(house.far for house in facts.houses) and facts.counted and rng.random() < 0.4:
            return f"{houses} on the far shore of {lake}"
        return rng.choice(
            (f"{houses} by {lake}", f"{houses} by {lake}", f"{houses} at {lake}", f"{lake} with {houses}")
        )
    if houses:
        return f"{houses}{rng.choice((*_land_around(facts), ''))}"
    if facts.water:
        lake = _lake(facts, rng)
        return f"{lake}{rng.choice((*_lake_around(facts), ''))}"
    return rng.choice(_land(facts))


def _lake(facts: Visible, rng: Rng) -> str:
    if facts.frozen and rng.random() < 0.6:
        return rng.choice(("a frozen lake", "an icy lake", "a lake covered with ice"))
    return rng.choice(("a lake", "a lake", "a lake", "a calm lake", "a quiet lake"))


def _land(facts: Visible) -> tuple[str, ...]:
    if facts.snow:
        return "a snowy field", "snow-covered hills", "a wintry countryside"
    return "a meadow", "open country", "grassy hills", "a field", "a countryside"


def _land_around(facts: Visible) -> tuple[str, ...]:
    return (" in the snow", " on a snowy field") if facts.snow else (" in a meadow", " in the country", " among hills")


def _lake_around(facts: Visible) -> tuple[str, ...]:
    around = (" in the snow",) if facts.snow else (" among meadows",)
    return (*around, " below mountains") if facts.mountains else around


def _houses(facts: Visible, rng: Rng) -> str:
    """The houses, as many as there are, with what is true of all of them; "" where there is none."""
    houses = facts.houses
    if not houses:
        return rng.choice(("a half-hidden house", "a part of a house")) if facts.half_hidden else ""
    if not facts.counted:
        return rng.choice(("houses", "some houses", "more than one house"))
    walls = [house.wall for house in houses]
    name = rng.choice(("house", "house", "house", "cottage"))
    if len(houses) == 2 and all(walls) and walls[0] != walls[1] and rng.random() < 0.6:
        return f"{_an(f'{walls[0]} {name}')} and {_an(f'{walls[1]} {name}')}"
    color = f"{walls[0]} " if walls[0] and len(set(walls)) == 1 and rng.random() < 0.75 else ""
    if len(houses) == 1:
        number = rng.choice(("a", "a", "one", "a lonely"))
        phrase = _an(f"{color}{name}") if number == "a" else f"{number} {color}{name}"
    else:
        phrase = f"{NUMBERS[len(houses)]} {color}{name}s"
    return f"{phrase}{_houses_place(houses, rng)}{_houses_detail(houses, rng)}"


def _houses_place(houses: Sequence[VisibleHouse], rng: Rng) -> str:
    sides = {house.side for house in houses}
    if len(sides) > 1 or rng.random() < 0.5:
        return ""
    return {"left": " on the left", "middle": " in the middle", "right": " on the right"}[sides.pop()]


def _houses_detail(houses: Sequence[VisibleHouse], rng: Rng) -> str:
    """Something that is true of all houses, or nothing."""
    one = len(houses) == 1
    details = []
    if all(house.lit for house in houses):
        details += [" with lit windows", " with lights in the windows", " with glowing windows"]
    if all(house.snowy for house in houses):
        details.append(f" with snow on {'its roof' if one else 'their roofs'}")
    if one and houses[0].smoke:
        details += [" with smoke rising from its chimney", " with a smoking chimney"]
    roofs = {house.roof for house in houses}
    if len(roofs) == 1 and "" not in roofs:
        roof = roofs.pop()
        details.append(f" with {_an(f'{roof} roof') if one else f'{roof} roofs'}")
    return rng.choice(details) if details and rng.random() < 0.5 else ""


# --- sky, trees, mountains -----------------------------------------------------------------------------------------


def _details(facts: Visible, rng: Rng) -> list[str]:
    """The moon, always, and some of what else can be seen."""
    optional = [*_sky(facts, rng), *_trees(facts, rng)]
    if facts.mountains:
        snowy = "snowy " if facts.season == "winter" and rng.random() < 0.5 else ""
        mountains = rng.choice(("mountains", "mountains", "a mountain range"))
        mountains = _an(f"{snowy}mountain range") if mountains.startswith("a ") else f"{snowy}mountains"
        optional.append(f"{mountains} {rng.choice(('in the background', 'on the horizon', 'behind'))}")
    if facts.woods:
        optional.append(rng.choice(("woods in the distance", "distant trees", "a forest far away")))
    if facts.snow:
        optional.append(rng.choice(("snow on the ground", "snow")))
    some = rng.sample(optional, min(len(optional), rng.choice((0, 1, 2, 2, 3, 3, 4))))
    if "moon" not in facts.disc:
        return some
    disc = "the moon" if facts.disc == "moon" else _an(facts.disc)
    moon = rng.choice((f"under {disc}", f"{disc} in the sky", disc))
    if facts.disc_side != "middle" and rng.random() < 0.25:
        moon = f"{disc} on the {facts.disc_side}"
    return [moon, *some] if moon.startswith("under") else rng.sample([moon, *some], len(some) + 1)


def _sky(facts: Visible, rng: Rng) -> list[str]:
    """What can be stated about the sky, except the moon, each separately."""
    phrases = []
    if facts.clouds is not None:
        if facts.clouds == 0:
            phrases.append(rng.choice(("a clear sky", "a cloudless sky", "no clouds")))
        elif facts.clouds > 0.7:
            phrases.append(rng.choice(("heavy clouds", "an overcast sky", "a sky full of clouds")))
        elif facts.clouds > 0.35:
            phrases.append(rng.choice(("a cloudy sky", "clouds", "many clouds")))
        elif facts.clouds > 0.03:
            phrases.append(rng.choice(("a few clouds", "some clouds", "clouds")))
    if facts.stars:
        phrases.append(rng.choice(("stars", "a starry sky", "stars in the sky")))
    if facts.disc == "sun":
        sun = "the setting sun" if facts.time == "dusk" else rng.choice(("the sun", "a bright sun"))
        side = f" on the {facts.disc_side}" if facts.disc_side != "middle" and rng.random() < 0.5 else ""
        phrases.append(f"{sun}{side}")
    return phrases


def _trees(facts: Visible, rng: Rng) -> list[str]:
    """The largest groups of trees, each by itself."""
    return [_group(facts, group, rng) for group in facts.trees[:3]]


def _group(facts: Visible, group: TreeGroup, rng: Rng) -> str:
    """Such as "two tall firs on the left"."""
    name, leaves = _KINDS[group.kind], ""
    if group.kind == "leafy" and group.leaves and rng.random() < 0.7:
        blossoms = facts.season == "spring"
        leaves = f" with {group.leaves} {'blossoms' if blossoms else 'leaves'}"
    tall = "tall " if group.tall and group.kind != "bush" and rng.random() < 0.6 else ""
    placed = rng.random() < 0.75
    if group.number == 1:
        trees = _an(f"{tall}{name}")
    else:  # there may be more elsewhere, so only those in one place are counted
        counted = placed and group.number < len(NUMBERS) and rng.random() < 0.5
        trees = f"{f'{NUMBERS[group.number]} ' if counted else ''}{tall}{_PLURALS[name]}"
    where = "in the middle" if group.side == "middle" else f"on the {group.side}"
    return f"{trees}{leaves} {where}" if placed else f"{trees}{leaves}"
