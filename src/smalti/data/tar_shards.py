"""Tar files of samples, as WebDataset names them, read in any order: which samples there are, and their bytes.

A sample is all the files of a tar file that share a name up to the first dot: `cat/0001.jpg`, `cat/0001.cls`. The
places of all members are read once, when the files are opened, so that images are had in any order, and a batch stays a
function of seed and position alone. (WebDataset itself reads shards from front to back, and shuffles in a buffer.)
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import re
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, final

from smalti.core.errors import SmaltiError
from smalti.core.files import decoded, normalized, open_file, parse_json
from smalti.data.archive_links import Links, plain, target_of

logger = logging.getLogger("smalti")

OPEN = 64
"""Shards that a process keeps open at once."""
_MAX_SHARDS = 100_000  # shards that a pattern may name
_CHUNK = 2**16  # a multiple of the size of a block
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Extent(NamedTuple):
    """Where the bytes of a file are: in which shard, from where on, how many."""

    shard: int
    offset: int
    size: int


class Sample(NamedTuple):
    """An image in a shard: its path there, its bytes, and its label and its text, if there are any."""

    path: str
    extent: Extent
    label: str | None
    caption: Extent | None


class Index(NamedTuple):
    """The samples of a shard in their order, and the paths of files that belong to none of them."""

    samples: list[Sample]
    others: list[str]


def expanded(pattern: str) -> list[str]:
    """`shards-{000..009}.tar` or `{train,val}.tar`, as a shell expands braces -> all the names.

    Raises `SmaltiError` for braces that are not closed, and for more names than anybody has.
    """
    parts: list[list[str]] = []
    for index, text in enumerate(re.split(r"\{([^{}]*)\}", pattern)):
        parts.append(_choices(text) if index % 2 else [text])
        if not index % 2 and ("{" in text or "}" in text):
            raise SmaltiError(f"the braces of {pattern} do not match; write them as in shards-{{000..009}}.tar")
    return ["".join(names) for names in itertools.islice(itertools.product(*parts), _MAX_SHARDS)]


def _choices(text: str) -> list[str]:
    span = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if span is None:
        return text.split(",")
    first, last = int(span[1]), int(span[2])
    padded = any(end.startswith("0") and len(end) > 1 for end in span.groups())
    width = max(len(span[1]), len(span[2])) if padded else 0
    if abs(last - first) >= _MAX_SHARDS:
        raise SmaltiError(f"{{{text}}} names {abs(last - first) + 1:,} shards, and {_MAX_SHARDS:,} are the most")
    return [
        f"{number:0{width}d}"
        for number in range(first, last + (1 if last >= first else -1), 1 if last >= first else -1)
    ]


def read_index(path: Path, shard: int, suffixes: tuple[str, ...]) -> Index:
    """A tar file, the `shard`-th of its set -> its samples: those with a file of one of the `suffixes`.

    The image of a sample is the file with such a suffix; among several, the only one whose suffix begins at the first
    dot (`jpg` beside `mask.png`). Its label is what is in `.cls` or `.cls.txt`, or the `label` of `.json`; its caption
    is in `.txt`.

    Raises `SmaltiError` for a compressed, truncated or otherwise damaged file, and for samples with several images.
    """
    with _damage_explained(path), open_file(path) as file:
        _check_uncompressed(path, file)
        found: dict[str, dict[str, Extent]] = {}
        others: list[str] = []
        for name, extent in _files(path, file, shard):
            folder, slash, last = name.removeprefix("./").rpartition("/")
            stem, dot, ending = last.partition(".")
            if not (stem and dot and ending) or any(map(is_hidden, folder.split("/"))):
                others.append(name)
                continue
            files = found.setdefault(f"{folder}{slash}{stem}", {})
            if ending.lower() in files:
                raise SmaltiError(f"{path} holds {name} twice, and a name stands for one file; write the shard again")
            files[ending.lower()] = extent
        samples = []
        for stem, files in found.items():
            ending = _image(path, stem, [ending for ending in files if f".{ending}".endswith(suffixes)])
            if ending:
                label = _label(path, file, stem, files)
                samples.append(Sample(f"{stem}.{ending}", files[ending], label, files.get("txt")))
            else:
                others.extend(f"{stem}.{ending}" for ending in files)
        return Index(samples, others)


def is_hidden(part: str) -> bool:
    """Whether a part of a path in an archive is that of a hidden file, or of the folder of shadows that macOS adds."""
    return (part.startswith(".") and part not in (".", "..")) or part == "__MACOSX"


class _Special(NamedTuple):
    """A member that has no bytes of its own: the member that a link leads to, or what else it is."""

    target: str
    what: str = ""


def _files(path: Path, file: BinaryIO, shard: int) -> Iterator[tuple[str, Extent]]:
    """The files of a tar file by name, in their order; a link has the bytes of the file it leads to, or all files of
    the folder.

    What has none (a pipe, a device, a link to nothing in the archive) is left out, with a warning.
    """
    members = list(_members(file, shard))
    files = {plain(name): member for name, member in members if isinstance(member, Extent)}
    targets = {plain(name): member.target for name, member in members if isinstance(member, _Special) and member.target}
    links = Links(files, targets)
    for name, member in members:
        if isinstance(member, Extent):
            yield name.replace("\\", "/"), member
            continue
        what = member.what
        if not what:
            end, found = links.end(plain(name)), list(links.followed(plain(name)))
            yield from (
                (f"{name.rstrip('/')}{rest}".replace("\\", "/"), extent)
                for rest, extent in found
                if not rest or f"{plain(name)}{rest}" not in files
            )
            circle = end == "" or plain(name).startswith(f"{end}/")
            what = "a link that leads in a circle" if circle else f"a link to {end}, which is not in it"
            what = "" if found else what
        if what:
            logger.warning("left out of %s: %s is %s", path, name, what)


def _members(file: BinaryIO, shard: int) -> Iterator[tuple[str, Extent | _Special]]:
    """All that a tar file holds but folders, to the end of the file, where several tar files may be in a row.

    What the end is, is looked at, since a cut file may seem a shorter one.
    """
    total = os.fstat(file.fileno()).st_size
    begin = 0
    while True:
        file.seek(begin)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            last = ""
            for member in tar:
                last = member.name
                if member.offset_data + member.size > total:
                    break
                if not member.isdir():
                    yield member.name, _place(member, shard)
            file.seek(tar.offset)
            rest = file.read(tarfile.BLOCKSIZE)
        if tar.offset > total or rest.strip(b"\0") or len(rest) % tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"it ends within or after {last}, at {total:,} bytes")
        begin = _after_zeros(file)
        if begin == total:
            return


def _place(member: tarfile.TarInfo, shard: int) -> Extent | _Special:
    if member.islnk():
        return _Special(plain(member.linkname))
    if member.issym():
        return _Special(target_of(member.name, member.linkname))
    if member.isreg() and not member.issparse():
        return Extent(shard, member.offset_data, member.size)
    return _Special("", "a sparse file" if member.issparse() else "a pipe or a device, and no file")


def _after_zeros(file: BinaryIO) -> int:
    """Where the next block is that holds more than zeros, from the present place on; else the end of the file."""
    while block := file.read(_CHUNK):
        zeros = len(block) - len(block.lstrip(b"\0"))
        if zeros < len(block):
            return file.tell() - len(block) + zeros // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
    return file.tell()


@contextmanager
def _damage_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except SmaltiError:
        raise
    except RecursionError as error:
        raise SmaltiError(f"{path} is not a tar file of images: a name in it has hundreds of headers") from error
    except Exception as error:  # the module has exceptions of its own, and lets others through from damaged numbers
        raise SmaltiError(f"{path} is not a whole tar file ({error}); copy or write it again") from error


def _check_uncompressed(path: Path, file: BinaryIO) -> None:
    begin = file.read(8)
    file.seek(0)
    for mark, name in _COMPRESSED.items():
        if begin.startswith(mark):
            raise SmaltiError(
                f"{path} is compressed with {name}, and its images are wanted in any order; unpack it to a .tar file "
                "(images are compressed already)"
            )


def _image(path: Path, stem: str, endings: Sequence[str]) -> str:
    """The suffix of the sample's image among the `endings` of images; "" where there is none."""
    plain = [ending for ending in endings if "." not in ending]
    for some in (plain, endings):
        if len(some) == 1:
            return some[0]
        if some:
            raise SmaltiError(
                f"the sample {stem} of {path} holds several images ({', '.join(sorted(some))}); a sample is one image: "
                "write the shard with one of them"
            )
    return ""


def _label(path: Path, file: BinaryIO, stem: str, files: dict[str, Extent]) -> str | None:
    for ending in ("cls", "cls.txt", "json"):
        if ending not in files:
            continue
        file.seek(files[ending].offset)
        content = file.read(files[ending].size)
        try:
            value = parse_json(decoded(content)) if ending == "json" else decoded(content).strip()
        except ValueError as error:
            raise SmaltiError(
                f"{stem}.{ending} in {path} cannot be read as a label ({error}); write it again"
            ) from error
        if ending == "json":
            value = value.get("label") if isinstance(value, dict) else None
        label = _as_text(value)
        if label is None:
            raise SmaltiError(
                f"{stem}.{ending} in {path} has the label {value!r}; a label is a text or a number: write it again, or "
                "leave it out"
            )
        if label:
            return label
    return None


def _as_text(value: Any) -> str | None:
    """A label as it is in JSON -> its text, "" where there is none, None for a value that is not a label.

    1.0 is 1: a table whose column has gaps writes whole numbers so. `true` and `false` are not classes.
    """
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, str | int):
        return normalized(str(value).strip())
    return None


@final
class Shards:
    """Shards, by their numbers -> the bytes of what is in them. Each process opens the files for itself,
    `OPEN` at a time."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()
        self._renew()

    def _renew(self) -> None:
        while self._open:
            self._open.popitem()[1].close()
        self._process, self._lock = os.getpid(), threading.Lock()

    def read(self, extent: Extent) -> bytes:
        """Raises `OSError` if a file is gone, and `EOFError` where it is shorter than it was."""
        if self._process != os.getpid():  # forked: an open file would share its position with the parent's
            self._renew()
        with self._lock:  # several threads may read
            file = self._open.pop(extent.shard, None) or open_file(self.paths[extent.shard])
            self._open[extent.shard] = file
            if len(self._open) > OPEN:
                self._open.popitem(last=False)[1].close()
            file.seek(extent.offset)
            content = file.read(extent.size)
        if len(content) < extent.size:
            raise EOFError(f"it ends {extent.size - len(content):,} bytes too early")
        return content

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.paths, self._open = state["paths"], OrderedDict()
        self._renew()

    def __del__(self) -> None:
        while self._open:
            self._open.popitem()[1].close()
