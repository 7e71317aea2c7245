"""The Hub, without a network: a fake one, and its cache; the card says what the files say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml

from smalti.cli.main import main
from smalti.conditions.labels import Labels
from smalti.core.errors import SmaltiError
from smalti.core.settings import parse
from smalti.hub import hugging_face
from smalti.hub.model_cards import Run, Sources, write_card
from smalti.model_loading import read_models
from smalti.pipeline import Pipeline
from smalti.prior import Transformer, TransformerSettings
from smalti.tokenizer.vqgan import VQGAN, VQGANSettings
from tests.small import write_images, write_recipe

ABOUT = {"data": "photos", "images": 1234, "size": [16, 32], "prior": {"codes_seen": 99}}


def pipeline() -> Pipeline:
    torch.manual_seed(0)
    plain = {
        "autoencoder": {"base_channels": 8, "channel_multipliers": [1, 1], "res_blocks": 1, "latent_channels": 8},
        "quantizer": {"codebook_size": 16, "codebook_dim": 4},
    }
    sizes = {"codebook_size": 16, "condition_size": 2, "grid": (3, 4), "layers": 1, "embed_dim": 16, "heads": 2}
    tokenizer = VQGAN(parse(VQGANSettings, plain, where="test"))
    return Pipeline(
        tokenizer, Transformer(parse(TransformerSettings, sizes, where="test")), Labels(["dusk | dawn", "<b>"])
    )


class Fake:
    """A Hub in a folder: one commit a repository, the newest."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.private = folder, False

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
        assert exist_ok
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.private = private
        return f"https://hub/{name}"

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, commit_message: str, delete_patterns: list[str]
    ) -> None:
        there = self.folder / repo_id
        files = [path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()]
        for path in files:
            if any(fnmatch(path, pattern) for pattern in delete_patterns):
                (there / path).unlink()
        shutil.copytree(folder_path, there, dirs_exist_ok=True)

    def snapshot_download(self, name: str, *, allow_patterns: list[str]) -> str:
        if not (self.folder / name).is_dir():
            raise OSError(f"404 for {name}\nand more")
        return str(self.folder / name)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return made


def test_a_pipeline_goes_there_and_comes_back(fake: Fake) -> None:
    pipe = pipeline()
    assert pipe.push_to_hub("me/mosaic", license="mit", about=ABOUT, private=True) == "https://hub/me/mosaic"
    assert fake.private
    again = Pipeline.from_pretrained("me/mosaic")
    assert torch.equal(again.sample(label="<b>", seed=1), pipe.sample(label="<b>", seed=1))
    models = read_models("me/mosaic")
    assert models.prior is not None
    assert models.about["data"] == "photos"
    pipe.tokenizer.push_to_hub("me/mosaic", license="mit", about=ABOUT)
    there = fake.folder / "me" / "mosaic"
    files = {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()}
    assert files == {"README.md", *hugging_face.PARTS}
    assert VQGAN.from_pretrained("me/mosaic").fingerprint() == pipe.tokenizer.fingerprint()


def test_a_folder_here_goes_before_the_hub(fake: Fake) -> None:
    pipeline().tokenizer.push_to_hub("me/mosaic", license="mit", about=ABOUT)
    pipeline().save_pretrained("me/mosaic", about={"data": "here"})
    assert read_models("me/mosaic").about["data"] == "here"


def test_a_hub_that_has_none_or_takes_none_is_reported(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SmaltiError, match=r"no folder me/gone, and the Hub did not .* \(404 for me/gone\)$"):
        Pipeline.from_pretrained("me/gone")

    def refuse(**given: Any) -> None:
        raise ConnectionError("\n403 Forbidden\nand more")

    monkeypatch.setattr(fake, "upload_folder", refuse)
    with pytest.raises(SmaltiError, match=r"^the Hub did not take me/mosaic \(403 Forbidden\); log in"):
        pipeline().push_to_hub("me/mosaic", license="mit", about=ABOUT)
    for name in ("mosaic", "me/mosaic/x", "me/mo saic", "https://hub/me"):
        with pytest.raises(SmaltiError, match="is not a name of a repository; write owner/name"):
            pipeline().push_to_hub(name, license="mit", about=ABOUT)


def test_what_is_in_the_cache_needs_no_network(tmp_path: Path) -> None:
    """With the real client, in a process that is offline from its start on."""
    cached = tmp_path / "cache" / "models--me--mosaic"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    pipeline().save_pretrained(cached / "snapshots" / ("0" * 40), about=ABOUT)
    code = "import smalti; print(len(smalti.Pipeline.from_pretrained('me/mosaic').condition.names))"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment = {**kept, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache")}
    run = [sys.executable, "-c", code]
    ended = subprocess.run(run, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.stdout.strip() == "2", ended.stderr


# --- the card
# -------------------------------------------------------------------------------------------------------------------


def card(folder: Path, sources: Sources) -> str:
    pipeline().save_pretrained(folder, about=ABOUT)
    write_card(folder, "me/mosaic", sources)
    return (folder / "README.md").read_text("utf-8")


def run_of(tmp_path: Path) -> Run:
    (tmp_path / "last.png").write_bytes(b"an image")
    metrics = [
        {"part": "validation", "seen": 10, "time": 1.0, "nats": 9.0},
        {"part": "validation", "seen": 20000, "time": 2.0, "nats": 3.21987, "images": 7},
        {"part": "train", "seen": 30000, "time": 3.0, "nats": 1.0},
    ]
    config = {"data": str(tmp_path / "photos"), "run": {"batch": 4}, "from": {"model": str(tmp_path / "older")}}
    return Run(config, metrics, tmp_path / "last.png")


def test_a_card_says_what_the_files_say(tmp_path: Path) -> None:
    text = card(tmp_path / "model", Sources("cc-by-4.0", {"prior": run_of(tmp_path)}))
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "license": "cc-by-4.0",
        "library_name": "smalti",
        "tags": ["smalti", "vqgan", "image-generation"],
    }
    for message in (
        'smalti.Pipeline.from_pretrained("me/mosaic")',
        'pipeline.sample(4, label="dusk | dawn", seed=0)',
        "a code stands for 2 x 2 pixels",
        "| images in the data | 1,234 |",
        "| trained at (height x width) | 16 x 32 |",
        r"| labels | dusk \| dawn, <b> |",
        "| codes seen in training | 99 |",
        "after 20,000 codes: the last validation of the training",
        "| nats | 3.22 |",
        "![Samples that the prior drew",
        "run: {batch: 4}",
    ):
        assert message in body
    assert str(tmp_path) not in text
    assert (tmp_path / "model" / "images" / "prior.png").read_bytes() == b"an image"
    code = body.partition("```python\n")[2].partition("```")[0]
    compile(code, "card", "exec")
    assert len(code.split("\n\n")[1].splitlines()) <= 4


def test_measurements_stand_in_place_of_the_training_s_own(tmp_path: Path) -> None:
    result = {
        "kind": "tokenizer",
        "scores": {"psnr": 21.30621},
        "definitions": {"psnr": "decibels | of levels"},
        "protocol": {"rounding": "nearest"},
        "data": {"name": "images", "images": 120},
        "notes": ["ms_ssim is left out"],
        "made": {"smalti": "0.1.0", "command": "a secret place"},
    }
    (tmp_path / "result.json").write_text(json.dumps(result))
    text = card(tmp_path / "model", Sources("mit", {"prior": run_of(tmp_path)}, [tmp_path / "result.json"]))
    assert r"| psnr | 21.31 | decibels \| of levels |" in text
    assert "rounding: nearest" in text
    assert "- ms_ssim is left out" in text
    assert "the last validation" not in text
    assert "secret" not in text
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(SmaltiError, match=r"is not a result of `smalti evaluate`"):
        write_card(tmp_path / "model", "me/mosaic", Sources("mit", results=[tmp_path / "result.json"]))


def test_a_card_without_runs_claims_nothing(tmp_path: Path) -> None:
    text = card(tmp_path / "model", Sources("other"))
    assert "## Scores\n\nNone were given." in text
    assert "## Settings" not in text
    for license in ("", "MIT License", "mit\nx: y"):
        with pytest.raises(SmaltiError, match="is not a license as the Hub names them"):
            write_card(tmp_path / "model", "me/mosaic", Sources(license))


# --- the command
# ----------------------------------------------------------------------------------------------------------------


def push(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["smalti", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_a_run_is_pushed_with_its_card(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data, recipe, run = write_images(tmp_path / "data"), write_recipe(tmp_path / "r.yaml"), tmp_path / "run"
    assert not push(monkeypatch, "train", "tokenizer", data, "--out", run, "--recipe", recipe)
    assert not push(monkeypatch, "push", run, "me/mosaic", "--license", "mit", "--private")
    there = fake.folder / "me" / "mosaic"
    text = (there / "README.md").read_text("utf-8")
    assert "| psnr |" in text
    assert (there / "images" / "tokenizer.png").is_file()
    assert VQGAN.from_pretrained("me/mosaic").fingerprint() == VQGAN.from_pretrained(run).fingerprint()
    assert not push(monkeypatch, "push", run, "me/mosaic", "--license", "mit", "--card-only", tmp_path / "card")
    assert (tmp_path / "card" / "README.md").read_text("utf-8") == text
    capfd.readouterr()
    for arguments, sentence in (
        (("--license", "mit", "--card-only", tmp_path / "card"), "exists already"),
        ((), "there is no default"),
    ):
        assert push(monkeypatch, "push", run, "me/mosaic", *arguments) == 1
        assert sentence in " ".join(capfd.readouterr().err.split())
