"""Texts as a condition: a vocabulary that is learned from captions, codes, and priors that are conditioned on texts."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from smalti.cli.main import app
from smalti.conditions.base import condition_value
from smalti.conditions.composite import CompositeCondition
from smalti.conditions.condition_registry import build_condition
from smalti.conditions.labels import Labels
from smalti.conditions.text import FILE, Text, text_condition, train_vocabulary
from smalti.core.errors import SmaltiError
from smalti.data.code_shards import open_codes
from smalti.data.crops import CenterCrop, RandomCrop, View
from smalti.data.loader import Crops
from smalti.data.sources import open_source
from smalti.encoding.annotators import ANNOTATORS
from smalti.images.io import read_image
from smalti.pipeline import Pipeline
from smalti.training.config import PriorTraining, TokenizerTraining, resolve
from smalti.training.runs import codes_of, condition_of, train_prior, train_tokenizer
from tests.encoding.test_condition_encoding import write_pairs
from tests.small import write_recipe

SIDE = 16
QUIET = Console(quiet=True)
CAPTIONS = ["Two red houses by a lake", "a lake at dusk, tall firs on the left", "the moon over a snowy field"] * 4


def small(length: int = 12, most: int = 320) -> Text:
    return text_condition(train_vocabulary(CAPTIONS, max_size=most), length=length)


# --- codes ---------------------------------------------------------------------------------------------------------


def test_texts_become_codes_and_texts_again() -> None:
    text = small()
    assert 256 < text.settings.vocabulary <= 320
    assert text.size == text.settings.vocabulary + 1
    codes = text.encode(["two red houses by a lake", "a lake"])
    assert codes.shape == (2, 12)
    assert codes.dtype == torch.int64
    assert text.decode(codes[0].tolist()) == "two red houses by a lake"
    pad = text.settings.vocabulary
    used = len(text.pieces("a lake"))
    assert (codes[1, used:] == pad).all()
    assert (codes[1, :used] < pad).all()
    assert len(text.pieces("two red houses by a lake")) < 12  # words are pieces, not letters


def test_the_vocabulary_has_at_most_so_many_pieces() -> None:
    assert small(most=256).settings.vocabulary == 256
    assert small(most=270).settings.vocabulary == 270
    assert small(most=4096).settings.vocabulary < 400  # of few captions there is not more to learn


@pytest.mark.parametrize("written", ["TWO  Red\u00a0houses\n by a\tlake ", "\uff54\uff57\uff4f red houses by a lake"])
def test_texts_are_normalized(written: str) -> None:
    assert small().pieces(written) == small().pieces("two red houses by a lake")


@pytest.mark.parametrize("unknown", ["zzyzx", "日本の家", "🏡🏡", "\x00\x7f", "naïve façade", "\udc80 broken"])
def test_unknown_words_fall_back_to_bytes(unknown: str) -> None:
    text = small(length=64)
    codes = text.encode([unknown])
    assert (codes >= 0).all()
    assert (codes < text.size).all()
    expected = unknown.encode("utf-8", "replace").decode()
    assert text.decode(codes[0].tolist()) == expected.strip()


def test_a_long_text_is_cut_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    text, long = small(), "a lake at dusk, " * 625
    assert len(long) == 10_000
    with caplog.at_level(logging.WARNING):
        codes = text.encode([long, long])
        text.encode_windows([long], grid=(4, 4))
    assert codes.shape == (2, 12)
    count = len(text.pieces(long))
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"the text has {count:,} codes, and this model reads 12 of them: all after '... ")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        text.encode(["a lake"])
    assert not caplog.records


@pytest.mark.parametrize("value", [None, 3, b"bytes", ["a", "list"]])
def test_other_values_are_refused(value: object) -> None:
    with pytest.raises(SmaltiError, match="a text is a string, not"):
        small().encode([value])


def test_the_same_captions_give_the_same_vocabulary() -> None:
    """Codes are compared when a run resumes. Sets and mappings have other orders in each process."""
    code = (
        "from smalti.conditions.text import train_vocabulary; import hashlib\n"
        f"print(hashlib.sha256(train_vocabulary({CAPTIONS[::-1]!r}, max_size=320).encode()).hexdigest())"
    )
    first, second = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    assert first == second
    assert train_vocabulary(CAPTIONS, max_size=320) == train_vocabulary(CAPTIONS[::-1], max_size=320)


def test_a_blank_text_is_none() -> None:
    text = small()
    both = CompositeCondition([Labels(["day", "night"]), text])
    assert condition_value(text, {"text": " \n"}) is None
    assert condition_value(text, {"text": "a lake"}) == "a lake"
    assert condition_value(both, {"text": "", "label": "day"}) == {"label": "day"}
    assert condition_value(both, {"text": ""}) is None
    codes = both.encode([{"label": "day", "text": " "}, {"label": "day"}, {"text": "a lake"}, None])
    assert torch.equal(codes[0], codes[1])
    assert (codes[3] == torch.tensor([2, *[3 + text.size] * text.length])).all()
    assert torch.equal(codes[2, 1:], text.encode(["a lake"])[0] + 3)


def test_the_preview_shows_the_text() -> None:
    text = small()
    first, second, none = (text.preview(text.encode([words])[0]) for words in ("a lake at dusk", "two red houses", ""))
    long = small(length=64).preview(small(length=64).encode(["tall firs " * 20])[0])
    assert {each.shape for each in (first, second, none, long)} == {(128, 128, 3)}  # they stand in one grid
    assert first.dtype == np.uint8
    assert not np.array_equal(first, second)
    dark = [np.flatnonzero((each < 128).any(axis=(1, 2))) for each in (none, long)]
    assert dark[0].max() < 30
    assert dark[1].max() > 60  # in several lines, each of which can be read


# --- files ---------------------------------------------------------------------------------------------------------


def test_it_comes_back_from_its_folder(tmp_path: Path) -> None:
    text = small()
    plain = json.loads(json.dumps(text.save(tmp_path)))
    again = build_condition(plain, tmp_path)
    assert isinstance(again, Text)
    assert torch.equal(again.encode(CAPTIONS), text.encode(CAPTIONS))
    assert again.save(tmp_path / "other") == plain
    assert (tmp_path / "other" / FILE).read_bytes() == (tmp_path / FILE).read_bytes()


@pytest.mark.parametrize("damage", ["missing", "cut", "changed", "binary"])
def test_a_damaged_vocabulary_is_named(damage: str, tmp_path: Path) -> None:
    plain, path = small().save(tmp_path), tmp_path / FILE
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_text(path.read_text("utf-8")[:500], "utf-8")
    elif damage == "changed":
        path.write_text(train_vocabulary(CAPTIONS[:2], max_size=300), "utf-8")
    else:
        path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(SmaltiError, match=r"tokenizer\.json.*; copy the whole folder again"):
        build_condition(plain, tmp_path)


# --- from images to a prior ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images` with captions, their `maps`, `tokenizer`, `maps-tokenizer` and the recipe `small.yaml`."""
    folder = write_pairs(tmp_path_factory.mktemp("texts"))
    rows = [
        {"file_name": f"{'ab'[n % 2]}/{n:02d}.png", "text": [f"corner {n} on the left", "halves", "an image"]}
        for n in range(10)
    ]
    (folder / "images" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    recipe = str(write_recipe(folder / "small.yaml"))
    settings = resolve(TokenizerTraining, stage="tokenizer", recipe=recipe, overrides=("run.images=8",))
    train_tokenizer(folder / "images", folder / "tokenizer", settings=settings, console=QUIET)
    of_labels = (
        "run.images=8", "images.file_type=labels", "objective.pixel=cross_entropy", "objective.adversarial.weight=0",
        "model.quantizer.codebook_size=9",
    )  # fmt: skip
    settings = resolve(TokenizerTraining, stage="tokenizer", recipe=recipe, overrides=of_labels)
    train_tokenizer(folder / "maps", folder / "maps-tokenizer", settings=settings, console=QUIET)
    return folder


def crops_of(home: Path, *, flip: bool = True) -> Crops:
    images = open_source(home / "images")
    crop = RandomCrop(zoom=(1.0, 1.0), flip=True) if flip else CenterCrop()
    return Crops(images, images.images, size=(SIDE, SIDE), channels=3, crop=crop, seed=3)


def test_one_caption_is_drawn_each_time(home: Path) -> None:
    crops = crops_of(home, flip=False)
    annotator = ANNOTATORS["text"](None, {"length": 20}, crops, (2, 2), 8)
    annotate, text = annotator.of(crops), annotator.condition
    assert isinstance(text, Text)
    view = View(0, 0, (SIDE, SIDE), (24, 28), mirrored=False)
    drawn = [text.decode(annotate(0, view, draw).tolist()) for draw in range(60)]
    assert set(drawn) == {"corner 0 on the left", "halves", "an image"}
    assert all(drawn.count(caption) > 8 for caption in set(drawn))
    again = ANNOTATORS["text"](None, {"length": 20}, crops, (2, 2), 8)
    assert [text.decode(again.of(crops)(0, view, draw).tolist()) for draw in range(60)] == drawn
    assert again.fingerprint == annotator.fingerprint


@pytest.mark.parametrize("swap", [True, False])
def test_sides_are_exchanged_in_mirrored_images(swap: bool, home: Path) -> None:
    crops = crops_of(home)
    annotator = ANNOTATORS["text"](None, {"swap_sides": swap}, crops, (2, 2), 8)
    annotate, text = annotator.of(crops), annotator.condition
    assert isinstance(text, Text)
    views = [View(0, 0, (SIDE, SIDE), (24, 28), mirrored=mirrored) for mirrored in (False, True)]
    pairs = [tuple(text.decode(annotate(4, view, draw).tolist()) for view in views) for draw in range(30)]
    other = "corner 8 on the right" if swap else "corner 8 on the left"
    assert set(pairs) == {("corner 8 on the left", other), ("halves", "halves"), ("an image", "an image")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lenght": 5}, "the condition text: unknown key 'lenght'; did you mean 'length'"),
        ({"vocabulary": 100}, "the condition text: vocabulary = 100"),
        ({"length": 0}, "the condition text: length = 0"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, object], message: str, home: Path) -> None:
    with pytest.raises(SmaltiError, match=message):
        ANNOTATORS["text"](None, options, crops_of(home), (2, 2), 8)


def test_captions_that_are_cut_are_counted(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ANNOTATORS["text"](None, {"length": 2}, crops_of(home), (2, 2), 8)
    assert "10 of 30 captions have more than 2 codes, up to " in caplog.text


def test_the_vocabulary_can_be_that_of_another_model(home: Path) -> None:
    made = ANNOTATORS["text"](None, {"length": 40, "vocabulary_of": "scenes"}, crops_of(home), (2, 2), 8).condition
    bundled = next(each for each in Pipeline.from_pretrained("scenes").condition.members if isinstance(each, Text))
    assert isinstance(made, Text)
    assert made.settings == bundled.settings
    with pytest.raises(SmaltiError, match="vocabulary_of=landscapes: this model is not conditioned on texts"):
        ANNOTATORS["text"](None, {"vocabulary_of": "landscapes"}, crops_of(home), (2, 2), 8)


def prior_of(home: Path, out: str, *overrides: str) -> Path:
    """A prior on the images of `home`, in `out` there."""
    settings = resolve(PriorTraining, stage="prior", recipe=str(home / "small.yaml"), overrides=overrides)
    place = home / out
    data, tokenizer = home / "images", home / "tokenizer"
    shards = codes_of(data, tokenizer, place / "codes", settings=settings, progress=lambda done, total: None)
    train_prior(shards, tokenizer, place, settings=settings, console=QUIET)
    return place


def pipeline_of(home: Path, run: str) -> Path:
    """A folder with the tokenizer and the prior of a run."""
    folder = home / f"{run}-pipeline"
    shutil.copytree(home / "tokenizer" / "model", folder / "tokenizer")
    shutil.copytree(home / run / "model", folder / "prior")
    return folder


@pytest.fixture(scope="module")
def text_pipeline(home: Path) -> Path:
    """A pipeline with a prior of texts alone."""
    prior_of(home, "texts", "condition=text", "run.codes=320")
    return pipeline_of(home, "texts")


def test_a_prior_is_conditioned_on_texts(home: Path, text_pipeline: Path) -> None:
    shards = open_codes(home / "texts" / "codes")
    text = condition_of(shards, "text")
    assert isinstance(text, Text)
    assert text.length == 64
    captions = {text.decode(shards.training[index, draw].prefix.tolist()) for index in range(6) for draw in range(4)}
    assert captions & {"halves", "an image"}
    pipe = Pipeline.from_pretrained(text_pipeline)
    first, second = pipe.sample(2, text="halves", seed=3), pipe.sample(1, text="halves", seed=4)
    assert torch.allclose(first[1], second[0], atol=1e-4)
    unconditional = pipe.sample(1, seed=3)
    assert torch.equal(pipe.sample(1, text=" ", seed=3), unconditional)
    guided = pipe.sample(1, text="a word that nobody knows: 日本", seed=3, guidance=3.0)
    assert guided.shape == unconditional.shape
    *_, last = pipe.stream(text="halves", seed=3)
    assert torch.allclose(last, first[0], atol=1e-4)


def test_the_same_command_goes_on(home: Path, text_pipeline: Path) -> None:
    before = (home / "texts" / "model" / "model.safetensors").read_bytes()
    prior_of(home, "texts", "condition=text", "run.codes=320")
    assert (home / "texts" / "model" / "model.safetensors").read_bytes() == before
    rows = (home / "images" / "metadata.jsonl").read_text("utf-8")
    (home / "images" / "metadata.jsonl").write_text(rows.replace("halves", "corners"), "utf-8")
    with pytest.raises(SmaltiError, match=r"holds other codes already: prefix\.fingerprint"):
        prior_of(home, "texts", "condition=text", "run.codes=320")
    (home / "images" / "metadata.jsonl").write_text(rows, "utf-8")


def test_it_is_saved_and_converted_with_its_vocabulary(text_pipeline: Path, tmp_path: Path) -> None:
    pipe = Pipeline.from_pretrained(text_pipeline)
    pipe.save_pretrained(tmp_path / "saved", about={})
    ran = CliRunner().invoke(app, ["convert", str(text_pipeline), str(tmp_path / "converted")])
    assert ran.exit_code == 0, ran.output
    words = ["push", str(text_pipeline), "me/texts", "--license", "mit", "--card-only", str(tmp_path / "card")]
    ran = CliRunner().invoke(app, words)
    assert ran.exit_code == 0, ran.output
    expected = pipe.sample(1, text="halves", seed=1)
    for name in ("saved", "converted", "card"):
        assert (tmp_path / name / "prior" / FILE).read_bytes() == (text_pipeline / "prior" / FILE).read_bytes()
        assert torch.equal(Pipeline.from_pretrained(tmp_path / name).sample(1, text="halves", seed=1), expected)


def test_the_hub_gives_the_vocabulary_too(text_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(name: str, *, allow_patterns: list[str]) -> str:
        for path in filter(Path.is_file, text_pipeline.rglob("*")):
            below = path.relative_to(text_pipeline)
            if any(fnmatch(below.as_posix(), pattern) for pattern in allow_patterns):
                (tmp_path / "cache" / below).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, tmp_path / "cache" / below)
        return str(tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    there, here = Pipeline.from_pretrained("me/texts"), Pipeline.from_pretrained(text_pipeline)
    assert torch.equal(there.sample(1, text="halves", seed=1), here.sample(1, text="halves", seed=1))


def test_the_commands(home: Path, text_pipeline: Path, tmp_path: Path) -> None:
    def run(*words: object) -> str:
        ran = CliRunner().invoke(app, [str(word) for word in words])
        assert ran.exit_code == 0, ran.output
        return " ".join(ran.output.split())

    run("sample", text_pipeline, "--out", tmp_path, "-n", 1, "--text", "an image, 日本", "--guidance", 2)
    assert "text: an image, 日本" in run("info", tmp_path / "sample-000000.png")
    assert "prior condition.name: text prior condition.length: 64" in run("info", text_pipeline)
    assert "text, 64 codes with" in run("info", home / "texts" / "codes")
    image = home / "images" / "a" / "00.png"
    run("complete", text_pipeline, image, "--out", tmp_path, "-n", 1, "--keep", "top-half", "--text", "halves")
    assert "halves" in run("info", tmp_path / "00-000000.png")


def test_likelihood_of_held_out_codes(home: Path, text_pipeline: Path, tmp_path: Path) -> None:
    words = [
        "evaluate",
        "prior",
        text_pipeline,
        home / "texts" / "codes",
        "--out",
        tmp_path / "scores",
        "--set",
        "samples=0",
    ]
    ran = CliRunner().invoke(app, [str(word) for word in words])
    assert ran.exit_code == 0, ran.output
    other = ["encode", home / "tokenizer", home / "images", "--out", tmp_path / "codes", "--copies", 1, "--size", SIDE]
    other += ["--validation", 0.2, "--condition", "text", "--condition-set", "text.vocabulary=260"]
    ran = CliRunner().invoke(app, [str(word) for word in other])
    assert ran.exit_code == 0, ran.output
    words[3] = tmp_path / "codes"
    ran = CliRunner().invoke(app, [str(word) for word in words])
    assert "have those of another condition" in str(ran.exception)


def test_a_model_without_text_refuses_one(home: Path, tmp_path: Path) -> None:
    prior_of(home, "classes", "condition=labels", "run.codes=64", "encode.copies=1")
    plain = pipeline_of(home, "classes")
    ran = CliRunner().invoke(app, ["sample", str(plain), "--out", str(tmp_path), "--text", "a lake"])
    assert isinstance(ran.exception, SmaltiError)
    assert str(ran.exception) == "this model takes --label, not --text"
    with pytest.raises(SmaltiError, match="this model takes 'label', text = 'a lake' was given; leave it out"):
        Pipeline.from_pretrained(plain).sample(1, text="a lake")


def test_label_text_and_segmentation_together(home: Path, tmp_path: Path) -> None:
    words = ["encode", home / "tokenizer", home / "images", "--out", home / "all", "--copies", 2, "--size", SIDE]
    words += ["--condition", "labels", "--condition", "text", "--condition", "segmentation", "--validation", 0.2]
    words += ["--condition-tokenizer", f"segmentation={home / 'maps-tokenizer'}"]
    words += ["--condition-data", f"segmentation={home / 'maps'}", "--condition-set", "text.length=8"]
    ran = CliRunner().invoke(app, [str(word) for word in words])
    assert ran.exit_code == 0, ran.output
    train = ["train", "prior", home / "all", "--tokenizer", home / "tokenizer", "--out", home / "all-run"]
    train += ["--recipe", home / "small.yaml", "--set", "run.codes=320", "--condition", "labels,text,segmentation"]
    ran = CliRunner().invoke(app, [str(word) for word in train])
    assert ran.exit_code == 0, ran.output
    folder = pipeline_of(home, "all-run")
    pipe = Pipeline.from_pretrained(folder)
    assert isinstance(pipe.condition, CompositeCondition)
    assert [part.key for part in pipe.condition.parts] == ["label", "text", "segmentation"]
    assert (folder / "prior" / "part-1" / FILE).is_file()
    labels = torch.from_numpy(
        read_image(home / "maps" / "a" / "00.png", channels=1, name="map")[:SIDE, :SIDE, 0]
    ).long()
    every = pipe.sample(1, label="a", text="halves", segmentation=labels, seed=2, guidance=2.0)
    some = [pipe.sample(1, seed=2, text="halves"), pipe.sample(1, seed=2, text="halves", label="b"), pipe.sample(1)]
    assert all(each.shape == every.shape for each in some)
    shown = pipe.condition.preview(pipe.condition.encode([{"text": "halves", "label": "a"}])[0])
    assert shown.shape == (128, 384, 3)


def test_conditions_with_codes_of_their_own_are_encoded_first(home: Path) -> None:
    with pytest.raises(
        SmaltiError,
        match=r"first smalti encode .* --condition labels --condition text --condition segmentation "
        r"--condition-tokenizer segmentation=\.\.\. --out CODES",
    ):
        prior_of(home, "never", "condition=labels,text,segmentation")
    with pytest.raises(SmaltiError, match="made without one; make them with: smalti encode"):
        condition_of(open_codes(home / "classes" / "codes"), "text")
