"""Files of published data sets with objects: COCO (instances, stuff, keypoints, panoptic) and Open Images.

COCO's boxes and keypoints are in pixels, with the images' sizes in the same file; those of Open Images are as
fractions.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from smalti.core.errors import SmaltiError
from smalti.core.files import normalized, read_json, read_text
from smalti.data.annotations.annotation_checks import At, collected, other_number, twice
from smalti.data.annotations.objects import Annotated, ObjectAnnotation, Place
from smalti.data.annotations.records import CocoAnnotation, CocoCategory, CocoFile, CocoImage, parsed, read_image_name
from smalti.images.boxes import SHARES, Size, box_within, place_of

_REST = CocoCategory(supercategory="other", id=183, name="other")  # COCO-Stuff: whatever the things' own file tells of


# --- COCO ----------------------------------------------------------------------------------------------------------


class _Coco(NamedTuple):
    """A file of COCO's: classes by their numbers, names of keypoints, things by images, and the images' sizes."""

    classes: dict[int, str]
    keypoints: tuple[str, ...]
    images: dict[str, list[ObjectAnnotation]]
    sizes: dict[str, Size]


def read_coco(path: Path, content: Any) -> Annotated:
    """The content of a file -> what it says. Raises `SmaltiError` as `read_annotations`, and so do the other
    readers."""
    return _joined(path, [[(path, _coco_file(path, content))]])


def read_coco_folder(path: Path) -> Annotated:
    """All `instances_*.json` of a folder, and what `stuff_*.json` beside them add to the same images or to others."""
    groups = [sorted(path.glob(f"{kind}_*.json")) for kind in ("instances", "stuff")]
    return _joined(path, [[(file, _coco_file(file, read_json(file))) for file in group] for group in groups])


def _joined(path: Path, groups: Sequence[Sequence[tuple[Path, _Coco]]]) -> Annotated:
    """Files of different images within a group; another group tells more of the same."""
    classes: dict[int, str] = {}
    keypoints: tuple[str, ...] = ()
    images: dict[str, list[ObjectAnnotation]] = {}
    sizes: dict[str, Size] = {}
    for group in groups:
        seen: set[str] = set()
        for file, one in group:
            for number, name in one.classes.items():
                if classes.setdefault(number, name) != name:
                    raise SmaltiError(f"{file}: the class {number} is {name!r} here, and {classes[number]!r} in {path}")
            for name, listed_ in one.images.items():
                if name in seen:
                    raise twice(path, name)
                seen.add(name)
                images.setdefault(name, []).extend(listed_)
                if sizes.setdefault(name, one.sizes[name]) != one.sizes[name]:
                    raise SmaltiError(f"{file}: the image {name} has another size here than elsewhere in {path}")
            keypoints = keypoints or one.keypoints
    ordered = [classes[number] for number in sorted(classes)]
    several = [name for name, count in Counter(ordered).items() if count > 1]
    if several:
        raise SmaltiError(f"{path}: categories: {several[0]!r} is there twice; give each a name of its own")
    return collected(path, ordered, keypoints, images, sizes=sizes)


def is_coco(content: Any) -> bool:
    """Whether the content of a JSON file has what all of COCO's files with objects have."""
    return isinstance(content, dict) and {"images", "annotations", "categories"} <= set(content)


def _coco_file(path: Path, content: Any) -> _Coco:
    if not is_coco(content):
        raise SmaltiError(f"{path} is no COCO file with images, annotations and categories; remove it from its folder")
    file = parsed(CocoFile, content, path)
    left_out = {one.id for one in file.categories if one == _REST}
    classes = {one.id: one for one in file.categories if one != _REST}
    if len(classes) + len(left_out) < len(file.categories):
        several = [number for number, count in Counter(one.id for one in file.categories).items() if count > 1]
        raise SmaltiError(f"{path}: several categories have the id {several[0]}; give each its own")
    keypoints = _coco_keypoints(path, file.categories)
    images = _coco_images(path, file.images)
    objects: dict[int | str, list[ObjectAnnotation]] = {number: [] for number in images}
    for one in _segments(file.annotations):
        if one.image_id not in images:
            raise SmaltiError(
                f"{path}: the annotation {one.id} is of an image {one.image_id!r} that is not among images"
            )
        if one.category_id in left_out:
            continue
        image = images[one.image_id]
        at = At(path, image.file_name, "the annotation", str(one.id))
        if one.category_id not in classes:
            raise at.error(f"there is no class {one.category_id!r} among categories")
        category, size = classes[one.category_id], (image.width, image.height)
        seen = _coco_points(one.keypoints, category.keypoints, size, at)
        box = box_within(one.bbox, size, at.error)
        objects[one.image_id].append(ObjectAnnotation(category.name, box, group=one.iscrowd == 1, keypoints=seen))
    return _Coco(
        {number: one.name for number, one in classes.items()},
        keypoints,
        {image.file_name: objects[number] for number, image in images.items()},
        {image.file_name: (image.width, image.height) for image in images.values()},
    )


def _coco_keypoints(path: Path, categories: Sequence[CocoCategory]) -> tuple[str, ...]:
    """The names of the keypoints of those classes that have some."""
    several = {tuple(one.keypoints) for one in categories if one.keypoints}
    if len(several) > 1:
        raise SmaltiError(f"{path}: its classes have different keypoints; write a file for each of these classes")
    return next(iter(several), ())


def _coco_images(path: Path, images: Sequence[CocoImage]) -> dict[int | str, CocoImage]:
    """-> images by number."""
    found: dict[int | str, CocoImage] = {}
    for image in images:
        if image.id in found:
            raise SmaltiError(
                f"{path}: the images {found[image.id].file_name} and {image.file_name} have the same id {image.id}; "
                "give each its own"
            )
        found[image.id] = image
    several = [name for name, count in Counter(image.file_name for image in images).items() if count > 1]
    if several:
        raise twice(path, several[0])
    return found


def _segments(annotations: Sequence[CocoAnnotation]) -> Iterator[CocoAnnotation]:
    """Annotations, those of the panoptic task taken apart: there one entry holds all of an image's."""
    for one in annotations:
        if one.segments_info is None:
            yield one
        else:
            for each in one.segments_info:
                yield CocoAnnotation(
                    id=each.id,
                    image_id=one.image_id,
                    category_id=each.category_id,
                    bbox=each.bbox,
                    iscrowd=each.iscrowd,
                )


def _coco_points(triples: Sequence[Any] | None, names: Sequence[str], size: Size, at: At) -> tuple[Place | None, ...]:
    """x, y and how visible it is (0: not annotated), one after another -> places."""
    if triples is None or not names:
        return (None,) * len(names)
    if len(triples) != 3 * len(names):
        raise at.error(other_number(len(triples[::3]), names))
    each = zip(triples[::3], triples[1::3], triples[2::3], strict=True)
    return tuple(place_of(x, y, size, at.error) if visible else None for x, y, visible in each)


# --- Open Images ---------------------------------------------------------------------------------------------------

_FLAG_COLUMNS = ("IsGroupOf", "IsOccluded", "IsDepiction", "IsInside")  # in the order of `_FLAGS`
_COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", *_FLAG_COLUMNS)
_CLASSES = "*class-descriptions-boxable.csv"
# Lists of images that were looked at, also those without objects. (Most of all training images were not.)
_LISTS = ("*images-boxable.csv", "validation-images*.csv", "test-images*.csv")


def read_open_images(path: Path) -> Annotated:
    """A folder of tables, or one of its tables of boxes. What is not known of an object (-1) is taken for false."""
    folder = path if path.is_dir() else path.parent
    tables = sorted(path.glob("*annotations-bbox.csv")) if path.is_dir() else [path]
    names = _class_names(folder)
    images: dict[str, list[ObjectAnnotation]] = {}
    for table in tables:
        before = frozenset(images)
        for line, row in _rows(table, _COLUMNS):
            name = normalized(row[0])
            if name in before:
                raise SmaltiError(f"{table} and another table of boxes in {folder} hold the image {name}; remove one")
            at = At(table, name, "line", line)
            images.setdefault(name, []).append(_open_images_object(row, names, at))
    lists = sorted({file for pattern in _LISTS for file in path.glob(pattern)}) if path.is_dir() else []
    for file in lists:
        for _, (key,) in _rows(file, ("image_name",), ("ImageID",)):
            images.setdefault(read_image_name(key, file), [])
    return collected(path, list(names.values()), (), images)


def _open_images_object(row: tuple[str, ...], names: Mapping[str, str], at: At) -> ObjectAnnotation:
    _, label, *edges = row[:6]
    if label not in names:
        raise at.error(f"there is no class {label!r} in the table of class descriptions")
    try:
        left, right, top, bottom = map(float, edges)
    except ValueError as error:
        raise at.error(f"the box {edges!r} is not four numbers, XMin, XMax, YMin, YMax") from error
    group, occluded, depiction, inside = (flag in ("1", "1.0") for flag in row[6:])
    box = box_within((left, top, right - left, bottom - top), SHARES, at.error)
    return ObjectAnnotation(names[label], box, group, occluded, depiction, inside)


def _class_names(folder: Path) -> dict[str, str]:
    """What a folder calls its classes -> their names; those of the same name have what they are called added."""
    found = sorted(folder.glob(_CLASSES))
    if len(found) != 1:
        raise SmaltiError(f"{folder} holds {len(found)} files {_CLASSES} with the names of classes; put one there")
    with _reading(found[0]) as lines:
        rows = [[normalized(cell) for cell in row] for row in csv.reader(lines) if row]
    rows = [row for row in rows if row != ["LabelName", "DisplayName"]]
    if not rows or any(len(row) != 2 for row in rows):
        raise SmaltiError(f"{found[0]} is not a table of classes; write a line such as /m/07j7r,Tree for each")
    counts = Counter(name for _, name in rows)
    return {label: name if counts[name] == 1 else f"{name} ({label})" for label, name in rows}


def _rows(file: Path, *choices: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """A table with a header -> the number of each line, and what is in the first choice of columns that it has."""
    with _reading(file) as lines:
        table = csv.reader(lines)
        header = next(table, [])
        columns = next((names for names in choices if set(names) <= set(header)), None)
        if columns is None:
            missing = next(name for name in choices[0] if name not in header)
            raise SmaltiError(f"{file} has no column {missing}; give the table as Open Images publishes it")
        places = [header.index(name) for name in columns]
        for row in table:
            if row and len(row) != len(header):
                raise SmaltiError(f"{file}: line {table.line_num} has {len(row)} columns, and the header {len(header)}")
            if row:
                yield table.line_num, tuple([row[place] for place in places])


@contextmanager
def _reading(file: Path) -> Iterator[TextIO]:
    try:
        yield io.StringIO(read_text(file), newline="")
    except FileNotFoundError as error:
        raise SmaltiError(f"there is no file {file}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SmaltiError(f"cannot read {file}: {error}") from error
