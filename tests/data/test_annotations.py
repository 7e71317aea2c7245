"""Objects of images: smalti's own files, and which image an entry belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from smalti.core.errors import SmaltiError
from smalti.data.annotations.annotation_files import read_annotations
from smalti.data.annotations.objects import Annotated, ObjectAnnotation, paired_annotations
from smalti.data.image_entries import ImageEntry
from smalti.data.sources import open_source
from smalti.scenes.painter import KEYPOINTS, LABELS, paint
from smalti.scenes.scene_files import write_scenes
from tests.data.annotation_helpers import written

# --- smalti's own --------------------------------------------------------------------------------------------------

TREE = {"class": "tree", "box": [0.25, 0.5, 0.25, 0.5]}
HOUSE = {"class": "house", "box": [0.5, 0.5, 0.5, 0.25], "keypoints": [[0.75, 0.5], None]}


def by_hand(*objects: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"images": [{"key": "street/04", "objects": list(objects)}], **more}


def test_a_file_written_by_hand(tmp_path: Path) -> None:
    path = written(tmp_path / "boxes.json", by_hand(TREE, {**TREE, "class": "bush", "occluded": True, "group": True}))
    read = read_annotations(path)
    assert (read.path, read.classes, read.keypoints) == (path, ("bush", "tree"), ())
    tree = ObjectAnnotation("tree", (0.25, 0.5, 0.25, 0.5))
    assert read.images == {"street/04": (tree, tree._replace(name="bush", occluded=True, group=True))}


def test_classes_and_keypoints_are_those_that_the_file_lists(tmp_path: Path) -> None:
    content = by_hand(TREE, HOUSE, classes=["tree", "car", "house"], keypoints=["roof", "door"])
    read = read_annotations(written(tmp_path / "objects.json", content))
    assert (read.classes, read.keypoints) == (("tree", "car", "house"), ("roof", "door"))
    assert [annotation.keypoints for annotation in read.images["street/04"]] == [(), ((0.75, 0.5), None)]
    assert read_annotations(tmp_path).images == read.images


@pytest.mark.parametrize("key", ["street/04", "street/04.JPG", "street\\04.png", "./street/04"])
def test_keys_are_paths_with_or_without_suffix(key: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", {"images": [{"key": key, "objects": []}, {"key": "v1.5", "objects": []}]})
    assert read_annotations(path).images == {"street/04": (), "v1.5": ()}


def test_scenes_say_what_can_occur(tmp_path: Path) -> None:
    write_scenes(tmp_path, count=13, size=(32, 32))
    read = read_annotations(tmp_path)
    assert read.keypoints == KEYPOINTS
    assert read.classes == ("sun", "moon", "tree", "house")
    assert [name for name in LABELS if name in read.classes] == list(read.classes)
    assert set(read.classes) >= {
        annotation.label for index in range(13) for annotation in paint(0, index, size=(32, 32)).objects
    }
    found = paired_annotations(open_source(tmp_path / "images").images, read)
    assert len(found) == 13
    scene = paint(0, 5, size=(32, 32))
    listed = read.images[f"{scene.label}/000005"]
    assert [annotation.name for annotation in listed] == [one.label for one in scene.objects]
    for annotation, one in zip(listed, scene.objects, strict=True):
        assert annotation.box == pytest.approx(one.box, abs=1e-5)
        assert len(annotation.keypoints) == len(one.keypoints)
    assert any(annotation.keypoints for image in found for annotation in image)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            by_hand({**TREE, "box": [20, 30, 60, 80]}),
            r"object 1 of the image street/04: the box \[20, 30, 60, 80\] reach",
        ),
        (
            by_hand({**TREE, "box": [0.2, 0.2, 0.9, 0.9]}),
            "reaches beyond the image; give left, top, width, height as fractions",
        ),
        (by_hand({**TREE, "box": [-0.2, 0.2, 0.4, 0.4]}), "reaches beyond the image"),
        (
            by_hand(TREE, {**TREE, "box": [0.2, 0.2, -0.1, 0.4]}),
            "object 2 of the image street/04: .* a negative width or",
        ),
        (by_hand({**TREE, "box": [0.2, 0.2, 0.1, -0.4]}), "has a negative width or height"),
        (by_hand({**TREE, "box": [0.2, 0.2, 0.1]}), "is not four numbers, left, top, width, height"),
        (by_hand({"class": "tree"}), "the box None is not four numbers"),
        (by_hand({**TREE, "box": ["a", 0, 1, 1]}), "is not four numbers"),
        (by_hand({**TREE, "box": [float("nan"), 0, 1, 1]}), r"the box \[nan, 0, 1, 1\] is not four numbers"),
        (by_hand({**TREE, "box": [0, 0, float("inf"), 1]}), "is not four numbers"),
        (by_hand({"box": TREE["box"]}), "the image street/04: the object 1: the key 'class' is missing"),
        (by_hand({**TREE, "grup": True}), r"unknown key 'grup'; did you mean 'group'\?"),
        (
            by_hand({**TREE, "group": 1}),
            "the image street/04: the object 1: group = 1: input should be a valid boolean",
        ),
        (by_hand(TREE, classes=["trees", "house"]), r"object 1 of .*there is no class 'tree'; did you mean 'trees'\?"),
        (by_hand(TREE, classes=["tree", "tree"]), r"classes = .*: 'tree' is there twice; give each a name"),
        (by_hand(TREE, classes="tree"), "classes = 'tree': input should be a valid list; give a list of names"),
        (by_hand(HOUSE), r"it has 2 keypoints, and 0 have names \(\); give as many"),
        (
            by_hand(HOUSE, keypoints=["roof", "door", "wall"]),
            r"it has 2 keypoints, and 3 have names \(roof, door, wall\)",
        ),
        (
            by_hand({**HOUSE, "keypoints": [[40, 30], None]}, keypoints=["a", "b"]),
            r"a keypoint is at \[40, 30\]; give x and",
        ),
        (
            by_hand({**HOUSE, "keypoints": [[0.1], None]}, keypoints=["a", "b"]),
            r"keypoints\.0 = \[0.1\]: list should have at least 2 items .*; give a position for each name: \[x, y\]",
        ),
        (
            by_hand({**HOUSE, "keypoints": 3}, keypoints=["a", "b"]),
            "keypoints = 3: input should be a valid list; give a position for each name",
        ),
        (by_hand(TREE, version=2), "version = 2: input should be 1; get a newer smalti"),
        (by_hand(TREE, image=[]), r"unknown key 'image'; did you mean 'images'\?"),
        ({"images": 3}, "images = 3: input should be a valid list"),
        ({"images": [{"key": "a"}]}, "the image a: the key 'objects' is missing"),
        ({"images": [{"key": "a", "objects": [3]}]}, "the image a: the object 1: input should be a valid dictionary"),
        (
            {"images": [{"key": "a", "objects": [], "object": []}]},
            "the image a: unknown key 'object'; did you mean",
        ),
        ({"images": [{"objects": []}]}, "the image 1: the key 'key' is missing"),
        ({"images": [{"key": " ", "objects": []}]}, "key = ' ': this is not a name of an image; write its path"),
        (
            {"images": [{"key": "a/1", "objects": []}, {"key": "a/1.png", "objects": []}]},
            "holds the image a/1 twice",
        ),
        ("{", r"objects\.json: Expecting property name"),
        (
            {"annotations": []},
            "is not a file with annotations of objects that is read; there are: .*COCO .*Open Im.*Visual Genome",
        ),
        ([3], "is not a file with annotations"),
    ],
)
def test_what_is_wrong_in_a_file_is_reported(content: Any, sentence: str, tmp_path: Path) -> None:
    written(tmp_path / "objects.json", content)
    with pytest.raises(SmaltiError, match=sentence) as inputs:
        read_annotations(tmp_path)
    assert str(tmp_path / "objects.json") in str(inputs.value)


def test_missing_files_and_empty_folders_are_reported(tmp_path: Path) -> None:
    for name in ("nowhere.json", "nowhere.csv"):
        with pytest.raises(SmaltiError, match=f"there is no file or folder .*{name} with annotations"):
            read_annotations(tmp_path / name)
    with pytest.raises(SmaltiError, match=r"holds no annotations of objects that are read; there are: objects\.json"):
        read_annotations(tmp_path)


def test_shares_may_be_rounded_up(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", by_hand({**TREE, "box": [0.5, 0.25, 0.501, 0.5]}))
    assert read_annotations(path).images["street/04"][0].box == (0.5, 0.25, 0.5, 0.5)


# --- which image they belong to ----------------------------------------------------------------------------------


def annotated(*names: str) -> Annotated:
    images = {name: (ObjectAnnotation(name, (0.0, 0.0, 1.0, 1.0)),) for name in names}
    return Annotated(Path("boxes.json"), names, (), {**images, "empty": ()})


def images(*keys: str) -> list[ImageEntry]:
    return [ImageEntry(key, None) for key in keys]


def test_objects_are_found_by_the_names_of_images() -> None:
    found = paired_annotations(images("b/1.png", "empty.jpg", "a/1.jpg", "b/1.png"), annotated("a/1", "b/1"))
    assert [[annotation.name for annotation in listed] for listed in found] == [["b/1"], [], ["a/1"], ["b/1"]]


def test_names_without_folders_are_those_of_images_in_any() -> None:
    found = paired_annotations(images("train/2.png", "val/1.jpg", "empty.jpg"), annotated("1", "2"))
    assert [[annotation.name for annotation in listed] for listed in found] == [["2"], ["1"], []]
    with pytest.raises(SmaltiError, match=r"train/1 and val/1 have the same entry 1 in boxes\.json"):
        paired_annotations(images("train/1.png", "val/1.jpg"), annotated("1", "2"))
    # Folders in the file are kept to.
    with pytest.raises(SmaltiError, match=r"says nothing about the image val/1\.jpg;"):
        paired_annotations(images("val/1.jpg"), annotated("1", "train/2"))


def test_images_without_an_entry_are_reported() -> None:
    with pytest.raises(
        SmaltiError, match=r"boxes\.json says nothing about the image a/3\.jpg, nor of 1 more; .* as a/1:"
    ):
        paired_annotations(images("a/1.jpg", "a/3.jpg", "c/1.jpg"), annotated("a/1"))
