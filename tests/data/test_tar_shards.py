"""Tar shards: what is a sample, its label, any place at any time, every kind of damage, and the same as WebDataset
sees."""

from __future__ import annotations

import gc
import gzip
import importlib
import io
import json
import pickle
import tarfile
import warnings
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from smalti.cli.main import app
from smalti.core.errors import SmaltiError
from smalti.data import tar_shards
from smalti.data.crops import RandomCrop
from smalti.data.file_types import Depth, Labels
from smalti.data.image_entries import ImageEntry
from smalti.data.loader import Crops, batches
from smalti.data.sources import Source, holds_many, is_pattern, open_source
from smalti.data.tar_shards import expanded
from smalti.images.io import DamagedImage
from tests.data.test_sources import fill, keys_and_labels, make_image


def tarred(path: Path, files: dict[str, bytes], *, format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def numbered(folder: Path, *, shards: int = 3, each: int = 5) -> Path:
    """Shards of numbered images."""
    for shard in range(shards):
        files = {f"{shard}_{n}.png": make_image(shard * each + n) for n in range(each)}
        tarred(folder / f"shards-{shard:03d}.tar", files)
    return folder


def red(source: Source, place: int) -> int:
    return int(source.read(source.images[place], 3)[0, 0, 0])


# ------------------------------------------------------------------------------------------------------------- what is
# there


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_shard_is_read_at_any_place(format: int, tmp_path: Path) -> None:
    long = f"{'x' * 90}/{'y' * 90}" if format == tarfile.USTAR_FORMAT else f"{'x' * 150}/{'ü' * 150}"
    names = [
        "./a.PNG",
        "b.v1.png",
        f"{long}.png",
        "d/e.f/g.png",
        ".hidden.png",
        "__MACOSX/a.png",
        "noending",
        ".x/a.png",
    ]
    path = tarred(tmp_path / "one.tar", {name: make_image(n) for n, name in enumerate(names)}, format=format)
    source = open_source(path)
    assert [each.key for each in source.images] == ["one/a.png", "one/b.v1.png", f"one/{long}.png", "one/d/e.f/g.png"]
    assert [red(source, place) for place in (3, 0, 2, 1)] == [3, 0, 2, 1]


def test_a_folder_a_pattern_and_a_list_of_names_give_the_same_images(tmp_path: Path) -> None:
    numbered(tmp_path / "set")
    (tmp_path / "set" / "notes.txt").write_text("not a shard")
    sources = [
        open_source(path)
        for path in (
            tmp_path / "set",
            tmp_path / "set" / "shards-{000..002}.tar",
            tmp_path / "set" / "shards-{000,001,002}.tar",
        )
    ]
    assert [each.key for each in sources[0].images] == [
        f"shards-{s:03d}/{s}_{n}.png" for s in range(3) for n in range(5)
    ]
    for source in sources:
        assert source.images == sources[0].images
        assert [red(source, place) for place in range(15)] == list(range(15))


def test_shards_in_folders_have_different_names(tmp_path: Path) -> None:
    for part in ("a", "b"):
        tarred(tmp_path / part / "0.tar", {"x.png": make_image(1)})
    expected = [("a/0/x.png", None), ("b/0/x.png", None)]
    assert keys_and_labels(open_source(tmp_path)) == expected
    assert keys_and_labels(open_source(tmp_path / "{a,b}" / "0.tar")) == expected


def test_images_nearby_shards_are_what_is_meant(tmp_path: Path) -> None:
    tarred(tmp_path / "0.tar", {"x.png": make_image(1)})
    fill(tmp_path, {"own.png": make_image(2)})
    assert [each.key for each in open_source(tmp_path).images] == ["own.png"]


def test_names_are_expanded_as_a_shell_does() -> None:
    assert expanded("s-{008..011}.tar") == ["s-008.tar", "s-009.tar", "s-010.tar", "s-011.tar"]
    assert expanded("s-{8..11}.tar") == ["s-8.tar", "s-9.tar", "s-10.tar", "s-11.tar"]
    assert expanded("s-{2..0}.tar") == ["s-2.tar", "s-1.tar", "s-0.tar"]
    assert expanded("{a,b}/{0..1}.tar") == ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]
    assert expanded("plain.tar") == ["plain.tar"]
    with pytest.raises(SmaltiError, match=r"the braces of a-\{0\.\.1\.tar do not match"):
        expanded("a-{0..1.tar")
    with pytest.raises(SmaltiError, match=r"\{0\.\.99999999\} names 100,000,000 shards"):
        expanded("a-{0..99999999}.tar")


def test_what_stands_for_many_images(tmp_path: Path) -> None:
    numbered(tmp_path)
    assert all(holds_many(tmp_path / name) for name in ("", "a.tar", "a.zip", "a.txt"))
    assert not holds_many(tmp_path / "a.png")
    assert is_pattern(tmp_path / "shards-{000..002}.tar")
    assert not is_pattern(tmp_path / "shards-000.tar")
    with pytest.raises(SmaltiError, match=r"names 5 shards, and there is no .*shards-003\.tar, .*shards-004\.tar$"):
        open_source(tmp_path / "shards-{000..004}.tar")


def test_info_says_what_shards_and_maps_hold(tmp_path: Path) -> None:
    numbered(tmp_path / "set")
    fill(tmp_path / "bad", {"a.png": b"text"})
    np.save(tmp_path / "set" / "depth.npy", np.array([[0.5, 2.25]], np.float32))
    (tmp_path / "depths").mkdir()
    (tmp_path / "set" / "depth.npy").rename(tmp_path / "depths" / "depth.npy")
    first = "first: shards-000/0_0.png, 24x32 (height x width), 3 x 8-bit numbers, 0 to 248"
    expected = {
        "set": ["count: 15", first],
        "set/shards-{000..001}.tar": ["count: 10", first],
        "set/shards-002.tar": ["count: 5", "first: shards-002/2_0.png"],
        "depths": ["count: 1", "first: depth.npy, 1x2 (height x width), 1 x 32-bit floats, 0.5 to 2.25"],
        "bad": ["first: a.png is not an image of any kind"],
    }
    for name, lines in expected.items():
        done = CliRunner().invoke(app, ["info", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
        assert all(line in " ".join(done.output.split()) for line in lines), done.output


# -------------------------------------------------------------------------------------------------------------------
# labels


def test_labels_stand_nearby_an_image_or_are_its_folder(tmp_path: Path) -> None:
    files = {
        "cat/1.png": make_image(1),
        "cat/2.cls": b"7\n",
        "cat/2.png": make_image(2),
        "dog/3.png": make_image(3),
        "dog/3.cls.txt": "\ufefflöwe".encode(),
        "dog/4.json": json.dumps({"label": 12, "more": []}).encode(),
        "dog/4.png": make_image(4),
        "dog/5.json": json.dumps({"caption": "x"}).encode(),
        "dog/5.png": make_image(5),
        "dog/6.json": b"[1]",
        "dog/6.png": make_image(6),
        "dog/7.json": json.dumps({"label": True}).encode(),
        "dog/7.png": make_image(7),
        "dog/8.cls": b" ",
        "dog/8.png": make_image(8),
    }
    source = open_source(tarred(tmp_path / "a.tar", files))
    assert [each.label for each in source.images] == ["cat", "7", "löwe", "12", "dog", "dog", "dog", "dog"]
    assert source.labels == ("12", "7", "cat", "dog", "löwe")
    alone = open_source(tarred(tmp_path / "b.tar", {"cat/1.png": make_image(1), "cat/2.png": make_image(2)}))
    assert alone.labels == ()


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("1.0", "1"),
        ("-2.0", "-2"),
        ("0.5", "0.5"),
        ("7", "7"),
        ('"cafe\\u0301"', "caf\u00e9"),
        ("null", "dog"),
        ('""', "dog"),
    ],
)
def test_labels_in_json_may_be_numbers_of_any_kind(value: str, label: str, tmp_path: Path) -> None:
    """A table whose column has gaps writes 1.0 for 1, and such labels were lost without a word."""
    files = {"dog/0.json": f'{{"label": {value}}}'.encode("utf-16"), "dog/0.png": make_image(0), "1.png": make_image(1)}
    assert open_source(tarred(tmp_path / "a.tar", files)).images[0].label == label


@pytest.mark.parametrize("value", ["[1, 2]", "{}", "NaN", "Infinity"])
def test_labels_that_are_none_are_reported(value: str, tmp_path: Path) -> None:
    files = {"0.json": f'{{"label": {value}}}'.encode(), "0.png": make_image(0)}
    with pytest.raises(SmaltiError, match=r"0\.json in .*a\.tar has the label .*; a label is a text or a number"):
        open_source(tarred(tmp_path / "a.tar", files))


@pytest.mark.parametrize(
    ("name", "content"), [("a.json", b"{"), ("a.json", b"[" * 99999), ("a.cls", b"\xff"), ("a.json", b"\xff")]
)
def test_a_label_that_cannot_be_read_is_reported(name: str, content: bytes, tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match=rf"{name} in .*a\.tar cannot be read as a label"):
        open_source(tarred(tmp_path / "a.tar", {"a.png": make_image(1), name: content}))


def test_one_image_of_a_sample_is_taken(tmp_path: Path) -> None:
    both = {"1.seg.png": make_image(1), "1.jpg": make_image(2), "1.npy": b""}
    path = tarred(tmp_path / "a.tar", both)
    assert [each.key for each in open_source(path).images] == ["a/1.jpg"]
    assert [each.key for each in open_source(path, file_type=Labels()).images] == ["a/1.seg.png"]
    with pytest.raises(
        SmaltiError, match=r"the sample 1 of .*a\.tar holds several images \(jpg, npy\); a sample is one"
    ):
        open_source(path, file_type=Depth())
    with pytest.raises(SmaltiError, match=r"the sample x/1 of .*b\.tar holds several images \(a\.png, b\.png\)"):
        open_source(tarred(tmp_path / "b.tar", {"x/1.b.png": b"", "x/1.a.png": b""}))
    with tarfile.open(tmp_path / "c.tar", "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("1.png"))
    with pytest.raises(SmaltiError, match=r"c\.tar holds 1\.png twice"):
        open_source(tmp_path / "c.tar")


# -------------------------------------------------------------------------------------------------------------------
# damage


def test_shards_without_images_say_what_they_hold(tmp_path: Path) -> None:
    tarred(tmp_path / "a.tar", {"1.txt": b"", "2.txt": b"", "3.cls": b""})
    with pytest.raises(SmaltiError, match=r"no images in .*; it holds 3 files of the kinds \.txt, \.cls; images are"):
        open_source(tmp_path / "a.tar")
    tarred(tmp_path / "empty.tar", {})
    with pytest.raises(SmaltiError, match=r"no images in .*empty\.tar; it holds no files"):
        open_source(tmp_path / "empty.tar")


def test_a_truncated_shard_is_reported_wherever_it_is_cut(tmp_path: Path) -> None:
    """Python's tarfile takes a file that is cut in a header, or whose header is damaged, for one that ends there."""
    whole = tarred(tmp_path / "whole.tar", {f"{n}.png": make_image(n) for n in range(4)}).read_bytes()
    content = len(make_image(0))
    second = 512 + -(-content // 512) * 512
    cut = tmp_path / "cut.tar"
    for size in (0, 100, 512, 700, second - 1, second + 1, second + 300, second + 512, second + 600):
        cut.write_bytes(whole[:size])
        with pytest.raises(SmaltiError, match=r"cut\.tar is not a whole tar file \(.*\); copy or write it again"):
            open_source(cut)
    spoilt = bytearray(whole)
    spoilt[second + 5] ^= 0xFF
    cut.write_bytes(spoilt)
    with pytest.raises(SmaltiError, match=r"cut\.tar is not a whole tar file \(it ends within or after 0\.png"):
        open_source(cut)
    cut.write_bytes(whole[: 4 * second])  # all members, but no mark of the end, which some writers leave out
    assert len(open_source(cut).images) == 4
    cut.write_text("no tar file" * 100)
    with pytest.raises(SmaltiError, match=r"cut\.tar is not a whole tar file"):
        open_source(cut)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz"])
def test_a_compressed_shard_is_reported(name: str, tmp_path: Path) -> None:
    whole = tarred(tmp_path / "whole.tar", {"a.png": make_image(1)}).read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(whole))
    with pytest.raises(SmaltiError, match=rf"{name} is compressed with gzip, .*; unpack it to a \.tar file"):
        open_source(tmp_path / name)


def test_a_shard_that_goes_away_later_costs_its_images(tmp_path: Path) -> None:
    source = open_source(numbered(tmp_path))
    (tmp_path / "shards-001.tar").unlink()
    (tmp_path / "shards-002.tar").write_bytes(b"short")
    assert red(source, 0) == 0
    with pytest.raises(DamagedImage, match=r"shards-001/1_0\.png cannot be read from .*shards-001\.tar"):
        red(source, 5)
    with pytest.raises(
        DamagedImage, match=r"shards-002/2_1\.png cannot be read from .* \(it ends .* bytes too early\)"
    ):
        red(source, 11)


# -------------------------------------------------------------------------------------------------------------------
# streams


def test_few_files_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_shards, "OPEN", 2)
    source = open_source(numbered(tmp_path, shards=4, each=2))
    order = [0, 7, 3, 5, 1, 6, 2, 4, 0, 0]
    assert [red(source, place) for place in order] == order
    assert len(source._shards._open) == 2  # type: ignore[attr-defined]


def test_every_process_opens_shards_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(numbered(tmp_path))
    assert red(source, 0) == 0
    copy = pickle.loads(pickle.dumps(source))
    assert red(copy, 14) == 14
    (tmp_path / "shards-000.tar").unlink()
    assert red(source, 1) == 1  # it is open already
    monkeypatch.setattr("smalti.data.tar_shards.os.getpid", lambda: -1)  # as in a forked process
    with pytest.raises(DamagedImage):
        red(source, 1)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_batch_depends_on_seed_and_place_alone(tmp_path: Path) -> None:
    source = open_source(numbered(tmp_path))
    red(source, 0)  # the file is open here already when the workers start

    def crops() -> Crops:
        return Crops(source, source.images, size=(16, 16), channels=3, crop=RandomCrop(), seed=0, cache_mib=0)

    whole = list(islice(batches(crops(), batch=4, seed=1, start=0), 6))
    resumed = list(islice(batches(crops(), batch=4, seed=1, start=8, workers=2), 4))
    for a, b in zip(whole[2:], resumed, strict=True):
        assert torch.equal(a.images, b.images)


@pytest.mark.slow
def test_webdataset_sees_the_same(tmp_path: Path) -> None:
    """With the `webdataset` package, where it is installed: the same keys, bytes and labels."""
    try:
        webdataset = importlib.import_module("webdataset")
    except ImportError:
        pytest.skip("webdataset is not installed")
    chance = np.random.default_rng(0)
    with webdataset.ShardWriter(str(tmp_path / "s-%03d.tar"), maxcount=7, verbose=0) as writer:
        for n in range(20):
            key = f"{'ab'[n % 2]}/x{n:04d}"
            writer.write({"__key__": key, "png": make_image(n), "cls": int(chance.integers(5)), "json": {"n": n}})
    source = open_source(tmp_path / "s-{000..002}.tar")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it does not close its files
        theirs = list(webdataset.WebDataset(str(tmp_path / "s-{000..002}.tar"), shardshuffle=False))
        gc.collect()
    assert len(theirs) == len(source.images) == 20
    for mine, sample in zip(source.images, theirs, strict=True):
        shard = Path(sample["__url__"]).stem
        assert mine == ImageEntry(f"{shard}/{sample['__key__']}.png", sample["cls"].decode())
        stream = source.stream(mine)
        assert not isinstance(stream, Path)
        assert stream.read() == sample["png"]


# ----------------------------------------------------------------------------------------------- other systems, other
# programs


def special(path: Path, files: dict[str, bytes], members: dict[str, tuple[bytes, str]]) -> Path:
    """A tar file with members that have no bytes: their kind, and where they lead."""
    tarred(path, files)
    with tarfile.open(path, "a") as archive:
        for name, (kind, target) in members.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    return path


def test_links_in_a_shard_lead_to_their_files(tmp_path: Path) -> None:
    """tar writes a file with two names once, and the other name as a link: that image was lost without a word."""
    members = {
        "b/1.png": (tarfile.LNKTYPE, "a/0.png"),
        "b/2.png": (tarfile.SYMTYPE, "../a/0.png"),
        "b/3.png": (tarfile.SYMTYPE, "2.png"),
        "b/0.cls": (tarfile.LNKTYPE, "a/0.cls"),
    }
    source = open_source(
        special(tmp_path / "x.tar", {"./a/0.png": make_image(7), "a/0.cls": b"cat", "b/0.png": make_image(8)}, members)
    )
    assert keys_and_labels(source) == [
        ("x/a/0.png", "cat"), ("x/b/0.png", "cat"), ("x/b/1.png", "b"), ("x/b/2.png", "b"), ("x/b/3.png", "b"),
    ]  # fmt: skip
    assert [red(source, place) for place in range(5)] == [7, 8, 7, 7, 7]


def test_links_to_folders_in_a_shard_are_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A link to a folder was said to lead to what is not in the shard."""
    members = {
        "cats": (tarfile.SYMTYPE, "newest"),
        "newest": (tarfile.SYMTYPE, ".v1"),
        "dogs/2.png": (tarfile.SYMTYPE, "../cats/1.png"),
        "dogs/self": (tarfile.SYMTYPE, "../dogs"),
    }
    source = open_source(
        special(tmp_path / "x.tar", {".v1/1.png": make_image(1), "dogs/0.png": make_image(0)}, members)
    )
    assert keys_and_labels(source) == [
        ("x/dogs/0.png", "dogs"), ("x/cats/1.png", "cats"), ("x/newest/1.png", "newest"), ("x/dogs/2.png", "dogs"),
    ]  # fmt: skip
    assert [red(source, place) for place in range(4)] == [0, 1, 1, 1]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.endswith("x.tar: dogs/self is a link that leads in a circle")


def test_what_a_shard_cannot_give_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = {
        "1.png": (tarfile.SYMTYPE, "nothing.png"),
        "2.png": (tarfile.SYMTYPE, "2.png"),
        "3.png": (tarfile.FIFOTYPE, ""),
        "4.png": (tarfile.CHRTYPE, ""),
    }
    source = open_source(special(tmp_path / "x.tar", {"0.png": make_image(0)}, members))
    assert [each.key for each in source.images] == ["x/0.png"]
    assert [record.getMessage().partition("x.tar: ")[2] for record in caplog.records] == [
        "1.png is a link to nothing.png, which is not in it",
        "2.png is a link that leads in a circle",
        "3.png is a pipe or a device, and no file",
        "4.png is a pipe or a device, and no file",
    ]


def test_shards_in_a_row_are_one(tmp_path: Path) -> None:
    """`cat a.tar b.tar` makes one file of two, of which only the first was read."""
    parts = [tarred(tmp_path / name, {f"{name}/{n}.png": make_image(n)}).read_bytes() for n, name in enumerate("abc")]
    (tmp_path / "x.tar").write_bytes(b"".join(parts))
    source = open_source(tmp_path / "x.tar")
    assert keys_and_labels(source) == [("x/a/0.png", "a"), ("x/b/1.png", "b"), ("x/c/2.png", "c")]
    assert [red(source, place) for place in range(3)] == [0, 1, 2]
    for cut in (len(parts[0]) + 700, len(parts[0]) + 10):
        (tmp_path / "x.tar").write_bytes(b"".join(parts)[:cut])
        with pytest.raises(SmaltiError, match=r"x\.tar is not a whole tar file"):
            open_source(tmp_path / "x.tar")


def test_hidden_is_what_begins_with_a_dot_and_has_a_name(tmp_path: Path) -> None:
    files = {"../0.png": make_image(0), "a\\1.png": make_image(1), ".b/2.png": make_image(2)}
    assert [each.key for each in open_source(tarred(tmp_path / "x.tar", files)).images] == ["x/../0.png", "x/a/1.png"]
