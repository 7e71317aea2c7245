"""`smalti doctor` and what the shell completes: true of this machine, and quick."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from smalti.checkpoints.formats import EXPORTS
from smalti.checkpoints.formats import FORMATS as FOREIGN
from smalti.cli import doctor, shell_completion
from smalti.core.published_weights import WEIGHTS
from smalti.experiments.experiment_registry import EXPERIMENTS
from smalti.kernels import winograd
from smalti.training.config import TokenizerTraining, recipes, resolve

GIB = 2**30
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def report(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], **variables: str) -> dict[str, str]:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    capfd.readouterr()
    doctor.doctor()
    lines = [line.partition(": ") for line in capfd.readouterr().out.splitlines()]
    return {key: value for key, _, value in lines}


def test_it_says_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / WEIGHTS["vgg16"].files[0]
    there.touch()
    lines = report(monkeypatch, capfd, SMALTI_WEIGHTS=str(tmp_path), SMALTI_CACHE=str(tmp_path / "a" / "b"))
    assert lines["weights vgg16"] == str(there)
    assert lines["weights alexnet"].startswith("missing")
    assert torch.__version__ in lines["smalti"]
    assert lines["cores"].endswith(f"PyTorch uses {torch.get_num_threads()}")
    assert str(tmp_path / "a" / "b") in lines["free disk"]
    assert lines["suggested command"].startswith("smalti train tokenizer IMAGES")


def test_wrong_weights_are_printed_and_all_else_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = report(monkeypatch, capfd, SMALTI_WEIGHTS=str(tmp_path / "gone"))
    assert "which is not a folder" in lines["weights"]
    assert "suggested command" in lines


def test_it_warns_of_what_makes_training_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(winograd, "_library", lambda: None)
    monkeypatch.setattr(doctor, "available_cores", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(doctor, "free_memory", lambda device: GIB // 2)
    monkeypatch.setattr(doctor, "_free_disk", lambda folder: GIB // 3)
    monkeypatch.setenv("SMALTI_DIRECT", "1")
    capfd.readouterr()
    doctor.doctor()
    out = capfd.readouterr().out
    for message in (
        "PyTorch's: SMALTI_DIRECT is set",
        "warning: SMALTI_DIRECT is set",
        "one thread of 8 cores",
        "little disk space for downloads",
        "little disk space here",
        "only 0.5 GiB of memory",
    ):
        assert message in out
    monkeypatch.delenv("SMALTI_DIRECT")
    monkeypatch.setenv("CC", "no-such-compiler")
    lines = report(monkeypatch, capfd)
    assert "there is no C compiler no-such-compiler" in lines["3x3 convolutions on the CPU"]


@pytest.mark.parametrize(
    ("has", "message"),
    [(True, "bfloat16 (run.precision=bf16-mixed)"), (False, "float32 (run.precision=32-true); this processor")],
)
def test_bfloat16_is_named_where_the_processor_has_it(has: bool, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": has})
    assert doctor._precision(CPU).startswith(message)


def test_the_suggestion_fits_the_memory() -> None:
    assert "--recipe small (batches of 4, 4 at once" in doctor.suggested_command(CPU, 4 * GIB)
    assert "--recipe f16 (batches of 32, 32 at once" in doctor.suggested_command(GPU, 80 * GIB)
    assert "--recipe f16 --set run.accumulate=4 (batches of 32, 8 at once" in doctor.suggested_command(GPU, 24 * GIB)
    assert "--recipe small" in doctor.suggested_command(GPU, 6 * GIB)
    assert "too little free memory" in doctor.suggested_command(CPU, GIB // 16)


@pytest.mark.parametrize("change", ["images.size=[128,128]", "run.precision=bf16-mixed"])
def test_what_an_image_takes_follows_from_its_size_and_precision(change: str) -> None:
    def of(*overrides: str) -> tuple[float, float]:
        return doctor.memory_needed(
            resolve(TokenizerTraining, stage="tokenizer", recipe="small-64", overrides=overrides)
        )

    still, each = of()
    factor = 4 if "size" in change else 0.5
    assert of(change)[0] == still
    assert of(change)[1] == pytest.approx(factor * each)
    settings = resolve(TokenizerTraining, stage="tokenizer", recipe="small-64", overrides=())
    first = settings.model.autoencoder.base_channels * 16 * 16 * 4  # bytes of one map of the first level, stem 4
    assert each > doctor.ACTIVATION_FACTOR * 12 * first  # two blocks of encoder and decoder each keep several


def test_what_the_shell_offers_is_what_there_is() -> None:
    assert shell_completion.formats() == ["smalti", *sorted(FOREIGN, key=shell_completion.FORMATS.index), *EXPORTS]
    assert shell_completion.experiments() == list(EXPERIMENTS)
    assert shell_completion.recipes() == sorted(recipes())


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("train tokenizer DATA --recipe sma", {"small", "small-64", "small-reference"}),
        ("convert A B --to dif", {"diffusers"}),
        ("experiment qu", {"quantizers"}),
        ("pu", {"push"}),
    ],
)
def test_a_tab_completes(typed: str, offered: set[str]) -> None:
    words = f"smalti {typed}"
    request = {"_SMALTI_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    code = "from smalti.cli.main import app; app(prog_name='smalti')"
    run = [sys.executable, "-X", "importtime", "-c", code]
    ended = subprocess.run(run, env={**os.environ, **request}, capture_output=True, text=True, check=False)
    assert set(ended.stdout.split()) == offered, ended.stderr[-500:]
    assert " torch" not in ended.stderr


def test_completion_can_be_installed(tmp_path: Path) -> None:
    # Typer's own switch for tests: it would ask which shell runs it, and that may be one that it does not know.
    request = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    environment = {**os.environ, **request}
    code = "import sys; from smalti.cli.main import main; sys.argv = ['smalti', '--show-completion', 'bash']; main()"
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "_SMALTI_COMPLETE=complete_bash" in ended.stdout
