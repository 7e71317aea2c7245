"""Zip files of every system: slashes, names, links, members that are there twice."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest

from smalti.core.errors import SmaltiError
from smalti.data.file_types import Labels
from smalti.data.paired import paired_entries
from smalti.data.sources import open_source
from smalti.images.io import DamagedImage
from tests.data.test_sources import fill, keys_and_labels, make_image, zipped


def linked(path: Path, files: dict[str, bytes], links: dict[str, str]) -> Path:
    """A zip file with symbolic links, as `zip --symlinks` writes them."""
    zipped(path, files)
    with zipfile.ZipFile(path, "a") as archive:
        for name, target in links.items():
            member = zipfile.ZipInfo(name)
            member.create_system, member.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            archive.writestr(member, target)
    return path


def test_backslashes_part_folders(tmp_path: Path) -> None:
    """.NET and PowerShell wrote them: the images had no labels, and their results names with backslashes."""
    files = {
        "p\\": b"",
        "p\\cats\\1.png": make_image(1),
        "p\\dogs\\2.png": make_image(2),
        "p\\.hidden\\3.png": make_image(3),
    }
    source = open_source(zipped(tmp_path / "a.zip", files))
    assert keys_and_labels(source) == [("p/cats/1.png", "cats"), ("p/dogs/2.png", "dogs")]
    assert [int(source.read(each, 3)[0, 0, 0]) for each in source.images] == [1, 2]
    assert [source.length(each) for each in source.images] == [len(make_image(1)), len(make_image(2))]


def test_label_maps_with_backslashes_go_with_images(tmp_path: Path) -> None:
    images = open_source(fill(tmp_path / "p", {"cats/1.png": make_image(1), "dogs/2.png": make_image(2)}))
    maps = open_source(zipped(tmp_path / "m.zip", {"dogs\\2.png": b"", "cats\\1.png": b""}), file_type=Labels())
    assert [each.key for each in paired_entries(images.images, maps)] == ["cats/1.png", "dogs/2.png"]


def test_a_name_that_is_there_twice_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match=r"a\.zip holds cats/1\.png twice, as .* remove one"):
        open_source(zipped(tmp_path / "a.zip", {"cats\\1.png": make_image(1), "cats/1.png": make_image(2)}))


def test_of_a_member_that_was_added_again_the_last_counts(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"1.png": make_image(1)})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("1.png", make_image(2))
    source = open_source(path)
    assert [int(source.read(each, 3)[0, 0, 0]) for each in source.images] == [2]


def test_names_in_utf8_that_do_not_say_so_are_read(tmp_path: Path) -> None:
    """macOS writes them so; read in the code page of old Windows they are other names."""
    content = zipped(tmp_path / "a.zip", {"caf\u00e9/1.png": make_image(1), "b/2.png": make_image(2)}).read_bytes()
    for mark in (
        b"PK\x01\x02",
        b"PK\x03\x04",
    ):  # the flag is 0x800, eight bytes into a central and six into a local header
        place = content.index(mark) + (9 if mark.endswith(b"\x02") else 7)
        assert content[place] == 8
        content = content[:place] + b"\x00" + content[place + 1 :]
    (tmp_path / "a.zip").write_bytes(content)
    source = open_source(tmp_path / "a.zip")
    assert source.labels == ("b", "caf\u00e9")
    assert [int(source.read(each, 3)[0, 0, 0]) for each in source.images] == [2, 1]


def test_links_lead_to_their_files(tmp_path: Path) -> None:
    links = {"dogs/l.png": "../cats/1.png", "dogs/m.png": "l.png", "dogs/n.png": "../none.png", "dogs/o.png": "o.png"}
    source = open_source(linked(tmp_path / "a.zip", {"cats/1.png": make_image(1)}, links))
    assert [each.key for each in source.images] == ["cats/1.png", *sorted(links)]
    for each in source.images[:3]:
        assert int(source.read(each, 3)[0, 0, 0]) == 1
    for each in source.images[3:]:
        with pytest.raises(DamagedImage, match="is not an image"):
            source.read(each, 3)


def test_links_to_folders_are_folders(tmp_path: Path) -> None:
    """Images behind a link to a folder were left out without a word, and those beside them were of other labels."""
    files = {".store/v1/1.png": make_image(1), ".store/v1/2.png": make_image(2), "dogs/3.png": make_image(3)}
    links = {
        "cats": ".store/newest", ".store/newest": "v1", "dogs/one.png": "../cats/1.png", ".store/v1/more": "../../dogs",
        "dogs/self": ".", "dogs/none": "../nothing",
    }  # fmt: skip
    source = open_source(linked(tmp_path / "a.zip", files, links))
    assert [(each.key, int(source.read(each, 3)[0, 0, 0])) for each in source.images] == [
        ("cats/1.png", 1), ("cats/2.png", 2), ("cats/more/3.png", 3), ("cats/more/one.png", 1), ("dogs/3.png", 3),
        ("dogs/one.png", 1),
    ]  # fmt: skip
    assert source.labels == ("cats", "dogs")


def test_results_lead_nowhere_else(tmp_path: Path) -> None:
    """A name that begins with two dots was taken for a hidden file, and the image was gone without a word."""
    source = open_source(zipped(tmp_path / "a.zip", {"../1.png": make_image(1), "./b/2.png": make_image(2)}))
    assert np.array_equal([int(source.read(each, 3)[0, 0, 0]) for each in source.images], [1, 2])
