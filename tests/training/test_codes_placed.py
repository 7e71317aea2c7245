"""When the codes are placed: once, in the first step from `quantize_from` on, also where a run continues
with another length."""

from __future__ import annotations

from pathlib import Path

import pytest

from smalti.tokenizer.quantizers.vq import VQ
from smalti.training.stage1 import TokenizerStage
from tests.small import write_images
from tests.training.test_reference_training import refused, stage_of, step, write_reference


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and a recipe."""
    path = tmp_path_factory.mktemp("placed")
    write_images(path / "images")
    write_reference(path / "reference.yaml")
    return path


def gone_on(folder: Path, before: TokenizerStage, *overrides: str) -> TokenizerStage:
    """A stage with other settings that continues from the state of `before`."""
    stage = stage_of(folder, *overrides)
    stage.tokenizer.load_state_dict(before.tokenizer.state_dict())
    stage.exported.module.load_state_dict(before.exported.module.state_dict())
    stage.restored(before.state())
    return stage


@pytest.mark.parametrize("late", [(), ("decoder_phase.start=0.3", "decoder_phase.neighbors=2")])
def test_a_run_that_goes_on_with_a_shorter_length_places_its_codes(folder: Path, late: tuple[str, ...]) -> None:
    """It was past the point where they are placed, and so never placed them: all of its codes were noise."""
    kmeans = ("model.quantizer.kmeans_iterations=2", "quantize_from=0.2")
    before = stage_of(folder, *kmeans, "run.images=240")
    for seen in (0, 4):
        step(before, seen)
    noise = before.tokenizer.quantizer.state_dict()["codebook"].abs().max()
    assert not before.codebook.initialized
    stage = gone_on(folder, before, *kmeans, *late)
    assert float(step(stage, 8)["codebook"]) > 0 or late
    for tokenizer in (stage.tokenizer, stage.exported.module) if late else (stage.tokenizer,):
        assert tokenizer.quantizer.state_dict()["codebook"].abs().max() > 2 * noise
    assert stage.codebook.frozen == bool(late)


def test_a_run_that_goes_on_with_a_longer_length_keeps_its_codes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were left for unquantized features, and placed a second time."""
    kmeans = ("model.quantizer.kmeans_iterations=2", "quantize_from=0.2")
    before = stage_of(folder, *kmeans)
    for seen in (0, 4, 8):
        step(before, seen)
    assert before.codebook.initialized
    stage = gone_on(folder, before, *kmeans, "run.images=240")
    monkeypatch.setattr(VQ, "init_codebook", refused)
    for seen in (12, 48):
        assert float(step(stage, seen)["codebook"]) > 0
