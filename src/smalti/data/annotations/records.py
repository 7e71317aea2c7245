"""The records of annotation files, as pydantic models: what a file must hold before it is made sense of.

Boxes and the positions of keypoints are left as they are: `smalti.images.boxes` reads them, for files and
for Python alike.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, TypeVar

import pydantic
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from smalti.core.errors import SmaltiError, suggestion
from smalti.core.files import normalized
from smalti.images.io import IMAGE_SUFFIXES

T = TypeVar("T")

_MAX_NUMBER = 1e9
"""Of the sides of images; more is not a size."""


def whole_number(value: Any) -> Any:
    """The number of an image or a class -> the same, where it is whole as an int; other values stay what they are.

    Programs write 1.0 for 1 where a column of their table has gaps.
    """
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _image_name(text: str) -> str:
    if not text.strip("./\\ "):
        raise PydanticCustomError("image_name", "this is not a name of an image; write its path, such as street/04.jpg")
    name = PurePosixPath(normalized(text).replace("\\", "/"))
    return (name.with_suffix("") if name.suffix.lower() in IMAGE_SUFFIXES else name).as_posix()


def _different(names: list[str]) -> tuple[str, ...]:
    several = [name for name, count in Counter(names).items() if count > 1]
    if several:
        problem = "{name} is there twice; give each a name of its own"
        raise PydanticCustomError("several", problem, {"name": repr(several[0])})
    return tuple(names)


ImageName: TypeAlias = Annotated[str, AfterValidator(_image_name)]
"""What a file calls an image -> its name: with forward slashes, without the suffix of images, in the form NFC."""
Name: TypeAlias = Annotated[str, Field(min_length=1), AfterValidator(normalized)]
Names: TypeAlias = Annotated[list[Name], AfterValidator(_different)]
"""Different names, in the form NFC."""
Number: TypeAlias = Annotated[int, BeforeValidator(whole_number)]
Identity: TypeAlias = Annotated[int | str, BeforeValidator(whole_number)]
"""What an image is numbered by."""
NumberedName: TypeAlias = Annotated[ImageName, BeforeValidator(lambda value: str(whole_number(value)))]
"""The number of an image -> its name."""
Side: TypeAlias = Annotated[float, Field(gt=0, lt=_MAX_NUMBER, allow_inf_nan=False)]


class Record(pydantic.BaseModel):
    """A mapping of a file. Values are not converted: text is not a number, and 1 is not true."""

    model_config = ConfigDict(strict=True, frozen=True)


class OwnRecord(Record):
    """A mapping of smalti's own files, in which unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid")


class OwnObject(OwnRecord):
    """An object of `objects.json`."""

    name: Name = Field(alias="class")
    box: Any = None
    keypoints: list[Annotated[list[Any], Field(min_length=2, max_length=2)] | None] = []
    distance: Any = None
    group: bool = False
    occluded: bool = False
    depiction: bool = False
    inside: bool = False


class OwnImage(OwnRecord):
    """An image of `objects.json`. The class of the whole image is not used."""

    key: ImageName
    label: Any = Field(default=None, alias="class")
    objects: list[OwnObject]


class OwnFile(OwnRecord):
    """An `objects.json`."""

    version: Literal[1] = 1
    classes: Names | None = None
    keypoints: Names | None = None
    images: list[OwnImage]


class SceneLabel(Record):
    """A label of `scenes.json`."""

    name: Name


class SceneFile(Record):
    """What counts of a `scenes.json` here."""

    labels: list[SceneLabel] = []
    keypoints: Names = []


class CocoImage(Record):
    """An image of a COCO file; boxes are in its pixels."""

    id: Identity
    file_name: ImageName
    width: Side
    height: Side


class CocoCategory(Record):
    """A class of a COCO file."""

    id: Number
    name: Name
    keypoints: Names = []
    supercategory: Any = None


class CocoSegment(Record):
    """An object of the panoptic task."""

    id: Any = None
    category_id: Number
    bbox: Any = None
    iscrowd: Any = 0


class CocoAnnotation(Record):
    """An object of a COCO file, or all objects of an image, as the panoptic task has them."""

    id: Any = None
    image_id: Identity
    category_id: Number | None = None
    bbox: Any = None
    iscrowd: Any = 0
    keypoints: list[Any] | None = None
    segments_info: list[CocoSegment] | None = None


class CocoFile(Record):
    """A COCO file with objects."""

    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


class GenomeSize(Record):
    """An image of Visual Genome's `image_data.json`."""

    image_id: NumberedName
    width: Side
    height: Side


class GenomeObject(Record):
    """An object of Visual Genome's `objects.json`, named by the first of its `names`, or by `name`."""

    names: list[Any] | None = None
    name: Any = None
    x: Any = None
    y: Any = None
    w: Any = None
    h: Any = None

    @pydantic.model_validator(mode="after")
    def _has_a_name(self) -> GenomeObject:
        if not isinstance(self.class_name, str) or not self.class_name:
            raise PydanticCustomError("name", "it has no name; give the name of its class")
        return self

    @property
    def class_name(self) -> Any:
        """The name of its class, as it is in the file."""
        return self.name if self.names is None else next(iter(self.names), None)


class GenomeImage(Record):
    """The objects of an image of Visual Genome."""

    image_id: NumberedName
    objects: list[GenomeObject]


def parsed(kind: type[T], content: Any, path: Path) -> T:
    """The content of a file -> its records.

    Raises `SmaltiError` with the file, the entry, its field and what is wrong there; of several mistakes the first.
    """
    try:
        return pydantic.TypeAdapter(kind).validate_python(content)
    except pydantic.ValidationError as error:
        raise SmaltiError(f"{path}: {_sentence(error.errors()[0], content)}") from error


def read_image_name(text: str, path: Path) -> str:
    """What a file calls an image -> its name, see `ImageName`. Raises `SmaltiError` for a value that is not a name."""
    name: str = parsed(ImageName, text, path)
    return name


class _List(NamedTuple):
    """How the entries of a list are called in an error: the noun, and the keys that name one, the first that it has."""

    noun: str
    keys: tuple[str, ...]


_LISTS = {
    "images": _List("image", ("key", "file_name", "id")),
    "annotations": _List("annotation", ("id",)),
    "categories": _List("category", ("name", "id")),
    "objects": _List("object", ()),
}
_ENTRIES = _List("entry", ("image_id",))
"""Of a file that is a list."""
_WAYS_OUT = {
    "version": "get a newer smalti",
    "key": "write the path of the image, such as street/04.jpg",
    "file_name": "write the path of the image, such as street/04.jpg",
    "width": "boxes are in pixels, add width and height of their image",
    "height": "boxes are in pixels, add width and height of their image",
    "keypoints": "give a position for each name: [x, y], or null where it is not seen",
    "classes": "give a list of names",
}
"""What to do about the value of a key, where the problem does not say it."""


def _sentence(problem: Any, content: Any) -> str:
    """A problem that pydantic found -> where it is in the content of a file, and what it is."""
    entries: list[str] = []
    field: list[str] = []
    value, list_name = content, ""
    for part in problem["loc"]:
        if isinstance(part, int) and isinstance(value, list):
            value = value[part]
            if list_name in _LISTS or not field:
                entries.append(_called(value, part, _LISTS.get(list_name, _ENTRIES)))
                field = []
            else:
                field.append(str(part))
        elif isinstance(value, Mapping) and (part in value or problem["type"] == "missing"):
            value, list_name = value.get(part), str(part)
            field.append(str(part))
    where = "".join(f"{entry}: " for entry in entries)
    name = ".".join(field)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(problem["loc"])
        return f"{where}unknown key {name!r}; {suggestion(name, known)}"
    if problem["type"] == "missing":
        return f"{where}the key {name!r} is missing"
    message = re.sub(r" or instance of \w+", "", problem["msg"])
    message = message[0].lower() + message[1:]
    if not name:
        return f"{where}{message}"
    way_out = _WAYS_OUT.get(field[0], "")
    return f"{where}{name} = {problem['input']!r}: {message}{f'; {way_out}' if way_out and ';' not in message else ''}"


def _called(entry: Any, index: int, kind: _List) -> str:
    """What an entry of a list is called in an error: by a key that names it, else by its number, from 1 on."""
    names = (
        [entry[key] for key in kind.keys if isinstance(entry.get(key), str | int)] if isinstance(entry, dict) else []
    )
    return f"the {kind.noun} {names[0] if names else index + 1}"


def _known_keys(loc: Sequence[int | str]) -> list[str]:
    """The keys that a mapping of smalti's own files may have, by the path of an unknown one."""
    kind = OwnObject if "objects" in loc[:-1] else OwnImage if "images" in loc[:-1] else OwnFile
    return [field.alias or name for name, field in kind.model_fields.items()]
