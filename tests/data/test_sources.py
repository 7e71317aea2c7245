"""Where images come from, and which side of the split they are on."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from smalti.core.errors import SmaltiError
from smalti.data.file_types import FILE_TYPES
from smalti.data.image_entries import ImageEntry
from smalti.data.sources import Source, holds_many, open_source, split
from smalti.images.io import DamagedImage
from smalti.scenes.scene_classes import write_scenes


def make_image(number: int, height: int = 24, width: int = 32) -> bytes:
    """A PNG whose red channel says which image it is, whose other channels say where a pixel lies."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([np.full((height, width), number), rows * 8 % 256, columns * 8 % 256], axis=2)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def keys_and_labels(source: Source) -> list[tuple[str, str | None]]:
    return [(make_image.key, make_image.label) for make_image in source.images]


# ---------------------------------------------------------------------------------------------------------- sources


def test_a_folder_gives_sorted_labeled_visible_images(tmp_path: Path) -> None:
    names = ["dog/b.PNG", "dog/old/a.png", "cat/ü 1.png", "top.png"]
    hidden = [".hidden.png", ".git/a.png", "cat/.thumbs/a.png", "notes.txt"]
    source = open_source(fill(tmp_path, dict.fromkeys(names + hidden, make_image(1))))
    assert keys_and_labels(source) == [
        ("cat/ü 1.png", "cat"),
        ("dog/b.PNG", "dog"),
        ("dog/old/a.png", "dog"),
        ("top.png", None),
    ]
    assert source.labels == ("cat", "dog")
    assert source.read(source.images[0], 3).shape == (24, 32, 3)


@pytest.mark.parametrize(
    ("kind", "folder"), [("color", "images"), ("edges", "images"), ("labels", "segmentations"), ("depth", "depths")]
)
def test_the_folder_of_scenes_is_not_that_of_their_images(kind: str, folder: str, tmp_path: Path) -> None:
    """It was read with label maps, depths and edges as images, whose labels were `images`, `depths` ...,
    without a word."""
    write_scenes(tmp_path / "scenes", count=2, size=(16, 16))
    with pytest.raises(SmaltiError, match=rf"holds scenes, .* give .*scenes/{folder}$"):
        open_source(tmp_path / "scenes", file_type=FILE_TYPES[kind](None))
    assert len(open_source(tmp_path / "scenes" / folder, file_type=FILE_TYPES[kind](None)).images) == 2


def test_labels_do_not_depend_on_how_accents_are_spelled(tmp_path: Path) -> None:
    source = open_source(fill(tmp_path, {"cafe\u0301/a.png": make_image(1)}))  # as macOS spells it
    assert source.labels == ("caf\u00e9",)


def test_linked_folders_are_followed_and_circles_end(tmp_path: Path) -> None:
    fill(tmp_path / "store", {"a.png": make_image(1)})
    root = fill(tmp_path / "root", {"own/b.png": make_image(2)})
    (root / "linked").symlink_to(tmp_path / "store")
    (root / "own" / "circle").symlink_to(root)
    assert [make_image.key for make_image in open_source(root).images] == ["linked/a.png", "own/b.png"]


def test_a_folder_without_images_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match=r"no images in .*; it holds no files; images are \.avif, .*\.jpg"):
        open_source(tmp_path)
    fill(tmp_path, {"a.txt": b"", "b.txt": b"", "c.md": b"", "README": b""})
    with pytest.raises(SmaltiError, match=r"it holds 4 files of the kinds \.txt, \.md, without a suffix; images"):
        open_source(tmp_path)


def test_paths_that_are_no_source_are_reported(tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match=r"there is no .*gone"):
        open_source(tmp_path / "gone")
    fill(tmp_path, {"a.png": make_image(1), "no.zip": b"not a zip file", "cut.zip": b"PK\x03\x04"})
    with pytest.raises(
        SmaltiError, match=r"a\.png is neither a folder, a \.txt list of paths, a \.zip file nor a \.tar shard"
    ):
        open_source(tmp_path / "a.png")
    for name in ("no.zip", "cut.zip"):
        with pytest.raises(SmaltiError, match=rf"cannot read .*{name} as a zip file"):
            open_source(tmp_path / name)


@pytest.mark.parametrize("name", ["a.tgz", "b.tar.gz", "C.TAR.ZST"])
def test_compressed_shards_are_reported_as_such(name: str, tmp_path: Path) -> None:
    """`smalti info` and `smalti reconstruct` said that they are not image."""
    fill(tmp_path, {name: b"\x1f\x8b" + bytes(600)})
    assert holds_many(tmp_path / name)
    with pytest.raises(SmaltiError, match="compressed"):
        open_source(tmp_path / name)


def test_a_list_keeps_its_order_and_finds_relative_and_absolute_paths(tmp_path: Path) -> None:
    fill(tmp_path, {"sets/in.png": make_image(3), "elsewhere/ö out.png": make_image(4), "up.png": make_image(5)})
    lines = ["\ufeffin.png", "", f"{tmp_path}/elsewhere/ö out.png", "../up.png", f"{tmp_path}/sets/in.png"]
    path = tmp_path / "sets" / "list.txt"
    path.write_bytes("\r\n".join(lines).encode())
    source = open_source(path)
    assert [make_image.key for make_image in source.images] == [
        "in.png",
        f"{tmp_path}/elsewhere/ö out.png",
        "../up.png",
    ]
    assert [source.read(make_image, 3)[0, 0, 0] for make_image in source.images] == [3, 4, 5]


def test_a_list_has_labels_where_its_images_share_a_root_with_folders(tmp_path: Path) -> None:
    fill(tmp_path, {f"photos/{name}.png": make_image(1) for name in ("dog/a", "dog/b", "cat/old/a")})
    path = tmp_path / "list.txt"
    path.write_text("photos/dog/a.png\nphotos/cat/old/a.png\nphotos/dog/b.png\n")
    assert [make_image.label for make_image in open_source(path).images] == ["dog", "cat", "dog"]
    path.write_text("photos/dog/a.png\nphotos/dog/b.png\n")
    assert open_source(path).labels == ()


def test_a_list_that_leads_out_of_its_folder_has_one_root(tmp_path: Path) -> None:
    """Labels were `/` and `..` where some paths were absolute and some were not."""
    fill(tmp_path, {name: make_image(1) for name in ("sets/cat/a.png", "sets/dog/b.png", "sets/dog/old/c.png")})
    path = tmp_path / "sets" / "lists" / "list.txt"
    path.parent.mkdir()
    path.write_text(f"{tmp_path}/sets/cat/a.png\n../dog/b.png\n{tmp_path}/sets/lists/../dog/old/c.png\n")
    found = open_source(path).images
    assert [(each.label, each.portable_name) for each in found] == [
        ("cat", "cat/a.png"),
        ("dog", "dog/b.png"),
        ("dog", "dog/old/c.png"),
    ]
    path.write_text(f"{tmp_path}/sets/dog/b.png\n")
    (single,) = open_source(path).images
    assert (single.label, single.portable_name) == (None, "b.png")
    inside = tmp_path / "sets" / "list.txt"  # a path that moves with the list stays the name
    inside.write_text("dog/b.png\ndog/old/c.png\n")
    assert [each.portable_name for each in open_source(inside).images] == ["dog/b.png", "dog/old/c.png"]


def test_a_list_names_what_is_missing(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": make_image(1), "list.txt": b"a.png\nb.png\nc.png\nd.png\ne.png\n", "blank.txt": b"\n \n"})
    with pytest.raises(SmaltiError, match=r"b\.png \(line 2\), c\.png \(line 3\), d\.png \(line 4\) and 1 more; paths"):
        open_source(tmp_path / "list.txt")
    with pytest.raises(SmaltiError, match=r"blank\.txt names no images"):
        open_source(tmp_path / "blank.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SmaltiError, match=r"cannot read .*binary\.txt as a list of paths"):
        open_source(tmp_path / "binary.txt")


def test_a_zip_file_is_read_without_unpacking(tmp_path: Path) -> None:
    names = ["photos/dog/a.png", "photos/cat/é.png", "__MACOSX/photos/dog/._a.png", "photos/.DS_Store/x.png", "a.md"]
    source = open_source(zipped(tmp_path / "photos.zip", {name: make_image(n) for n, name in enumerate(names)}))
    assert keys_and_labels(source) == [("photos/cat/é.png", "cat"), ("photos/dog/a.png", "dog")]
    assert [int(source.read(make_image, 3)[0, 0, 0]) for make_image in source.images] == [1, 0]
    copy = pickle.loads(pickle.dumps(source))
    assert copy.read(copy.images[1], 3).shape == (24, 32, 3)
    assert [file.name for file in tmp_path.iterdir()] == ["photos.zip"]


def test_every_process_opens_a_zip_file_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that share an open file share its reading position, and read each other's bytes."""
    source = open_source(zipped(tmp_path / "a.zip", {"a.png": make_image(1)}))
    source.read(source.images[0], 3)
    (tmp_path / "a.zip").unlink()
    assert source.read(source.images[0], 3)[0, 0, 0] == 1  # it is open already
    monkeypatch.setattr("smalti.data.sources.os.getpid", lambda: -1)  # as in a forked process
    with pytest.raises(DamagedImage, match=r"a\.png cannot be read from"):
        source.read(source.images[0], 3)


def test_a_zip_file_without_images_or_with_a_password_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match=r"no images in .*; it holds 1 file of the kind \.md"):
        open_source(zipped(tmp_path / "empty.zip", {"a.md": b"x"}))
    content = bytearray(zipped(tmp_path / "locked.zip", {"a.png": make_image(1)}).read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag for encryption in the directory
    (tmp_path / "locked.zip").write_bytes(content)
    with pytest.raises(SmaltiError, match=r"locked\.zip is locked with a password"):
        open_source(tmp_path / "locked.zip")


def test_a_damaged_member_of_a_zip_file_is_a_damaged_image(tmp_path: Path) -> None:
    content = bytearray(zipped(tmp_path / "a.zip", {"a.png": make_image(1), "b.png": make_image(2)}).read_bytes())
    content[60] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(content)
    source = open_source(tmp_path / "a.zip")
    with pytest.raises(DamagedImage, match=r"a\.png cannot be read from .*a\.zip"):
        source.read(source.images[0], 3)
    assert source.read(source.images[1], 3).shape == (24, 32, 3)
    (tmp_path / "a.zip").unlink()
    with pytest.raises(DamagedImage, match=r"b\.png cannot be read from"):
        pickle.loads(pickle.dumps(source)).read(source.images[1], 3)


# ------------------------------------------------------------------------------------------------------------ split


def images(count: int) -> list[ImageEntry]:
    return [ImageEntry(f"{n}.png", None) for n in range(count)]


def test_the_split_is_what_it_always_was() -> None:
    """Runs are resumed across versions: the split of these names is fixed."""
    training, validation = split(images(40), validation=0.1)
    assert len(training) + len(validation) == 40
    assert [make_image.key for make_image in validation] == ["0.png", "6.png", "8.png", "33.png"]


def test_the_split_is_stable_when_images_are_added() -> None:
    _, before = split(images(300), validation=0.2)
    _, after = split(images(600), validation=0.2)
    assert [make_image for make_image in after if make_image in images(300)] == list(before)
    assert 0.14 < len(after) / 600 < 0.26


@given(st.integers(0, 12), st.floats(1e-6, 1 - 1e-6))
def test_neither_side_of_a_split_is_empty(count: int, fraction: float) -> None:
    training, validation = split(images(count), validation=fraction)
    assert sorted(training + validation) == sorted(images(count))
    if count >= 2:
        assert training
        assert validation
    else:
        assert not validation


@pytest.mark.parametrize("fraction", [0, 1, -0.5, float("nan")])
def test_impossible_fractions_are_reported(fraction: float) -> None:
    with pytest.raises(SmaltiError, match="must be above 0 and below 1, not"):
        split(images(3), validation=fraction)
