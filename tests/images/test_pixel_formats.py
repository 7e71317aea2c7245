"""How files hold pixels: bits, byte orders, white as zero, and levels that are numbers."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from smalti.images import large_planes, pixel_formats
from smalti.images.io import read_covering, read_image, read_numbers
from smalti.images.label_maps import read_labels

WHITE_IS_ZERO, BLACK_IS_ZERO = 0, 1


def packed(levels: npt.NDArray[Any], bits: int, order: str) -> bytes:
    """Levels (H,W) -> rows of this many bits each, filled up to whole bytes; of 12 bits two make three bytes."""
    if bits in (8, 16):
        return levels.astype(f"{order}u{bits // 8}").tobytes()
    rows = ["".join(f"{level:0{bits}b}" for level in row) for row in levels.tolist()]
    return b"".join(int(row.ljust(-(-len(row) // 8) * 8, "0"), 2).to_bytes(-(-len(row) // 8), "big") for row in rows)


def tiff(levels: npt.NDArray[Any], *, bits: int, photometric: int, order: str = "<", orientation: int = 1) -> bytes:
    """Levels (H,W) -> an uncompressed TIFF file."""
    (height, width), data = levels.shape, packed(levels, bits, order)
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 0, 274: orientation, 277: 1, 278: height}
    tags[279] = len(data)
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b""
    for tag, value in sorted(tags.items()):
        short = tag in (258, 259, 262, 274, 277)
        entries += struct.pack(f"{order}HHI", tag, 3 if short else 4, 1)
        entries += struct.pack(f"{order}{'H' if short else 'I'}", value).ljust(4, b"\0")
    magic = b"II" if order == "<" else b"MM"
    return magic + struct.pack(f"{order}HIH", 42, 8, len(tags)) + entries + b"\0" * 4 + data


def png(levels: npt.NDArray[Any], *, bits: int) -> bytes:
    """Levels (H,W) -> a gray PNG file."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    (height, width), data = levels.shape, packed(levels, bits, ">")
    stride = len(data) // height
    rows = b"".join(b"\0" + data[row * stride : (row + 1) * stride] for row in range(height))
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def ramp(bits: int) -> npt.NDArray[np.int64]:
    """(2,8) levels from 0 to the most that so many bits hold."""
    levels: npt.NDArray[np.int64] = np.arange(16, dtype=np.int64).reshape(2, 8) * (2**bits - 1) // 15
    return levels


@pytest.mark.parametrize(
    ("order", "photometric", "bits"),
    [
        (order, photometric, bits)
        for order in "<>"
        for photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO)
        for bits in (2, 4, 8, 16)
        if (order, photometric, bits) != (">", WHITE_IS_ZERO, 16)  # which Pillow does not read
    ],
)
def test_white_may_be_zero_with_any_number_of_bits(bits: int, photometric: int, order: str) -> None:
    """Pillow turns levels around up to 8 bits, and those of 16 it leaves as they are."""
    stored, most = ramp(bits), 2**bits - 1
    seen = stored if photometric == BLACK_IS_ZERO else most - stored
    file = tiff(stored, bits=bits, photometric=photometric, order=order)
    for channels in (1, 3, 4):
        found = read_image(io.BytesIO(file), channels=channels, name="a")
        limit = np.iinfo(found.dtype).max
        assert np.abs(found[:, :, 0] / limit - seen / most).max() < 1 / 255
        covering = read_covering(io.BytesIO(file), (2, 8), channels=channels, name="a").pixels
        assert np.abs(covering[:, :, 0] / np.iinfo(covering.dtype).max - seen / most).max() < 1 / 255


def test_white_as_zero_is_turned_around_also_where_the_image_is_turned_upright() -> None:
    file = tiff(ramp(16), bits=16, photometric=WHITE_IS_ZERO, orientation=6)
    found = read_image(io.BytesIO(file), channels=1, name="a")[:, :, 0]
    assert found.tolist() == np.rot90(65535 - ramp(16), -1).tolist()


def test_twelve_bits_reach_from_black_to_white() -> None:
    file = tiff(ramp(12), bits=12, photometric=BLACK_IS_ZERO)
    found = read_image(io.BytesIO(file), channels=1, name="a")[:, :, 0]
    assert (found.min(), found.max()) == (0, 65535)
    assert np.abs(found / 65535 - ramp(12) / 4095).max() < 1e-4
    assert read_numbers(io.BytesIO(file), name="a").tolist() == ramp(12).tolist()


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_labels_of_few_bits_are_the_numbers_that_are_stored(bits: int) -> None:
    """Pillow spreads gray of 2 and 4 bits over 8: of the labels 0, 1, 2 and 3 it makes 0, 85, 170 and 255."""
    labels = ramp(bits)
    assert read_labels(io.BytesIO(png(labels, bits=bits)), name="a")[:, :, 0].tolist() == labels.tolist()
    if bits > 1:
        for photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO):
            file = tiff(labels, bits=bits, photometric=photometric)
            assert read_labels(io.BytesIO(file), name="a")[:, :, 0].tolist() == labels.tolist()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_labels_of_a_palette_are_its_places(bits: int) -> None:
    image = Image.fromarray(ramp(bits).astype(np.uint8)).convert("L")
    image.putpalette([number * 7 % 256 for number in range(3 * 2**bits)])
    file = io.BytesIO()
    image.save(file, "PNG", bits=bits)
    assert read_labels(file, name="a")[:, :, 0].tolist() == ramp(bits).tolist()


@pytest.mark.parametrize("most", [1, 3, 20, 254, 255, 1000, 65535])
@pytest.mark.parametrize("plain", [False, True])
def test_labels_of_a_pgm_file_do_not_depend_on_its_largest_level(most: int, plain: bool) -> None:
    labels = np.minimum(np.arange(8).reshape(2, 4) * most // 7, most)
    body = (
        " ".join(map(str, labels.flatten())).encode()
        if plain
        else labels.astype(">u2" if most > 255 else "u1").tobytes()
    )
    file = b"P%d 4 2 %d\n" % (2 if plain else 5, most) + body
    assert read_labels(io.BytesIO(file), name="a")[:, :, 0].tolist() == labels.tolist()
    found = read_image(io.BytesIO(file), channels=1, name="a")  # as an image it reaches from black to white
    assert np.abs(found[:, :, 0] / np.iinfo(found.dtype).max - labels / most).max() < 1 / 254


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_image_in_strips_is_the_image_at_once(mode: str, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (11, 7, 4), dtype=np.uint8)
    image = Image.fromarray(colors).convert("RGB").convert(mode) if mode != "RGBA" else Image.fromarray(colors)
    if mode == "P":
        image.info["transparency"] = int(np.array(image)[0, 0])
    at_once = pixel_formats.levels_of(image, channels=channels, bits=8)
    monkeypatch.setattr(large_planes, "MAX_PIXELS_AT_ONCE", 3 * 7)  # 3 rows
    np.testing.assert_array_equal(pixel_formats.levels_of(image, channels=channels, bits=8), at_once)
