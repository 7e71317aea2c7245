"""PNG files written row by row, so that an image is never in memory whole, and reading of PNG headers.

Pillow writes images that it holds, and pypng (0.20220715) neither filters rows nor writes text. So here is the small
part of the format that is needed: 8 bits per channel, one stream of zlib, not interlaced.

Notation: C channels, H W pixels, r rows of a strip, n = W C bytes of a row. Source: Portable Network Graphics (PNG)
Specification, third edition, W3C 2025: sections 5 (chunks), 9 (filters), 12.7 (choice).
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from smalti.core.files import open_file, parse_json, write_atomically
from smalti.images.io import NO_SETTINGS, SETTINGS_KEY

Bytes = npt.NDArray[np.uint8]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLORS = {1: 0, 3: 2, 4: 6}
"""Channels -> the format's number for gray, color, color and opacity."""

_KEY = SETTINGS_KEY.encode("latin-1")


def write_png(
    path: Path, strips: Iterable[Bytes], *, size: tuple[int, int], settings: Mapping[str, Any] = NO_SETTINGS
) -> None:
    """Strips (r,W,C) uint8 of an image of `size` (H,W), from top to bottom -> a PNG file, each strip written when it
    comes.

    C is 1 (gray), 3 (color) or 4 (color and opacity). The settings are stored as by `images.save_png`. The file has its
    name when it is whole; whatever `strips` raises leaves none. Raises `SmaltiError` if writing fails.
    """
    write_atomically(path, lambda temporary: _write(temporary, iter(strips), size, settings))


def _write(path: Path, strips: Iterator[Bytes], size: tuple[int, int], settings: Mapping[str, Any]) -> None:
    height, width = size
    first = next(strips)
    channels = first.shape[2]
    assert channels in COLORS, f"an image file holds 1, 3 or 4 channels, not {channels}"
    packer, rows, above = zlib.compressobj(), 0, np.zeros((1, width * channels), np.uint8)
    with path.open("wb") as file:
        file.write(SIGNATURE)
        _chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 8, COLORS[channels], 0, 0, 0))
        _chunk(file, b"tEXt", _KEY + b"\0" + json.dumps(dict(settings)).encode("latin-1"))
        for strip in chain([first], strips):
            assert strip.shape[1:] == (width, channels)
            lines = strip.reshape(len(strip), -1)  # (r,n)
            _chunk(file, b"IDAT", packer.compress(filtered(lines, above, channels).tobytes()))
            rows, above = rows + len(lines), lines[-1:]
        assert rows == height, f"{rows} rows of {height}"
        _chunk(file, b"IDAT", packer.flush())
        _chunk(file, b"IEND", b"")


def _chunk(file: BinaryIO, name: bytes, data: bytes) -> None:
    if data or name == b"IEND":  # a packer gives nothing until it has enough
        file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))


def filtered(lines: Bytes, above: Bytes, channels: int) -> Bytes:
    """Rows (r,n) and the one above them (1,n), zeros above the image -> rows (r,1+n), each with its filter's number
    first.

    Of the five filters each row takes the one with the least sum of absolute differences, the first of equals.
    """
    up = np.concatenate((above, lines[:-1])).astype(np.int16)
    left, corner = (np.pad(each, ((0, 0), (channels, 0)))[:, :-channels] for each in (lines.astype(np.int16), up))
    guess = left + up - corner
    near = [np.abs(guess - each) for each in (left, up, corner)]
    paeth = np.where((near[0] <= near[1]) & (near[0] <= near[2]), left, np.where(near[1] <= near[2], up, corner))
    rest = np.stack(
        [lines - predicted for predicted in (np.zeros_like(up), left, up, (left + up) // 2, paeth)]
    )  # (5,r,n)
    rest = rest.astype(np.uint8)  # modulo 256
    best = np.abs(rest.view(np.int8).astype(np.int16)).sum(2, dtype=np.int64).argmin(0)  # (r,)
    return np.concatenate((best[:, None].astype(np.uint8), rest[best, np.arange(len(lines))]), axis=1)


class Head(NamedTuple):
    """What a PNG file says about itself before its pixels."""

    size: tuple[int, int]
    """(height, width)"""
    settings: dict[str, Any] | None
    """Those of an image that we made, None for other images."""


def read_head(path: Path) -> Head | None:
    """A file -> the head of a PNG file, None for others and where it cannot be read; no pixel is, so that it may have
    any size."""
    chunks: list[tuple[bytes, bytes]] = []
    with suppress(OSError), open_file(path) as file:
        if file.read(len(SIGNATURE)) == SIGNATURE:
            chunks += _chunks(file)
    if not chunks or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
        return None
    width, height = struct.unpack(">II", chunks[0][1][:8])
    texts = (data.partition(b"\0") for name, data in chunks if name == b"tEXt")
    return Head((height, width), next((_plain(text) for key, _, text in texts if key == _KEY), None))


def _plain(text: bytes) -> dict[str, Any] | None:
    """Settings as stored in a file; None for another program's text under our keyword."""
    try:
        found = parse_json(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Name and data of the chunks before the pixels."""
    while len(start := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", start)
        if name in (b"IDAT", b"IEND"):
            return
        yield name, file.read(length)
        file.seek(4, 1)  # the checksum
