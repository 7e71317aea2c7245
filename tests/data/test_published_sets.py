"""Objects of images, read from the files of published data sets: COCO, Open Images, Visual Genome."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from smalti.core.errors import SmaltiError
from smalti.data.annotations.annotation_files import read_annotations
from smalti.data.annotations.objects import ObjectAnnotation, paired_annotations
from smalti.data.sources import open_source
from tests.data.annotation_helpers import about, written

EXAMPLES = Path(__file__).resolve().parents[3] / "shared" / "data" / "taming_examples"


# --- COCO ----------------------------------------------------------------------------------------------------------

COCO: dict[str, Any] = {
    "images": [
        {"id": 7, "file_name": "0007.jpg", "width": 200, "height": 100},
        {"id": 3, "file_name": "0003.jpg", "width": 10, "height": 10},
    ],
    "categories": [
        {"id": 18, "name": "dog"},
        {"id": 1, "name": "person", "keypoints": ["nose", "left_eye"], "skeleton": [[1, 2]]},
    ],
    "annotations": [
        {"id": 70, "image_id": 7, "category_id": 18, "bbox": [50, 25, 100, 50], "iscrowd": 1},
        {"id": 71, "image_id": 7, "category_id": 1, "bbox": [190, 90, 20.5, 30], "keypoints": [20, 50, 1, 0, 0, 0]},
    ],
}


def test_coco_by_eye(tmp_path: Path) -> None:
    read = read_annotations(written(tmp_path / "people.json", COCO))
    assert (read.classes, read.keypoints) == (("person", "dog"), ("nose", "left_eye"))
    assert list(read.images) == ["0007", "0003"]
    dog, person = read.images["0007"]
    assert dog == ObjectAnnotation("dog", (0.25, 0.25, 0.5, 0.5), group=True)
    assert person == ObjectAnnotation("person", about(0.95, 0.9, 0.05, 0.1), keypoints=((0.1, 0.5), None))
    assert read.images["0003"] == ()


def test_panoptic_entries_are_taken_apart(tmp_path: Path) -> None:
    content = {
        **COCO,
        "annotations": [{"image_id": 3, "segments_info": [{"id": 5, "category_id": 18, "bbox": [1, 2, 3, 4]}]}],
    }
    read = read_annotations(written(tmp_path / "panoptic.json", content))
    assert read.images["0003"] == (ObjectAnnotation("dog", (0.1, 0.2, 0.3, 0.4)),)


def test_a_coco_folder_joins_instances_and_stuff(tmp_path: Path) -> None:
    written(tmp_path / "instances_train.json", COCO)
    written(tmp_path / "person_keypoints_train.json", COCO)  # the same persons once more
    written(tmp_path / "captions_train.json", {"images": [], "annotations": []})
    rest = {"supercategory": "other", "id": 183, "name": "other"}
    boxes = [{"image_id": 3, "bbox": [0, 0, 10, 5], "category_id": number} for number in (183, 124)]
    stuff = {"images": COCO["images"], "categories": [rest, {"id": 124, "name": "grass"}], "annotations": boxes}
    written(tmp_path / "stuff_train.json", stuff)
    read = read_annotations(tmp_path)
    assert read.classes == ("person", "dog", "grass")
    assert len(read.images["0007"]) == 2
    assert [annotation.name for annotation in read.images["0003"]] == ["grass"]
    assert read_annotations(tmp_path / "stuff_train.json").classes == ("grass",)
    written(tmp_path / "instances_val.json", COCO)
    with pytest.raises(SmaltiError, match="holds the image 0007 twice"):
        read_annotations(tmp_path)


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        (
            ("annotations", 0, "bbox"),
            [250, 0, 10, 10],
            r"the annotation 70 of the image 0007: .* outside .* of 200x100 pix",
        ),
        (("annotations", 0, "bbox"), [0, 0, -1, 10], "has a negative width"),
        (("annotations", 0, "bbox"), [], "is not four numbers"),
        (
            ("annotations", 0, "category_id"),
            2,
            "annotation 70 of the image 0007: there is no class 2 among categories",
        ),
        (("annotations", 0, "category_id"), 183, "there is no class 183 among categories"),
        (("annotations", 0, "image_id"), 8, "the annotation 70 is of an image 8 that is not among images"),
        (("annotations", 0, "image_id"), [7], r"the annotation 70: image_id = \[7\]: input should be"),
        (
            ("annotations", 1, "keypoints"),
            [1, 2, 2],
            r"annotation 71 of .*: it has 1 keypoints, and 2 have names \(nose, l",
        ),
        (("annotations", 1, "keypoints"), [1, "a", 2, 0, 0, 0], r"a keypoint is at \[1, 'a'\]; give x and y in pixels"),
        (
            ("images", 1, "width"),
            0,
            "the image 0003.jpg: width = 0: input should be greater than 0; boxes are in pixels, add width and height",
        ),
        (
            ("images", 1, "height"),
            None,
            "the image 0003.jpg: height = None: input should be a valid number; boxes are in pixels",
        ),
        (("images", 1, "file_name"), "0007.png", "holds the image 0007 twice"),
        (
            ("images", 1, "file_name"),
            None,
            "the image 3: file_name = None: input should be a valid string; write the path",
        ),
        (("images", 1, "id"), 7, "the images 0007 and 0003 have the same id 7"),
        (("images", 1, "id"), None, "the image 0003.jpg: id = None: input should be a valid integer"),
        (("categories", 0, "id"), 1, "several categories have the id 1; give each its own"),
        (("categories", 0, "name"), "person", "categories: 'person' is there twice"),
        (("categories", 0, "keypoints"), ["tail"], "its classes have different keypoints"),
        (("images", 0), 3, "the image 1: input should be a valid dictionary"),
    ],
)
def test_what_is_wrong_in_a_coco_file_is_reported(
    place: tuple[Any, ...], value: Any, sentence: str, tmp_path: Path
) -> None:
    content = copy.deepcopy(COCO)
    inner: Any = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(SmaltiError, match=sentence) as caught:
        read_annotations(written(tmp_path / "people.json", content))
    assert "people.json" in str(caught.value)


# --- Open Images ---------------------------------------------------------------------------------------------------

HEADER = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
)


def open_images(folder: Path, *rows: str) -> Path:
    written(folder / "class-descriptions-boxable.csv", '/m/1,Tree\n/m/2,"Houseplant, green"\n/m/3,Case\n/m/4,Case\n')
    return written(folder / "train-annotations-bbox.csv", HEADER + "\n".join(rows) + "\n")


def test_open_images_by_eye(tmp_path: Path) -> None:
    table = open_images(
        tmp_path,
        "0a,x,/m/1,1,0.25,0.5,0,1,1,1,0,-1,0",
        "0b,x,/m/2,1,0,1,0.5,0.75,0,0,1,1,1",
        "0a,x,/m/4,1,0,1,0,1,0,0,0,0,0",
    )
    read = read_annotations(tmp_path)
    assert read.classes == ("Tree", "Houseplant, green", "Case (/m/3)", "Case (/m/4)")
    assert read.images == {
        "0a": (
            ObjectAnnotation("Tree", (0.25, 0.0, 0.25, 1.0), occluded=True),
            ObjectAnnotation("Case (/m/4)", (0.0, 0.0, 1.0, 1.0)),
        ),
        "0b": (ObjectAnnotation("Houseplant, green", (0.0, 0.5, 1.0, 0.25), group=True, depiction=True, inside=True),),
    }
    assert read_annotations(table).images == read.images
    written(tmp_path / "train-images-boxable.csv", "image_name,image_url\n0a.jpg,there\n0c.jpg,there\n")
    written(tmp_path / "test-images-with-rotation.csv", "ImageID,Subset\n0d,test\n")
    assert {name: len(listed) for name, listed in read_annotations(tmp_path).images.items()} == {
        "0a": 2, "0b": 1, "0c": 0, "0d": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("0a,x,/m/9,1,0,1,0,1,0,0,0,0,0", "line 2 of the image 0a: there is no class '/m/9' in the table"),
        ("0a,x,/m/1,1,0.5,0.25,0,1,0,0,0,0,0", "line 2 of the image 0a: .* has a negative width"),
        ("0a,x,/m/1,1,0,400,0,200,0,0,0,0,0", "reaches beyond the image; .* not in pixels"),
        ("0a,x,/m/1,1,nan,1,0,1,0,0,0,0,0", "is not four numbers"),
        ("0a,x,/m/1,1,a,1,0,1,0,0,0,0,0", "is not four numbers, XMin, XMax, YMin, YMax"),
        ("0a,x,/m/1,1", "line 2 has 4 columns, and the header 13"),
    ],
)
def test_what_is_wrong_in_a_table_is_reported(row: str, sentence: str, tmp_path: Path) -> None:
    open_images(tmp_path, row)
    with pytest.raises(SmaltiError, match=sentence) as caught:
        read_annotations(tmp_path)
    assert "train-annotations-bbox.csv" in str(caught.value)


def test_tables_that_do_not_go_together_are_reported(tmp_path: Path) -> None:
    table = open_images(tmp_path, "0a,x,/m/1,1,0,1,0,1,0,0,0,0,0")
    written(tmp_path / "again-annotations-bbox.csv", table.read_text())
    with pytest.raises(
        SmaltiError, match=r"train-annotations-bbox\.csv and another table of boxes in .* hold the image 0a"
    ):
        read_annotations(tmp_path)
    written(table, table.read_text().replace("XMin", "Left"))
    with pytest.raises(SmaltiError, match=r"train-annotations-bbox\.csv has no column XMin; give the table as"):
        read_annotations(table)
    (tmp_path / "class-descriptions-boxable.csv").write_text("/m/1\n")
    with pytest.raises(SmaltiError, match="is not a table of classes; write a line such as"):
        read_annotations(table)
    (tmp_path / "class-descriptions-boxable.csv").unlink()
    with pytest.raises(SmaltiError, match=r"holds 0 files \*class-descriptions-boxable.csv with the names"):
        read_annotations(table)


# --- Visual Genome -------------------------------------------------------------------------------------------------

GENOME: list[dict[str, Any]] = [
    {"image_id": 12, "objects": [{"names": ["tree", "plant"], "x": 50, "y": 0, "w": 100, "h": 120, "object_id": 1}]},
    {"image_id": 2, "objects": [{"name": "car", "x": 0, "y": 25, "w": 50, "h": 25}]},
]
SIZES = [{"image_id": number, "width": 200, "height": 100} for number in (2, 12)]


def test_visual_genome_by_eye(tmp_path: Path) -> None:
    path = written(tmp_path / "objects.json", GENOME)
    written(tmp_path / "image_data.json", SIZES)
    read = read_annotations(path)
    assert read.classes == ("car", "tree")
    assert read.images == {
        "12": (ObjectAnnotation("tree", (0.25, 0.0, 0.5, 1.0)),),
        "2": (ObjectAnnotation("car", (0.0, 0.25, 0.25, 0.25)),),
    }
    assert read_annotations(tmp_path).images == read.images


def test_what_is_wrong_in_visual_genome_is_reported(tmp_path: Path) -> None:
    path = written(tmp_path / "objects.json", GENOME)
    with pytest.raises(
        SmaltiError, match=r"there is no file .*image_data\.json; the boxes in .*objects\.json are in pixels"
    ):
        read_annotations(path)
    written(tmp_path / "image_data.json", SIZES[:1])
    with pytest.raises(SmaltiError, match=r"image_data\.json holds no size of the image 12 in .*objects\.json"):
        read_annotations(path)
    written(tmp_path / "image_data.json", [*SIZES, SIZES[0]])
    with pytest.raises(SmaltiError, match=r"image_data\.json holds the image 2 twice"):
        read_annotations(path)
    written(tmp_path / "image_data.json", SIZES)
    for content, sentence in [
        ([*GENOME, GENOME[1]], "holds the image 2 twice"),
        (
            [{"image_id": 2, "objects": [{"names": [], "x": 0, "y": 0, "w": 1, "h": 1}]}],
            "the entry 2: the object 1: it has no name; give the name of its class",
        ),
        ([{"image_id": 2, "objects": [{"name": "car", "x": 0, "y": 0, "w": 1}]}], "is not four numbers"),
        ([{"image_id": 2, "objects": [{"name": "car", "x": 201, "y": 0, "w": 1, "h": 1}]}], "is outside the image"),
    ]:
        with pytest.raises(SmaltiError, match=sentence):
            read_annotations(written(path, content))


# --- files as they are published -----------------------------------------------------------------------------------

published = pytest.mark.skipif(
    not EXAMPLES.is_dir(), reason="the example files of the original are not beside this project"
)


@published
def test_coco_as_it_is_published() -> None:
    folder = EXAMPLES / "coco_annotations_100"
    read = read_annotations(folder / "annotations")
    assert len(read.classes) == 80 + 92 - 1  # as the original counts them, without "other"
    assert (read.classes[0], read.classes[79], read.classes[80]) == ("person", "toothbrush", "banner")
    assert sum(annotation.group for listed in read.images.values() for annotation in listed) == 21
    for split in ("train2017", "val2017"):
        listed = paired_annotations(open_source(folder / split).images, read)
        assert len(listed) == 100
        assert sum(map(len, listed)) > 1000
    assert len(paired_annotations(open_source(folder).images, read)) == 200


@published
def test_open_images_as_it_is_published() -> None:
    folder = EXAMPLES / "open_images_annotations_100"
    read = read_annotations(folder)
    assert (len(read.classes), len(read.images)) == (601, 200)
    assert sum(map(len, read.images.values())) == 948 + 894
    hat = read.images["000ab31e6be35fed"][0]
    assert hat == ObjectAnnotation("Fedora", about(0.013125, 0.288333, 0.290625, 0.445834))
    assert len(paired_annotations(open_source(folder / "validation").images, read)) == 100
