"""The page of a training run: made of its metrics and images alone."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from rich.console import Console

from smalti.core.settings import parse
from smalti.images.io import save_png
from smalti.training.config import TokenizerTraining
from smalti.training.run_page import SHOWN, write_page
from smalti.training.runs import train_tokenizer
from tests.small import RECIPE, write_images


def test_a_training_ends_in_a_page(tmp_path: Path) -> None:
    settings = parse(TokenizerTraining, RECIPE["tokenizer"], where="test")
    train_tokenizer(write_images(tmp_path / "images"), tmp_path / "run", settings=settings, console=Console(quiet=True))
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    for name in metrics[0].keys() | metrics[-1].keys():
        assert name in ("seen", "part", "time", "elapsed", "skipped") or name.replace("_", " ") in page, name
    assert "after 48 images" in page
    assert "zero_residuals" in page, "the settings"
    assert page.count("<img") == len(list((tmp_path / "run" / "images").glob("*.png"))) == 3


def test_many_images_are_thinned_and_the_last_is_kept(tmp_path: Path) -> None:
    for seen in range(0, 2000, 100):
        save_png(tmp_path / "images" / f"{seen:010d}.png", torch.zeros(3, 4, 4))
    (tmp_path / "metrics.jsonl").write_text('{"seen": 1900, "part": "train", "time": 0, "nats": 2.5}\n')
    write_page(tmp_path, {"stage": "prior"}, unit="codes")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.count("<img") == SHOWN
    assert "1,900 codes" in page
    assert "2.5" in page


def test_a_run_without_anything_has_a_page_too(tmp_path: Path) -> None:
    write_page(tmp_path, {"stage": "tokenizer"}, unit="images")
    assert "There are no images yet" in (tmp_path / "report.html").read_text("utf-8")
