"""Whole files -> damaged ones, by chance alone: what the readers of smalti are tried with.

Each function maps a `random.Random` and the bytes of a file to other bytes. Those that know a format damage it within
its checksums, where plain flipped bits are found out at once.
"""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from random import Random
from typing import Any, TypeAlias

import yaml

Damage: TypeAlias = Callable[[Random, bytes], bytes]

NUMBERS = (
    0,
    1,
    2,
    7,
    127,
    128,
    255,
    256,
    32767,
    32768,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**63, -(2**63) - 1, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *(
        "",
        " ",
        ".",
        "..",
        "/",
        "//",
        "../x",
        "a\0b",
        "\ud800",
        "\x1b[2J",
        "a\nb",
        "e\u0301",
        "1",
        "nan",
        "x" * 5000,
        "*",
    ),
    *([], {}, [[]], [1, 2], [0.1, 0.1, 0.2, 0.2], ["a", "a"], {"": 1}, {"name": "x"}, {"a": {"b": []}}),
)
WORDS = (
    *(
        b"&a ",
        b"*a ",
        b"<<: *a\n",
        b"!!bool ",
        b"!!int ",
        b"!!timestamp ",
        b"!!binary ",
        b"!!set ",
        b"? ",
        b": ",
        b"- ",
    ),
    *(
        b"!!python/object/apply:os.system [touch ran]",
        b"{",
        b"}",
        b"[",
        b"]",
        b"'",
        b'"',
        b"\n",
        b"\r",
        b"\t",
        b",",
        b"|",
    ),
    *(b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"0x", b"1e999", b"null", b"...", b"---\n", b"%", b"#", b"\\u0000"),
)


def any_bytes(chance: Random, content: bytes) -> bytes:
    """One to four places are changed, cut out, put in, or repeated; or the file is cut."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        place, length = chance.randint(0, len(data)), chance.choice((1, 1, 2, 4, 8, chance.randint(1, 64)))
        match chance.randrange(9):
            case 0 if data:
                data[min(place, len(data) - 1)] ^= 1 << chance.randrange(8)
            case 1:
                data[place : place + length] = chance.randbytes(length)
            case 2 | 3:
                form = chance.choice((">H", "<H", ">I", "<I", "<Q", ">Q", "B"))
                size = struct.calcsize(form)
                data[place : place + size] = struct.pack(form, chance.choice(NUMBERS) % 256**size)
            case 4:
                del data[place : place + length]
            case 5:
                data[place:place] = data[max(0, place - length) : place] * chance.choice((1, 2, 50))
            case 6:
                data[place:place] = chance.choice(WORDS)
            case 7:
                there = chance.randint(0, len(data))
                data[place : place + length] = data[there : there + length]
            case _ if chance.random() < 0.3:
                del data[place:]
    return bytes(data)


def in_value(chance: Random, value: Any) -> Any:
    """A nested value -> the same with one part of it replaced, left out, repeated or nested deeper."""
    if isinstance(value, (dict, list)) and value and chance.random() < 0.85:
        items: Any = dict(value) if isinstance(value, dict) else list(value)
        key = chance.choice(list(items)) if isinstance(items, dict) else chance.randrange(len(items))
        match chance.randrange(10):
            case 0:
                del items[key]
            case 1 if isinstance(items, dict):
                items[chance.choice((*[each for each in VALUES if isinstance(each, str)], "extra"))] = items.pop(key)
            case 1 | 2 if isinstance(items, list):
                items.insert(key, items[key])
            case _:
                items[key] = in_value(chance, items[key])
        return items
    if chance.random() < 0.05:
        for _ in range(chance.choice((3, 200))):
            value = [value]
        return value
    return chance.choice(VALUES)


def json_text(chance: Random, content: bytes) -> bytes:
    """JSON of other values, or with other bytes."""
    if chance.random() < 0.25:
        return any_bytes(chance, content)
    value = json.loads(content)
    for _ in range(chance.randint(1, 3)):
        value = in_value(chance, value)
    return json.dumps(value).encode()


def json_lines(chance: Random, content: bytes) -> bytes:
    """One of the lines as `json_text` changes it."""
    lines = content.splitlines(keepends=True)
    place = chance.randrange(len(lines))
    lines[place] = json_text(chance, lines[place]) + b"\n"
    return b"".join(lines)


def yaml_text(chance: Random, content: bytes) -> bytes:
    """YAML of other values, or with other bytes, or values that stand for others."""
    if chance.random() < 0.5:
        return any_bytes(chance, content)
    value = yaml.safe_load(content)
    for _ in range(chance.randint(1, 3)):
        value = in_value(chance, value)
    text = yaml.safe_dump(value, sort_keys=False)
    if chance.random() < 0.1:
        text += "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}' if n else 'y'] * 9)}]\n" for n in range(12))
    return text.encode("utf-8", "replace")


def png(chance: Random, content: bytes) -> bytes:
    """Chunks with other bytes, and their right checksums."""
    if chance.random() < 0.3:
        return any_bytes(chance, content)
    chunks, place = [], 8
    while place + 12 <= len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    if chance.random() < 0.3:
        chunks.insert(chance.randrange(len(chunks) + 1), chance.choice(chunks))
    number = chance.randrange(len(chunks))
    name, data = chunks[number]
    if name == b"IDAT" and chance.random() < 0.7:
        data = zlib.compress(any_bytes(chance, zlib.decompress(data)))
    else:
        data = any_bytes(chance, data)
    chunks[number] = name, data
    return content[:8] + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def tar(chance: Random, content: bytes) -> bytes:
    """Headers with other bytes, and their right checksums."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 2)):
        header = 512 * chance.randrange(max(1, len(data) // 512))
        block = bytearray(any_bytes(chance, bytes(data[header : header + 512]))[:512].ljust(512, b"\0"))
        if chance.random() < 0.8:
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
        data[header : header + 512] = block
        if chance.random() < 0.2:
            data[header:header] = data[header : header + 512 * chance.randint(1, 4)] * chance.choice((1, 400))
    return bytes(data) if chance.random() < 0.8 else any_bytes(chance, bytes(data))


def zipped(inner: Damage) -> Damage:
    """A zip file with one member as `inner` changes it, or with other bytes."""

    def damaged(chance: Random, content: bytes) -> bytes:
        if chance.random() < 0.4:
            return any_bytes(chance, content)
        made = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
            members = old.infolist()
            changed = chance.choice(members).filename
            for member in members:
                data = old.read(member)
                new.writestr(member, inner(chance, data) if member.filename == changed else data)
        return made.getvalue()

    return damaged


def safetensors(chance: Random, content: bytes) -> bytes:
    """Another header, with its right length."""
    if chance.random() < 0.3:
        return any_bytes(chance, content)
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    name = chance.choice(list(header))
    match chance.randrange(5):
        case 0:
            header[name]["dtype"] = chance.choice(
                ("F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "U64", "C64")
            )
        case 1:
            header[name]["shape"] = chance.choice(([], [0], [-1], [2**40, 2**40], [1] * 70, [2**63]))
        case 2:
            header[chance.choice(("", "x" * 300, "a\nb", "__metadata__"))] = header.pop(name)
        case _:
            header = in_value(chance, header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def tar_of(members: dict[str, bytes]) -> bytes:
    """A tar file with these members."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar_file:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar_file.addfile(member, io.BytesIO(data))
    return made.getvalue()
