"""Annotations in pixels belong to images of one size: those that are seen otherwise, such as turned photos,
are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from smalti.core.errors import SmaltiError
from smalti.data.annotations.objects import check_annotated_size
from smalti.data.crops import CenterCrop
from smalti.data.loader import Crops
from smalti.data.paired import AnnotatedCrops
from smalti.data.sources import open_source
from smalti.encoding.annotators import ANNOTATORS

POINTS = ["nose", "tail"]


def photos(folder: Path, stored: tuple[int, int], *, orientation: int) -> Crops:
    """Two photos of (height, width) as they are stored, with an EXIF orientation."""
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = orientation
    for number in range(2):
        Image.fromarray(np.full((*stored, 3), 90 * number, np.uint8)).save(folder / f"{number}.jpg", exif=exif)
    source = open_source(folder)
    return Crops(source, source.images, size=(16, 16), channels=3, crop=CenterCrop(), seed=0)


def coco(folder: Path, size: tuple[int, int]) -> Path:
    one = {"category_id": 1, "bbox": [1, 1, 6, 8], "keypoints": [2, 2, 2, 5, 5, 2]}
    content: dict[str, Any] = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": size[0], "width": size[1]} for n in range(2)],
        "categories": [{"id": 1, "name": "cat", "keypoints": POINTS}],
        "annotations": [{"id": n, "image_id": n, **one} for n in range(2)],
    }
    (folder / "coco.json").write_text(json.dumps(content))
    return folder / "coco.json"


def genome(folder: Path, size: tuple[int, int]) -> Path:
    objects = [{"names": ["cat"], "x": 1, "y": 1, "w": 6, "h": 8}]
    (folder / "boxes.json").write_text(json.dumps([{"image_id": n, "objects": objects} for n in range(2)]))
    sizes = [{"image_id": n, "height": size[0], "width": size[1]} for n in range(2)]
    (folder / "image_data.json").write_text(json.dumps(sizes))
    return folder / "boxes.json"


FILES: dict[str, tuple[str, Callable[[Path, tuple[int, int]], Path]]] = {
    "boxes of COCO": ("layout", coco),
    "keypoints of COCO": ("keypoints", coco),
    "boxes of Visual Genome": ("layout", genome),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_turned_photos_are_those_of_the_photo_as_it_is_seen(
    name: str, orientation: int, tmp_path: Path
) -> None:
    """A file of COCO's that counts in the stored pixels of a turned photo was read as fractions of the wrong sides."""
    key, write = FILES[name]
    stored, turned = (32, 48), (48, 32)
    crops = photos(tmp_path / "photos", stored, orientation=orientation)
    seen, other = (turned, stored) if orientation > 4 else (stored, turned)
    message = AnnotatedCrops(crops, ANNOTATORS[key](write(tmp_path, seen), {}, crops, (2, 2), 8).of(crops))
    assert len(message.example(1, 0)) > 0
    message = AnnotatedCrops(crops, ANNOTATORS[key](write(tmp_path, other), {}, crops, (2, 2), 8).of(crops))
    with pytest.raises(SmaltiError, match=f"says that 1.jpg is {other[0]}x{other[1]} .* and it is {seen[0]}x{seen[1]}"):
        message.example(1, 0)


@pytest.mark.parametrize("annotated", [(96, 64), (48, 32), (480, 320), (481, 320), (145, 97)])
def test_annotations_of_a_larger_or_smaller_copy_are_for_this_image_too(annotated: tuple[int, int]) -> None:
    check_annotated_size("a.jpg", (96, 64), annotated, Path("c.json"))


@pytest.mark.parametrize("annotated", [(64, 96), (96, 96), (96, 80), (960, 600)])
def test_annotations_of_another_shape_are_refused(annotated: tuple[int, int]) -> None:
    with pytest.raises(SmaltiError, match=r"c\.json says that a\.jpg is .* and it is 96x64") as error:
        check_annotated_size("a.jpg", (96, 64), annotated, Path("c.json"))
    assert ("EXIF" in str(error.value)) == (annotated == (64, 96))


def test_almost_square_photos_are_refused_when_turned() -> None:
    with pytest.raises(SmaltiError, match="EXIF orientation turns it"):
        check_annotated_size("a.jpg", (100, 99), (99, 100), Path("c.json"))
