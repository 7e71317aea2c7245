"""PNG files written row by row: what Pillow reads in them, their settings, and disks that refuse."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from smalti.core.errors import SmaltiError
from smalti.images.io import read_settings, save_png
from smalti.images.png_stream import Head, filtered, read_head, write_png

Bytes = npt.NDArray[np.uint8]


def random_pixels(height: int, width: int, channels: int, *, seed: int = 0) -> Bytes:
    """A ramp with some noise: neither is one filter best everywhere, nor does it not matter."""
    chance = np.random.RandomState(seed)
    ramp = np.add.outer(np.arange(height) * 3, np.arange(width) * 7)[:, :, None] * np.arange(1, channels + 1)
    return ((ramp + chance.randint(0, 1 + 40 * (seed % 3), ramp.shape)) % 256).astype(np.uint8)


def strips(pixels: Bytes, rows: int) -> Iterator[Bytes]:
    yield from (pixels[first : first + rows] for first in range(0, len(pixels), rows))


@given(
    height=st.integers(1, 17),
    width=st.integers(1, 13),
    channels=st.sampled_from([1, 3, 4]),
    rows=st.integers(1, 20),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_pillow_reads_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, channels: int, rows: int, seed: int
) -> None:
    path, pixels = tmp_path_factory.mktemp("png") / "new" / "a.png", random_pixels(height, width, channels, seed=seed)
    write_png(path, strips(pixels, rows), size=(height, width), settings={"seed": seed, "label": "grün"})
    with Image.open(path) as image:
        assert image.mode == {1: "L", 3: "RGB", 4: "RGBA"}[channels]
        assert (np.asarray(image).reshape(pixels.shape) == pixels).all()
    assert read_settings(path) == {"seed": seed, "label": "grün"}
    assert read_head(path) == Head((height, width), {"seed": seed, "label": "grün"})


def one_row(line: list[int], above: list[int], channels: int, number: int) -> list[int]:
    """A row under one filter, as section 9 of the specification has it."""
    rest = []
    for place, byte in enumerate(line):
        left = line[place - channels] if place >= channels else 0
        up = above[place]
        corner = above[place - channels] if place >= channels else 0
        near = {each: abs(left + up - corner - each) for each in (corner, up, left)}
        paeth = next(each for each in (left, up, corner) if near[each] == min(near.values()))
        rest.append((byte - (0, left, up, (left + up) // 2, paeth)[number]) % 256)
    return rest


@pytest.mark.parametrize("channels", [1, 3])
def test_each_row_takes_the_filter_that_leaves_least(channels: int) -> None:
    pixels = np.concatenate([random_pixels(8, 9, channels, seed=seed) for seed in range(5)])
    pixels[5], pixels[6:8] = 200, pixels[0]  # rows for "none" below others, and for "up"
    lines = pixels.reshape(len(pixels), -1)
    chosen = set()
    above = np.zeros_like(lines[:1])
    for row, given_row in enumerate(filtered(lines, above, channels).tolist()):
        before = lines[row - 1].tolist() if row else above[0].tolist()
        every = [one_row(lines[row].tolist(), before, channels, number) for number in range(5)]
        costs = [sum(min(byte, 256 - byte) for byte in rest) for rest in every]
        assert given_row[0] == costs.index(min(costs))
        assert given_row[1:] == every[given_row[0]]
        chosen.add(given_row[0])
    assert len(chosen) >= 4
    again = np.concatenate([filtered(lines[:7], above, channels), filtered(lines[7:], lines[6:7], channels)])
    assert (again == filtered(lines, above, channels)).all()


def test_files_are_about_as_small_as_pillows(tmp_path: Path) -> None:
    pixels = random_pixels(200, 300, 3, seed=1)
    write_png(tmp_path / "ours.png", strips(pixels, 16), size=(200, 300))
    save_png(tmp_path / "pillows.png", pixels)
    assert (tmp_path / "ours.png").stat().st_size < 1.1 * (tmp_path / "pillows.png").stat().st_size


def test_what_goes_wrong_in_between_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"before")

    def broken() -> Iterator[Bytes]:
        yield random_pixels(2, 4, 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_png(tmp_path / "a.png", broken(), size=(4, 4))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"before"


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    def full() -> Iterator[Bytes]:
        yield random_pixels(2, 4, 3)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(SmaltiError, match=r"cannot write .*a\.png: No space left on device; nothing written before is"):
        write_png(tmp_path / "a.png", full(), size=(4, 4))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full comes with Linux")
def test_a_disk_that_is_full_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode: opened(Path("/dev/full"), mode))
    with pytest.raises(SmaltiError, match=r"cannot write .*a\.png: No space left on device"):
        write_png(tmp_path / "a.png", strips(random_pixels(64, 4, 3), 2), size=(64, 4))
    assert not list(tmp_path.iterdir())


def test_heads_of_other_files(tmp_path: Path) -> None:
    Image.new("L", (5, 3)).save(tmp_path / "a.png")
    assert read_head(tmp_path / "a.png") == Head((3, 5), None)
    Image.new("L", (5, 3)).save(tmp_path / "a.jpg")
    (tmp_path / "short.png").write_bytes((tmp_path / "a.png").read_bytes()[:20])
    for name in ("a.jpg", "short.png", "none.png"):
        assert read_head(tmp_path / name) is None


def test_settings_nested_too_deep_are_none(tmp_path: Path) -> None:
    """They ended in a traceback of a `RecursionError`."""
    text = PngInfo()
    text.add_text("smalti", "[" * 99999)
    Image.new("RGB", (4, 4)).save(tmp_path / "deep.png", pnginfo=text)
    head = read_head(tmp_path / "deep.png")
    assert head is not None
    assert head.settings is None
    assert read_settings(tmp_path / "deep.png") is None
