"""Captions of scenes, read as a person reads them, and compared with what is in the images."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from smalti.scenes.captions import captions
from smalti.scenes.composition import Home, Tree
from smalti.scenes.painter import LABELS, Scene, paint
from smalti.scenes.scene_files import write_scenes

SEED, COUNT, SIDE = 11, 216, 64
NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7}
HOUSE = r"\b(?:house|cottage)s?\b"
SEASONS = {"spring": "spring", "summer": "summer", "autumn": "autumn|fall", "winter": "winter|wintry|snowy?"}
TIMES = {
    "day": "day|daylight|daytime",
    "dusk": "dusk|sunset|evening|nightfall|setting sun",
    "night": "night|stars|starry|moon",
}


@pytest.fixture(scope="module")
def scenes() -> list[tuple[Scene, tuple[str, ...]]]:
    painted = [paint(SEED, index, size=(SIDE, SIDE)) for index in range(COUNT)]
    return [(scene, captions(scene, seed=SEED, index=index)) for index, scene in enumerate(painted)]


def pairs(scenes: list[tuple[Scene, tuple[str, ...]]]) -> list[tuple[Scene, str]]:
    return [(scene, caption) for scene, written in scenes for caption in written]


def has(pattern: str, caption: str) -> bool:
    return re.search(rf"\b(?:{pattern})\b", caption, re.IGNORECASE) is not None


def share(scene: Scene, label: str) -> float:
    return float((scene.segmentation == LABELS.index(label)).mean())


def listed(scene: Scene, label: str) -> int:
    return sum(item.label == label for item in scene.objects)


def number_of_houses(caption: str) -> int | None:
    """What a caption says about their number; None for "houses" that are not counted."""
    number, looks = "|".join(NUMBERS), "(?:(?:lonely|red|white|cream|brown|yellow|gray|blue) )*"
    found = re.findall(rf"\b({number}) {looks}(?:house|cottage)s?\b", caption.lower())
    return sum(NUMBERS[each] for each in found) if found else None


def test_the_number_of_houses_is_that_of_the_image(scenes: list[tuple[Scene, tuple[str, ...]]]) -> None:
    counts = set()
    for scene, caption in pairs(scenes):
        objects = [item for item in scene.objects if item.label == "house"]
        hidden = share(scene, "house") - sum(item.share for item in objects)
        stated = number_of_houses(caption)
        if re.search(r"half-hidden house|part of a house", caption, re.IGNORECASE):
            assert not objects, caption
            assert hidden >= 0.004, caption
        elif has("more than one house|some houses", caption) or (stated is None and has("houses", caption)):
            assert objects, caption
            assert hidden >= 0.0009, caption  # besides those that are objects another one is seen
        elif stated is not None:
            assert stated == len(objects), caption
            assert hidden < 0.0011, caption
            counts.add(stated)
        else:
            assert not re.search(HOUSE, caption, re.IGNORECASE), caption
            assert not objects, caption
            assert hidden < 0.006, caption
    assert counts >= {1, 2, 3}


def test_water_is_stated_where_it_is_seen(scenes: list[tuple[Scene, tuple[str, ...]]]) -> None:
    stated = [has("lake|water", caption) for _, caption in pairs(scenes)]
    assert stated == [share(scene, "water") >= 0.005 for scene, _ in pairs(scenes)]
    assert 0.3 < np.mean(stated) < 0.9
    for scene, caption in pairs(scenes):
        if has("frozen|icy|ice", caption):
            assert scene.plan.lake[0].frozen > 0.5, caption
            assert scene.label.startswith("winter"), caption


def test_the_moon_is_stated_where_it_is_seen(scenes: list[tuple[Scene, tuple[str, ...]]]) -> None:
    for scene, caption in pairs(scenes):
        assert has("moon", caption) == (listed(scene, "moon") == 1), caption
        if has("full moon", caption):
            assert scene.plan.sky.phase > 2, caption
        if has("crescent", caption):
            assert abs(scene.plan.sky.phase) < 1, caption
        if has("sun", caption):
            assert listed(scene, "sun") == 1, caption
    assert {"full moon", "crescent moon"} <= {
        match[0].lower() for _, caption in pairs(scenes) for match in re.finditer(r"\w+ moon", caption, re.IGNORECASE)
    }


@pytest.mark.parametrize(("words", "part"), [(SEASONS, 0), (TIMES, 1)], ids=["season", "time of day"])
def test_season_and_time_of_day_are_those_of_the_class(
    words: dict[str, str], part: int, scenes: list[tuple[Scene, tuple[str, ...]]]
) -> None:
    stated = 0
    for scene, caption in pairs(scenes):
        own = scene.label.split("-")[part]
        # Mountains wear snow in winter only, and "nightfall" is not a night.
        named = {name for name, pattern in words.items() if has(pattern, caption)}
        assert named <= {own}, caption
        stated += bool(named)
    assert stated > 0.85 * len(pairs(scenes))


def test_clouds_stars_and_mountains(scenes: list[tuple[Scene, tuple[str, ...]]]) -> None:
    for scene, caption in pairs(scenes):
        sky = sum(share(scene, label) for label in ("sky", "cloud", "sun", "moon"))
        clouds = share(scene, "cloud") / max(sky, 1e-6)
        if has("clear sky|cloudless|no clouds", caption):
            assert clouds == 0, caption
        elif has("overcast|heavy clouds|full of clouds", caption):
            assert clouds > 0.65, caption
        elif has("clouds|cloudy", caption):
            assert clouds > 0.025, caption
        if has("stars|starry", caption):
            assert scene.label.endswith("night"), caption
            assert share(scene, "sky") > 0.09, caption
        if has("mountains?", caption):
            assert share(scene, "mountain") > 0.019, caption
        if has("woods|forest|distant trees", caption):
            assert share(scene, "tree") > 0.011, caption


SIDES = {"left": lambda x: x < 0.4, "middle": lambda x: 0.36 < x < 0.64, "right": lambda x: x > 0.6}
TREES = {
    "firs?": "fir",
    "poplars?": "poplar",
    "bare trees?": "bare",
    "(?<!bare )trees?": "leafy",
    "bush(?:es)?": "bush",
}


def test_trees_stand_where_they_are_stated(scenes: list[tuple[Scene, tuple[str, ...]]]) -> None:
    checked = 0
    for scene, caption in pairs(scenes):
        plans = [(item, item.plan) for item in scene.objects if isinstance(item.plan, Tree)]
        for pattern, kind in TREES.items():
            number_and_size = r"\b(?:(a|an|two|three|four|five|six|seven) )?(tall )?"
            place = r"(?: with \w+ (?:leaves|blossoms))? (?:on|in) the (left|middle|right)"
            form = number_and_size + pattern + place
            for match in re.finditer(form, caption, re.IGNORECASE):
                number, tall, side = match.groups()
                there = [
                    item for item, tree in plans if tree.kind == kind and SIDES[side](item.box[0] + item.box[2] / 2)
                ]
                assert there, caption
                assert sum(item.share for item in there) > 0.011, caption
                if number:
                    assert len(there) >= NUMBERS[number.lower()], caption
                if tall:
                    assert max(item.box[3] for item in there) > 0.29, caption
                checked += 1
    assert checked > 300


def test_houses_stand_where_they_are_stated_and_look_so(scenes: list[tuple[Scene, tuple[str, ...]]]) -> None:
    colors, red = set(), []
    for scene, caption in pairs(scenes):
        homes = [(item, item.plan) for item in scene.objects if isinstance(item.plan, Home)]
        match = re.search(rf"{HOUSE} (?:on|in) the (left|middle|right)", caption, re.IGNORECASE)
        if match:
            assert all(SIDES[match[1]](item.box[0] + item.box[2] / 2) for item, _ in homes), caption
        if re.search(rf"{HOUSE}.* with (?:lit|glowing) windows|lights in the windows", caption, re.IGNORECASE):
            assert all(home.house.lit for _, home in homes), caption
        if has("smoke|smoking", caption):
            assert all(home.smoke > 0 and home.house.chimney for _, home in homes), caption
        if has("far shore", caption):
            assert all(home.band == 1 for _, home in homes), caption
        for color in re.findall(rf"(red|white|cream|brown|yellow|gray|blue) {HOUSE}", caption, re.IGNORECASE):
            colors.add(color)
            assert color == "red" or scene.label.endswith("day"), caption
            if color == "red" and len(homes) == 1:
                left, top, width, height = (round(number * SIDE) for number in homes[0][0].box)
                walls = scene.image[top + height // 2 : top + height, left : left + width]
                mask = scene.segmentation[top + height // 2 : top + height, left : left + width] == LABELS.index(
                    "house"
                )
                red.append(float(np.median(walls[mask][:, 0] / np.maximum(walls[mask][:, 1], 1))))
    assert len(colors) >= 5
    assert len(red) > 10
    assert min(red) > 1.2  # the pixels are redder than they are green


def test_captions_are_many_and_always_the_same(scenes: list[tuple[Scene, tuple[str, ...]]]) -> None:
    for index in (0, 7):
        assert captions(paint(SEED, index, size=(SIDE, SIDE)), seed=SEED, index=index) == scenes[index][1]
    every = [caption for _, caption in pairs(scenes)]
    assert len(set(every)) > 0.9 * len(every)
    assert all(len(written) == 5 for _, written in scenes)
    words = {word for caption in every for word in re.findall(r"[\w-]+", caption.lower())}
    assert len(words) > 100
    assert not [caption for caption in every if re.search(r"  |,,|\ba [aeio]|\ban [^aeio]|\bNone\b", caption)]


def test_they_are_written_to_the_folder_of_images(tmp_path: Path) -> None:
    out = tmp_path / "scenes"
    write_scenes(out, count=14, size=(16, 24), seed=2)
    rows = [json.loads(line) for line in (out / "images" / "metadata.jsonl").read_text("utf-8").splitlines()]
    assert all((out / "images" / row["file_name"]).is_file() for row in rows)
    assert [Path(row["file_name"]).stem for row in rows] == [f"{index:06d}" for index in range(14)]
    assert tuple(rows[5]["text"]) == captions(paint(2, 5, size=(16, 24)), seed=2, index=5)


def test_scenes_that_were_written_without_captions_get_them(tmp_path: Path) -> None:
    write_scenes(tmp_path, count=6, size=(16, 16))
    table = tmp_path / "images" / "metadata.jsonl"
    before, image = table.read_bytes(), tmp_path / "images" / "summer-day"
    images = {path: path.read_bytes() for path in image.glob("*.png")}
    table.unlink()
    write_scenes(tmp_path, count=6, size=(16, 16))
    assert table.read_bytes() == before
    assert {path: path.read_bytes() for path in image.glob("*.png")} == images
