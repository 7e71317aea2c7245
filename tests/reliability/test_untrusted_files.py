"""Files of strangers: nothing in them runs, leaves its folder, or takes more memory than the machine has."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import stat
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image, ImageFile

from smalti.checkpoints.pickles import read_pickle
from smalti.core import private_folder
from smalti.core.errors import SmaltiError, printable
from smalti.core.files import read_json, write_json
from smalti.core.private_folder import is_private, make_private_folder
from smalti.core.settings import parse_yaml
from smalti.data import archive_links, zip_files
from smalti.data.outputs import output_paths
from smalti.data.sources import open_source
from smalti.images.io import IMAGE_SUFFIXES, DamagedImage, read_image, read_numbers, read_size
from smalti.kernels import native
from smalti.pipeline import Pipeline
from smalti.tokenizer.vqgan import VQGAN
from tests.checkpoints.test_pickles import WEIGHTS
from tests.reliability import damage
from tests.reliability.damaged_files import pixels
from tests.small_pipeline import LABELS, pipeline

POSIX = pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")


# --- compiled kernels ----------------------------------------------------------------------------------------------

SOURCE = "int answer(void) { return 42; }\n"
COMPILER = pytest.mark.skipif(
    shutil.which(os.environ.get("CC", "cc")) is None or native._instructions() is None or "SMALTI_DIRECT" in os.environ,
    reason="no C compiler",
)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A C file, and a cache folder that is empty."""
    (tmp_path / "kernel.c").write_text(SOURCE)
    monkeypatch.setenv("SMALTI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "OPTIONS", ("-O0", "-shared", "-fPIC"))
    return tmp_path / "kernel.c"


def answer(source: Path) -> int:
    library = native.compile_library(source)
    assert library is not None
    return int(library.answer())


def poisoned(folder: Path) -> Path:
    """What another user put in place of the library: loading it would end the process or run their code."""
    (library,) = folder.iterdir()
    library.unlink()
    library.write_bytes(b"not a library")
    return library


@POSIX
@COMPILER
def test_a_library_is_kept_where_nobody_else_can_write(source: Path, tmp_path: Path) -> None:
    assert answer(source) == 42
    folder = tmp_path / "cache" / "kernels"
    (library,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(library.stat().st_mode) == 0o700


@POSIX
@COMPILER
@pytest.mark.parametrize("opened", ["cache", "cache/kernels"])
def test_a_cache_that_others_can_write_into_is_not_used(opened: str, source: Path, tmp_path: Path) -> None:
    """Any user of the machine could once have their library loaded, where the cache was a shared folder."""
    assert answer(source) == 42
    library = poisoned(tmp_path / "cache" / "kernels")
    (tmp_path / opened).chmod(0o777)
    assert answer(source) == 42
    assert library.read_bytes() == b"not a library"


@POSIX
@COMPILER
def test_a_library_that_others_can_write_is_compiled_again(source: Path, tmp_path: Path) -> None:
    assert answer(source) == 42
    poisoned(tmp_path / "cache" / "kernels").chmod(0o666)
    assert answer(source) == 42
    (library,) = (tmp_path / "cache" / "kernels").iterdir()
    assert library.read_bytes() != b"not a library"


@POSIX
@COMPILER
def test_a_cache_of_another_user_is_not_used(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer(source) == 42
    poisoned(tmp_path / "cache" / "kernels")
    monkeypatch.setattr(private_folder, "_ROOT", -1)  # tests may run as the administrator
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert answer(source) == 42


@POSIX
def test_what_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "above" / "folder"
    assert make_private_folder(folder)
    for mode, private in ((0o755, True), (0o777, False), (0o1777, True), (0o757, False)):
        folder.parent.chmod(mode)
        assert is_private(folder) is private
    folder.parent.chmod(0o755)
    (tmp_path / "link").symlink_to(folder)
    assert is_private(tmp_path / "link")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    (tmp_path / "shared" / "link").symlink_to(folder)
    assert not is_private(tmp_path / "shared" / "link")
    assert not is_private(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    assert not make_private_folder(tmp_path / "file" / "folder")


# --- pickles and programs ------------------------------------------------------------------------------------------


class Program(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_programs_of_torchscript_are_refused(tmp_path: Path) -> None:
    """`torch.load` hands them to `torch.jit.load`, whatever unpickler it is given, and they may run as they load."""
    torch.jit.script(Program()).save(str(tmp_path / "model.ckpt"))  # type: ignore[no-untyped-call]
    with pytest.raises(SmaltiError, match="was refused: it is a program"):
        read_pickle(tmp_path / "model.ckpt")


def test_checkpoints_that_torch_would_unpack_are_refused(tmp_path: Path) -> None:
    """Of a tar file from before PyTorch 0.1.10 it extracts members, a pipe among them, and opens them."""
    with tarfile.open(tmp_path / "old.ckpt", "w") as file:
        member = tarfile.TarInfo("storages")
        member.type = tarfile.FIFOTYPE
        file.addfile(member)
    with pytest.raises(SmaltiError, match=r"no checkpoint \(it begins neither as a zip file nor as a pickle\)"):
        read_pickle(tmp_path / "old.ckpt")


def test_checkpoints_of_both_kinds_are_read(tmp_path: Path) -> None:
    for zipped in (True, False):
        torch.save({"state_dict": WEIGHTS}, tmp_path / "whole.ckpt", _use_new_zipfile_serialization=zipped)
        assert read_pickle(tmp_path / "whole.ckpt")["state_dict"].keys() == WEIGHTS.keys()


# --- YAML ----------------------------------------------------------------------------------------------------------

BILLION = "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}' if n else 'y'] * 9)}]\n" for n in range(12))
MERGED = "x0: &x0 {a: 1}\n" + "".join(f"x{n}: &x{n} {{<<: [{', '.join([f'*x{n - 1}'] * 9)}]}}\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: !!python/object/apply:os.system ['echo']", "could not determine a constructor"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("a: !!python/module:antigravity", "could not determine a constructor"),
        (BILLION, "stand for more than"),
        (MERGED, "stand for more than"),
        ("a: &a [*a]", "an alias stands for what it is in"),
        ("a: " + "9" * 5000, "a number of 5,000 digits"),
        ("a: 0x" + "f" * 5000, "a number of 5,002 digits"),
        ("[" * 5000, "nested too deep"),
        ("a: !!bool maybe", "maybe"),
        ("a: !!timestamp today", "NoneType"),
        ("a: !!int ''", "index out of range"),
    ],
    ids=lambda text: text[:20],
)
def test_yaml_is_plain_values_and_few_of_them(text: str, reason: str) -> None:
    with pytest.raises(yaml.YAMLError, match=reason):
        parse_yaml(text)


def test_aliases_are_read() -> None:
    assert parse_yaml("a: &a [1, 2]\nb: {c: *a, d: *a}") == {"a": [1, 2], "b": {"c": [1, 2], "d": [1, 2]}}
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}")["b"] == {"x": 1, "y": 2}
    assert parse_yaml("") is None


# --- archives ------------------------------------------------------------------------------------------------------


def png() -> bytes:
    made = io.BytesIO()
    pixels("RGB").save(made, format="PNG")
    return made.getvalue()


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_files, "MAX_BYTES", 10**6)
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", png())
        archive.writestr("1.png", bytes(10**6 + 1))
        link = zipfile.ZipInfo("2.png")  # the path in a link is read at once
        link.create_system, link.external_attr, link.compress_type = 3, 0o120777 << 16, zipfile.ZIP_DEFLATED
        archive.writestr(link, bytes(10**6))
    source = open_source(tmp_path / "set.zip")
    monkeypatch.setattr(zipfile.ZipFile, "read", _unread(zipfile.ZipFile.read))
    assert source.read(source.images[0], 3).shape == (9, 12, 3)
    with pytest.raises(DamagedImage, match="1,000,001 bytes, and 1,000,000 are the most"):
        source.read(source.images[1], 3)


def _unread(read: Callable[..., bytes]) -> Callable[..., bytes]:
    def small(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
        assert member.file_size < 10**4
        return read(archive, member)

    return small


@pytest.mark.parametrize("name", ["../../out.png", "/out.png", "a/../../out.png", "..\\out.png", "C:\\out.png"])
@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_no_member_leaves_its_folder(name: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"set{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, png())
    else:
        path.write_bytes(damage.tar_of({name: png()}))
    before = sorted(tmp_path.rglob("*"))
    source = open_source(path)
    assert source.read(source.images[0], 3).shape == (9, 12, 3)
    assert sorted(tmp_path.rglob("*")) == before
    for written in output_paths(source.images, tmp_path / "out"):
        assert Path(os.path.realpath(written)).is_relative_to(tmp_path / "out")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_of_an_archive_lead_nowhere_else(kind: bytes, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    with tarfile.open(tmp_path / "set.tar", "w") as file:
        for name, target in (("a.png", str(tmp_path / "secret.png")), ("b.png", "../secret.png")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            file.addfile(link)
        whole = tarfile.TarInfo("c.png")
        whole.size = len(png())
        file.addfile(whole, io.BytesIO(png()))
    assert [image.key for image in open_source(tmp_path / "set.tar").images] == ["set/c.png"]


def test_links_stand_for_no_more_files_than_anybody_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred links to a folder of a hundred files are ten thousand; of a megabyte they would be billions."""
    monkeypatch.setattr(archive_links, "_MAX_FILES", 200)
    with tarfile.open(tmp_path / "set.tar", "w") as file:
        for number in range(100):
            file.addfile(tarfile.TarInfo(f"a/{number}.png"))
        for number in range(100):
            link = tarfile.TarInfo(f"b{number}")
            link.type, link.linkname = tarfile.SYMTYPE, "a"
            file.addfile(link)
    with pytest.raises(SmaltiError, match="its links stand for more than 200 files"):
        open_source(tmp_path / "set.tar")


def header(name: str, kind: bytes, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ((header("x", b"L", 512) + b"x" * 512) * 2000, "hundreds of headers"),
        ((header("x", b"x", 512) + b"20 path=abcdefghijk\n".ljust(512, b"\0")) * 2000, "hundreds of headers"),
        (header("a.png", b"0", 2**87), "not a whole tar file"),
        (header("a.png", b"0", -512) + bytes(512), "not a whole tar file"),
        (header("a.png", b"0", -1024) + bytes(512), "not a whole tar file"),
    ],
    ids=["long names", "extended headers", "huge", "negative", "backwards"],
)
def test_headers_of_a_tar_file_neither_loop_nor_recur(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "set.tar").write_bytes(content + bytes(1024))
    with pytest.raises(SmaltiError, match=reason):
        open_source(tmp_path / "set.tar")


# --- images --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_no_image_above_the_limit_is_decoded(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"image{suffix}"
    pixels({".pbm": "1", ".pgm": "L"}.get(suffix, "RGB")).save(path)

    def decoded(image: Any, *arguments: Any) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9 * 12 - 1)
    with monkeypatch.context() as patch:
        patch.setattr(ImageFile.ImageFile, "load", decoded)
        for read in (lambda: read_image(path, channels=3, name="it"), lambda: read_numbers(path, name="it")):
            with pytest.raises(DamagedImage, match="it has more than 107 pixels, the most that is read"):
                read()
        with pytest.raises(DamagedImage, match="it has more than 107 pixels"):
            read_size(path, name="it")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9 * 12)
    assert read_image(path, channels=3, name="it").shape == (9, 12, 3)


# --- model folders -------------------------------------------------------------------------------------------------

LISTENING = {"events": None}
"""Where the audit hook puts what happens; hooks cannot be removed."""
ACTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "pickle.find_class")
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.symlink", "shutil.rmtree")


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    events: Any = LISTENING["events"]
    if events is None:
        return
    if event in (*ACTS, *CHANGES, "import"):
        events.append((event, str(arguments[0])))
    elif event == "open" and isinstance(arguments[0], str):
        writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        events.append(("write" if writes else "read", arguments[0]))


@contextmanager
def overheard() -> Iterator[list[tuple[str, str]]]:
    """All that Python is asked to do for the system inside, by the names of its audit events."""
    events: list[tuple[str, str]] = []
    LISTENING["events"] = events  # type: ignore[assignment]
    try:
        yield events
    finally:
        LISTENING["events"] = None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with all that other programs would run."""
    pipeline(LABELS).save_pretrained(tmp_path / "model", about={"note": "\x1b[2J{{ 7 * 7 }} {0.__class__} %s"})
    for part in ("tokenizer", "prior"):
        here = tmp_path / "model" / part
        for name in ("modeling.py", "__init__.py", "sitecustomize.py", "conftest.py", "torch.py"):
            (here / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
        (here / "pytorch_model.bin").write_bytes(pickle.dumps(Exploding(str(tmp_path / "ran"))))
        config = read_json(here / "config.json")
        config |= {"auto_map": {"AutoModel": "modeling.Model"}, "_target_": "os.system", "target": "os.system"}
        write_json(here / "config.json", config)
    return tmp_path / "model"


class Exploding:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def test_a_model_folder_can_do_nothing_but_compute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALTI_DIRECT", "1")  # or the first use would compile our own kernels
    pipeline(LABELS).sample(1, label="dusk")  # what smalti and PyTorch import when they are used first
    sys.addaudithook(hook)
    with overheard() as events:
        pipe = Pipeline.from_pretrained(folder)
        pipe.sample(1, label="dusk")
    done = {event for event, _ in events}
    assert "read" in done, "the hook heard nothing"
    assert not done & {*ACTS, *CHANGES, "write"}, events
    assert {Path(name).name for event, name in events if event == "read" and name.startswith(str(folder))} <= {
        "config.json",
        "model.safetensors",
    }
    assert not (folder.parent / "ran").exists()


@pytest.mark.parametrize(
    ("keys", "value", "reason"),
    [
        (("autoencoder", "base_channels"), 2**40, r"no network of such settings|of a network of [\d,]+ numbers"),
        (("autoencoder", "base_channels"), 2**13, r"of a network of [\d,]+ numbers, and its weights are"),
        (("autoencoder", "res_blocks"), 10**9, "less than or equal to 1000"),
        (("autoencoder", "channel_multipliers"), [1] * 64, "at most 30 items"),
        (
            ("quantizer", "codebook_size"),
            2**40,
            r"of a network of [\d,]+ numbers|no network of such settings|less than",
        ),
        (("quantizer", "codebook_dim"), 10**30, "less than"),
    ],
    ids=["overflowing", "wide", "deep", "many levels", "many codes", "beyond integers"],
)
def test_a_config_takes_no_memory_that_the_weights_do_not_have(
    keys: tuple[str, str], value: Any, reason: str, tmp_path: Path
) -> None:
    pipeline().save_pretrained(tmp_path / "model", about={})
    config = read_json(tmp_path / "model" / "tokenizer" / "config.json")
    config["settings"][keys[0]][keys[1]] = value
    write_json(tmp_path / "model" / "tokenizer" / "config.json", config)
    with pytest.raises(SmaltiError, match=reason):
        VQGAN.from_pretrained(tmp_path / "model")


def test_messages_cannot_move_the_cursor_of_a_terminal() -> None:
    assert str(SmaltiError("there is no file a\x1b[2J\nb\ud800")) == r"there is no file a\x1b[2J\nb\ud800"
    assert str(DamagedImage("a\r", "is empty")) == r"a\r is empty"
    assert printable("Grüße, 日本") == "Grüße, 日本"
    assert len(str(SmaltiError("a" * 10**6 + "; remove it"))) < 3000
    assert str(SmaltiError("a" * 10**6 + "; remove it")).endswith("; remove it")
