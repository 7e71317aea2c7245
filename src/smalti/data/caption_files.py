"""Where the captions of images come from -> the captions of each image, one or more.

Read are, in this order: tables `metadata.jsonl` and `metadata.csv` with the columns `file_name` and `text`, in the
folder of the images or in its sub-folders, as the Hugging Face Hub has them; text files with the names of the images,
`NAME.txt`, beside them or in the samples of WebDataset shards, with a caption in each line; and COCO's
`captions_*.json`, among the images or in the folder `annotations` beside or below them.
"""

from __future__ import annotations

import csv
import io
import logging
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias

from smalti.core.errors import SmaltiError, suggestion
from smalti.core.files import decoded, normalized, parse_json
from smalti.data.annotations.objects import stem
from smalti.data.annotations.records import whole_number
from smalti.data.folders import file_content
from smalti.data.image_entries import ImageEntry
from smalti.data.sources import Source, too_many_damaged

logger = logging.getLogger("smalti")

Captions: TypeAlias = Mapping[str, tuple[str, ...]]
"""The key of an image -> its captions, one at least."""

TABLES = ("metadata.jsonl", "metadata.csv")
TEXT = ("text", "caption", "captions")
"""The column of a table with the caption, or a list of them: the first of these that a row has."""
_KNOWN = (
    "NAME.txt beside each image, metadata.jsonl or metadata.csv with file_name and text, or COCO's captions_*.json "
    "(--condition-data text=PATH)"
)


class _Row(NamedTuple):
    """A caption: what its file calls the image, the caption, and where it is written, for errors."""

    name: str
    caption: str
    where: str


def read_captions(source: Source, data: Path | None = None) -> Captions:
    """The captions of a source's images, which are in `data`, a file or a folder, or without it among the images.

    Line breaks and repeated spaces within a caption become single spaces; blank captions do not count. Captions of
    missing images, up to a tenth of all, are left out with a warning, as are images without captions.

    Raises `SmaltiError` if there are no captions, for more captions of missing images, and, with the file and the
    line, for what cannot be read.
    """
    if data is not None and not data.exists():
        raise SmaltiError(f"there is no file or folder {data} with captions")
    if data is None:
        rows, path = _rows_among(source), source.path
    else:
        rows, path = _rows_of(data, source), data
    if not rows:
        raise SmaltiError(f"there are no captions in {path} for the images of {source.path}; known are {_KNOWN}")
    captions = _matched(rows, source, path)
    bare = [image.key for image in source.images if image.key not in captions]
    if bare:
        logger.warning(
            "%s of %s images have no caption, first %s: they count as images without a text",
            f"{len(bare):,}",
            f"{len(source.images):,}",
            bare[0],
        )
    return captions


def captions_among(source: Source) -> Captions:
    """The captions among a source's images, as `read_captions` finds them; empty where there are none. Raises as it."""
    rows = _rows_among(source)
    return _matched(rows, source, source.path) if rows else {}


def _rows_among(source: Source) -> list[_Row]:
    return _tables_among(source) or _text_files(source.images, source.file_content) or _coco_among(source)


def _rows_of(data: Path, source: Source) -> list[_Row]:
    """The captions in a file or a folder that the caller names."""
    if data.is_dir():
        for name in TABLES:
            if (data / name).is_file():
                return _table(_content(data / name), data / name, where=str(data / name), required=True)
        published = sorted(data.glob("captions_*.json"))
        if published:
            return [row for path in published for row in _coco(_content(path), str(path))]
        return _text_files(source.images, lambda name: file_content(data / name))
    suffix = data.suffix.lower()
    if suffix in (".jsonl", ".csv"):
        return _table(_content(data), data, where=str(data), required=True)
    if suffix == ".json":
        return _coco(_content(data), str(data))
    raise SmaltiError(f"{data} is not a file of captions; known are {_KNOWN}")


def _content(path: Path) -> bytes:
    content = file_content(path)
    if content is None:
        raise SmaltiError(f"there is no file {path}")
    return content


def _text_of(content: bytes, where: str) -> str:
    """The bytes of a text file -> its text, without a byte order mark."""
    try:
        return decoded(content)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise SmaltiError(f"{where}, line {line}, is not in UTF-8 ({error.reason}); save the file as UTF-8") from error


def swap_sides(caption: str) -> str:
    """A caption -> that of the mirrored image: the words left and right are exchanged."""
    return re.sub(r"\b(left|right)\b", lambda found: _other_side(found[0]), caption, flags=re.IGNORECASE)


def _other_side(word: str) -> str:
    other = "right" if word.lower() == "left" else "left"
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other


# --- tables --------------------------------------------------------------------------------------------------------


def _tables_among(source: Source) -> list[_Row]:
    """The captions in all tables in the folders of the images and in those above, up to the root of the source."""
    folders = {parent.as_posix() for image in source.images for parent in PurePosixPath(image.key).parents}
    rows = []
    for folder in sorted(folders):
        for name in TABLES:
            path = posixpath.join(folder, name) if folder != "." else name
            content = source.file_content(path)
            if content is not None:
                rows += _table(content, Path(path), where=f"{path} in {source.path}", folder=folder)
    return rows


def _table(content: bytes, path: Path, *, where: str, folder: str = "", required: bool = False) -> list[_Row]:
    """A table -> its captions. Tables may be about other things: without `required` one without captions has none.

    `where`: what errors call it. `folder`: where the names of images begin.
    """
    text = _text_of(content, where)
    read = _json_lines if path.suffix.lower() == ".jsonl" else _csv_lines
    rows = []
    for line, values in read(text, where):
        at = f"{where}, line {line}"
        column = next((name for name in TEXT if values.get(name) is not None), None)
        if column is None:
            continue
        name = values.get("file_name")
        if not isinstance(name, str) or not name.strip():
            raise SmaltiError(f"{at}: file_name is {name!r}; write the path of an image, such as street/04.jpg")
        image = posixpath.normpath(posixpath.join(folder, name.strip().replace("\\", "/")))
        rows += [_Row(normalized(image), caption, at) for caption in _listed(values[column], at)]
    if required and not rows:
        raise SmaltiError(f"{where} holds no captions; it needs the columns file_name and text")
    return rows


def _json_lines(text: str, where: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows of a file with a JSON mapping in each line: (line number, values)."""
    for number, line in enumerate(text.split("\n"), start=1):  # other line breaks may be part of a caption
        if not line.strip():
            continue
        try:
            values = parse_json(line)
        except ValueError as error:
            raise SmaltiError(
                f"{where}, line {number}, is not JSON ({error}); correct it, or remove the line"
            ) from error
        if not isinstance(values, dict):
            raise SmaltiError(
                f'{where}, line {number}, is not a mapping; write {{"file_name": "04.jpg", "text": "a street"}}'
            )
        yield number, values


def _csv_lines(text: str, where: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows of a table of commas whose first line names the columns: (line number, values)."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = reader.fieldnames or ()
        if set(columns) & set(TEXT) and "file_name" not in columns:
            raise SmaltiError(f"{where} has no column 'file_name'; {suggestion('file_name', columns)}")
        for row in reader:
            if None in row or None in row.values():
                raise SmaltiError(
                    f"{where}, line {reader.reader.line_num}, does not have the {len(columns)} columns of the first "
                    "line; put captions with commas in quotes"
                )
            yield reader.reader.line_num, row
    except csv.Error as error:
        raise SmaltiError(f"{where}, line {reader.reader.line_num}, cannot be read ({error}); correct it") from error


def _listed(value: Any, where: str) -> list[str]:
    """A caption or a list of captions -> those that are not blank."""
    captions = value if isinstance(value, list) else [value]
    if not all(isinstance(caption, str) for caption in captions):
        raise SmaltiError(f"{where}: a caption is a text or a list of texts, not {value!r:.60}")
    return [" ".join(caption.split()) for caption in captions if caption.strip()]


# --- text files ----------------------------------------------------------------------------------------------------


def _text_files(images: Iterable[ImageEntry], read: Callable[[str], bytes | None]) -> list[_Row]:
    """The captions in files with the names of images, one in each line; `read` gives the bytes of a file, if there is
    one."""
    rows = []
    for image in images:
        name = PurePosixPath(image.key).with_suffix(".txt").as_posix()
        content = read(name)
        lines = re.split(r"\r\n|\r|\n", _text_of(content, name)) if content is not None else []
        rows += [_Row(normalized(image.key), caption, name) for caption in _listed(lines, name)]
    return rows


# --- COCO ----------------------------------------------------------------------------------------------------------


def _coco_among(source: Source) -> list[_Row]:
    """The captions in COCO's files in the folder of the images, or in `annotations` there or beside it."""
    root = source.path if source.path.is_dir() else source.path.parent
    for folder in (root, root / "annotations", root.parent / "annotations"):
        published = sorted(folder.glob("captions_*.json"))
        named = [path for path in published if path.stem.removeprefix("captions_") == root.name]
        if published:
            return [row for path in named or published for row in _coco(_content(path), str(path))]
    return []


def _coco(content: bytes, where: str) -> list[_Row]:
    """COCO's captions: `images` with `id` and `file_name`, `annotations` with `image_id` and `caption`."""
    try:
        values = parse_json(_text_of(content, where))
    except ValueError as error:
        raise SmaltiError(f"cannot read {where}: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(values.get(key), list) for key in ("images", "annotations")):
        raise SmaltiError(f"{where} holds no captions as COCO's: a mapping with the lists images and annotations")
    names: dict[Any, str] = {}
    for number, image in enumerate(values["images"], start=1):
        if not isinstance(image, dict) or not isinstance(image.get("file_name"), str) or "id" not in image:
            raise SmaltiError(f"{where}: image {number} has no id and file_name; add them")
        names[_number(image["id"])] = normalized(image["file_name"]).replace("\\", "/")
    rows = []
    for number, one in enumerate(values["annotations"], start=1):
        at = f"{where}: annotation {number}"
        if not isinstance(one, dict) or "caption" not in one:
            raise SmaltiError(f"{at} has no caption; files with captions are called captions_*.json")
        if _number(one.get("image_id")) not in names:
            raise SmaltiError(f"{at} is of the image {one.get('image_id')!r}, which is not among images; add it")
        name = names[_number(one["image_id"])]
        rows += [_Row(name, caption, at) for caption in _listed(one["caption"], at)]
    return rows


def _number(value: Any) -> Any:
    return whole_number(value) if isinstance(value, int | float | str) else None


# --- which caption is of which image -------------------------------------------------------------------------------


def _matched(rows: Sequence[_Row], source: Source, path: Path) -> Captions:
    """Captions by the names in their files -> by the keys of images.

    Names are paths below the source, with or without suffix. If no name in a file has a folder, images are also
    found by the last part of their key, if it is unique.
    """
    keys = _keys_by_name(source.images, whole=True)
    last_parts = {} if any("/" in row.name for row in rows) else _keys_by_name(source.images, whole=False)
    captions: dict[str, list[str]] = {}
    missing: dict[str, None] = {}
    for row in rows:
        names = (row.name, stem(row.name))
        found = next((known[name] for known in (keys, last_parts) for name in names if name in known), set())
        if len(found) > 1:
            first, second, *_ = sorted(found)
            raise SmaltiError(f"{row.where}: {row.name} is {first} or {second}; write its folder, and its suffix")
        if not found:
            missing[row.name] = None
        for key in found:
            captions.setdefault(key, []).append(row.caption)
    _check_missing(list(missing), len(captions), source, path)
    return {key: tuple(listed) for key, listed in captions.items()}


def _keys_by_name(images: Iterable[ImageEntry], *, whole: bool) -> dict[str, set[str]]:
    """What a file may call the images, by their whole paths or the last parts of them -> their keys."""
    keys: dict[str, set[str]] = {}
    for image in images:
        for path in (image.key, image.portable_name) if whole else (PurePosixPath(image.key).name,):
            for name in (normalized(path), stem(path)):
                keys.setdefault(name, set()).add(image.key)
    return keys


def _check_missing(missing: Sequence[str], found: int, source: Source, path: Path) -> None:
    """Warn of captions of missing images, or refuse them if they are too many."""
    if not missing:
        return
    more = ", ..." if len(missing) > 3 else ""
    message = (
        f"{len(missing):,} of {len(missing) + found:,} images with captions in {path} are not among the images of "
        f"{source.path}, first {', '.join(missing[:3])}{more}"
    )
    if too_many_damaged(len(missing), of=len(missing) + found):
        raise SmaltiError(f"{message}; file names are paths below the folder of the images")
    logger.warning("left out: %s", message)
