"""Data sets of the library `datasets`: tables in which a row is an image, perhaps with a label and captions.

Read are saved data sets, folders of `.parquet` or `.arrow` files, and data sets of the Hugging Face Hub. Of several
splits the one called `train` is read, or else the first. The library is imported when a table is opened.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

from smalti.core.errors import SmaltiError, suggestion
from smalti.core.files import open_file

logger = logging.getLogger("smalti")

PREFIX = "hf:"
"""Before the name of a data set on the Hub."""
TABLES = (".parquet", ".arrow")
LABELS = ("label", "labels", "class")
CAPTIONS = ("text", "caption", "captions")
"""Names of columns. A column of images, and one of class labels, are found by their types."""
SPLIT = "train"


class Columns(NamedTuple):
    """The columns of a table that are read."""

    image: str
    label: str | None
    names: tuple[str, ...]
    """The names of the classes, if the table has them."""
    caption: str | None

    def undecoded(self, rows: Any) -> Any:
        """Rows of a table -> the same, with the images as they are stored: mappings with `bytes` and `path`."""
        import datasets

        return rows.cast_column(self.image, datasets.Image(decode=False))

    def label_name(self, label: Any) -> str | None:
        """A value of the column of labels -> the name of the class; None if it has none."""
        if label is None or label == -1:
            return None
        return str(self.names[label]) if self.names else str(label)


def columns_of(features: Mapping[str, Any], *, where: str) -> Columns:
    """The columns of a table by name, with their types -> those that are read.

    Raises `SmaltiError` if none holds images.
    """
    import datasets

    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    images += [name for name, feature in features.items() if _is_encoded(feature)]
    if not images:
        raise SmaltiError(f"{where} has no column of images; {suggestion('image', dict(features))}")
    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    label = next((name for name in (*classes, *LABELS) if name in features), None)
    names = tuple(features[label].names) if classes and label is not None else ()
    return Columns(images[0], label, names, next((name for name in CAPTIONS if name in features), None))


def caption_lines(value: Any) -> bytes:
    """A value of the column of captions, one or several -> one in each line, in UTF-8."""
    listed = value if isinstance(value, list) else [value]
    return "\n".join(" ".join(str(each).split()) for each in listed if each is not None).encode("utf-8")


@final
class ImageTable:
    """A table with a column of images. It can be handed to other processes."""

    def __init__(self, rows: Any, where: str) -> None:
        """`rows`: a `datasets.Dataset`. Raises `SmaltiError` if it has no column of images, and no rows."""
        self._where, columns = where, columns_of(rows.features, where=where)
        if not len(rows):
            raise SmaltiError(f"{where} has no rows")
        self._image, self._label, self._caption = columns.image, columns.label, columns.caption
        self._columns = columns
        self._texts = None if self._caption is None else rows.select_columns([self._caption])
        self._rows = columns.undecoded(rows)
        self._lengths = [_length(each) for each in self._images()]

    def _images(self) -> Iterator[Any]:
        """The images as they are stored: mappings with `bytes` and `path`."""
        column = self._rows.select_columns([self._image])
        for batch in column.iter(batch_size=256):
            yield from batch[self._image]

    def entries(self) -> Iterator[tuple[str, str | None]]:
        """The name and the label of each image."""
        labels = [None] * len(self._rows) if self._label is None else self._rows[self._label]
        for number, label in enumerate(labels):
            yield _key(number), self._columns.label_name(label)

    def content(self, key: str) -> bytes:
        """The name of an image -> its bytes. Raises `OSError`."""
        stored = self._rows[_row(key)][self._image]
        if stored is None:
            raise OSError("the row has no image")
        content: bytes | None = stored["bytes"]
        if content is not None:
            return content
        with open_file(Path(stored["path"])) as file:
            return file.read()

    def length(self, key: str) -> int:
        """The name of an image -> how many bytes it has, -1 where it is missing."""
        return self._lengths[_row(key)]

    def captions(self, name: str) -> bytes | None:
        """`KEY.txt` -> the captions of that image, one in each line, in UTF-8; None for other names."""
        key, _, suffix = name.rpartition(".")
        if self._texts is None or suffix != "txt" or not key.isdigit():
            return None
        return caption_lines(self._texts[_row(key)][self._caption])


def holds_tables(files: Sequence[str]) -> bool:
    """Whether some of the files in a folder are tables."""
    return any(name.lower().endswith(TABLES) for name in files)


def is_hub_name(path: Path) -> bool:
    """Whether it is `hf:NAME`, a data set on the Hub, and no file."""
    return str(path).startswith(PREFIX) and not path.exists()


def open_table(folder: Path, files: Sequence[str]) -> ImageTable:
    """A saved data set, or a folder with the tables among its `files` -> the images.

    Raises `SmaltiError` without the library, for tables that it cannot read, and for those without images.
    """
    datasets = _library()
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            return ImageTable(_split(datasets.load_from_disk(str(folder)), str(folder)), str(folder))
        tables = sorted(name for name in files if name.lower().endswith(TABLES))
        suffix = Path(tables[0]).suffix.lower()
        alike = [str(folder / name) for name in tables if name.lower().endswith(suffix)]
        named = [name for name in alike if SPLIT in Path(name).stem]  # train-00000-of-00002.parquet, as on the Hub
        kind = suffix.removeprefix(".")
        rows = datasets.load_dataset(kind, data_files=named or alike, split="train")
    except SmaltiError:
        raise
    except Exception as error:  # the library has an exception for each format and mistake
        raise SmaltiError(f"cannot read the tables in {folder}: {_sentence(error)}") from error
    return ImageTable(rows, str(folder))


def download_table(path: Path) -> ImageTable:
    """`hf:NAME` -> the images of the data set NAME on the Hub, which the library downloads and keeps.

    Raises `SmaltiError` as `open_table`, and where the Hub cannot be reached or has no such data set.
    """
    return ImageTable(_load(path), str(path).removeprefix(PREFIX))


def open_stream(path: Path) -> tuple[Columns, Any]:
    """`hf:NAME`, or a folder of tables -> the columns that are read, and the rows as a `datasets.IterableDataset`,
    undecoded; nothing is downloaded but what is read.

    Raises `SmaltiError` as `download_table`.
    """
    rows = _load(path, streaming=True)
    try:
        features = rows.features or rows._resolve_features().features
    except Exception as error:
        raise SmaltiError(f"cannot read the rows of {path}: {_sentence(error)}") from error
    columns = columns_of(features, where=str(path))
    return columns, columns.undecoded(rows)


def _load(path: Path, **options: Any) -> Any:
    datasets, name = _library(), str(path).removeprefix(PREFIX)
    try:
        return _split(datasets.load_dataset(name, **options), name)
    except Exception as error:  # the library has an exception for each mistake
        raise SmaltiError(
            f"cannot load the data set {name} from the Hub: {_sentence(error)}; look for its name on the Hub, or "
            "download it and give the folder"
        ) from error


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise SmaltiError(
            "data sets of Hugging Face are read by the package datasets, which is not installed; install it with: "
            "pip install 'smalti[datasets]'"
        ) from error
    datasets.disable_progress_bars()
    return datasets


def _split(found: Any, where: str) -> Any:
    """A data set, or several splits of one by name -> the split to read."""
    if not isinstance(found, dict):
        return found
    name = SPLIT if SPLIT in found else next(iter(found))
    if len(found) > 1:
        logger.warning("%s has the splits %s; %s is read", where, ", ".join(found), name)
    return found[name]


def _is_encoded(feature: Any) -> bool:
    """Whether a column holds images as mappings with their bytes, without saying that they are images."""
    return isinstance(feature, dict) and "bytes" in feature and "path" in feature


def _length(stored: Any) -> int:
    if stored is None:
        return -1
    if stored["bytes"] is not None:
        return len(stored["bytes"])
    try:
        return Path(stored["path"]).stat().st_size
    except OSError:
        return -1


def _key(row: int) -> str:
    return f"{row:09d}"


def _row(key: str) -> int:
    return int(key)


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:200] or type(error).__name__
