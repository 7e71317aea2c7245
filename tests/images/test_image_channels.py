"""Images of 1, 3 and 4 channels and of 16 bits: what is converted into what, and that nothing is lost on the way."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from smalti.images.io import read_covering, read_image, save_png, to_array, to_tensor
from smalti.images.resizing import center_crop, resize_to_cover

CHANCE = np.random.default_rng(0)
WIDE = CHANCE.integers(0, 65536, (6, 7, 4), dtype=np.uint16)
"""Colors and opacity."""


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def wide_png(pixels: npt.NDArray[np.uint16], *, transparent: tuple[int, ...] = ()) -> bytes:
    """Pixels (H,W,C) -> a PNG file of 16 bits, which Pillow cannot write in color."""
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    clear = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)) if transparent else b""
    begin = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return begin + clear + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def wide_tiff(pixels: npt.NDArray[np.uint16], *, order: str) -> bytes:
    """Pixels (H,W,C) -> an uncompressed TIFF file of 16 bits, `order` "<" or ">"."""
    height, width, channels = pixels.shape
    data = pixels.astype(f"{order}u2").tobytes()
    tags = {256: width, 257: height, 258: 0, 259: 1, 262: 2, 273: 0, 277: channels, 278: height, 279: len(data)}
    tags |= {338: 2} if channels == 4 else {}
    behind = 8 + 2 + 12 * len(tags) + 4
    tags |= {258: behind, 273: behind + 2 * channels}
    entries = b""
    for tag, value in tags.items():
        long = tag in (256, 257, 273, 278, 279)
        count = channels if tag == 258 else 1
        kind, layout = (4, "I") if long or tag == 258 else (3, "Hxx")
        entries += struct.pack(f"{order}HHI{layout}", tag, 3 if tag == 258 else kind, count, value)
    begin = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return begin + entries + bytes(4) + struct.pack(f"{order}{channels}H", *[16] * channels) + data


def read(content: bytes, channels: int, *, bits: Any = 16) -> npt.NDArray[Any]:
    return read_image(io.BytesIO(content), channels=channels, name="a", bits=bits)


def over_white(pixels: npt.NDArray[np.uint16]) -> npt.NDArray[np.float64]:
    opacity = pixels[:, :, 3:] / 65535
    return pixels[:, :, :3] * opacity + 65535 * (1 - opacity)


FILES: dict[str, Callable[[npt.NDArray[np.uint16]], bytes]] = {
    "png": wide_png,
    "little.tif": lambda pixels: wide_tiff(pixels, order="<"),
    "big.tif": lambda pixels: wide_tiff(pixels, order=">"),
}


@pytest.mark.parametrize("name", FILES)
def test_colors_of_sixteen_bits_are_kept(name: str, tmp_path: Path) -> None:
    three, four = FILES[name](WIDE[:, :, :3]), FILES[name](WIDE)
    assert np.array_equal(read(three, 3), WIDE[:, :, :3])
    assert np.array_equal(read(four, 4), WIDE)
    opaque = read(three, 4)
    assert np.array_equal(opaque[:, :, :3], WIDE[:, :, :3])
    assert (opaque[:, :, 3] == 65535).all()
    assert np.abs(read(four, 3) - over_white(WIDE)).max() <= 0.5
    gray = WIDE[:, :, :3] @ np.array([0.299, 0.587, 0.114])
    assert np.abs(read(three, 1)[:, :, 0] - gray).max() <= 0.5
    (tmp_path / "a").write_bytes(three)
    assert np.array_equal(read_image(tmp_path / "a", channels=3, name="a", bits=16), WIDE[:, :, :3])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_with_eight_bits_the_upper_ones_are_taken(channels: int) -> None:
    found = read(wide_png(WIDE[:, :, :3]), channels, bits=8)
    assert found.dtype == np.uint8
    assert found.shape == (6, 7, channels)
    if channels > 1:
        assert np.array_equal(found[:, :, :3], WIDE[:, :, :3] >> 8)


def test_gray_of_sixteen_bits_becomes_every_number_of_channels() -> None:
    gray = WIDE[:, :, :1]
    for channels in (1, 3):
        assert np.array_equal(read(wide_png(gray), channels), np.repeat(gray, channels, axis=2))
    four = read(wide_png(gray, transparent=(int(gray[2, 3, 0]),)), 4)
    assert np.array_equal(four[:, :, :3], np.repeat(gray, 3, axis=2))
    assert (four[:, :, 3] == 0).sum() == 1
    assert four[2, 3, 3] == 0


def test_a_transparent_color_of_sixteen_bits_is_that_one_alone() -> None:
    pixels = WIDE[:, :, :3].copy()
    pixels[0, 0], pixels[0, 1] = (256, 512, 768), (256, 512, 769)  # alike in their upper bits
    found = read(wide_png(pixels, transparent=(256, 512, 768)), 3)
    assert (found[0, 0] == 65535).all()
    assert np.array_equal(found[0, 1], pixels[0, 1])
    assert np.array_equal(found[1:], pixels[1:])


def test_four_channels_are_color_and_opacity(tmp_path: Path) -> None:
    pixels = (WIDE >> 8).astype(np.uint8)
    save_png(tmp_path / "a.png", pixels)
    assert np.array_equal(read_image(tmp_path / "a.png", channels=4, name="a"), pixels)
    tensor = to_tensor(pixels)
    save_png(tmp_path / "b.png", tensor)
    assert np.array_equal(read_image(tmp_path / "b.png", channels=4, name="b"), to_array(tensor))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "CMYK", "YCbCr", "I;16"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_mode_becomes_every_number_of_channels(mode: str, channels: int, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.new(mode, (5, 4), {"RGB": (255, 255, 255), "CMYK": (0, 0, 0, 0), "YCbCr": (255, 128, 128)}.get(mode, 0)).save(
        path
    )
    black = mode in ("1", "L", "LA", "P", "I;16")
    found = read_image(path, channels=channels, name="a")
    assert found.shape == (4, 5, channels)
    clear = mode == "LA"
    white = 65535 if found.dtype == np.uint16 else 255
    assert (found[:, :, : min(channels, 3)] == (0 if black and not (clear and channels < 4) else white)).all()
    if channels == 4:
        assert (found[:, :, 3] == (0 if clear else 255)).all()


def test_colors_weigh_by_their_opacity_when_scaled() -> None:
    """Without it the hidden color of clear pixels would shine through at every edge of the opaque ones."""
    for dtype, most in ((np.uint8, 255), (np.uint16, 65535)):
        pixels = np.zeros((32, 32, 4), dtype=dtype)
        pixels[:, :16] = (most, 0, 0, most)
        pixels[:, 16:] = (0, most, 0, 0)  # clear green
        small = resize_to_cover(pixels, (9, 9))
        assert small.dtype == dtype
        seen = small[:, :, 3] > most // 20
        assert small[:, :, 1].max() <= most // 50
        assert small[seen][:, 0].min() >= most - most // 20


def test_labels_are_scaled_without_new_ones() -> None:
    labels = np.array([0, 7, 200], dtype=np.uint8)[CHANCE.integers(0, 3, (23, 31, 1))]
    for size in ((50, 70), (11, 9), (23, 31), (1, 1)):
        found = resize_to_cover(labels, size, filter="nearest")
        assert found.shape == resize_to_cover(labels, size).shape
        assert set(np.unique(found)) <= {0, 7, 200}
    doubled = resize_to_cover(labels, (46, 62), filter="nearest")
    assert np.array_equal(doubled, labels.repeat(2, axis=0).repeat(2, axis=1))


# ---------------------------------------------------------------------------------------------------- scaled on reading


def smooth(height: int, width: int) -> npt.NDArray[np.uint8]:
    """An image without symmetry and with nothing so fine that a JPEG file would lose it."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = np.sin(rows / 29) + np.cos(columns / 37)
    return np.stack([rows * 255 // height, columns * 255 // width, (waves + 2) * 60], axis=2).astype(np.uint8)


@pytest.mark.parametrize("size", [(16, 16), (40, 24), (24, 40), (200, 100)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_jpeg_is_read_as_if_it_were_read_whole(orientation: int, size: tuple[int, int], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    Image.fromarray(smooth(203, 277)).save(path, exif=exif, quality=95)  # sides that no step divides
    whole = read_image(path, channels=3, name="a")
    expected = resize_to_cover(whole, size)
    found, full = read_covering(path, size, channels=3, name="a")
    assert full == whole.shape[:2]
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 6
    assert np.abs(found.astype(int) - expected).mean() < 1


@pytest.mark.parametrize(
    ("size", "decoded"),
    [
        ((4, 4), (64, 64)),
        ((32, 32), (64, 64)),
        ((33, 32), (128, 128)),
        ((32, 65), (256, 256)),
        ((128, 128), (256, 256)),
        ((129, 128), (512, 512)),
    ],
)
def test_the_decoder_leaves_out_what_is_not_requested(
    size: tuple[int, int], decoded: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1/8 at most, and always at least twice as large as what is asked for."""
    seen: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def noted(image: Image.Image, *arguments: Any, **options: Any) -> Image.Image:
        seen.append(image.size)
        return resize(image, *arguments, **options)

    Image.fromarray(smooth(512, 512)).save(tmp_path / "a.jpg")
    monkeypatch.setattr(Image.Image, "resize", noted)
    read_covering(tmp_path / "a.jpg", size, channels=3, name="a")
    assert seen == [decoded]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_every_kind_of_jpeg_is_scaled_on_reading(mode: str, channels: int, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(smooth(200, 300)).convert(mode).save(path, quality=95)
    expected = resize_to_cover(read_image(path, channels=channels, name="a"), (20, 20))
    found = read_covering(path, (20, 20), channels=channels, name="a").pixels
    assert found.shape == expected.shape == (20, 30, channels)
    assert np.abs(found.astype(int) - expected).max() <= 6


def test_other_files_are_scaled_as_ever() -> None:
    for content in (wide_png(WIDE), wide_png(WIDE[:, :, :1])):
        for channels in (1, 3, 4):
            found, full = read_covering(io.BytesIO(content), (3, 3), channels=channels, name="a")
            assert full == (6, 7)
            assert found.dtype == np.uint16
            assert np.array_equal(found, resize_to_cover(read(content, channels), (3, 3)))


def test_what_is_read_does_not_depend_on_where_it_is_read_from(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(wide_png(WIDE))
    stream = io.BytesIO(wide_png(WIDE))
    stream.seek(9)
    for source in (tmp_path / "a.png", stream):
        assert np.array_equal(read_image(source, channels=4, name="a", bits=16), WIDE)
    assert np.array_equal(center_crop(read(wide_png(WIDE), 4), (6, 7)), WIDE)
