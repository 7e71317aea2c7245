"""`smalti evaluate` as a person uses it: tables, results, pages, and every mistake one sentence."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from smalti.cli.main import main
from smalti.conditions.labels import Labels
from smalti.core.files import read_json, write_json
from smalti.core.published_weights import WEIGHTS
from smalti.core.settings import parse
from smalti.evaluation import image_sets
from smalti.evaluation.protocols import PRIOR_PROTOCOLS, SET_PROTOCOLS, TOKENIZER_PROTOCOLS, select_protocol
from smalti.evaluation.results import read_result
from smalti.pipeline import Pipeline
from smalti.prior import Transformer, TransformerSettings
from smalti.tokenizer.vqgan import VQGAN
from tests.feature_networks import forbid_downloads, use_means, write_noise
from tests.small import LABELS, write_images, write_recipe


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


class Runner:
    """Runs `smalti evaluate` with arguments, in this process."""

    def __init__(self, patch: pytest.MonkeyPatch, captured: pytest.CaptureFixture[str]) -> None:
        self.patch, self.captured = patch, captured

    def __call__(self, *arguments: object) -> Ended:
        self.patch.setattr(sys, "argv", ["smalti", "evaluate", *map(str, arguments)])
        self.captured.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = self.captured.readouterr()
        return Ended(int(ended.value.code or 0), out, " ".join(err.split()))

    def works(self, *arguments: object) -> str:
        ended = self(*arguments)
        assert ended.status == 0, ended.err
        return ended.out

    def fails(self, *arguments: object, sentence: str, status: int = 1) -> None:
        ended = self(*arguments)
        assert ended.status == status, ended.out + ended.err
        assert "Traceback" not in ended.err
        assert re.search(sentence, ended.err), ended.err


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Runner:
    use_means(monkeypatch)
    forbid_downloads(monkeypatch, tmp_path / "no weights")
    monkeypatch.setenv("COLUMNS", "200")
    return Runner(monkeypatch, capfd)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a tokenizer trained on them, and a pipeline with a prior that is not trained."""
    path = tmp_path_factory.mktemp("evaluate")
    write_images(path / "images")
    write_recipe(path / "small.yaml")
    train = ["train", "tokenizer", "images", "--recipe", "small.yaml", "--out", "runs/tokenizer"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        for command in (train, ["encode", "runs/tokenizer", "images", "--out", "codes", "--copies", "1"]):
            patch.setattr(sys, "argv", ["smalti", *command])
            with pytest.raises(SystemExit) as ended:
                main()
            assert not ended.value.code
    tokenizer = VQGAN.from_pretrained(path / "runs" / "tokenizer")
    labels = tuple(sorted(LABELS))
    plain = {"codebook_size": 16, "condition_size": 2, "grid": (4, 4), "layers": 1, "embed_dim": 16, "heads": 2}
    torch.manual_seed(0)
    prior = Transformer(parse(TransformerSettings, plain, where="test"))
    Pipeline(tokenizer, prior, Labels(labels)).save_pretrained(path / "pipeline", about={})
    return path


def test_a_tokenizer_on_what_its_training_held_out(evaluate: Runner, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "result"
    message = evaluate.works(
        "tokenizer", models / "runs" / "tokenizer", models / "images", "--out", out, "--set", "lpips=[]"
    )
    assert "was trained on" in message
    assert "evaluating the 20% held out there" in message
    assert re.search(r"psnr +\d", message)
    assert "reconstruction_frechet_squeezenet" in message
    assert "features: the mean colors of four quarters" in message
    result = read_result(out)
    assert result["protocol"]["images"] == {"count": None, "held_out": 0.2, "size": [16, 16], "filter": "lanczos"}
    assert result["model"]["name"] == "runs/tokenizer"
    assert result["made"]["command"].startswith("smalti evaluate tokenizer")
    assert 0 < result["data"]["images"] < 20
    html = (out / "report.html").read_text("utf-8")
    for words in ("The worst reconstructions", "How the codes are used", "held_out: 0.2", "runs/tokenizer"):
        assert words in html, words
    assert (out / "images.csv").read_text("utf-8").startswith("image,psnr,ssim")


def test_what_was_held_out_is_found_where_the_images_were_moved(evaluate: Runner, models: Path, tmp_path: Path) -> None:
    """All images were measured where the path was another one, those of the training too."""
    moved = shutil.copytree(models / "images", tmp_path / "photos")
    run = (models / "runs" / "tokenizer", moved, "--set", "lpips=[]", "--set", "features=null")
    message = evaluate.works("tokenizer", *run)
    assert "evaluating the 20% held out there" in message
    next(iter(sorted(moved.rglob("*.png")))).unlink()
    message = evaluate.works("tokenizer", *run)
    assert "held out there" not in message, "these are other images"
    assert "measured on 19 images" in message


def test_images_of_the_training_are_reported(evaluate: Runner, models: Path) -> None:
    where = (models / "runs" / "tokenizer", models / "images", "--set", "lpips=[]", "--set", "features=null")
    message = evaluate.works("tokenizer", *where, "--held-out", "0")
    assert "these scores are not of held-out images" in message
    assert "measured on 20 images" in message
    message = evaluate.works("tokenizer", *where, "--held-out", "0", "--set", "images.size=null")
    assert "measured on 20 images" in message, "20x20 pixels are whole tiles"
    message = evaluate.works("tokenizer", models / "pipeline", models / "images", "--size", "8x12", "--set", "lpips=[]")
    assert "held-out" not in message, "of this model it is not known what it was trained on"
    assert "ssim is left out: it needs 11 pixels each way" in message


def test_results_are_compared(evaluate: Runner, models: Path, tmp_path: Path) -> None:
    tokenizer = ("tokenizer", models / "pipeline", models / "images", "--set", "lpips=[]", "--set", "features=null")
    evaluate.works(*tokenizer, "--size", "16", "--out", tmp_path / "a")
    evaluate.works(*tokenizer, "--size", "16", "--out", tmp_path / "b", "--batch", "3")
    evaluate.works(*tokenizer, "--size", "20", "--out", tmp_path / "c")
    assert re.search(r"psnr: [\d.]+ \| [\d.]+  \(\+0\)", evaluate.works("compare", tmp_path / "a", tmp_path / "b"))
    evaluate.fails(
        "compare",
        tmp_path / "a",
        tmp_path / "c",
        sentence=r"protocol\.images\.size is \[16, 16\] in one and \[20, 20\]",
    )


def test_a_prior_on_codes_and_on_images(evaluate: Runner, models: Path, tmp_path: Path) -> None:
    message = evaluate.works("prior", models / "pipeline", models / "codes", "--out", tmp_path / "codes")
    assert re.search(r"nats_per_code +\d", message)
    message = evaluate.works(
        "prior", models / "pipeline", models / "images", "--protocol", "prior-samples-squeezenet", "--set", "samples=6",
        "--held-out", "0.3", "--out", tmp_path / "images",
    )  # fmt: skip
    assert "frechet_squeezenet" in message
    result = read_result(tmp_path / "images")
    plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "guidance": 1.0}
    assert result["protocol"]["sampler"] == {**plain, "guidance_schedule": "constant"}
    assert result["protocol"]["seed"] == 0
    html = (tmp_path / "images" / "report.html").read_text("utf-8")
    for words in ("The least likely images", "Where codes are hard to guess", "Samples", "seed 0"):
        assert words in html, words


def test_folders_and_kept_statistics(evaluate: Runner, tmp_path: Path) -> None:
    a, b = write_noise(tmp_path / "a", count=12), write_noise(tmp_path / "b", count=14, seed=1)
    options = ("--protocol", "folder-vs-folder-squeezenet", "--size", "8", "--set", "features.subset_size=10")
    first = evaluate.works("folders", a, b, *options, "--statistics", tmp_path / "b.npz", "--out", tmp_path / "first")
    assert "frechet_squeezenet" in first
    assert "fid" not in first.split("features:")[0].lower(), "nobody takes it for FID"
    evaluate.works("folders", a, tmp_path / "b.npz", *options, "--out", tmp_path / "second")
    compared = evaluate.works("compare", tmp_path / "first", tmp_path / "second" / "result.json")
    assert "frechet_squeezenet" in compared
    assert not re.search(r"\([+-][1-9]", compared)
    message = evaluate.works("folders", a, b)
    assert re.search(r"^fid +\d", message, re.MULTILINE), "with Inception's names it is FID"
    evaluate.fails(
        "folders", a, tmp_path / "b.npz", *options, "--statistics", tmp_path / "c.npz",
        sentence="holds statistics already; omit --statistics",
    )  # fmt: skip


def test_protocols_are_listed(evaluate: Runner) -> None:
    message = evaluate.works("protocols")
    for name in (*TOKENIZER_PROTOCOLS, *PRIOR_PROTOCOLS, *SET_PROTOCOLS):
        assert f"--protocol {name}:" in message


def test_mistakes_are_sentences(evaluate: Runner, models: Path, tmp_path: Path) -> None:
    tokenizer, images = models / "runs" / "tokenizer", models / "images"
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, sentence in (
        (("tokenizer", tokenizer, images, "--protocol", "fid"), "there is no protocol 'fid'"),
        (("tokenizer", tokenizer, images, "--protocol", "imagenet-val-50k-center256"), "takes 50,000 images and"),
        (("tokenizer", tokenizer, empty), "no images in"),
        (("tokenizer", tmp_path / "gone", images), "there is no model folder"),
        (("tokenizer", tokenizer, images, "--set", "sise=3"), "unknown key 'sise'"),
        (("prior", tokenizer, images), "does not hold both a prior and its tokenizer"),
        (("folders", images, tmp_path / "gone.npz"), "there is no"),
        (("compare", tmp_path, tmp_path), "there is no file"),
    ):
        evaluate.fails(*arguments, sentence=sentence)
    evaluate.fails("tokenizer", tokenizer, images, "--size", "large", sentence="'large' is not a size", status=2)


def test_a_damaged_run_is_measured_as_a_whole(evaluate: Runner, models: Path, tmp_path: Path) -> None:
    """The run's settings only help to find what was held out: without them the command continues."""
    shutil.copytree(models / "runs" / "tokenizer", tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("{")
    message = evaluate.works("tokenizer", tmp_path / "run", models / "images", "--set", "lpips=[]")
    assert "measured on 20 images" in message


def test_missing_weights(evaluate: Runner, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    forbid_downloads(monkeypatch, tmp_path / "weights")
    message = evaluate.works("tokenizer", models / "runs" / "tokenizer", models / "images")
    assert "lpips_squeezenet is left out: squeezenet1_1" in " ".join(message.split())
    folders = ("folders", models / "images", models / "images")
    out = tmp_path / "out"
    message = evaluate.works(*folders, "--out", out)
    assert message.startswith(
        "measured in EfficientNet-Lite0's features, because the weights of inception are not on this machine"
    )
    assert "frechet_efficientnet" in message
    result = read_json(out / "result.json")
    assert result["protocol"]["features"]["network"] == "efficientnet"
    assert any(note.startswith("measured in EfficientNet-Lite0's features") for note in result["notes"])
    for named in (("--protocol", "folder-vs-folder"), ("--set", "features.network=inception")):
        evaluate.fails(*folders, *named, sentence="InceptionV3 .* was not found")


def test_a_result_of_another_hand(evaluate: Runner, models: Path, tmp_path: Path) -> None:
    evaluate.works("prior", models / "pipeline", models / "codes", "--out", tmp_path / "a")
    other = read_json(tmp_path / "a" / "result.json")
    other["model"]["tokenizer"] = "another"
    write_json(tmp_path / "b.json", other)
    evaluate.fails("compare", tmp_path / "a", tmp_path / "b.json", sentence="tokenizer is '.*' in one and 'another'")


def test_a_network_is_loaded_once(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether its weights are there was found out by making the network, which was then made again."""
    made: list[str] = []
    monkeypatch.setattr(image_sets, "feature_network", made.append)
    monkeypatch.setenv("SMALTI_WEIGHTS", str(tmp_path))
    (tmp_path / WEIGHTS["inception-fid"].files[0]).write_bytes(b"any")
    chosen = select_protocol(SET_PROTOCOLS, None, overrides=[])
    assert image_sets.with_available_network(chosen) == (chosen, "")
    assert not made


def test_damaged_weights_are_not_taken_for_missing_ones(
    evaluate: Runner, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    forbid_downloads(monkeypatch, tmp_path / "weights")
    monkeypatch.setenv("SMALTI_WEIGHTS", str(tmp_path))
    (tmp_path / WEIGHTS["inception-fid"].files[0]).write_bytes(b"damaged")
    evaluate.fails("folders", models / "images", models / "images", sentence="it is damaged or no file of tensors")
