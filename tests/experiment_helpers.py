"""What the tests of single experiments share: small images and recipes, no weights from elsewhere, the text of a
page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from smalti.data.code_shards import open_codes
from smalti.experiments import equal_time
from smalti.experiments.base import ExperimentRequest, run_experiment
from smalti.experiments.experiment_registry import EXPERIMENTS
from smalti.training import pace

QUIET = Console(quiet=True)


@contextmanager
def no_weights(empty: Path) -> Iterator[None]:
    """Published weights are unavailable while the block runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMALTI_OFFLINE", "1")
        patch.setenv("SMALTI_CACHE", str(empty))
        patch.delenv("SMALTI_WEIGHTS", raising=False)
        yield


@contextmanager
def quick() -> Iterator[None]:
    """Paces are taken in few steps, and trainings look at held-out images a few times, while the block runs."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("PLACES", 2), ("MIN_TIMED_STEPS", 1)):
            patch.setattr(pace, name, value)
        for name, value in (("POINTS", 3), ("SAVED", 1)):
            patch.setattr(equal_time, name, value)
        yield


def request(data: Path, chosen: Mapping[str, Any], *overrides: str) -> ExperimentRequest:
    """An experiment on images, with settings in place of those of the scale tiny."""
    return ExperimentRequest(
        data=data, overrides=(*(f"{key}={json.dumps(value)}" for key, value in chosen.items()), *overrides)
    )


def run_and_read(name: str, out: Path, what: ExperimentRequest) -> dict[str, Any]:
    """Run an experiment in `out` -> the content of its `result.json`."""
    run_experiment(EXPERIMENTS[name], out, request=what, console=QUIET)
    values: dict[str, Any] = json.loads((out / "result.json").read_text())
    return values


def step_folder(home: Path, found: Mapping[str, Any], step: str) -> Path:
    """The folder of a step; `found` are the steps in `out/result.json` of the folder `home`."""
    path: Path = home / "out" / found[step]["folder"]
    return path


def held_out_codes(home: Path, found: Mapping[str, Any]) -> Tensor:
    """The codes of the held-out images of the step "codes", (B,h,w)."""
    shards = open_codes(step_folder(home, found, "codes") / "codes")
    return torch.stack([shards.validation[index, 0].codes for index in range(len(shards.validation))])


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.images = 0

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.images += tag == "img"


def page(out: Path) -> tuple[str, int]:
    """The page of an experiment -> its words, and how many images it holds."""
    reader = _Reader()
    reader.feed((out / "report.html").read_text())
    return " ".join(" ".join(reader.words).split()), reader.images
