"""Where results are written: a file for each image, below one folder, and never over a file of the user."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from smalti.cli.main import main
from smalti.core.errors import SmaltiError
from smalti.data.image_entries import ImageEntry
from smalti.data.outputs import check_outputs, output_paths, without_results
from smalti.data.sources import open_source
from smalti.evaluation.results import check_folder
from smalti.images.io import save_png
from tests.data.test_sources import fill, make_image, zipped

Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """A command -> its status, run in `tmp_path`."""

    def run(*arguments: object) -> int:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["smalti", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return run


def outputs(*keys: str) -> list[str]:
    return [path.as_posix() for path in output_paths([ImageEntry(key, None) for key in keys], Path("out"))]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def generated(path: Path, command: str = "reconstruct") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(path, np.zeros((64, 64, 3), np.uint8), settings={"command": command})
    return path


# ------------------------------------------------------------------------------------------------------------ names


def test_a_result_has_the_path_of_its_image() -> None:
    assert outputs("a/one.jpg", "b/one.jpg", "two.v1.TIF") == ["out/a/one.png", "out/b/one.png", "out/two.v1.png"]


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("/data/one.jpg", "out/data/one.png"),
        ("//server/one.jpg", "out/server/one.png"),
        ("../one.jpg", "out/one.png"),
        ("a/../../b/one.jpg", "out/a/b/one.png"),
        ("C:/data/one.jpg", "out/C/data/one.png"),
    ],
)
def test_no_name_leads_out_of_the_folder(key: str, path: str) -> None:
    assert outputs(key) == [path]


@pytest.mark.parametrize(
    "keys",
    [
        ("one.jpg", "one.png", "ONE.png"),
        ("caf\u00e9.png", "cafe\u0301.png"),
        ("one.jpg", "one.png", "one.png.gif"),
        ("../one.png", "one.png", "/one.png"),
        ("one.png", "one.png.png", "one.jpg", "one.jpg.png", "one.png.jpg"),
    ],
)
def test_images_of_nearly_one_name_have_results_of_their_own(keys: tuple[str, ...]) -> None:
    """Results of `one.jpg` and `one.png` were both `one.png`, and the first was lost; capitals differ on Linux
    alone."""
    names = {os.path.normcase(path).casefold().replace("e\u0301", "\u00e9") for path in outputs(*keys)}
    assert len(names) == len(keys)


def test_images_that_differ_in_their_suffix_keep_it() -> None:
    assert outputs("one.jpg", "one.png", "two.png") == ["out/one.jpg.png", "out/one.png.png", "out/two.png"]


# ----------------------------------------------------------------------------------------------------------- checks


def test_a_result_replaces_nothing_but_results(tmp_path: Path) -> None:
    own = generated(tmp_path / "own.png")
    photo = fill(tmp_path, {"photo.png": make_image(1)}) / "photo.png"
    check_outputs([own, tmp_path / "new.png"], tmp_path, inputs=[photo])
    with pytest.raises(SmaltiError, match=r"own\.png would replace an input; choose another --out"):
        check_outputs([own], tmp_path, inputs=[own])
    with pytest.raises(SmaltiError, match=r"photo\.png would replace a file that smalti did not write"):
        check_outputs([photo], tmp_path, inputs=[])


def test_a_result_does_not_replace_an_input_that_was_given_by_a_link(tmp_path: Path) -> None:
    own = generated(tmp_path / "own.png")
    (tmp_path / "link.png").symlink_to(own)
    (tmp_path / "folder").symlink_to(tmp_path)
    for given in (tmp_path / "link.png", tmp_path / "folder" / "own.png", tmp_path / "folder" / "link.png"):
        with pytest.raises(SmaltiError, match=r"own\.png would replace an input; choose another --out"):
            check_outputs([own], tmp_path, inputs=[given])
    check_outputs([own], tmp_path, inputs=[Path("no file\0"), Path("dusk")])


def test_no_link_leads_results_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cats").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SmaltiError, match=r"out/cats is a link that leads out of"):
        check_outputs([tmp_path / "out" / "cats" / "1.png"], tmp_path / "out", inputs=[])


def test_the_folder_of_an_evaluation_holds_nothing_else(tmp_path: Path) -> None:
    check_folder(tmp_path / "new")
    fill(
        tmp_path,
        {"a/report.html": b"mine", "b/result.json": b'{"mine": 1}', "c/result.json": b'{"smalti": 1, "scores": {}}'},
    )
    check_folder(tmp_path / "c")
    with pytest.raises(SmaltiError, match=r"report\.html exists without a result of .* choose another --out"):
        check_folder(tmp_path / "a")
    with pytest.raises(SmaltiError, match=r"result\.json is not a result .* choose another --out"):
        check_folder(tmp_path / "b")


def test_earlier_results_below_the_images_are_no_inputs(tmp_path: Path) -> None:
    fill(tmp_path, {"a/1.png": make_image(1), "a/2.png": make_image(2)})
    generated(tmp_path / "out" / "a" / "1.png")
    generated(tmp_path / "a" / "sample.png", "sample")
    source = open_source(tmp_path)
    kept = without_results(source, tmp_path / "out", command="reconstruct")
    assert [each.key for each in kept] == ["a/1.png", "a/2.png", "a/sample.png"]
    assert without_results(source, tmp_path / "a", command="reconstruct") == source.images


# ---------------------------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize("lines", [["{root}/else/one.png"], ["../else/one.png"], ["..\\else\\one.png"]])
def test_the_originals_in_a_list_are_not_replaced(lines: list[str], run: Run, tmp_path: Path) -> None:
    """`reconstruct` of a list of absolute paths wrote over the photos themselves, for `out / "/a/b.png"` is
    `/a/b.png`."""
    fill(tmp_path, {"else/one.png": make_image(1, 64, 64)})
    before = contents(tmp_path)
    fill(tmp_path, {"l/list.txt": "\n".join(lines).format(root=tmp_path).encode()})
    assert run("reconstruct", "scenes", "l/list.txt", "--out", "out") == 0
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert len([name for name in after if name.startswith("out/")]) == 1


def test_names_in_archives_do_not_lead_out_of_the_folder(run: Run, tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip", {"../one.png": make_image(1, 64, 64), "/abs/two.png": make_image(2, 64, 64)})
    assert run("reconstruct", "scenes", "a.zip", "--out", "deep/out") == 0
    assert sorted(contents(tmp_path)) == ["a.zip", "deep/out/abs/two.png", "deep/out/one.png"]


def test_every_image_has_a_result(run: Run, tmp_path: Path) -> None:
    fill(
        tmp_path / "p",
        {"one.png": make_image(1, 64, 64), "one.gif": make_image(2, 64, 64), "two.png": make_image(3, 64, 64)},
    )
    for _ in range(2):
        assert run("reconstruct", "scenes", "p", "--out", "p/out") == 0
        assert sorted(contents(tmp_path / "p" / "out")) == ["one.gif.png", "one.png.png", "two.png"]


@pytest.mark.parametrize("images", ["p", "p/one.png"])
def test_images_are_not_reconstructed_in_place(images: str, run: Run, tmp_path: Path) -> None:
    fill(tmp_path / "p", {"one.png": make_image(1, 64, 64)})
    before = contents(tmp_path)
    assert run("reconstruct", "scenes", images, "--out", "p") == 1
    assert contents(tmp_path) == before


def test_samples_do_not_replace_files_of_the_user(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, {"out/sample-000000.png": make_image(1, 64, 64)})
    before = contents(tmp_path)
    assert run("sample", "scenes", "--out", "out", "-n", 1) == 1
    assert "sample-000000.png would replace a file that smalti did not write" in capsys.readouterr().err
    assert contents(tmp_path) == before
    mask = np.zeros((64, 64, 3), np.uint8)
    mask[:32] = 255
    save_png(tmp_path / "mine" / "one-000000.png", mask, settings={"command": "sample"})
    fill(tmp_path, {"one.png": make_image(1, 64, 64)})
    command = ("complete", "scenes", "one.png", "--mask", "mine/one-000000.png", "--out", "mine", "-n", 1)
    assert run(*command) == 1
    assert "one-000000.png would replace an input" in capsys.readouterr().err
