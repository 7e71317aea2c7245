"""`smalti fit` as a person uses it: a folder in, a generator and its page out; killed and resumed; its errors."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from smalti.cli.main import main
from smalti.conditions.base import condition_keys
from smalti.core.errors import SmaltiError
from smalti.data.code_shards import open_codes
from smalti.data.sources import open_source
from smalti.fit import fit_run
from smalti.fit.fit_request import FitRequest, StateFile
from smalti.images.io import read_settings
from smalti.pipeline import Pipeline
from smalti.web.server import serve
from tests.data.test_image_tables import table
from tests.experiment_helpers import page, quick
from tests.fit.described_images import write_described
from tests.reports.html_page import Page
from tests.small import SIDE, write_images, write_recipe

QUIET = Console(quiet=True)


def request_of(folder: Path, **changes: Any) -> FitRequest:
    values: dict[str, Any] = {"recipe": str(folder / "small.yaml"), "time": "", "without": (), "overrides": ()}
    images = changes.pop("images", folder)
    return fit_run.request_for(images, **{**values, **changes})


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    """Paces are taken in few steps."""
    with quick(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_run, "PACE_SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with all that can be found, and a finished fit in `run`."""
    folder = tmp_path_factory.mktemp("fit")
    write_described(folder / "set")
    shutil.move(folder / "set" / "small.yaml", folder / "small.yaml")
    fit_run.fit(request_of(folder, images=folder / "set"), folder / "run", console=QUIET)
    return folder


def test_all_conditions_are_found_and_used(home: Path) -> None:
    pipeline = Pipeline.from_pretrained(home / "run")
    assert condition_keys(pipeline.condition) == ("label", "text", "layout", "segmentation", "depth")
    assert pipeline.prior.knows_any_order
    segmentation = torch.zeros(SIDE, SIDE, dtype=torch.int64)
    images = pipeline.sample(2, label="dark", text="a dark ramp", segmentation=segmentation, seed=0)
    assert images.shape == (2, 3, SIDE, SIDE)


def test_samples_panorama_and_completion_are_saved_with_their_settings(home: Path) -> None:
    samples = sorted((home / "run" / "samples").glob("*.png"))
    assert len(samples) == 16
    assert read_settings(samples[3]) is not None
    with Image.open(home / "run" / "panorama.png") as panorama:
        assert panorama.size == (4 * SIDE, SIDE)
    assert (home / "run" / "completion.png").is_file()
    figures = json.loads((home / "run" / "report.json").read_text())
    assert set(figures) == {
        *("psnr", "codes_in_use", "prior_nats", "code_entropy_nats", "images", "held_out_images", "seconds")
    }


def test_the_page_shows_everything(home: Path) -> None:
    words, images = page(home / "run")
    sections = ("What it learned from", "Stage 1", "Stage 2", "Samples", "Panorama", "Completion", "What to type next")
    assert [each for each in sections if each not in words] == []
    for fact in (
        "dark (10), light (10)",
        "20 captions of 20 images",
        "20 boxes of 2 classes: blue, red",
        "20 label maps with the labels 0 to 1",
        "20 depth maps",
        "20 images are too few",
        "The middle is generated, conditioned on all that is around it.",
        "Settings of the tokenizer of the condition segmentation",
        f"smalti web {home / 'run'}",
    ):
        assert fact in words, fact
    hero, examples, compared, sampled, panorama, completed = 16, 8, 2 * 4, 2 * 16, 1, 3 * 4
    assert images == hero + examples + compared + sampled + panorama + completed
    html = (home / "run" / "report.html").read_text()
    assert len(Page(html).named("section")) == 8, "tags are balanced"
    assert not re.search(r'(src|href)="(?!data:|#)', html), "the page refers to nothing outside itself"


def test_a_finished_fit_is_left_alone(home: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (home / "run").rglob("*") if path.is_file()}
    fit_run.fit(request_of(home, images=home / "set"), home / "run", console=QUIET)
    assert {path: path.stat().st_mtime_ns for path in (home / "run").rglob("*") if path.is_file()} == before


def test_the_page_serves_a_fit(home: Path) -> None:
    """`smalti web RUN`, with every condition of the run."""
    httpx = pytest.importorskip("httpx", reason="the extra `dev` is not installed")
    pytest.importorskip("fastapi", reason="the extra `web` is not installed")
    served = serve(home / "run", device="cpu")
    try:
        with httpx.Client(base_url=served.address, timeout=60) as client:
            described = client.get("api/model").json()
            inputs = {part["key"]: part["kind"] for part in described["conditions"]}
            assert inputs == {
                "label": "choice",
                "text": "text",
                "layout": "json",
                "segmentation": "paint",
                "depth": "image",
            }
            names = described["conditions"][list(inputs).index("label")]["names"]
            job = {"settings": {"seed": 1}, "conditions": {"label": names[0]}}
            state = client.post("api/jobs", json=job).json()
            while state["phase"] in ("waiting", "running"):
                time.sleep(0.05)
                state = client.get(f"api/jobs/{state['job']}").json()
            assert state["phase"] == "done", state
            assert client.get(state["images"][0]["url"]).content.startswith(b"\x89PNG")
    finally:
        served.close()


def test_other_options_are_refused(home: Path) -> None:
    with pytest.raises(SmaltiError, match=r"\(without was not given and is depth\); repeat them to resume"):
        fit_run.fit(request_of(home, images=home / "set", without=["depth"]), home / "run", console=QUIET)


def test_a_fit_is_no_folder_of_images(home: Path) -> None:
    with pytest.raises(SmaltiError, match="is a generator of smalti, and no folder of images"):
        open_source(home / "run")


def test_without_leaves_conditions_out(home: Path) -> None:
    request = request_of(home, images=home / "set", without=["text", "layout", "segmentation", "depth"])
    fit_run.fit(request, home / "classes", console=QUIET)
    pipeline = Pipeline.from_pretrained(home / "classes")
    assert condition_keys(pipeline.condition) == ("label",)
    assert not (home / "classes" / "conditions").exists()
    assert open_codes(home / "classes" / "codes").meta.prefix is None
    words, _ = page(home / "classes")
    assert "not used: left out by --without" in words


def test_the_order_of_the_recipe_is_kept(home: Path) -> None:
    recipe = (home / "small.yaml").read_text().replace("dropout: 0.1", "dropout: 0.1\n    order: raster")
    (home / "raster.yaml").write_text(recipe)
    request = request_of(
        home,
        images=home / "set",
        recipe=str(home / "raster.yaml"),
        without=["labels", "text", "layout", "segmentation", "depth"],
    )
    fit_run.fit(request, home / "raster", console=QUIET)
    pipeline = Pipeline.from_pretrained(home / "raster")
    assert not pipeline.prior.knows_any_order
    assert condition_keys(pipeline.condition) == ()
    assert "The upper half is kept" in page(home / "raster")[0]


def test_the_time_sets_the_lengths_and_a_resumed_fit_keeps_them(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prior has the time that is left when its turn comes."""
    measured: list[str] = []

    def tokenizer_pace(*arguments: Any, **options: Any) -> float:
        measured.append("tokenizer")
        return 1.0

    def prior_pace(*arguments: Any, **options: Any) -> float:
        measured.append("prior")
        return 0.01

    monkeypatch.setattr(fit_run, "measure_tokenizer_pace", tokenizer_pace)
    monkeypatch.setattr(fit_run, "measure_prior_pace", prior_pace)
    request = request_of(home, images=home / "set", time="3m", without=["text", "layout", "segmentation", "depth"])
    fit_run.fit(request, home / "timed", console=QUIET)
    state = StateFile(home / "timed").read(request)
    assert state is not None
    assert state.lengths["tokenizer"] == 88, "half of 180 seconds, in whole batches of 4"
    assert state.lengths["prior"] > 14_000, "all but what the tokenizer and the codes have taken, which is little here"
    assert measured == ["tokenizer", "prior", "prior"]
    (home / "timed" / "report.html").unlink()
    fit_run.fit(request, home / "timed", console=QUIET)
    assert measured == ["tokenizer", "prior", "prior"], "nothing is measured again"
    assert StateFile(home / "timed").read(request) is not None


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "smalti", "fit", "set", "--out", "run", "--recipe", "small.yaml"]
    command += ["--set", "tokenizer.run.images=96", "--set", "prior.run.codes=3200"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_after(run: subprocess.Popen[bytes], states: Path) -> None:
    """Kill a process as soon as a training has written a state."""
    began = time.monotonic()
    while not any(entry.name.isdigit() for entry in states.glob("*")):
        assert run.poll() is None, "it ended too early"
        assert time.monotonic() - began < 120
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_fit_that_is_killed_in_both_stages_ends_as_one_that_is_not(tmp_path: Path) -> None:
    for folder in (tmp_path / "whole", tmp_path / "killed"):
        write_images(folder / "set")
        write_recipe(folder / "small.yaml")
    assert start(tmp_path / "whole").wait() == 0
    killed = tmp_path / "killed"
    kill_after(start(killed), killed / "run" / "tokenizer" / "state")
    decided = json.loads((killed / "run" / "fit.json").read_text())["lengths"]
    kill_after(start(killed), killed / "run" / "prior" / "state")
    assert start(killed).wait() == 0
    assert json.loads((killed / "run" / "fit.json").read_text())["lengths"] == decided
    for stage in ("tokenizer", "prior"):
        one, other = (
            load_file(each / "run" / stage / "model" / "model.safetensors") for each in (tmp_path / "whole", killed)
        )
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert (killed / "run" / "report.html").is_file()


def fails(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """A command that ends with one sentence -> that sentence."""
    monkeypatch.setattr(sys, "argv", ["smalti", "fit", *map(str, arguments)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    error = " ".join(capfd.readouterr().err.split())
    assert "Traceback" not in error
    return error


def test_errors_are_one_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    recipe = ("--recipe", write_recipe(tmp_path / "small.yaml"))
    out = ("--out", tmp_path / "run")
    assert "no images in" in fails(capfd, monkeypatch, tmp_path / "empty", *out, *recipe)
    assert "there is no" in fails(capfd, monkeypatch, tmp_path / "none", *out, *recipe)
    (tmp_path / "single").mkdir()
    Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(tmp_path / "single" / "a.png")
    assert "holds a single image, a.png" in fails(capfd, monkeypatch, tmp_path / "single", *out, *recipe)
    images = write_images(tmp_path / "images")
    inside = fails(capfd, monkeypatch, images, "--out", images / "run", *recipe)
    assert "is in the folder of the images" in inside
    unknown = fails(capfd, monkeypatch, images, *out, *recipe, "--without", "label")
    assert "--without label: this condition is not a condition here; did you mean 'labels'?" in unknown
    assert "write it with units" in fails(capfd, monkeypatch, images, *out, *recipe, "--time", "soon")
    assert "write it with units" in fails(capfd, monkeypatch, images, *out, *recipe, "--time", "60")
    stage = fails(capfd, monkeypatch, images, *out, *recipe, "--set", "run.images=3")
    assert "begin with the stage, as tokenizer.a.b=c" in stage
    misspelled = fails(capfd, monkeypatch, images, *out, *recipe, "--set", "prior.run.code=3")
    assert "did you mean 'codes'" in misspelled
    assert "leave some out with --without" in fails(
        capfd, monkeypatch, images, *out, *recipe, "--set", "prior.condition=text"
    )
    assert "name it with --out" in fails(capfd, monkeypatch, images, *recipe)
    assert not (tmp_path / "run").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    assert "is not empty" in fails(capfd, monkeypatch, images, "--out", tmp_path / "full", *recipe)


def test_the_check_alone_trains_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_described(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["smalti", "fit", "set", "--check", "--recipe", "set/small.yaml"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    out = capfd.readouterr().out
    assert "condition text:" in out
    assert "What should be changed:" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_the_first_images_of_a_stream_are_copied_and_fitted(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "tables").mkdir()
    table(tmp_path).to_parquet(str(tmp_path / "tables" / "train.parquet"))
    request = request_of(home, images=tmp_path / "tables", stream=6)
    fit_run.fit(request, tmp_path / "run", console=QUIET)
    assert len(list((tmp_path / "run" / "images").rglob("*.png"))) == 6
    assert condition_keys(Pipeline.from_pretrained(tmp_path / "run").condition) == ("label", "text")
    shutil.rmtree(tmp_path / "tables")
    fit_run.fit(request, tmp_path / "run", console=QUIET)  # what has been copied is not read again


def test_a_stream_is_of_a_table(home: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.png\n")
    with pytest.raises(SmaltiError, match=r"--stream is for data sets of Hugging Face, as hf:NAME, and .*list\.txt"):
        request_of(home, images=tmp_path / "list.txt", stream=6)
