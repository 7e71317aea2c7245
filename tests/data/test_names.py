"""Names and numbers as other systems and programs write them: accents, byte order marks, whole numbers with a point."""

from __future__ import annotations

import codecs
import json
import unicodedata
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import pytest

from smalti.conditions.keypoints import Keypoints, KeypointsSettings
from smalti.conditions.labels import Labels
from smalti.conditions.layout import Layout
from smalti.conditions.layout_codes import LayoutSettings
from smalti.core.errors import SmaltiError
from smalti.core.files import decoded, read_json
from smalti.data import paired
from smalti.data.annotations.annotation_files import read_annotations
from smalti.data.annotations.objects import only, paired_annotations
from smalti.data.sources import identity, open_source
from tests.data.annotation_helpers import written
from tests.data.test_published_sets import COCO
from tests.data.test_sources import fill, make_image

Form = Literal["NFC", "NFD"]
COMPOSED, TAKEN_APART = "caf\u00e9", "cafe\u0301"
SPELLINGS = [(COMPOSED, TAKEN_APART), (TAKEN_APART, COMPOSED)]


def of_accents(value: Any, form: Form) -> Any:
    """Plain values with all texts in a form of Unicode."""
    return json.loads(unicodedata.normalize(form, json.dumps(value, ensure_ascii=False)))


# ------------------------------------------------------------------------------------------------------------ accents


@pytest.mark.parametrize(("photo", "other"), SPELLINGS)
def test_files_go_together_however_accents_are_spelled(photo: str, other: str, tmp_path: Path) -> None:
    """macOS takes accents apart in the names of files, Linux does not: photos of the one had no masks of the other."""
    photos = open_source(fill(tmp_path / "p", {f"{photo}/{photo}.png": make_image(1), "b/2.png": make_image(2)}))
    masks = open_source(fill(tmp_path / "m", {f"{other}/{other}.png": make_image(1), "b/2.png": make_image(2)}))
    found = paired.paired_entries(photos.images, masks)
    assert sorted(each.key for each in found) == ["b/2.png", f"{other}/{other}.png"]
    assert identity(photos, photos.images[1:]) == identity(masks, masks.images[1:])


@pytest.mark.parametrize(("photo", "other"), SPELLINGS)
def test_objects_are_found_however_accents_are_spelled(photo: str, other: str, tmp_path: Path) -> None:
    photos = open_source(fill(tmp_path / "p", {f"{photo}.png": make_image(1)}))
    entry = {"key": f"{other}.png", "objects": [{"class": other, "box": [0, 0, 1, 1]}]}
    read = read_annotations(written(tmp_path / "a.json", {"images": [entry]}))
    ((annotation,),) = paired_annotations(photos.images, read)
    assert annotation.name == COMPOSED
    assert only(read, classes=[other], smallest=0.0).classes == only(read, classes=[photo], smallest=0.0).classes


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_published_annotations_are_read_in_either_form(form: Form, tmp_path: Path) -> None:
    coco = deepcopy(COCO)
    coco["images"][0]["file_name"], coco["categories"][0]["name"] = f"{COMPOSED}.jpg", COMPOSED
    read = read_annotations(written(tmp_path / "coco.json", of_accents(coco, form)))
    assert read.classes == ("person", COMPOSED)
    assert [annotation.name for annotation in read.images[COMPOSED]] == [COMPOSED, "person"]
    table = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf,IsOccluded,IsDepiction,IsInside\n" + (
        f"{COMPOSED},/m/1,0,1,0,1,1.0,0.0,-1,0\n"
    )
    folder = tmp_path / "open"
    fill(
        folder,
        {
            "a-annotations-bbox.csv": unicodedata.normalize(form, table).encode("utf-16"),
            "class-descriptions-boxable.csv": unicodedata.normalize(form, f"/m/1,{COMPOSED}\n").encode("utf-8-sig"),
        },
    )
    (annotation,) = read_annotations(folder).images[COMPOSED]
    assert (annotation.name, annotation.group, annotation.occluded) == (COMPOSED, True, False)


@pytest.mark.parametrize(("ours", "theirs"), SPELLINGS)
def test_conditions_know_a_name_in_either_form(ours: str, theirs: str) -> None:
    assert Labels(["a", ours]).encode([theirs]).tolist() == [[1]]
    layout = Layout(LayoutSettings(classes=("a", ours), codebook_size=64, max_objects=1, encode_crop=False))
    assert layout.annotations([{"class": theirs, "box": [0, 0, 1, 1]}])[0].category == 1
    points = Keypoints(KeypointsSettings(points=("a", ours), max_figures=1))
    assert points.figures([{theirs: [0.5, 0.25]}]) == ((None, (0.5, 0.25)),)
    with pytest.raises(SmaltiError, match="there is no point 'b'"):
        points.figures([{"b": [0.5, 0.25]}])


# --------------------------------------------------------------------------------------------------- byte order marks


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_of_any_system_is_read(encoding: str, tmp_path: Path) -> None:
    """Notepad and PowerShell begin their files with a byte order mark, at which JSON files were refused."""
    text = json.dumps({"images": [{"key": f"{COMPOSED}.png", "objects": []}]}, ensure_ascii=False)
    assert decoded(text.encode(encoding)) == text
    fill(tmp_path, {"a.json": text.encode(encoding), "objects.json": text.encode(encoding)})
    assert read_json(tmp_path / "a.json") == json.loads(text)
    assert list(read_annotations(tmp_path / "a.json").images) == list(read_annotations(tmp_path).images) == [COMPOSED]
    layout = Layout(LayoutSettings(classes=("a",), codebook_size=64, max_objects=1))
    fill(tmp_path, {"list.json": b"[]", "layout.json": '[{"class": "a", "box": [0, 0, 1, 1]}]'.encode(encoding)})
    assert len(layout.read(str(tmp_path / "layout.json"))) == 1


@pytest.mark.parametrize("mark", [codecs.BOM_UTF16_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF32_LE])
def test_the_order_of_bytes_is_reported_by_the_mark(mark: bytes) -> None:
    name = {2: "utf-16", 4: "utf-32"}[len(mark)] + ("-be" if mark[0] in (0, 0xFE) else "-le")
    assert decoded(mark + COMPOSED.encode(name)) == COMPOSED


def test_damaged_text_is_reported(tmp_path: Path) -> None:
    fill(tmp_path, {"a.json": b'{"a": "\xff"}', "b.json": b"\xff\xfe\x00"})
    for name in ("a.json", "b.json"):
        with pytest.raises(SmaltiError, match=rf"cannot read .*{name}: .* codec can't decode"):
            read_json(tmp_path / name)


# ------------------------------------------------------------------------------------------------------ whole numbers


@pytest.mark.parametrize(
    "changes", [("images", "id"), ("annotations", "image_id"), ("categories", "id"), ("annotations", "category_id")]
)
def test_whole_numbers_may_have_a_point(changes: tuple[str, str], tmp_path: Path) -> None:
    """Tables whose columns have gaps are written so; a `category_id` of 1.0 was "no class None among categories"."""
    part, key = changes
    content = deepcopy(COCO)
    for one in content[part]:
        one[key] = float(one[key])
    expected = read_annotations(written(tmp_path / "a.json", COCO)).images
    assert read_annotations(written(tmp_path / "b.json", content)).images == expected


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (1.5, "the annotation 70: category_id = 1.5: input should be a valid integer"),
        ([1], "the annotation 70: category_id = [1]: input should be a valid integer"),
        (None, "there is no class None among categories"),
    ],
)
def test_other_numbers_are_reported_as_they_stand(number: Any, sentence: str, tmp_path: Path) -> None:
    content = deepcopy(COCO)
    content["annotations"][0]["category_id"] = number
    with pytest.raises(SmaltiError) as inputs:
        read_annotations(written(tmp_path / "a.json", content))
    assert sentence in str(inputs.value)


def test_images_of_visual_genome_may_have_a_point(tmp_path: Path) -> None:
    written(tmp_path / "image_data.json", [{"image_id": 1, "width": 10, "height": 10}])
    one = {"names": [TAKEN_APART], "x": 0, "y": 0, "w": 5, "h": 5}
    read = read_annotations(written(tmp_path / "objects.json", [{"image_id": 1.0, "objects": [one]}]))
    assert [annotation.name for annotation in read.images["1"]] == [COMPOSED]
