"""Files with the objects of images -> what they say: smalti's own, COCO, Open Images, Visual Genome.

What a file is, its content says. All numbers become fractions of the image, and pixels need its size, which then is in
the file. Boxes in pixels may reach beyond their image and are cut; fractions may not, since they are then mostly
something else.

Ours is what `smalti scenes` writes, and what can be written by hand, as `objects.json`:

    {"images": [{"key": "street/04", "objects": [{"class": "tree", "box": [left, top, width, height]}]}]}

`key` is the image's path below the folder of all, with or without suffix. An object may have `group`, `occluded`,
`depiction` and `inside` (true or false), `distance` (which is not used), and `keypoints`, a list of [x, y] or null.
Beside `images` may stand `classes` and `keypoints`, lists of names; without them those in `scenes.json` beside it
count, and without that the classes that occur, in alphabetical order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from smalti.core.errors import SmaltiError, suggestion
from smalti.core.files import normalized, read_json
from smalti.data.annotations.annotation_checks import At, collected, occurring, other_number, twice
from smalti.data.annotations.objects import Annotated, ObjectAnnotation
from smalti.data.annotations.published_sets import is_coco, read_coco, read_coco_folder, read_open_images
from smalti.data.annotations.records import (
    GenomeImage,
    GenomeObject,
    GenomeSize,
    OwnFile,
    OwnObject,
    SceneFile,
    parsed,
)
from smalti.images.boxes import SHARES, Size, box_within, place_of

_STANDING = ("sun", "moon", "tree", "house")  # those labels of the embedded scenes that objects have
_KNOWN = (
    'objects.json of smalti scenes or by hand ({"images": [{"key": ..., "objects": [...]}]}), COCO (a .json with '
    "images, annotations and categories, or a folder with instances_*.json), Open Images (a folder with "
    "*-annotations-bbox.csv), and Visual Genome (objects.json beside image_data.json)"
)


def read_annotations(path: Path) -> Annotated:
    """A file, or a folder that holds files with names as they are published -> all that is annotated.

    Raises `SmaltiError`, with the file and the object, for files that are missing, damaged or of no kind that is read,
    and for classes, boxes, keypoints and sizes that cannot be.
    """
    if not path.exists():
        raise SmaltiError(f"there is no file or folder {path} with annotations of objects")
    if path.is_dir():
        for pattern, read in _FOLDERS.items():
            if any(path.glob(pattern)):
                return read(path)
        raise SmaltiError(f"{path} holds no annotations of objects that are read; there are: {_KNOWN}")
    return (read_open_images if path.suffix == ".csv" else _json)(path)


def holds_annotations(folder: Path) -> bool:
    """Whether a folder holds files with annotations of objects, named as they are published."""
    return any(any(folder.glob(pattern)) for pattern in _FOLDERS)


def _json(path: Path) -> Annotated:
    file = path / "objects.json" if path.is_dir() else path
    content = read_json(file)
    for fits, read in _FORMATS.values():
        if fits(content):
            return read(file, content)
    raise SmaltiError(f"{file} is not a file with annotations of objects that is read; there are: {_KNOWN}")


# --- smalti's own --------------------------------------------------------------------------------------------------


def _ours(path: Path, content: Any) -> Annotated:
    file = parsed(OwnFile, content, path)
    classes, keypoints = _our_names(path, file)
    known = frozenset(classes)
    images: dict[str, list[ObjectAnnotation]] = {}
    for entry in file.images:
        if entry.key in images:
            raise twice(path, entry.key)
        images[entry.key] = objects = []
        for number, one in enumerate(entry.objects, start=1):
            at = At(path, entry.key, "object", number)
            if known and one.name not in known:
                raise at.error(f"there is no class {one.name!r}; {suggestion(one.name, classes)}")
            objects.append(_our_object(one, keypoints, at))
    return collected(path, classes or occurring(images), keypoints, images)


def _our_names(path: Path, file: OwnFile) -> tuple[Sequence[str], Sequence[str]]:
    """Classes and keypoints: those in the file itself, else those of the scenes it is of."""
    scenes_file = path.with_name("scenes.json")
    scenes = parsed(SceneFile, read_json(scenes_file), scenes_file) if scenes_file.is_file() else SceneFile()
    classes = [label.name for label in scenes.labels if label.name in _STANDING]
    return (
        classes if file.classes is None else file.classes,
        scenes.keypoints if file.keypoints is None else file.keypoints,
    )


def _our_object(one: OwnObject, names: Sequence[str], at: At) -> ObjectAnnotation:
    if len(one.keypoints) not in (0, len(names)):
        raise at.error(other_number(len(one.keypoints), names))
    seen = tuple(None if point is None else place_of(point[0], point[1], SHARES, at.error) for point in one.keypoints)
    box = box_within(one.box, SHARES, at.error)
    return ObjectAnnotation(one.name, box, one.group, one.occluded, one.depiction, one.inside, seen)


# --- Visual Genome -------------------------------------------------------------------------------------------------


def _visual_genome(path: Path, content: Any) -> Annotated:
    """Images are called by their numbers. Classes are the first names of objects that occur, in alphabetical order."""
    image_data = path.with_name("image_data.json")
    if not image_data.is_file():
        raise SmaltiError(
            f"there is no file {image_data}; the boxes in {path} are in pixels, and the images' sizes are there"
        )
    sizes: dict[str, Size] = {}
    for image in parsed(list[GenomeSize], read_json(image_data), image_data):
        if image.image_id in sizes:
            raise twice(image_data, image.image_id)
        sizes[image.image_id] = image.width, image.height
    images: dict[str, list[ObjectAnnotation]] = {}
    for entry in parsed(list[GenomeImage], content, path):
        name = entry.image_id
        if name in images:
            raise twice(path, name)
        if name not in sizes:
            raise SmaltiError(
                f"{image_data} holds no size of the image {name} in {path}, whose boxes are in pixels; add it"
            )
        images[name] = [
            _genome_object(one, sizes[name], At(path, name, "object", number))
            for number, one in enumerate(entry.objects, start=1)
        ]
    return collected(path, occurring(images), (), images, sizes=sizes)


def _genome_object(one: GenomeObject, size: Size, at: At) -> ObjectAnnotation:
    return ObjectAnnotation(normalized(one.class_name), box_within([one.x, one.y, one.w, one.h], size, at.error))


# --- the tables of readers -----------------------------------------------------------------------------------------


def _is_smalti_format(content: Any) -> bool:
    return isinstance(content, dict) and "images" in content and not is_coco(content)


def _is_genome(content: Any) -> bool:
    return isinstance(content, list) and all(isinstance(one, dict) and "objects" in one for one in content[:1])


_FORMATS: dict[str, tuple[Callable[[Any], bool], Callable[[Path, Any], Annotated]]] = {
    "smalti": (_is_smalti_format, _ours),
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
