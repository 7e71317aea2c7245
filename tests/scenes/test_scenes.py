"""The embedded landscapes: what goes in is all that matters, and everything known about an image agrees with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from smalti.core.errors import SmaltiError
from smalti.scenes import scene_files
from smalti.scenes.scene_classes import (
    CLASSES,
    COLORS,
    FAR,
    KEYPOINTS,
    LABELS,
    Scene,
    paint,
    scene_class,
    write_scenes,
)

SOME = range(24)  # each class twice


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [paint(5, index, size=(64, 64)) for index in SOME]


def label(scene: Scene, name: str) -> npt.NDArray[np.bool_]:
    mask: npt.NDArray[np.bool_] = scene.segmentation == LABELS.index(name)
    return mask


def tight(mask: npt.NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """The box of what is true, relative to the image."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = mask.shape
    return (
        columns[0] / width,
        rows[0] / height,
        (columns[-1] + 1 - columns[0]) / width,
        (rows[-1] + 1 - rows[0]) / height,
    )


def test_there_are_twelve_classes_and_a_color_for_each_label() -> None:
    assert len(set(CLASSES)) == 12
    assert "winter-dusk" in CLASSES
    assert len(set(COLORS)) == len(LABELS)


@given(seed=st.integers(0, 2**63), block=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_every_run_of_twelve_holds_every_class_once(seed: int, block: int) -> None:
    assert sorted(scene_class(seed, 12 * block + i) for i in range(12)) == sorted(CLASSES)


def test_the_order_of_classes_differs_from_run_to_run_and_from_seed_to_seed() -> None:
    orders = {tuple(scene_class(seed, 12 * block + i) for i in range(12)) for seed in (0, 1) for block in (0, 1, 2)}
    assert len(orders) == 6


def test_shapes_and_types(scenes: list[Scene]) -> None:
    for scene in [*scenes[:2], paint(5, 3, size=(48, 96))]:
        height, width = scene.segmentation.shape
        assert scene.image.shape == (height, width, 3)
        assert scene.depth.shape == scene.edges.shape == (height, width)
        assert {scene.image.dtype, scene.segmentation.dtype, scene.edges.dtype} == {np.dtype(np.uint8)}
        assert scene.depth.dtype == np.float32
        assert scene.label in CLASSES


PROMISED = [
    # seed, index, size, means and deviations of the quarters' brightness, pixels of each label
    (0, 0, (64, 64), [161.9, 195.62, 91.81, 83.8], [40.34, 45.49, 37.8, 35.78],
     [1226, 6, 0, 353, 415, 960, 570, 566, 0]),
    (0, 3, (64, 64), [142.65, 132.05, 89.37, 88.96], [44.82, 42.13, 42.67, 35.38],
     [1324, 30, 0, 745, 213, 484, 564, 736, 0]),
    (0, 7, (64, 64), [43.42, 64.36, 35.26, 42.7], [28.8, 39.76, 16.04, 23.17],
     [978, 0, 30, 284, 100, 1564, 682, 264, 194]),
    (1, 4, (48, 160), [46.92, 51.04, 40.26, 56.7], [26.88, 29.11, 17.51, 35.45],
     [1231, 0, 5, 992, 660, 1804, 830, 1445, 713]),
    (2, 9, (160, 160), [131.98, 141.17, 64.4, 78.17], [47.59, 52.88, 24.49, 34.72],
     [5086, 0, 0, 3690, 3101, 7240, 4888, 1082, 513]),
]  # fmt: skip


@pytest.mark.parametrize(("seed", "index", "size", "means", "deviations", "counts"), PROMISED)
def test_images_stay_as_they_are(
    seed: int, index: int, size: tuple[int, int], means: list[float], deviations: list[float], counts: list[int]
) -> None:
    """Scores are compared on them. Another processor may round a few points otherwise, by 1/255, and no more."""
    height, width = size
    scene = paint(seed, index, size=size)
    quarters = scene.image.reshape(2, height // 2, 2, width // 2, 3).astype(np.float64)
    assert quarters.mean(axis=(1, 3, 4)).ravel() == pytest.approx(means, abs=0.02)
    assert quarters.std(axis=(1, 3, 4)).ravel() == pytest.approx(deviations, abs=0.02)
    assert np.abs(np.bincount(scene.segmentation.ravel(), minlength=len(LABELS)) - counts).max() <= 2


def test_an_image_is_a_function_of_seed_index_and_size(scenes: list[Scene]) -> None:
    again = paint(5, 7, size=(64, 64))
    for first, second in zip(scenes[7][:4], again[:4], strict=True):
        assert np.array_equal(np.asarray(first), np.asarray(second))
    assert scenes[7].objects == again.objects
    same_class = next(index for index in range(12, 24) if scene_class(5, index) == scenes[7].label)
    assert not np.array_equal(scenes[7].image, scenes[same_class].image)
    assert not np.array_equal(paint(6, 7, size=(64, 64)).image, again.image)


def test_the_same_index_at_twice_the_size_is_the_same_landscape(scenes: list[Scene]) -> None:
    for index in range(6):
        large = paint(5, index, size=(128, 128))
        halved = large.image.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
        assert np.abs(halved - scenes[index].image).mean() < 6
        assert (large.segmentation[::2, ::2] == scenes[index].segmentation).mean() > 0.9


def test_a_wider_image_shows_more_of_the_same_land(scenes: list[Scene]) -> None:
    for index in range(6):
        wide = paint(5, index, size=(64, 192))
        assert np.abs(wide.image[:, 64:128].astype(float) - scenes[index].image).mean() < 3
        assert (wide.segmentation[:, 64:128] == scenes[index].segmentation).mean() > 0.97


def test_the_sky_is_far_and_nothing_else_is(scenes: list[Scene]) -> None:
    for scene in scenes:
        sky = label(scene, "sky") | label(scene, "sun") | label(scene, "moon") | label(scene, "cloud")
        assert np.all(scene.depth[sky] == FAR)
        assert np.all(scene.depth[~sky] < FAR)
        assert scene.depth.min() > 3
        assert scene.depth[label(scene, "mountain")].min(initial=FAR) > 1500
        assert np.median(scene.depth[-1]) < 60


def test_the_ground_comes_nearer_downwards(scenes: list[Scene]) -> None:
    """Below its crest each fold of ground is a plane; so is the water."""
    for scene in scenes:
        for name in ("water", "ground"):
            both = label(scene, name)[1:] & label(scene, name)[:-1]
            assert np.all((scene.depth[1:] <= scene.depth[:-1] + 1e-3)[both])


def test_sun_and_moon_have_the_box_of_their_label(scenes: list[Scene]) -> None:
    found = 0
    for scene in scenes:
        for item in scene.objects:
            if item.label in ("sun", "moon"):
                found += 1
                assert item.box == pytest.approx(tight(label(scene, item.label)))
        assert label(scene, "moon").any() <= scene.label.endswith("night")
        assert label(scene, "sun").any() <= (not scene.label.endswith("night"))
    assert found > 8


def test_boxes_are_tight_about_what_is_seen(scenes: list[Scene]) -> None:
    """Every side of a box touches a point of its label at its distance."""
    for scene in scenes:
        height, width = scene.segmentation.shape
        for item in scene.objects:
            mine = label(scene, item.label) & np.isclose(scene.depth, item.distance, rtol=1e-5)
            x, y, w, h = (round(v * s) for v, s in zip(item.box, (width, height, width, height), strict=True))
            inside = mine[y : y + h, x : x + w]
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()


def test_houses_have_keypoints_in_the_shape_of_a_gable(scenes: list[Scene]) -> None:
    houses = [item for scene in scenes for item in scene.objects if item.label == "house"]
    assert len(houses) > 8
    for house in houses:
        assert len(house.keypoints) == len(KEYPOINTS)
        apex, left_eave, right_eave, right_foot, left_foot = house.keypoints
        assert apex[1] < left_eave[1] == right_eave[1] < right_foot[1] == left_foot[1]
        assert left_foot[0] == left_eave[0] < apex[0] < right_eave[0] == right_foot[0]
    assert all(not item.keypoints for scene in scenes for item in scene.objects if item.label != "house")


def test_keypoints_of_a_house_that_stands_free_lie_at_its_box(scenes: list[Scene]) -> None:
    checked = 0
    for scene in scenes:
        houses = [item for item in scene.objects if item.label == "house"]
        for house in houses:
            x, y, w, h = house.box
            if x == 0 or x + w == 1 or y + h == 1 or h < 0.1:
                continue
            checked += 1
            for px, py in house.keypoints:
                assert x - 0.06 <= px <= x + w + 0.06
                assert y - 0.06 <= py <= y + h + 0.12  # a bush may stand before its foot
    assert checked > 3


def test_edges_lie_where_labels_change(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert set(np.unique(scene.edges)) <= {0, 255}
        across = scene.segmentation[:, :-1] != scene.segmentation[:, 1:]
        down = scene.segmentation[:-1] != scene.segmentation[1:]
        assert np.all(scene.edges[:, :-1][across] == 255)
        assert np.all(scene.edges[:-1][down] == 255)
        assert (scene.edges == 255).mean() < 0.5


def test_classes_look_different(scenes: list[Scene]) -> None:
    """Days are brighter than dusks and these than nights; dusk is red; winter's ground is pale, spring's green."""
    mean = {scene.label: scene.image.reshape(-1, 3).mean(axis=0) for scene in scenes}
    for season in ("spring", "summer", "autumn", "winter"):
        day, dusk, night = (mean[f"{season}-{time}"] for time in ("day", "dusk", "night"))
        assert day.mean() > dusk.mean() > night.mean() + 20
        assert dusk[0] - dusk[2] > day[0] - day[2]
    ground = {scene.label: scene.image[label(scene, "ground")].mean(axis=0) for scene in scenes}
    assert ground["winter-day"].min() > max(ground[f"{season}-day"].max() for season in ("summer", "autumn"))
    assert ground["spring-day"].argmax() == ground["summer-day"].argmax() == 1
    assert ground["autumn-day"].argmax() == 0


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_of_scenes_holds_what_paint_returns(tmp_path: Path) -> None:
    out = tmp_path / "scenes"
    reported: list[int] = []
    write_scenes(out, count=14, size=(32, 40), seed=3, progress=reported.append)
    assert reported[-1] == 14
    about = json.loads((out / "scenes.json").read_text())
    assert (about["seed"], about["count"], about["size"]) == (3, 14, [32, 40])
    assert [entry["name"] for entry in about["labels"]] == list(LABELS)
    images = json.loads((out / "objects.json").read_text())["images"]
    assert len(images) == 14
    for index in (0, 13):
        scene = paint(3, index, size=(32, 40))
        key = f"{scene.label}/{index:06d}"
        assert np.array_equal(np.asarray(Image.open(out / "images" / f"{key}.png")), scene.image)
        assert np.array_equal(np.asarray(Image.open(out / "segmentations" / f"{key}.png")), scene.segmentation)
        assert np.array_equal(np.asarray(Image.open(out / "edges" / f"{key}.png")), scene.edges)
        depth = np.asarray(Image.open(out / "depths" / f"{key}.png")).astype(float) * about["depth_unit_meters"]
        assert np.abs(depth - scene.depth).max() <= 0.0501
        noted = images[index]
        assert (noted["key"], noted["class"]) == (key, scene.label)
        assert [item["class"] for item in noted["objects"]] == [item.label for item in scene.objects]
        for written, item in zip(noted["objects"], scene.objects, strict=True):
            assert written["box"] == pytest.approx(item.box, abs=1e-5)
            assert np.allclose(written["keypoints"], item.keypoints, atol=1e-5) or not item.keypoints
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["images", "segmentations", "depths", "edges", "objects.json", "scenes.json"]
    )


def test_segmentations_carry_the_palette(tmp_path: Path) -> None:
    write_scenes(tmp_path / "s", count=1, size=(32, 32))
    path = next((tmp_path / "s" / "segmentations").rglob("*.png"))
    shown = np.asarray(Image.open(path).convert("RGB"))
    assert np.array_equal(shown, np.asarray(COLORS, dtype=np.uint8)[np.asarray(Image.open(path))])


def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene_files, "_CHUNK", 4)
    monkeypatch.setattr(scene_files, "_CHUNKS", 2)
    write_scenes(tmp_path / "whole", count=10, size=(16, 16))

    def stop(done: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "broken", count=10, size=(16, 16), progress=stop)
    assert not (tmp_path / "broken" / "objects.json").exists()
    reported: list[int] = []
    write_scenes(tmp_path / "broken", count=10, size=(16, 16), progress=reported.append)
    assert reported == [4, 8, 10]
    assert files(tmp_path / "whole") == files(tmp_path / "broken")


def test_a_finished_folder_is_left_alone_and_a_damaged_one_mended(tmp_path: Path) -> None:
    out = tmp_path / "scenes"
    write_scenes(out, count=3, size=(16, 16))
    before = files(out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    write_scenes(out, count=3, size=(16, 16))
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    first, second = sorted(times)[:2]
    first.unlink()
    second.write_bytes(second.read_bytes()[:-20])
    write_scenes(out, count=3, size=(16, 16))
    assert files(out) == before


def test_a_run_that_was_interrupted_with_other_chunks_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How images are put together for the processes is no promise: what another version noted is painted again."""

    def stop(done: int) -> None:
        if done:
            raise KeyboardInterrupt

    write_scenes(tmp_path / "whole", count=5, size=(16, 16))
    with monkeypatch.context() as patched:
        patched.setattr(scene_files, "_CHUNKS", 1)
        patched.setattr(scene_files, "_CHUNK", 3)
        with pytest.raises(KeyboardInterrupt):
            write_scenes(tmp_path / "broken", count=5, size=(16, 16), progress=stop)
    write_scenes(tmp_path / "broken", count=5, size=(16, 16))
    assert files(tmp_path / "whole") == files(tmp_path / "broken")


@pytest.mark.parametrize(
    ("count", "size", "largest"),
    [
        (5000, (64, 64), 48),  # small images
        (3000, (512, 512), 12),  # a few seconds of painting
        (60, (512, 512), 1),  # few images: two processes have as many to paint, within one
        (200, (4096, 4096), 1),
        (1, (16, 16), 1),
    ],
)
def test_chunks_are_small_where_images_are_large_or_few(count: int, size: tuple[int, int], largest: int) -> None:
    chunks = scene_files._chunks(count, size)
    assert [index for start, stop in chunks for index in range(start, stop)] == list(range(count))
    assert max(stop - start for start, stop in chunks) == largest


def test_by_default_there_is_a_worker_for_each_core_that_may_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []

    def written(jobs: list[Any], processes: int) -> Iterator[int]:
        started.append(processes)
        return chunks_written(jobs, 1)

    chunks_written = scene_files._chunks_written
    monkeypatch.setattr(scene_files, "_chunks_written", written)
    monkeypatch.setattr(scene_files, "available_cores", lambda: 3)
    write_scenes(tmp_path / "scenes", count=1, size=(16, 16), workers=None)
    assert started == [3]


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    write_scenes(tmp_path / "one", count=4, size=(16, 16), workers=1)
    write_scenes(tmp_path / "two", count=4, size=(16, 16), workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_a_folder_with_other_settings_is_refused(tmp_path: Path) -> None:
    write_scenes(tmp_path / "s", count=2, size=(16, 16))
    with pytest.raises(SmaltiError, match="seed 0 instead of 1"):
        write_scenes(tmp_path / "s", count=2, size=(16, 16), seed=1)
    with pytest.raises(SmaltiError, match="count 2 instead of 5"):
        write_scenes(tmp_path / "s", count=5, size=(16, 16))


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").write_text("mine")
    with pytest.raises(SmaltiError, match="something other than scenes"):
        write_scenes(tmp_path, count=2, size=(16, 16))
    with pytest.raises(SmaltiError, match="is a file"):
        write_scenes(tmp_path / "holiday.txt", count=2, size=(16, 16))
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.txt"]


def test_a_full_disk_is_reported_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", refuse)
    with pytest.raises(SmaltiError, match="No space left"):
        write_scenes(tmp_path / "s", count=1, size=(16, 16))


@pytest.mark.parametrize("size", [(8, 64), (64, 5000), (0, 0)])
def test_sizes_that_cannot_be(size: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match=f"{size[0]}x{size[1]}"):
        paint(0, 0, size=size)
    with pytest.raises(SmaltiError, match="16 to 4096"):
        write_scenes(tmp_path / "s", count=1, size=size)
    assert not (tmp_path / "s").exists()


def test_numbers_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match="not -1"):
        paint(-1, 0, size=(16, 16))
    with pytest.raises(SmaltiError, match="not -2"):
        paint(0, -2, size=(16, 16))
    with pytest.raises(SmaltiError, match="count of scenes"):
        write_scenes(tmp_path / "s", count=0, size=(16, 16))
    with pytest.raises(SmaltiError, match=r"the list of 1,000,000,000,000 scenes would take .* ask for less"):
        write_scenes(tmp_path / "s", count=10**12, size=(16, 16))
    assert not (tmp_path / "s").exists()
    with pytest.raises(SmaltiError, match="number of workers"):
        write_scenes(tmp_path / "s", count=1, size=(16, 16), workers=0)
