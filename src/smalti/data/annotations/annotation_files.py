"""Files with the objects of images -> what they say: smalti's own, COCO, Open Images, Visual Genome.

What a file is, its content says. All numbers become shares of the image, and pixels need its size, which then stands in the
file. Boxes in pixels may reach beyond their image and are cut; shares may not, since they are then mostly something else.

Ours is what `smalti scenes` writes, and what can be written by hand, as `objects.json`:

    {"images": [{"key": "street/04", "objects": [{"class": "tree", "box": [left, top, width, height]}]}]}

`key` is the image's path below the folder of all, with or without suffix. An object may have `group`, `occluded`, `depiction` and
`inside` (true or false), `distance` (which is not used), and `keypoints`, a list of [x, y] or null. Beside `images` may stand
`classes` and `keypoints`, lists of names; without them those in `scenes.json` beside it count, and without that the classes that
occur, in alphabetical order.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from smalti.core.errors import SmaltiError, suggestion
from smalti.core.files import normalized, read_json
from smalti.data.annotations.annotation_checks import (
    At,
    Plain,
    collected,
    different_names,
    image_name,
    items,
    occurring,
    other_number,
    size_of,
    twice,
    whole_number,
)
from smalti.data.annotations.objects import Annotated, ObjectAnnotation
from smalti.data.annotations.published_sets import is_coco, read_coco, read_coco_folder, read_open_images
from smalti.images.boxes import SHARES, Size, box_within, place_of

_STANDING = ("sun", "moon", "tree", "house")  # those labels of the embedded scenes that objects have
_FLAGS = ("group", "occluded", "depiction", "inside")
_OURS = ("class", "box", "keypoints", "distance", *_FLAGS)
_KNOWN = (
    'objects.json of smalti scenes or by hand ({"images": [{"key": ..., "objects": [...]}]}), COCO (a .json with images, '
    "annotations and categories, or a folder with instances_*.json), Open Images (a folder with *-annotations-bbox.csv), and "
    "Visual Genome (objects.json beside image_data.json)"
)


def read_annotations(path: Path) -> Annotated:
    """A file, or a folder that holds files with names as they are published -> all that is annotated.

    Raises `SmaltiError`, with the file and the object, for files that are missing, damaged or of no kind that is read, and for
    classes, boxes, keypoints and sizes that cannot be.
    """
    if not path.exists():
        raise SmaltiError(f"there is no file or folder {path} with annotations of objects")
    if path.is_dir():
        for pattern, read in _FOLDERS.items():
            if any(path.glob(pattern)):
                return read(path)
        raise SmaltiError(f"{path} holds no annotations of objects that are read; there are: {_KNOWN}")
    return (read_open_images if path.suffix == ".csv" else _json)(path)


def _json(path: Path) -> Annotated:
    file = path / "objects.json" if path.is_dir() else path
    content = read_json(file)
    for fits, read in _FORMATS.values():
        if fits(content):
            return read(file, content)
    raise SmaltiError(f"{file} is no file with annotations of objects that is read; there are: {_KNOWN}")


# --- smalti's own --------------------------------------------------------------------------------------------------


def _ours(path: Path, content: Any) -> Annotated:
    _refuse_unknown(content, ("version", "classes", "keypoints", "images"), str(path))
    if content.get("version", 1) != 1:
        raise SmaltiError(f"{path} is of version {content['version']!r}, and 1 is read; get a newer smalti")
    classes, keypoints = _our_names(path, content)
    known = frozenset(classes)
    images: dict[str, list[ObjectAnnotation]] = {}
    for entry in items(path, content["images"], "images"):
        name = image_name(entry.get("key"), path)
        _refuse_unknown(entry, ("key", "class", "objects"), f"{path}: the image {name}")
        if name in images:
            raise twice(path, name)
        objects = items(path, entry.get("objects"), f"objects of the image {name}")
        images[name] = listed = []
        for number, one in enumerate(objects, start=1):
            at = At(path, name, "object", number)
            annotation = _our_object(one, keypoints, at)
            if known and annotation.name not in known:
                raise at.error(f"there is no class {annotation.name!r}; {suggestion(annotation.name, classes)}")
            listed.append(annotation)
    return collected(path, classes or occurring(images), keypoints, images)


def _our_names(path: Path, content: Plain) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Classes and keypoints: those in the file itself, else those of the scenes it is of."""
    scenes = path.with_name("scenes.json")
    described = read_json(scenes) if scenes.is_file() else {}
    if not isinstance(described, dict):
        raise SmaltiError(f"{scenes} does not describe scenes; remove it, or write it again by smalti scenes")
    labels = [label.get("name") for label in items(scenes, described.get("labels", []), "labels")]
    classes = content.get("classes", [name for name in labels if name in _STANDING])
    keypoints = content.get("keypoints", described.get("keypoints", []))
    return different_names(path, classes, "classes"), different_names(path, keypoints, "keypoints")


def _refuse_unknown(mapping: Plain, known: tuple[str, ...], where: str) -> None:
    for key in mapping:
        if key not in known:
            raise SmaltiError(f"{where}: unknown key {key!r}; {suggestion(str(key), known)}")


def _our_object(one: Plain, names: tuple[str, ...], at: At) -> ObjectAnnotation:
    for key in one:
        if key not in _OURS:
            raise at.error(f"unknown key {key!r}; {suggestion(str(key), _OURS)}")
    name, flags = one.get("class"), [one.get(flag, False) for flag in _FLAGS]
    if not isinstance(name, str) or not name:
        raise at.error(f"its class is {name!r}; give the name of one")
    for flag, value in zip(_FLAGS, flags, strict=True):
        if not isinstance(value, bool):
            raise at.error(f"{flag} is true or false, not {value!r}")
    places = one.get("keypoints", [])
    if not isinstance(places, list) or len(places) not in (0, len(names)):
        raise at.error(other_number(places, names))
    for place in places:
        if place is not None and not (isinstance(place, list) and len(place) == 2):
            raise at.error(f"a keypoint is {place!r}; give [x, y] in shares of the image, or null where it is not seen")
    seen = tuple(None if place is None else place_of(place[0], place[1], SHARES, at.error) for place in places)
    group, occluded, depiction, inside = flags
    return ObjectAnnotation(
        normalized(name), box_within(one.get("box"), SHARES, at.error), group, occluded, depiction, inside, seen
    )


# --- Visual Genome -------------------------------------------------------------------------------------------------


def _visual_genome(path: Path, content: Any) -> Annotated:
    """Images are called by their numbers. Classes are the first names of objects that occur, in alphabetical order."""
    image_data = path.with_name("image_data.json")
    if not image_data.is_file():
        raise SmaltiError(
            f"there is no file {image_data}; the boxes in {path} are in pixels, and the images' sizes stand there"
        )
    sizes: dict[str, Size] = {}
    for image in items(image_data, read_json(image_data), "the file"):
        name = image_name(str(whole_number(image.get("image_id"))), image_data)
        if name in sizes:
            raise twice(image_data, name)
        sizes[name] = size_of(image, image_data, name)
    images: dict[str, list[ObjectAnnotation]] = {}
    for entry in items(path, content, "the file"):
        name = image_name(str(whole_number(entry.get("image_id"))), path)
        if name in images:
            raise twice(path, name)
        if name not in sizes:
            raise SmaltiError(
                f"{image_data} holds no size of the image {name} in {path}, whose boxes are in pixels; add it"
            )
        objects = enumerate(items(path, entry.get("objects"), f"objects of the image {name}"), start=1)
        images[name] = [_genome_object(one, sizes[name], At(path, name, "object", number)) for number, one in objects]
    return collected(path, occurring(images), (), images, sizes=sizes)


def _genome_object(one: Plain, size: Size, at: At) -> ObjectAnnotation:
    names = one.get("names", [one.get("name")])
    if not isinstance(names, list) or not names or not isinstance(names[0], str) or not names[0]:
        raise at.error(f"its name is {names!r}; give the name of its class")
    return ObjectAnnotation(normalized(names[0]), box_within([one.get(side) for side in "xywh"], size, at.error))


# --- the tables of readers -----------------------------------------------------------------------------------------


def _is_ours(content: Any) -> bool:
    return isinstance(content, dict) and "images" in content and not is_coco(content)


def _is_genome(content: Any) -> bool:
    return isinstance(content, list) and all(isinstance(one, dict) and "objects" in one for one in content[:1])


_FORMATS: dict[str, tuple[Callable[[Any], bool], Callable[[Path, Any], Annotated]]] = {
    "smalti": (_is_ours, _ours),
    "coco": (is_coco, read_coco),
    "visual-genome": (_is_genome, _visual_genome),
}
"""Name -> whether the content of a JSON file is of that kind, and how it is read."""

_FOLDERS: dict[str, Callable[[Path], Annotated]] = {
    "objects.json": _json,
    "*annotations-bbox.csv": read_open_images,
    "instances_*.json": read_coco_folder,
}
"""Files of which one is in a folder -> how the folder is read."""
