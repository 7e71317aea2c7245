"""Images: every kind of file that is read, every kind of damage that is told, and what is done with the pixels."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from smalti.core.errors import SmaltiError
from smalti.images import resizing
from smalti.images.io import (
    IMAGE_SUFFIXES,
    DamagedImage,
    make_image_grid,
    read_covering,
    read_image,
    read_middle,
    read_settings,
    read_size,
    save_png,
    to_array,
    to_tensor,
)
from smalti.images.resizing import (
    Filter,
    center_crop,
    covered_middle,
    crop,
    is_excessive,
    resize_shorter,
    resize_to_cover,
)


def ramp(height: int, width: int) -> npt.NDArray[np.uint8]:
    """A smooth color image without symmetry, so that every wrong turn shows and JPEG keeps it."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 200 // height, columns * 250 // width, 255 - rows * 100 // height], 2).astype(np.uint8)


def read(path: Path, channels: int = 3) -> npt.NDArray[Any]:
    return read_image(path, channels=channels, name=path.name)


# What each EXIF orientation asks for: the stored pixels as a function of the upright ones.
STORED: dict[int, Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
@pytest.mark.parametrize("orientation", STORED)
def test_images_are_turned_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = ramp(24, 40)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo{suffix}"
    Image.fromarray(np.ascontiguousarray(STORED[orientation](upright))).save(path, exif=exif, quality=95)
    tolerance = 12 if suffix == ".jpg" else 0
    found = read(path)
    assert found.shape == (24, 40, 3)
    assert np.abs(found.astype(int) - upright).max() <= tolerance


ODD_EXIF = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"  # promises 65535 entries and ends


def test_a_damaged_exif_block_does_not_cost_the_image(tmp_path: Path) -> None:
    path = tmp_path / "odd.jpg"
    Image.fromarray(ramp(16, 16)).save(path, exif=ODD_EXIF)
    assert read(path).shape == (16, 16, 3)


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_kind_is_read(tmp_path: Path, suffix: str) -> None:
    kind = Image.registered_extensions().get(suffix)
    if kind is None or kind not in Image.SAVE:
        pytest.skip(f"this build of Pillow has no {suffix}")
    path = tmp_path / f"a{suffix}"
    gray = np.zeros((16, 20), dtype=np.uint8)
    gray[:, 10:] = 255
    Image.fromarray(gray).convert("1" if suffix == ".pbm" else "L").save(path)
    for channels in (1, 3):
        found = read(path, channels)
        assert found.shape == (16, 20, channels)
        assert found.dtype == np.uint8
        assert found[:, :5].max() < 20
        assert found[:, -5:].min() > 235


def test_sixteen_bits_are_kept_for_one_channel_and_scaled_for_three(tmp_path: Path) -> None:
    wide = np.array([[0, 1, 257, 300], [32768, 65000, 65407, 65535]], dtype=np.uint16)
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(wide).save(tmp_path / name)
        one, three = read(tmp_path / name, 1), read(tmp_path / name, 3)
        assert one.dtype == np.uint16
        assert np.array_equal(one[:, :, 0], wide)
        assert three.dtype == np.uint8
        assert three[:, :, 1].tolist() == [[0, 0, 1, 1], [128, 253, 255, 255]]


def test_sixteen_bits_from_pgm_and_big_endian_tiff(tmp_path: Path) -> None:
    wide = np.array([[0, 258], [513, 65535]], dtype=">u2")
    (tmp_path / "deep.pgm").write_bytes(b"P5 2 2 65535\n" + wide.tobytes())
    Image.frombytes("I;16B", (2, 2), wide.tobytes()).save(tmp_path / "big.tif")
    for name in ("deep.pgm", "big.tif"):
        assert read(tmp_path / name, 1)[:, :, 0].tolist() == [[0, 258], [513, 65535]]


def test_transparent_sixteen_bit_pixels_are_white(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    wide = np.array([[7, 900]], dtype=np.uint16)
    Image.fromarray(wide).save(path, transparency=7)
    assert read(path, 1)[:, :, 0].tolist() == [[65535, 900]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_merged_over_white(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "logo.png"
    if mode == "P":
        image = Image.new("P", (2, 1))
        image.putpalette([10, 20, 30, 200, 0, 0])
        image.putpixel((1, 0), 1)
        image.save(path, transparency=1)
        clear = (10, 20, 30)
    else:
        image = Image.new(mode, (2, 1), (50, 50, 50, 255) if mode == "RGBA" else (50, 255))
        image.putpixel((1, 0), (0,) * (len(mode) - 1) + (0,))
        image.save(path)
        clear = (50, 50, 50)
    found = read(path)
    assert tuple(found[0, 0]) == clear
    assert tuple(found[0, 1]) == (255, 255, 255)
    assert read(path, 1)[0, 1, 0] == 255


def test_half_transparent_black_is_gray(tmp_path: Path) -> None:
    path = tmp_path / "glass.png"
    Image.new("RGBA", (3, 3), (0, 0, 0, 128)).save(path)
    assert set(read(path).ravel().tolist()) == {127}


def test_cmyk_is_converted(tmp_path: Path) -> None:
    path = tmp_path / "print.jpg"
    Image.new("CMYK", (16, 16), (255, 0, 0, 0)).save(path, quality=95)
    red, green, blue = read(path).reshape(-1, 3).mean(0)
    assert red < 10
    assert green > 245
    assert blue > 245
    assert read(path, 1).shape == (16, 16, 1)


def test_of_an_animation_the_first_frame_is_read(tmp_path: Path) -> None:
    frames = [Image.new("L", (8, 8), value) for value in (255, 0, 128)]
    for name in ("film.gif", "film.png", "film.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert read(tmp_path / name, 1).min() > 250


def test_grayscale_keeps_its_levels_exactly_either_way(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    Image.fromarray(np.stack([levels, np.full_like(levels, 255)], 2)).save(tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        assert np.array_equal(read(tmp_path / name, 1)[:, :, 0], levels)
        assert np.array_equal(read(tmp_path / name, 3), np.repeat(levels[:, :, None], 3, 2))


def damaged_files() -> dict[str, tuple[bytes, str]]:
    jpeg, png = io.BytesIO(), io.BytesIO()
    Image.fromarray(ramp(64, 64)).save(jpeg, "JPEG")
    Image.fromarray(ramp(64, 64)).save(png, "PNG")
    most = len(jpeg.getvalue()) * 9 // 10
    spoilt = bytearray(png.getvalue())
    spoilt[len(spoilt) // 2] ^= 0xFF
    postscript = io.BytesIO()
    Image.fromarray(ramp(8, 8)).save(postscript, "EPS")
    floats = io.BytesIO()
    Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save(floats, "TIFF")
    deep = io.BytesIO()
    Image.fromarray(np.array([[0, 70000]], dtype=np.int32)).save(deep, "TIFF")
    return {
        "cut.jpg": (jpeg.getvalue()[:most], "cannot be read (image file is truncated"),
        "cut.png": (png.getvalue()[: len(png.getvalue()) // 2], "cannot be read ("),
        "spoilt.png": (bytes(spoilt), "cannot be read ("),
        "empty.png": (b"", "is empty (0 bytes)"),
        "text.png": (b"this is not an image\n" * 9, "is not an image of any kind that is read"),
        "drawing.png": (postscript.getvalue(), "is not an image"),
        "floats.tif": (floats.getvalue(), "32-bit floats"),
        "deep.tif": (deep.getvalue(), "32 bits"),
    }


@pytest.mark.parametrize("name", damaged_files())
@pytest.mark.parametrize("channels", [1, 3])
def test_damage_is_reported_with_the_name(tmp_path: Path, name: str, channels: int) -> None:
    content, reason = damaged_files()[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DamagedImage) as caught:
        read(tmp_path / name, channels)
    assert caught.value.name == name
    assert reason in str(caught.value)
    assert str(caught.value).startswith(name)


def test_a_missing_file_and_a_folder_are_reported(tmp_path: Path) -> None:
    with pytest.raises(DamagedImage, match=r"gone\.png is missing"):
        read(tmp_path / "gone.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DamagedImage, match=r"folder\.png cannot be read"):
        read(tmp_path / "folder.png")


def png_of_size(width: int, height: int) -> bytes:
    """A tiny file that claims to be a large one-bit image."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 60_000])  # Pillow warns of the first and refuses the second
def test_a_decompression_bomb_is_refused(side: int) -> None:
    with pytest.raises(DamagedImage, match=r"bomb\.png has more than 89,478,485 pixels"):
        read_image(io.BytesIO(png_of_size(side, side)), channels=3, name="bomb.png")


def test_warnings_of_pillow_do_not_leak() -> None:
    buffer = io.BytesIO()
    Image.fromarray(ramp(8, 8)).save(buffer, "JPEG", exif=ODD_EXIF)
    with pytest.warns(UserWarning, match="Corrupt EXIF"), Image.open(buffer) as image:
        image.getexif()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_image(buffer, channels=3, name="a.jpg")
    assert caught == []


def test_other_numbers_of_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SmaltiError, match=r"gives 1 channel .*, 3 .* or 4 .*, not 12; label maps, .* images\.file_type=labels"
    ):
        read(tmp_path / "any.png", 12)
    with pytest.raises(SmaltiError, match="not 2;"):
        read_covering(tmp_path / "any.png", (4, 4), channels=2, name="any.png")


def test_damage_survives_the_way_between_processes() -> None:
    copy = pickle.loads(pickle.dumps(DamagedImage("a.png", "is empty")))
    assert (copy.name, copy.reason, str(copy)) == ("a.png", "is empty", "a.png is empty")


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 40), st.integers(1, 40))
def test_resizing_covers_the_size_and_keeps_the_aspect(height: int, width: int, wanted: int, other: int) -> None:
    array = ramp(height, width)
    assert min(resize_shorter(array, wanted).shape[:2]) == wanted
    h, w = resize_to_cover(array, (wanted, other)).shape[:2]
    assert h >= wanted
    assert w >= other
    assert h == wanted or w == other
    scale = max(wanted / height, other / width)
    assert abs(h - height * scale) <= 0.5
    assert abs(w - width * scale) <= 0.5


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_shrinking_averages_instead_of_skipping(dtype: type[Any], channels: int) -> None:
    stripes = np.zeros((64, 64, channels), dtype=dtype)
    stripes[:, ::2] = np.iinfo(dtype).max
    small = resize_shorter(stripes, 8)
    assert small.dtype == dtype
    middle = small[:, 2:-2].astype(float) / np.iinfo(dtype).max
    assert abs(middle.mean() - 0.5) < 0.01
    assert middle.std() < 0.02


def test_lanczos_overshoot_does_not_wrap_around() -> None:
    edge = np.zeros((20, 20, 1), dtype=np.uint16)
    edge[:, 10:] = 65535
    large = resize_shorter(edge, 37)
    assert (np.diff(large[0, :, 0].astype(int)) > -4000).all()


def test_crops() -> None:
    array = ramp(9, 12)
    assert np.array_equal(crop(array, top=2, left=3, height=4, width=5), array[2:6, 3:8])
    assert np.array_equal(center_crop(array, (4, 6)), array[2:6, 3:9])
    with pytest.raises(AssertionError):
        crop(array, top=6, left=0, height=4, width=4)


def test_tensors_and_arrays_round_trip_exactly() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    tensor = to_tensor(levels)
    assert tensor.shape == (3, 16, 16)
    assert tensor.dtype == torch.float32
    assert (tensor.min().item(), tensor.max().item()) == (-1, 1)
    assert np.array_equal(to_array(tensor), levels)
    assert np.array_equal(to_array(torch.stack([tensor, tensor])), np.stack([levels, levels]))
    wide = to_tensor(np.array([[[0], [65535]]], dtype=np.uint16))
    assert wide.flatten().tolist() == [-1, 1]


def test_arrays_are_cut_and_rounded() -> None:
    values = torch.tensor([-3.0, -1.0, 0.0, 0.999, 7.0, float("nan"), float("inf")]).reshape(1, 1, 7)
    assert to_array(values).ravel().tolist() == [0, 0, 128, 255, 255, 0, 255]
    assert to_array(values.to(torch.bfloat16)).dtype == np.uint8


def test_a_grid_has_rows_and_gaps() -> None:
    images = torch.stack([torch.full((1, 2, 3), float(-i)) for i in range(5)]) / 10
    sheet = make_image_grid(images, columns=3, gap=1)
    assert sheet.shape == (1, 2 * 2 + 1, 3 * 3 + 2)
    assert (sheet[0, 3:, 4:7] == -0.4).all()
    assert (sheet[0, 2] == 1).all()
    assert (sheet[0, 3:, 8:] == 1).all()
    assert make_image_grid(images[:2], columns=8, gap=0).shape == (1, 2, 6)


def test_settings_travel_with_the_image(tmp_path: Path) -> None:
    settings = {"seed": 3, "label": "dämmerung", "nested": {"size": [64, 96], "none": None}}
    image = to_tensor(ramp(6, 8))
    save_png(tmp_path / "new" / "a.png", image, settings=settings)
    assert read_settings(tmp_path / "new" / "a.png") == settings
    assert np.array_equal(read(tmp_path / "new" / "a.png"), ramp(6, 8))
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.png"]


def test_gray_images_are_saved_gray(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", torch.zeros(1, 4, 4), settings={})
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "L"
    wide = np.array([[[5], [60000]]], dtype=np.uint16)
    save_png(tmp_path / "b.png", wide, settings={})
    assert np.array_equal(read(tmp_path / "b.png", 1), wide)


def test_images_without_our_settings_have_none(tmp_path: Path) -> None:
    Image.fromarray(ramp(4, 4)).save(tmp_path / "a.png")
    Image.fromarray(ramp(4, 4)).save(tmp_path / "a.jpg")
    assert read_settings(tmp_path / "a.png") is None
    assert read_settings(tmp_path / "a.jpg") is None
    (tmp_path / "b.png").write_bytes(b"no")
    with pytest.raises(DamagedImage, match=r"b\.png is not an image"):
        read_settings(tmp_path / "b.png")


def test_another_programs_text_is_not_taken_for_settings(tmp_path: Path) -> None:
    for number, text in enumerate(["not json {", "[1, 2]"]):
        info = PngInfo()
        info.add_text("smalti", text)
        Image.fromarray(ramp(4, 4)).save(tmp_path / f"{number}.png", pnginfo=info)
        assert read_settings(tmp_path / f"{number}.png") is None


# ------------------------------------------------------------------------------------------------ long and thin images

THIN = [((1, 6000), (24, 40)), ((6000, 1), (40, 24)), ((16000, 4), (8, 24)), ((3, 6001), (7, 9))]


@pytest.mark.parametrize(("full", "size"), THIN)
@pytest.mark.parametrize("filter", ["lanczos", "nearest"])
@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (3, np.uint8), (4, np.uint8), (3, np.uint16)])
def test_the_middle_of_a_thin_image_is_what_scaling_all_of_it_gives(
    full: tuple[int, int],
    size: tuple[int, int],
    filter: Filter,
    channels: int,
    dtype: type,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    most = np.iinfo(dtype).max
    # Waves within black and white: where Lanczos overshoots, Pillow cuts it off between its two passes,
    # in an order of its own.
    rows, columns, place = np.ogrid[: full[0], : full[1], :channels]
    thin: npt.NDArray[Any] = ((0.5 + 0.3 * np.sin(0.7 * (rows + columns) + place)) * most).astype(dtype)
    expected = center_crop(resize_to_cover(thin, size, filter=filter), size).astype(int)
    monkeypatch.setattr(resizing, "MAX_COVERING_PIXELS", 1)
    assert is_excessive(full, size)
    found = covered_middle(thin, size, filter=filter)
    assert found.shape == (*size, channels)
    assert found.dtype == dtype
    assert np.abs(found.astype(int) - expected).max() <= (
        0 if filter == "nearest" else most // 20
    )  # as 8 bits of opacity round


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
@pytest.mark.parametrize("full", [(1, 6000), (6000, 1), (16000, 4), (4, 16000)])
def test_a_thin_image_is_cut_and_never_scaled_as_a_whole(
    full: tuple[int, int], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of 1 x 6000 pixels has a hundred bytes; scaled to cover 512 x 512 it would have 5 GiB."""
    most = 0
    resize = Image.Image.resize

    def watched(image: Image.Image, size: tuple[int, int], *rest: Any, **more: Any) -> Image.Image:
        nonlocal most
        most = max(most, size[0] * size[1])
        return resize(image, size, *rest, **more)

    monkeypatch.setattr(Image.Image, "resize", watched)
    path = tmp_path / name
    Image.new("RGB", full[::-1], (9, 200, 9)).save(path)
    assert read_middle(path, (512, 512), channels=3, name=name).shape == (512, 512, 3)
    assert most == 512 * 512
    with pytest.raises(DamagedImage, match=f"is {full[0]}x{full[1]} pixels, too thin for size 512x512.*crop it"):
        read_covering(path, (512, 512), channels=3, name=name)
    with pytest.raises(DamagedImage, match=f"is {full[0]}x{full[1]} pixels, too small for size 512x512"):
        read_covering(path, (512, 512), channels=3, name=name, window=(512, 512))
    assert most == 512 * 512
    assert read_size(path, name=name) == full


@given(st.integers(1, 5000), st.floats(1, 7.9), st.booleans(), st.integers(8, 4096))
def test_images_up_to_eight_times_as_long_as_wide_are_never_too_thin(
    short: int, times: float, lies: bool, side: int
) -> None:
    full, size = (short, int(short * times)), (side, side)
    full = full[::-1] if lies else full
    assert not is_excessive(full, size)
