"""Every code block of README.md and docs/ is run, or checked as far as it can be without the data and hours it needs.

Python blocks of a page run in order, with tiny random models in place of real ones. Commands are parsed, the settings
that they override are resolved, and those of the quickstart run. What does not run is listed here with the reason.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from typer.testing import CliRunner

import smalti
from smalti.cli.main import app
from smalti.experiments.experiment_registry import EXPERIMENTS
from smalti.hub.bundled_models import SCENES
from smalti.pipeline import Pipeline
from smalti.tokenizer.vqgan import VQGAN
from smalti.training.config import PriorTraining, TokenizerTraining, recipes, resolve
from tests.project.tiny_scenes import tiny_pipeline, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]
RECORDS = {"log.md", "decisions.md"}
"""Pages that record the past: their commands are checked by test_docs.py."""
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in RECORDS),
]

NOT_RUN = {
    "import httpx": "needs a running server; tests/web/test_api.py sends the same requests",
    "smalti.web.server": "serves until it is stopped; tests/web starts it",
    "transformers": "needs the transformers package; tests/checkpoints/test_transformers.py runs it where it is "
    "installed",
    "push_to_hub": "needs an account of the Hugging Face Hub; tests/hub has one that is made up",
    "train_classifier": "trains a classifier and generates 108 panoramas: minutes",
    "MINE = Experiment(": "a part of a file of the package; tests/experiments hold every experiment to it",
    "quantizers.gradient_estimators": "a file of the package; "
    "tests/tokenizer/test_quantizer_example.py adds and tests it",
}
"""What is in a Python block that is not run -> why. Such a block is compiled, and its imports of smalti are
resolved."""

OTHER_PROGRAMS = {
    "pip": "changes the environment",
    "make": "the targets of the Makefile",
    "git": "needs a network",
    "cd": "a change of folder",
    "hf": "logs in to the Hugging Face Hub",
    "torchrun": "needs several processes; tests/training/test_two_processes.py starts them",
    "srun": "needs Slurm",
    "python": "benchmarks measure minutes; tests/project/test_benchmarks.py runs them at the smallest size",
}
"""Programs besides smalti in shell blocks -> why they are not run."""


class Block(NamedTuple):
    """A fenced block: its page, line, language and text."""

    page: str
    line: int
    language: str
    text: str


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text("utf-8")
    for match in re.finditer(r"^( *)```(\S*)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start()) + 1
        yield Block(page.relative_to(ROOT).as_posix(), line, match[2], match[3])


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def commands_in(text: str) -> Iterator[str]:
    """The commands of a shell block, one a line, with continued lines joined."""
    for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines():
        if line.strip() and not line.startswith("#"):
            yield line


COMMANDS = [(block, line) for block in BLOCKS if block.language == "sh" for line in commands_in(block.text)]


def test_every_block_names_its_language() -> None:
    known = {"python", "sh", "json", "text", "bibtex", "diff"}
    assert not [block for block in BLOCKS if block.language not in known]
    indented = [
        f"{page.name}: {line}"
        for page in PAGES
        for line in re.sub(r"^( *)```.*?^\1```$", "", page.read_text("utf-8"), flags=re.M | re.S).split("\n\n")
        if line.startswith("    ")
    ]
    assert not indented, "use a fenced block, so that it is checked"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "json"], ids=str)
def test_json_blocks_are_json(block: Block) -> None:
    json.loads(block.text)


def reason_not_to_run(block: Block) -> str | None:
    return next((reason for word, reason in NOT_RUN.items() if word in block.text), None)


PYTHON = [block for block in BLOCKS if block.language == "python"]


@pytest.mark.parametrize("page", sorted({block.page for block in PYTHON if not reason_not_to_run(block)}))
def test_python_blocks_run_in_order(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_pipeline, real_tokenizer = Pipeline.from_pretrained, VQGAN.from_pretrained

    def load_pipeline(name: str | Path = SCENES) -> Pipeline:
        return real_pipeline(name) if Path(name).is_dir() and Path(name) != SCENES else tiny_pipeline()

    def load_tokenizer(name: str | Path) -> VQGAN:
        return real_tokenizer(name) if Path(name).is_dir() else tiny_tokenizer()

    monkeypatch.setattr(Pipeline, "from_pretrained", load_pipeline)
    monkeypatch.setattr(VQGAN, "from_pretrained", load_tokenizer)
    monkeypatch.chdir(tmp_path)
    smalti.save_png("photo.png", torch.zeros(3, 64, 64))
    names: dict[str, Any] = {}
    for block in PYTHON:
        if block.page == page and not reason_not_to_run(block):
            text = block.text.replace("range(0, 700, 100)", "range(1)")  # seven seeds are for measuring
            exec(compile("\n" * block.line + text, page, "exec"), names)


@pytest.mark.parametrize(
    "block", [block for block in PYTHON if reason_not_to_run(block)], ids=lambda b: f"{b[0]}:{b[1]}"
)
def test_other_python_blocks_compile_and_import_what_there_is(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("smalti"):
            module = importlib.import_module(node.module or "")
            assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]


def test_every_reason_is_needed() -> None:
    texts = [block.text for block in PYTHON]
    assert not [word for word in NOT_RUN if not any(word in text for text in texts)]
    assert {line.split()[0] for _, line in COMMANDS} == {"smalti", *OTHER_PROGRAMS}


def smalti_command(line: str) -> str | None:
    """The command line of smalti in a line, also behind torchrun and srun."""
    match = re.search(r"(?:^|\s)smalti (.*)$", line)
    return match[1] if match and line.split()[0] in ("smalti", "torchrun", "srun") else None


@pytest.mark.parametrize("page", sorted({block.page for block, _ in COMMANDS}))
def test_settings_in_commands_exist(page: str) -> None:
    """That the commands and their options exist, test_docs.py checks."""
    for block, line in COMMANDS:
        if block.page == page and (command := smalti_command(line)):
            check_settings(shlex.split(command, comments=True))


def check_settings(words: list[str]) -> None:
    """Resolve the recipe and the overrides of a training; look up those of an experiment."""
    overrides = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    recipe = words[words.index("--recipe") + 1] if "--recipe" in words else "small"
    if words[:2] == ["train", "tokenizer"] and recipe in recipes():
        overrides += ["quantize_from=0"] * ("--from" in words)  # which a codebook that is kept implies
        resolve(TokenizerTraining, stage="tokenizer", recipe=recipe, overrides=overrides)
    elif words[:2] == ["train", "prior"] and recipe in recipes():
        resolve(PriorTraining, stage="prior", recipe=recipe, overrides=overrides)
    elif words[0] == "experiment" and len(words) > 1:
        known = EXPERIMENTS[words[1]].settings.__dataclass_fields__
        for override in overrides:
            name, _, value = override.partition("=")
            assert name.split(".")[0] in {*known, "tokenizer", "prior"}, override
            yaml.safe_load(value)


def test_the_wrong_setting_would_be_seen() -> None:
    with pytest.raises(smalti.SmaltiError, match="length"):
        check_settings(["train", "tokenizer", "DATA", "--set", "run.length=3"])
    with pytest.raises(AssertionError, match="told"):
        check_settings(["experiment", "conditions", "--set", "told=[edges]"])


CHEAP = {"recipes", "doctor", "evaluate protocols", "experiment"}


def test_the_commands_of_the_quickstart_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first block of docs/quickstart.md, with a tiny model named scenes in place of the bundled one."""
    tiny_pipeline().save_pretrained(tmp_path / "scenes", about={})
    monkeypatch.chdir(tmp_path)
    first = next(block for block in BLOCKS if block.page == "docs/quickstart.md")
    lines = [smalti_command(line) or "" for line in commands_in(first.text)]
    assert len(lines) >= 5
    for line in lines:
        words = shlex.split(line.replace("128x512", "128x160"))  # a fifth of the time
        run([words[0], "scenes", *words[1:]] if words[0] == "sample" else words)
    assert len(list(tmp_path.glob("completed/*.png"))) == 4


@pytest.mark.parametrize("command", sorted(CHEAP))
def test_commands_that_describe_run(command: str) -> None:
    run(command.split())


def run(words: list[str]) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, f"{' '.join(words)}: {done.output}{done.exception}"
