"""Captions of images, from the places where people have them, and what is wrong with files of captions."""

from __future__ import annotations

import io
import json
import logging
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from smalti.core.errors import SmaltiError
from smalti.data.caption_files import read_captions, swap_sides
from smalti.data.sources import Source, open_source
from smalti.scenes.scene_files import write_scenes

NAMES = ("a/0.png", "a/1.png", "b/2.jpg")


def write_images(folder: Path, names: tuple[str, ...] = NAMES) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


def source(path: Path) -> Source:
    return open_source(path)


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


EXPECTED = {"a/0.png": ("a red house", "a lake"), "a/1.png": ("two firs",), "b/2.jpg": ("the moon",)}
ROWS = (
    {"file_name": "a/0.png", "text": "a red house"},
    {"file_name": "a/1.png", "text": " two \u2028 firs "},
    {"file_name": "b/2.jpg", "text": "the moon"},
    {"file_name": "a/0.png", "text": "a lake"},
)


# --- every place ---------------------------------------------------------------------------------------------------


def test_text_files_with_the_names_of_the_images(images: Path) -> None:
    (images / "a" / "0.txt").write_bytes(b"a red house\r\n\r\n  a   lake \r\n")
    (images / "a" / "1.txt").write_bytes("\ufefftwo firs".encode())
    (images / "b" / "2.txt").write_bytes("the moon\n".encode("utf-16"))
    assert read_captions(source(images)) == EXPECTED


def test_text_files_of_another_folder(images: Path, tmp_path: Path) -> None:
    for key, captions in EXPECTED.items():
        path = (tmp_path / "captions" / key).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(captions), "utf-8")
    assert read_captions(source(images), tmp_path / "captions") == EXPECTED


@pytest.mark.parametrize("column", ["text", "caption"])
def test_a_table_of_json_lines(column: str, images: Path) -> None:
    renamed = [{"file_name": row["file_name"], column: row["text"]} for row in ROWS]
    write_lines(images / "metadata.jsonl", *renamed)
    assert read_captions(source(images)) == EXPECTED
    text = (images / "metadata.jsonl").read_text("utf-8")
    (images / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n\r\n").encode())
    assert read_captions(source(images)) == EXPECTED


def test_a_list_of_captions_in_a_row(images: Path) -> None:
    rows = [{"file_name": key, "text": [*captions, "", " "]} for key, captions in EXPECTED.items()]
    write_lines(images / "metadata.jsonl", *rows)
    assert read_captions(source(images)) == EXPECTED


def test_a_table_of_commas(images: Path) -> None:
    lines = [
        "file_name,text,note",
        "a/0.png,a red house,1",
        'a/1.png,"two\nfirs",',
        'b/2.jpg,"the moon",',
        "a/0.png,a lake,",
    ]
    (images / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert read_captions(source(images)) == EXPECTED


def test_tables_in_sub_folders_and_names_without_suffix(images: Path) -> None:
    write_lines(
        images / "a" / "metadata.jsonl",
        {"file_name": "0.png", "text": "a red house"},
        {"file_name": "1", "text": "two firs"},
        {"file_name": "./0.png", "text": "a lake"},
    )
    write_lines(images / "b" / "metadata.jsonl", {"file_name": "../b/2", "caption": "the moon"})
    assert read_captions(source(images)) == EXPECTED


def test_a_table_about_other_files_is_skipped(images: Path) -> None:
    write_lines(images / "metadata.jsonl", {"file_name": "a/0.png", "label": 3})
    (images / "metadata.csv").write_text("file_name,label\na/0.png,3\n", "utf-8")
    for key, captions in EXPECTED.items():
        (images / key).with_suffix(".txt").write_text("\n".join(captions), "utf-8")
    assert read_captions(source(images)) == EXPECTED


def write_coco(path: Path) -> Path:
    names = [{"id": number, "file_name": key.rpartition("/")[2]} for number, key in enumerate(EXPECTED)]
    annotations = [
        {"image_id": float(number), "id": 9, "caption": caption}
        for number, captions in enumerate(EXPECTED.values())
        for caption in captions
    ]
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"images": names, "annotations": annotations}), "utf-8")
    return path


@pytest.mark.parametrize(
    "place", ["images/captions_all.json", "images/annotations/captions_x.json", "annotations/captions_x.json"]
)
def test_captions_of_coco_are_found(place: str, images: Path) -> None:
    write_coco(images.parent / place)
    assert read_captions(source(images)) == EXPECTED


def test_the_captions_of_the_split_are_taken(images: Path) -> None:
    write_coco(images.parent / "annotations" / "captions_images.json")
    (images.parent / "annotations" / "captions_val.json").write_text('{"images": [], "annotations": []}', "utf-8")
    assert read_captions(source(images)) == EXPECTED


def test_a_file_or_folder_that_is_named(images: Path, tmp_path: Path) -> None:
    coco = write_coco(tmp_path / "there" / "captions_train2017.json")
    assert read_captions(source(images), coco) == EXPECTED
    assert read_captions(source(images), coco.parent) == EXPECTED
    table = write_lines(tmp_path / "rows.jsonl", *ROWS)
    assert read_captions(source(images), table) == EXPECTED
    table.rename(coco.parent / "metadata.jsonl")
    assert read_captions(source(images), coco.parent) == EXPECTED


def test_shards(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard-0.tar", "w") as tar:
        for key, captions in EXPECTED.items():
            pixels = io.BytesIO()
            Image.new("RGB", (4, 4)).save(pixels, "PNG")
            stem = key.partition(".")[0]
            for name, content in ((f"{stem}.png", pixels.getvalue()), (f"{stem}.txt", "\n".join(captions).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    found = read_captions(source(tmp_path / "shard-0.tar"))
    assert list(found.values()) == list(EXPECTED.values())
    assert list(read_captions(source(tmp_path)).values()) == list(EXPECTED.values())


@pytest.mark.parametrize("table", [True, False])
def test_zip_files(table: bool, images: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for key, captions in EXPECTED.items():
            archive.write(images / key, f"all/{key}")
            if not table:
                archive.writestr(f"all/{key.partition('.')[0]}.txt", "\n".join(captions))
        if table:
            archive.writestr("all/metadata.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))
    expected = {f"all/{key}": captions for key, captions in EXPECTED.items()}
    assert read_captions(source(tmp_path / "images.zip")) == expected


def test_lists_of_paths(images: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("".join(f"images/{key}\n" for key in EXPECTED), "utf-8")
    write_lines(images / "metadata.jsonl", *ROWS)
    expected = {f"images/{key}": captions for key, captions in EXPECTED.items()}
    assert read_captions(source(tmp_path / "list.txt")) == expected


def test_names_in_nfd_and_nfc_go_together(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", ("cafe\u0301.png", "b.png"))
    rows = ({"file_name": "caf\u00e9.png", "text": "a café"}, {"file_name": "b.png", "text": "a bar"})
    write_lines(images / "metadata.jsonl", *rows)
    assert read_captions(source(images)) == {"cafe\u0301.png": ("a café",), "b.png": ("a bar",)}


def test_scenes_write_what_is_read(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", count=12, size=(16, 16))
    captions = read_captions(source(tmp_path / "scenes" / "images"))
    assert len(captions) == 12
    assert all(len(each) == 5 for each in captions.values())


# --- what is wrong -------------------------------------------------------------------------------------------------


def refused(path: Path, message: str, data: Path | None = None) -> None:
    with pytest.raises(SmaltiError, match=message) as caught:
        read_captions(source(path), data)
    assert "\n" not in str(caught.value)


def test_no_captions(images: Path, tmp_path: Path) -> None:
    refused(images, r"there are no captions in .*images for the images of .*; known are NAME\.txt beside each image")
    refused(images, "there is no file or folder .*gone with captions", tmp_path / "gone")
    (tmp_path / "captions.xml").write_text("<a/>", "utf-8")
    refused(images, r"captions\.xml is not a file of captions; known are", tmp_path / "captions.xml")
    (tmp_path / "labels.csv").write_text("file_name,label\na/0.png,3\n", "utf-8")
    refused(images, r"labels\.csv holds no captions; it needs the columns file_name and text", tmp_path / "labels.csv")


def test_captions_of_missing_files(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    gone = [{"file_name": f"c/{number}.png", "text": "gone"} for number in range(4)]
    write_lines(images / "metadata.jsonl", *ROWS, *gone)
    refused(
        images,
        r"4 of 7 images with captions .* are not among the images .*, first c/0\.png, c/1\.png, c/2\.png, \.\.\.",
    )
    write_lines(images / "metadata.jsonl", *ROWS, gone[0])
    with caplog.at_level(logging.WARNING):
        assert read_captions(source(images)) == EXPECTED
    assert "left out: 1 of 4 images with captions" in caplog.text


def test_images_without_captions(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_lines(images / "metadata.jsonl", *ROWS[:2])
    with caplog.at_level(logging.WARNING):
        assert set(read_captions(source(images))) == {"a/0.png", "a/1.png"}
    assert "1 of 3 images have no caption, first b/2.jpg" in caplog.text


def test_one_name_for_two_images(tmp_path: Path) -> None:
    images = write_images(tmp_path, ("a/0.png", "b/0.png"))
    write_lines(images / "metadata.jsonl", {"file_name": "0.png", "text": "which?"})
    refused(images, r"metadata\.jsonl in .*, line 1: 0\.png is a/0\.png or b/0\.png; write its folder")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "a/0.png", "text": "cut', r"line 2, is not JSON \(.*\); correct it"),
        ("[1, 2]", "line 2, is not a mapping"),
        ('{"text": "whose?"}', "line 2: file_name is None; write the path of an image"),
        ('{"file_name": "a/1.png", "text": 3}', "line 2: a caption is a text or a list of texts, not 3"),
        ('{"file_name": "a/1.png", "text": ["a", null]}', r"line 2: a caption is a text .* not \['a', None\]"),
    ],
)
def test_a_broken_line_of_json(line: str, message: str, images: Path) -> None:
    write_lines(images / "metadata.jsonl", ROWS[0])
    with (images / "metadata.jsonl").open("a") as file:
        file.write(line + "\n")
    refused(images, rf"metadata\.jsonl in .*images, {message}|metadata\.jsonl in .*images: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "file_name,text\na/0.png,one\na/1.png,two, three\n",
            "line 3, does not have the 2 columns of the first line; put",
        ),
        ("file_name,text\na/0.png\n", "line 2, does not have the 2 columns"),
        ('file_name,text\na/0.png,"one\n', "line 2, cannot be read"),
        ("filename,text\na/0.png,one\n", "has no column 'file_name'; did you mean 'filename'"),
    ],
)
def test_a_broken_line_of_commas(text: str, message: str, images: Path) -> None:
    (images / "metadata.csv").write_text(text, "utf-8")
    refused(images, rf"metadata\.csv in .*images,? {message}")


def test_another_encoding(images: Path) -> None:
    (images / "metadata.csv").write_bytes("file_name,text\na/0.png,ein Haus\na/1.png,schön\n".encode("latin-1"))
    refused(images, r"metadata\.csv in .*, line 3, is not in UTF-8 .*; save the file as UTF-8")
    (images / "metadata.csv").unlink()
    (images / "a" / "0.txt").write_bytes("schön".encode("latin-1"))
    refused(images, r"a/0\.txt, line 1, is not in UTF-8")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"cannot read .*captions_x\.json"),
        ("[]", "holds no captions as COCO's"),
        ('{"images": [{"id": 1}], "annotations": []}', "image 1 has no id and file_name"),
        ('{"images": [], "annotations": [{"image_id": 4, "caption": "a"}]}', "annotation 1 is of the image 4, which"),
        ('{"images": [], "annotations": [{"image_id": 4, "bbox": []}]}', "annotation 1 has no caption; files with"),
    ],
)
def test_broken_files_of_coco(content: str, message: str, images: Path) -> None:
    (images / "captions_x.json").write_text(content, "utf-8")
    refused(images, message)


@pytest.mark.parametrize(
    ("caption", "mirrored"),
    [
        ("Tall firs on the LEFT, a house on the right", "Tall firs on the RIGHT, a house on the left"),
        ("Left of it: leftovers, bright", "Right of it: leftovers, bright"),
        ("a lake", "a lake"),
    ],
)
def test_sides_are_exchanged(caption: str, mirrored: str) -> None:
    assert swap_sides(caption) == mirrored
    assert swap_sides(mirrored) == caption
