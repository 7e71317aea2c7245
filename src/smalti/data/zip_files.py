"""The members of a zip file by their intended names, whatever system wrote the file.

Old .NET and PowerShell separate folders by backslashes, macOS writes UTF-8 names without the flag, and Unix stores
symbolic links.
"""

from __future__ import annotations

import stat
from contextlib import suppress
from pathlib import Path
from zipfile import ZipFile, ZipInfo

from smalti.core.errors import SmaltiError
from smalti.core.files import open_file
from smalti.data.archive_links import Links, plain, target_of

MAX_BYTES = 2**30
"""Of a member; a few kilobytes of zeros unpack to gigabytes, and the largest images that are read have half of this."""
_MAX_PATH_BYTES = 4096
"""Bytes of the path in a link, as Linux has them."""
_UTF8 = 0x800
"""The flag of a member whose name is in UTF-8."""
_UNIX = 3
"""The number of systems that keep a file's type in the upper half of `external_attr`."""


def read_members(path: Path) -> dict[str, ZipInfo]:
    """A zip file -> its files by name, with forward slashes. A link has the bytes of the file it leads to; one to a
    folder is a folder with the same files.

    A link that leads to nothing in the archive keeps its own bytes. Raises `SmaltiError` for a file that is not a zip
    file, and for two members whose names differ only in their slashes.
    """
    try:
        with open_file(path) as file, ZipFile(file) as archive:
            members: dict[str, ZipInfo] = {}
            for member in archive.infolist():
                name = _name(member)
                if name.endswith("/"):
                    continue
                other = members.get(name)
                if other is not None and other.filename != member.filename:
                    raise SmaltiError(
                        f"{path} holds {name} twice, as {other.filename!r} and {member.filename!r}; remove one"
                    )
                members[name] = member  # of a member that was added again the last one counts
            targets = {
                name: read_member(archive, member).decode("utf-8", "replace")
                for name, member in members.items()
                if _is_link(member) and not member.flag_bits & 1 and member.file_size <= _MAX_PATH_BYTES
            }
    except SmaltiError:
        raise
    except Exception as error:  # a bad checksum, a cut or unknown compression: zipfile has an exception for each
        raise SmaltiError(f"cannot read {path} as a zip file: {error or type(error).__name__}") from error
    return _linked(members, targets)


def read_member(archive: ZipFile, member: ZipInfo) -> bytes:
    """A member -> its bytes. Raises `ValueError` for more than `MAX_BYTES`, and what `zipfile` raises for damage."""
    if member.file_size > MAX_BYTES:  # `zipfile` gives no more than this number says
        raise ValueError(f"it has {member.file_size:,} bytes, and {MAX_BYTES:,} are the most that is read")
    return archive.read(member)


def _linked(members: dict[str, ZipInfo], targets: dict[str, str]) -> dict[str, ZipInfo]:
    """Members by name, and the texts of those that are links -> the files by name, in place of links what they lead
    to."""
    links = Links(
        {plain(name): member for name, member in members.items() if name not in targets},
        {plain(name): target_of(name, text) for name, text in targets.items()},
    )
    found: dict[str, ZipInfo] = {}
    for name, member in members.items():
        if name not in targets:
            found[name] = member
            continue
        files = list(links.followed(plain(name)))
        for rest, file in files:
            found.setdefault(name + rest, file)
        if not files:
            found[name] = member
    return found


def _name(member: ZipInfo) -> str:
    name = member.filename
    if not member.flag_bits & _UTF8 and not name.isascii():
        with suppress(UnicodeError):  # then it is in the code page of old Windows, as it was read
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")


def _is_link(member: ZipInfo) -> bool:
    return member.create_system == _UNIX and stat.S_ISLNK(member.external_attr >> 16)
