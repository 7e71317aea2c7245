"""Files whose pixels are numbers: every way in which labels and depths come, and what is neither."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from smalti.images.io import DamagedImage
from smalti.images.label_maps import (
    DEPTH_SUFFIXES,
    LABEL_SUFFIXES,
    depth_levels,
    normalize_depth,
    read_any,
    read_depth,
    read_labels,
)

NUMBERS = np.array([[0, 7, 30], [200, 5, 1]])


def saved(path: Path, numbers: npt.NDArray[Any], **options: Any) -> Path:
    Image.fromarray(numbers).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", LABEL_SUFFIXES)
def test_labels_are_read_from_every_file_that_keeps_them(suffix: str, tmp_path: Path) -> None:
    labels = (NUMBERS > 6) * 255 if suffix == ".pbm" else NUMBERS
    image = Image.fromarray(labels.astype(np.uint8))
    if suffix == ".pbm":
        image = image.convert("1")
        labels = labels // 255
    if suffix == ".gif":
        image = image.convert("P")
    path = tmp_path / f"a{suffix}"
    image.save(path)
    found = read_labels(path, name="a")
    assert found.shape == (2, 3, 1)
    assert found.dtype == np.uint8
    if suffix != ".gif":  # whose writer may order its palette as it likes
        assert found[:, :, 0].tolist() == labels.tolist()
    assert not {".jpg", ".jpeg"} & set(LABEL_SUFFIXES)


def test_labels_of_sixteen_bits_are_kept(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif", "a.pgm"):
        found = read_labels(saved(tmp_path / name, (NUMBERS * 300).astype(np.uint16)), name=name)
        assert found.dtype == np.uint16
        assert found[:, :, 0].tolist() == (NUMBERS * 300).tolist()


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (np.zeros((2, 2, 3), np.uint8), "holds colors, and a segmentation one label a pixel"),
        (np.zeros((2, 2, 4), np.uint8), "holds colors"),
        (np.zeros((2, 2), np.float32), "holds floats, and a segmentation whole numbers; save it with 8 or 16 bits"),
        (np.array([[0, 70000]], np.int32), "holds the label 70000, and labels go from 0 to 65535"),
        (np.array([[-3, 5]], np.int32), "holds the label -3"),
    ],
)
def test_what_is_no_label_map_is_reported(numbers: npt.NDArray[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DamagedImage, match=rf"^wrong\.tif {message}"):
        read_labels(saved(tmp_path / "a.tif", numbers), name="wrong.tif")


DEPTHS: dict[str, tuple[str, npt.NDArray[Any]]] = {
    "8 bits": ("a.png", NUMBERS.astype(np.uint8)),
    "16 bits": ("a.png", (NUMBERS * 300).astype(np.uint16)),
    "floats": ("a.tif", (NUMBERS / 7 - 3).astype(np.float32)),
    "four bytes": ("a.png", (NUMBERS / 7).astype("<f4").view(np.uint8).reshape(2, 3, 4)),
    "gray as color": ("a.png", np.repeat(NUMBERS.astype(np.uint8)[:, :, None], 3, axis=2)),
    "gray as opaque color": ("a.png", np.dstack([NUMBERS.astype(np.uint8)] * 3 + [np.full((2, 3), 255, np.uint8)])),
}


@pytest.mark.parametrize("name", DEPTHS)
def test_depths_are_the_numbers_of_their_file(name: str, tmp_path: Path) -> None:
    file, stored = DEPTHS[name]
    path = saved(tmp_path / file, stored)
    expected = {"16 bits": NUMBERS * 300, "floats": NUMBERS / 7 - 3, "four bytes": NUMBERS / 7}.get(name, NUMBERS)
    for source in (path, io.BytesIO(path.read_bytes())):
        found = read_depth(source, name="a")
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float16, np.float32, np.float64, bool, ">f4"])
@pytest.mark.parametrize("shape", [(2, 3), (1, 2, 3), (2, 3, 1)])
def test_arrays_are_read_whatever_their_type(dtype: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    numbers = NUMBERS.astype(dtype)
    np.save(tmp_path / "a.npy", numbers.reshape(shape))
    assert ".npy" in DEPTH_SUFFIXES
    for source in (tmp_path / "a.npy", io.BytesIO((tmp_path / "a.npy").read_bytes())):
        assert read_depth(source, name="a").tolist() == numbers.astype(np.float32).tolist()
    assert read_any(tmp_path / "a.npy", name="a").dtype == numbers.dtype


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 3)), r"holds float64 of shape \(2, 3, 3\), and a depth is numbers of shape \(H, W\)"),
        (np.zeros(7), r"holds float64 of shape \(7,\)"),
        (np.zeros((0, 3)), r"holds float64 of shape \(0, 3\)"),
        (np.zeros((2, 2), dtype=complex), "holds complex128"),
        (np.array([["a"]]), "holds <U1"),
        (np.array([[{}]]), "cannot be read .*pickle"),
        (np.array([[1.0, np.nan]]), "holds infinite numbers or NaN"),
        (np.array([[1.0, -np.inf]]), "holds infinite numbers or NaN"),
        (np.array([[1.0, 1e300]]), "holds infinite numbers or NaN"),
    ],
)
def test_arrays_that_are_no_depth_are_reported(array: npt.NDArray[Any], message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DamagedImage, match=rf"^wrong\.npy {message}"):
        read_depth(tmp_path / "a.npy", name="wrong.npy")


def test_damaged_files_are_reported(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", NUMBERS)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-5])
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    reasons = {
        "cut.npy": "cannot be read",
        "empty.npy": r"is empty \(0 bytes\)",
        "text.png": "is not an image",
        "no": "is missing",
    }
    for name, reason in reasons.items():
        with pytest.raises(DamagedImage, match=f"^{name} {reason}"):
            read_depth(tmp_path / name, name=name)


def test_colors_are_no_depth(tmp_path: Path) -> None:
    with pytest.raises(
        DamagedImage, match=r"^wrong\.png holds colors, and a depth one number per pixel; save it as gray"
    ):
        read_depth(
            saved(tmp_path / "a.png", np.dstack([NUMBERS, NUMBERS, NUMBERS.T.reshape(2, 3)]).astype(np.uint8)),
            name="wrong.png",
        )


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=12))
def test_levels_are_the_spread_depths_to_the_nearest_of_sixteen_bits(values: list[float]) -> None:
    depth = np.array([values], dtype=np.float32)
    levels = depth_levels(depth)
    assert levels.shape == (1, len(values), 1)
    expected = normalize_depth(torch.from_numpy(depth)).numpy()
    assert np.abs(levels[:, :, 0] / 32767.5 - 1 - expected).max() <= 0.5 / 32767.5 + 1e-6
