"""Shards of codes: what is written is what is read, whole or not at all, and every kind of damage is a sentence."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import pickle
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.data.code_shards import CodeSet, CodeShards, entropy, histogram, open_codes
from smalti.data.crops import CenterCrop, RandomCrop
from smalti.data.loader import Crops, batches, in_order
from smalti.data.sources import Source, open_source
from smalti.encoding import code_writer as codes_module
from smalti.encoding.code_writer import ImageEncoder, ImageSets, WritingSettings, write_codes

SIZE = 256


def encode(images: Tensor) -> Tensor:
    """A tokenizer of factor 4: the level of the upper left pixel of each patch."""
    return ((images[:, 0, ::4, ::4] + 1) * 127.5).round().long()


def data(folder: Path, *, size: tuple[int, int] = (8, 16), seed: int = 0) -> tuple[Source, Crops, Crops]:
    """Seven images with two labels: five to train on, of which the second is damaged, and two to validate on."""
    if not folder.exists():
        noise = np.random.default_rng(0)
        for n in range(7):
            buffer = io.BytesIO()
            Image.fromarray(noise.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(buffer, "PNG")
            path = folder / ("ab"[n % 2]) / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"damaged" if n == 2 else buffer.getvalue())
    source = open_source(folder)
    training = Crops(source, source.images[:5], size=size, channels=3, crop=RandomCrop(), seed=seed)
    validation = Crops(source, source.images[5:], size=size, channels=3, crop=CenterCrop(), seed=seed)
    return source, training, validation


def write(tmp_path: Path, **changed: Any) -> bool:
    source, training, validation = data(tmp_path / "images")
    arguments: dict[str, Any] = {
        "training": training,
        "validation": validation,
        "encode": encode,
        "fingerprint": "vq-1a2b",
        "size": SIZE,
        "factor": 4,
        "labels": source.labels,
        "copies": 3,
        "seed": 0,
        "batch": 4,
        "progress": lambda done, total: None,
    }
    values = {**arguments, **changed}
    return write_codes(
        tmp_path / "codes",
        _chosen(ImageSets, values),
        encoder=_chosen(ImageEncoder, values),
        settings=_chosen(WritingSettings, values),
        progress=values["progress"],
    )


def _chosen(kind: Any, values: dict[str, Any]) -> Any:
    """The values of a dataclass among others."""
    return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind) if field.name in values})


@pytest.fixture
def shards(tmp_path: Path) -> CodeShards:
    assert write(tmp_path)
    return open_codes(tmp_path / "codes")


def test_what_is_written_is_what_is_read(tmp_path: Path, shards: CodeShards) -> None:
    source, training, validation = data(tmp_path / "images")
    good = [0, 2, 3, 4]
    assert (len(shards.training), len(shards.validation)) == (4, 2)
    stored = np.load(tmp_path / "codes" / "training-00000.npy")
    assert stored.shape == (4, 3, 2, 4)
    assert stored.dtype == np.uint16
    for row, index in enumerate(good):
        label = source.labels.index(str(training.images[index].label))
        for copy in range(3):
            expected = encode(training.example(index, index * 3 + copy).image[None])[0]
            assert np.array_equal(stored[row, copy], expected)
        assert shards.training[row, 0].label.item() == label
    for index in range(2):
        codes, label_tensor, prefix = shards.validation[index, 5]
        assert codes.dtype == label_tensor.dtype == prefix.dtype == torch.int64
        assert prefix.shape == (0,)
        assert torch.equal(codes, encode(validation.example(index, 0).image[None])[0])
    assert shards.training.labels.tolist() == [0, 0, 0, 1]


def test_the_description_says_what_the_codes_are(tmp_path: Path, shards: CodeShards) -> None:
    meta = shards.meta
    assert (meta.fingerprint, meta.size, meta.grid, meta.factor) == ("vq-1a2b", SIZE, (2, 4), 4)
    assert meta.labels == ("a", "b")
    assert (meta.training.shards, meta.training.copies, meta.training.damaged) == ((4,), 3, 1)
    assert (meta.validation.shards, meta.validation.copies, meta.validation.damaged) == ((2,), 1, 0)
    assert meta.training.data["source"] == str(tmp_path / "images")
    assert meta.training.data["crop"] == "random"
    assert meta.validation.data["crop"] == "center"


def test_every_copy_is_used_and_the_draw_chooses_it(shards: CodeShards) -> None:
    seen = {shards.training[1, draw].codes.numpy().tobytes() for draw in range(40)}
    assert len(seen) == 3
    assert torch.equal(shards.training[1, 7].codes, shards.training[1, 7].codes)


def test_many_small_shards_hold_the_same(tmp_path: Path, shards: CodeShards, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "codes").rename(tmp_path / "one")
    monkeypatch.setattr(codes_module, "SHARD_BYTES", 3 * 2 * 3 * 8)  # three images
    write(tmp_path, batch=2)
    several = open_codes(tmp_path / "codes")
    assert several.meta.training.shards == (2, 2)
    whole = open_codes(tmp_path / "one")
    for index in range(4):
        for draw in range(6):
            assert torch.equal(several.training[index, draw].codes, whole.training[index, draw].codes)
    assert several.training.labels.tolist() == whole.training.labels.tolist()
    assert entropy(several.training, SIZE) == pytest.approx(entropy(whole.training, SIZE))


def test_codes_can_be_streamed(shards: CodeShards) -> None:
    stream = list(islice(batches(shards.training, batch=3, seed=0, start=0), 4))
    assert stream[0].codes.shape == (3, 2, 4)
    again = next(batches(shards.training, batch=3, seed=0, start=9))
    assert torch.equal(again.codes, stream[3].codes)
    assert torch.equal(again.labels, stream[3].labels)
    assert [len(part.codes) for part in in_order(shards.validation, batch=2)] == [2]


def test_encoding_is_given_full_batches_and_reports(tmp_path: Path) -> None:
    batch_sizes: list[int] = []
    reports: list[tuple[int, int]] = []

    def counted(images: Tensor) -> Tensor:
        assert images.shape[1:] == (3, 8, 16)
        batch_sizes.append(len(images))
        return encode(images)

    write(tmp_path, encode=counted, copies=5, batch=3, progress=lambda done, total: reports.append((done, total)))
    assert max(batch_sizes) <= 3
    assert sum(batch_sizes) == 4 * 5 + 2
    assert reports[-1] == (27, 27)
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_worker_processes_write_the_same(tmp_path: Path, shards: CodeShards) -> None:
    (tmp_path / "codes").rename(tmp_path / "one")
    write(tmp_path, workers=1)
    for name in ("training-00000.npy", "training-00000.labels.npy", "validation-00000.npy", "codes.json"):
        assert (tmp_path / "codes" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_large_codebooks_get_wider_shards(tmp_path: Path) -> None:
    write(tmp_path, size=2**16 + 1, encode=lambda images: encode(images) + 65281)
    assert np.load(tmp_path / "codes" / "training-00000.npy").dtype == np.uint32
    opened = open_codes(tmp_path / "codes")
    assert opened.training[0, 0].codes.min() >= 65281
    assert histogram(opened.training, 2**16 + 1)[:65281].sum() == 0


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def broken(images: Tensor) -> Tensor:
        raise SmaltiError("the device is gone")

    with pytest.raises(SmaltiError, match="the device is gone"):
        write(tmp_path, encode=broken)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_equal_codes_that_are_there_are_kept(tmp_path: Path, shards: CodeShards) -> None:
    before = (tmp_path / "codes" / "codes.json").stat().st_mtime_ns
    assert write(tmp_path) is False
    assert (tmp_path / "codes" / "codes.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fingerprint": "vq-9999"}, "fingerprint is 'vq-1a2b' there, 'vq-9999' now"),
        ({"copies": 2}, "copies is 3 there, 2 now"),
        ({"seed": 1}, "seed is 0 there, 1 now"),
        ({"labels": ("a", "c")}, r"labels is \['a', 'b'\] there, \['a', 'c'\] now"),
    ],
)
def test_other_codes_that_are_there_are_refused(
    tmp_path: Path, shards: CodeShards, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(SmaltiError, match=f"codes holds other codes already: {message}; give a new folder"):
        write(tmp_path, **changed)


def test_codes_of_other_images_are_refused(tmp_path: Path, shards: CodeShards) -> None:
    source, _, _ = data(tmp_path / "images")
    fewer = Crops(source, source.images[:4], size=(8, 16), channels=3, crop=RandomCrop(), seed=0)
    with pytest.raises(SmaltiError, match=r"training\.images is 5 there, 4 now"):
        write(tmp_path, training=fewer)
    zoomed = Crops(source, source.images[:5], size=(8, 16), channels=3, crop=RandomCrop(zoom=(1, 2)), seed=0)
    with pytest.raises(SmaltiError, match=r"training\.zoom is \[1\.0, 1\.0\] there, \[1, 2\] now"):
        write(tmp_path, training=zoomed)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "codes").mkdir()
    with pytest.raises(SmaltiError, match="codes exists and holds no codes; give a new folder"):
        write(tmp_path)


def test_impossible_settings_are_reported(tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match="images of 8x16 pixels do not divide into codes of 3x3 pixels"):
        write(tmp_path, factor=3)
    with pytest.raises(SmaltiError, match="at least once, not 0 times"):
        write(tmp_path, copies=0)


def test_codes_outside_the_codebook_are_never_written(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="for a codebook of 16"):
        write(tmp_path, size=16)
    assert not (tmp_path / "codes").exists()


def test_the_tokenizer_is_checked(shards: CodeShards) -> None:
    shards.check_fingerprint("vq-1a2b")
    with pytest.raises(SmaltiError, match=r"made by the tokenizer vq-1a2b, not by other; give the tokenizer"):
        shards.check_fingerprint("other")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def rewritten(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def rewrite(file: Path) -> None:
        values = json.loads(file.read_text())
        change(values)
        file.write_text(json.dumps(values))

    return rewrite


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("training-00000.npy", Path.unlink, r"there is no file .*training-00000\.npy; the folder is not whole"),
        ("training-00000.npy", cut, r"training-00000\.npy is damaged \("),
        ("training-00000.npy", lambda file: file.write_bytes(b""), r"training-00000\.npy is damaged \("),
        ("validation-00000.labels.npy", cut, r"validation-00000\.labels\.npy is damaged \("),
        (
            "validation-00000.npy",
            lambda file: np.save(file, np.zeros((2, 1, 2, 4))),
            r"holds float64 \(2, 1, 2, 4\) wh",
        ),
        (
            "training-00000.labels.npy",
            lambda file: np.save(file, np.zeros(9, np.int32)),
            r"int32 \(9,\) where codes\.j",
        ),
        ("codes.json", Path.unlink, r"there are no codes in .* \(no codes\.json\); make them with: smalti encode"),
        ("codes.json", cut, r"cannot read .*codes\.json"),
        ("codes.json", lambda file: file.write_text("[]"), r"codes\.json does not describe codes"),
        ("codes.json", rewritten(lambda values: values.update(format=2)), r"has format 2, but .* formats up to 1"),
        ("codes.json", rewritten(lambda values: values.pop("grid")), r"codes\.json: the key 'grid' is missing"),
        ("codes.json", rewritten(lambda values: values.update(sise=1)), r"unknown key 'sise'; did you mean 'size'"),
    ],
)
def test_damage_is_a_sentence(
    tmp_path: Path, shards: CodeShards, name: str, damage: Callable[[Path], object], message: str
) -> None:
    del shards
    damage(tmp_path / "codes" / name)
    with pytest.raises(SmaltiError, match=message):
        open_codes(tmp_path / "codes")


def test_a_code_outside_the_codebook_is_reported_when_it_is_read(tmp_path: Path, shards: CodeShards) -> None:
    del shards
    stored = np.load(tmp_path / "codes" / "training-00000.npy")
    stored[2, :, 1, 1] = 300
    np.save(tmp_path / "codes" / "training-00000.npy", stored)
    opened = open_codes(tmp_path / "codes")
    message = "training codes in .* are damaged: there is a code 300, but the codebook has 256"
    with pytest.raises(SmaltiError, match=message):
        opened.training[2, 0]
    with pytest.raises(SmaltiError, match=message):
        entropy(opened.training, SIZE)
    assert opened.training[1, 0].codes.shape == (2, 4)


def test_another_process_maps_the_files_itself(shards: CodeShards) -> None:
    content = pickle.dumps(shards.training)
    assert len(content) < 2000
    copy = pickle.loads(content)
    assert isinstance(copy, CodeSet)
    assert torch.equal(copy[3, 1].codes, shards.training[3, 1].codes)


def test_entropy_by_hand(tmp_path: Path) -> None:
    def halves(images: Tensor) -> Tensor:
        codes = torch.zeros(len(images), 2, 4, dtype=torch.long)
        codes[:, :, 2:] = 7
        codes[:, 0, 3] = 9
        return codes

    write(tmp_path, encode=halves)
    training = open_codes(tmp_path / "codes").training
    counts = histogram(training, 10)
    assert counts.tolist() == [48, 0, 0, 0, 0, 0, 0, 36, 0, 12]
    expected = 0.5 * math.log(2) + 0.375 * math.log(8 / 3) + 0.125 * math.log(8)
    assert entropy(training, 10) == pytest.approx(expected)


def test_no_images_to_validate_on_is_no_failure(tmp_path: Path) -> None:
    source, _, _ = data(tmp_path / "images")
    nothing = Crops(source, (), size=(8, 16), channels=3, crop=CenterCrop(), seed=0)
    write(tmp_path, validation=nothing)
    validation = open_codes(tmp_path / "codes").validation
    assert len(validation) == 0
    assert list(in_order(validation, batch=4)) == []
    assert entropy(validation, SIZE) == 0
