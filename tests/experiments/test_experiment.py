"""`smalti experiment`, and the experiment `reconstruction` from images to its page."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smalti.checkpoints.formats import FORMATS
from smalti.cli.main import main
from smalti.data.sources import open_source, split
from smalti.evaluation.metrics import psnr
from smalti.experiments.experiment_registry import EXPERIMENTS
from smalti.experiments.page_parts import detail
from smalti.experiments.tokenizer_comparison import difference
from smalti.images.io import read_image, save_png, to_tensor
from smalti.images.resizing import resize_to_cover
from smalti.model_loading import load_tokenizer
from smalti.tokenizer.vqgan import VQGAN
from smalti.training.config import TokenizerTraining, resolve
from tests.small import SIDE, write_images, write_recipe

HELD_OUT = 0.3
TOKENIZERS = [
    {"name": "f2", "changes": ["model.autoencoder.channel_multipliers=[1]"]},
    {"name": "f4", "changes": ["model.autoencoder.channel_multipliers=[1, 1]"]},
]


class Ended:
    """How a command ended."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, " ".join(err.split())


def smalti(capfd: pytest.CaptureFixture[str], *arguments: object) -> Ended:
    capfd.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["smalti", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    out, err = capfd.readouterr()
    return Ended(int(ended.value.code or 0), out, err)


@pytest.fixture(autouse=True)
def _without_weights(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALTI_OFFLINE", "1")
    monkeypatch.setenv("SMALTI_CACHE", str(tmp_path_factory.mktemp("none")))
    monkeypatch.delenv("SMALTI_WEIGHTS", raising=False)


def trained(home: Path) -> list[str]:
    """The options of an experiment of two tokenizers that are trained within a second."""
    chosen = {
        "recipe": str(home / "small.yaml"),
        "training": [],
        "tokenizers": TOKENIZERS,
        "size": [SIDE, SIDE],
        "held_out": HELD_OUT,
        "images": 50,
        "shown": 3,
    }
    sets = [part for key, value in chosen.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    return ["experiment", "reconstruction", "--data", str(home / "images"), *sets]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a recipe, and the experiment done once in `out`."""
    path = tmp_path_factory.mktemp("experiment")
    write_images(path / "images")
    write_recipe(path / "small.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMALTI_OFFLINE", "1")
        patch.setenv("SMALTI_CACHE", str(path / "cache"))
        patch.delenv("SMALTI_WEIGHTS", raising=False)
        patch.setattr(sys, "argv", ["smalti", *trained(path), "--out", str(path / "out")])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
    return path


def result(out: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((out / "result.json").read_text())
    return values


def held_out(home: Path) -> list[str]:
    return [image.key for image in split(open_source(home / "images").images, validation=HELD_OUT)[1]]


def test_the_studies_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    ended = smalti(capfd, "experiment")
    assert ended.status == 0
    for name, experiment in EXPERIMENTS.items():
        assert f"{name}: {experiment.about}" in ended.out
        assert ended.out.count("--scale ") == 3 * len(EXPERIMENTS)


@pytest.mark.parametrize(("name", "f"), [("f2", 2), ("f4", 4)])
def test_the_figures_are_those_of_the_trained_tokenizer_on_images_it_has_not_seen(
    home: Path, name: str, f: int
) -> None:
    found = result(home / "out")["steps"]
    outcome = found[f"measure-{name}"]["outcome"]
    model = load_tokenizer(home / "out" / found[f"tokenizer-{name}"]["folder"])
    keys = held_out(home)
    images = [read_image(home / "images" / key, channels=3, name=key) for key in keys]
    given = torch.stack([to_tensor(resize_to_cover(image, (SIDE, SIDE))) for image in images])
    values = psnr(given, model(given)[0])
    assert outcome["result"]["scores"]["psnr"] == pytest.approx(float(values.mean()), abs=1e-3)
    assert outcome["result"]["data"]["images"] == len(keys) > 3
    assert (outcome["factor"], outcome["codes"]) == (f, 16)
    assert outcome["bits_per_image"] == (SIDE // f) ** 2 * 4
    assert outcome["bits_per_pixel"] == pytest.approx(outcome["bits_per_image"] / SIDE**2)
    assert outcome["seconds_per_image"] > 0


def test_what_is_set_side_by_side_is_the_same_images(home: Path) -> None:
    found = result(home / "out")["steps"]
    folders = [home / "out" / found[f"measure-{each['name']}"]["folder"] for each in TOKENIZERS]
    names = [[each["name"] for each in found[f"measure-{one['name']}"]["outcome"]["shown"]] for one in TOKENIZERS]
    keys = held_out(home)
    assert names[0] == names[1] == [keys[number * len(keys) // 3] for number in range(3)]
    first, second = ([path.read_bytes() for path in sorted((f / "shown").glob("*-original.png"))] for f in folders)
    assert first == second
    with (folders[0] / "images.csv").open(newline="") as file:
        assert [line["image"] for line in csv.DictReader(file)] == keys


class Reader(HTMLParser):
    """The text and the images of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.alts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.alts.append(dict(attrs)["alt"] or "")


def read(page: Path) -> tuple[str, list[str]]:
    reader = Reader()
    reader.feed(page.read_text())
    return " ".join(" ".join(reader.words).split()), reader.alts


def test_the_page_reports_what_was_found_and_what_is_missing(home: Path) -> None:
    text, alts = read(home / "out" / "report.html")
    for one in TOKENIZERS:
        scores = result(home / "out")["steps"][f"measure-{one['name']}"]["outcome"]["result"]["scores"]
        assert f"{scores['psnr']:.2f}"[:4] in text
        for key in held_out(home)[:1]:
            assert f"{key}, by {one['name']}" in alts
    assert "LPIPS was not measured: squeezenet1_1-b8a52dc0.pth is needed" in text
    assert "Each tokenizer was trained once" in text
    assert re.search(r"the next smaller f brings \S+ dB for 4 times the bits", text)
    assert len([alt for alt in alts if alt.startswith("a detail of")]) == 9
    assert "nan" not in text


def test_the_same_command_again_does_nothing_anew(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(home / "out", tmp_path / "out")
    ended = smalti(capfd, *trained(home), "--out", tmp_path / "out")
    assert ended.status == 0, ended.err
    assert ended.out.count(": already done") == 4
    assert result(tmp_path / "out") == result(home / "out")


def test_given_tokenizers_are_measured_on_all_images(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = [home / "out" / result(home / "out")["steps"][f"tokenizer-{each['name']}"]["folder"] for each in TOKENIZERS]
    shutil.copytree(runs[0] / "model", tmp_path / "mine" / "tokenizer")
    shutil.copytree(runs[1] / "model", tmp_path / "other" / "mine")
    arguments = ["experiment", "reconstruction", tmp_path / "mine" / "tokenizer", tmp_path / "other" / "mine"]
    ended = smalti(capfd, *arguments, "--data", home / "images", "--out", tmp_path / "out")
    assert ended.status == 0, ended.err
    found = result(tmp_path / "out")["steps"]
    assert list(found) == ["measure-mine", "measure-mine-2"]
    assert [found[name]["outcome"]["factor"] for name in found] == [2, 4]
    for each in found.values():
        assert each["outcome"]["result"]["data"]["images"] == 20
        assert each["outcome"]["result"]["protocol"]["images"]["size"] == [SIDE, SIDE], "what they were trained on"
    text, _ = read(tmp_path / "out" / "report.html")
    assert "mine: f2, K 16" in text
    assert "what they learned from is not known here" in text
    assert "the next smaller f" not in text
    again = smalti(capfd, *arguments[:3], "--data", home / "images", "--out", tmp_path / "out")
    assert again.out.count(": already done") == 1, "one of them alone is measured already"


def test_ours_nearby_one_of_another_program(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small = [
        "model.autoencoder.base_channels=32",
        "model.autoencoder.channel_multipliers=[1, 1]",
        "model.autoencoder.attention_levels=[]",
    ]
    small += [
        "model.autoencoder.latent_channels=16",
        "model.quantizer.codebook_dim=16",
        "model.quantizer.codebook_size=24",
    ]
    training = resolve(TokenizerTraining, stage="tokenizer", recipe="reference-imagenet", overrides=small)
    FORMATS["taming"].write(VQGAN(training.model).eval(), None, None, tmp_path / "theirs", about={})
    run = home / "out" / result(home / "out")["steps"]["tokenizer-f4"]["folder"]
    options = ("--data", home / "images", "--set", f"measured_at=[{SIDE}, {SIDE}]", "--out", tmp_path / "out")
    ended = smalti(capfd, "experiment", "reconstruction", run, tmp_path / "theirs", *options)
    assert ended.status == 0, ended.err
    found = result(tmp_path / "out")["steps"]
    assert [(each["outcome"]["factor"], each["outcome"]["codes"]) for each in found.values()] == [(4, 16), (2, 24)]
    assert "theirs: f2, K 24" in read(tmp_path / "out" / "report.html")[0]


def test_a_damaged_image_is_left_out_and_reported(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(home / "images", tmp_path / "images")
    good = sorted((tmp_path / "images").rglob("*.png"))[0]
    good.write_bytes(good.read_bytes()[:60])
    run = home / "out" / result(home / "out")["steps"]["tokenizer-f2"]["folder"]
    options = ("--data", tmp_path / "images", "--set", "measured_at=[12, 24]", "--out", tmp_path / "out")
    ended = smalti(capfd, "experiment", "reconstruction", run, *options)
    assert ended.status == 0, ended.err
    outcome = result(tmp_path / "out")["steps"]["measure-tokenizer-f2"]["outcome"]
    assert outcome["result"]["data"]["images"] == 19
    assert outcome["bits_per_image"] == 6 * 12 * 4
    assert "skipped as damaged: dark/00.png" in read(tmp_path / "out" / "report.html")[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["reconstuction"], "no experiment 'reconstuction'; did you mean 'reconstruction'"),
        (["reconstruction", "--scale", "tall"], "unknown scale 'tall'; did you mean"),
        (["reconstruction", "--scale", "full"], "needs ImageNet's training images .* give the images with --data"),
        (["reconstruction", "nowhere"], "no model folder nowhere"),
        (["reconstruction", "RUN", "--data", "DATA", "--set", "measured_at=[16, 18]"],
            r"tiles of 4 pixels.*at=\[16, 16\]"),
        (["reconstruction", "RUN", "--data", "DATA", "--set", "size=[16, 18]"], "set measured_at for the size"),
        (["reconstruction", "RUN", "--data", "DATA", "--set", "tokenizer.run.images=9"],
            "models are given and none is trained"),
        (["reconstruction", "--data", "DATA", "--set", "scenes=9"], "no scenes are rendered"),
        (["reconstruction", "--set", "prior.run.codes=9"], "no prior is trained in this experiment"),
        (["reconstruction", "--set", "tokenizer.model.quantizer.codebook_size=9"],
            "decides model.quantizer.codebook_size itself"),
        (["reconstruction", "--set", "tokenizer.run.imagse=9"], "unknown key 'run.imagse'; did you mean 'images'"),
        (["reconstruction", "--set", "tokenizers=[{name: a}, {name: a}]"], "two tokenizers are called 'a'"),
        (["reconstruction", "--set", "tokenizers=[{name: a/b}]"], "tokenizers.0.name = 'a/b'"),
        (["reconstruction", "--data", "nowhere"], "there is no nowhere; images come from"),
    ],
)  # fmt: skip
def test_mistakes_are_sentences(
    arguments: list[str], sentence: str, home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = home / "out" / result(home / "out")["steps"]["tokenizer-f4"]["folder"]
    message = [{"RUN": str(run), "DATA": str(home / "images")}.get(word, word) for word in arguments]
    ended = smalti(capfd, "experiment", *message, "--out", tmp_path / "out")
    assert ended.status == 1
    assert "Traceback" not in ended.err
    assert re.search(sentence, ended.err), ended.err
    assert not (tmp_path / "out").exists()


def test_the_detail_is_where_most_happens() -> None:
    image = np.full((32, 48, 3), 90, np.uint8)
    image[18:24, 30:36] = np.random.RandomState(0).randint(0, 255, (6, 6, 3))
    rows, columns = detail(image)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (8, 12)
    assert rows.start <= 18 < 24 <= rows.stop
    assert columns.start <= 30 < 36 <= columns.stop
    gray = detail(image[:, :, 0])
    assert gray[0].start <= 18 < 24 <= gray[0].stop
    assert detail(np.zeros((3, 3), np.uint8)) == (slice(0, 1), slice(0, 1))


def test_the_difference_is_paired() -> None:
    found = difference([10.0, 20.0, 33.0, math.nan], [9.0, 18.0, 30.0, 5.0])
    assert (found.mean, found.above, found.images) == (2.0, 3, 3)
    assert found.error == pytest.approx(1 / math.sqrt(3))
    assert math.isnan(difference([1.0], [2.0]).error)


def test_tokenizers_of_gray_and_color_are_not_compared(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for index in range(4):
        save_png(tmp_path / "gray" / f"{index}.png", np.full((SIDE, SIDE, 1), 40 * index, np.uint8))
    options = ["--recipe", home / "small.yaml", "--set", "model.autoencoder.channels=1", "--set", "run.images=4"]
    smalti(capfd, "train", "tokenizer", tmp_path / "gray", "--out", tmp_path / "run", *options)
    run = home / "out" / result(home / "out")["steps"]["tokenizer-f4"]["folder"]
    ended = smalti(capfd, "experiment", "reconstruction", run, tmp_path / "run", "--out", tmp_path / "out")
    assert ended.status == 1
    assert "takes images of 1 channels" in ended.err
    options = ["--data", tmp_path / "gray", "--out", tmp_path / "out"]
    ended = smalti(capfd, "experiment", "reconstruction", tmp_path / "run", *options)
    assert ended.status == 0, ended.err
