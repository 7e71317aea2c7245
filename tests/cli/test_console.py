"""What is printed is printed letter for letter: names of files and labels are no markup."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from smalti.cli.console import CONSOLE, ERRORS
from smalti.cli.main import app
from smalti.core.progress import ProgressReporter, plain_console, progress_bar, say
from tests.cli.test_cli import Runner
from tests.cli.test_cli import smalti as smalti

NAMES = ("s [v2]", "[/red]", "a[bold]b", ":car:", "[link=x]", "\\[red]", "[#ff0000]")


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def plain(*, terminal: bool = False) -> Console:
    console = plain_console()
    console.file, console.width = io.StringIO(), 200
    console._force_terminal = terminal
    return console


@pytest.mark.parametrize("name", NAMES)
def test_names_are_printed_as_they_are(name: str) -> None:
    console = plain()
    console.print(f"4 images in {name}", soft_wrap=True)
    table = Table("what", box=None, title=name)
    table.add_row(name)
    console.print(table)
    assert printed(console).count(name) == 3


def test_the_consoles_of_the_commands_are_plain() -> None:
    for console in (CONSOLE, ERRORS):
        assert [console.render_str(name).plain for name in NAMES] == list(NAMES)
    assert ERRORS.stderr


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("terminal", [True, False])
def test_bars_and_lines_are_plain(name: str, terminal: bool) -> None:
    console = plain(terminal=terminal)
    with progress_bar(console, title=f"reading {name}", unit=f"u{name}") as progress:
        progress(3, 3)
    assert f"reading {name}" in printed(console)
    assert f"u{name}" in printed(console)
    with ProgressReporter(console, title=f"run {name}", tensorboard=None, quiet=False) as progress:
        progress.begin(seen=1, length=10, unit=f"i{name}")
        progress.advance(5)
        progress.report(f"part {name}", 5, {f"loss {name}": 0.5})
        progress.say(f"of {name}")
    for message in (f"run {name}", f"i{name}", f"part {name}", f"loss {name} 0.5", f"of {name}"):
        assert message in printed(console)


@pytest.mark.parametrize("name", NAMES)
def test_a_console_that_somebody_else_made_says_it_as_it_is(name: str) -> None:
    console = Console(file=io.StringIO(), width=200)
    say(console, name)
    assert printed(console) == f"{name}\n"


@pytest.mark.parametrize("name", NAMES)
def test_commands_name_their_folders_as_they_are(name: str, tmp_path: Path, smalti: Runner) -> None:
    folder = tmp_path / name.replace("/", "-")
    ended = smalti("scenes", folder, "--count", "2", "--size", "16", "--workers", "1")
    assert ended.status == 0, ended.err
    assert f"2 scenes in {folder}; images by class in {folder / 'images'}" in ended.out
    described = [line.partition(":") for line in smalti("info", folder).out.splitlines()]
    assert ("scenes", str(folder)) in [(key, value.strip()) for key, _, value in described]
    smalti.fails("info", tmp_path / "missing" / name, sentence="there is nothing at")
    assert name in smalti("info", tmp_path / "missing" / name).err
    for wrong in (
        ("recipes", name),
        (name,),
        ("scenes", folder, "--count", name),
        ("sample", "--size", name, "--out", folder),
    ):
        ended = smalti(*wrong)
        assert ended.status == 2
        assert "Traceback" not in ended.err
    assert name in smalti(name).err


def helps(command: Any, path: str) -> Iterator[tuple[str, str]]:
    """All that the help of a command and those below it says: (where, text)."""
    yield path, command.help or ""
    for parameter in command.params:
        yield f"{path} {parameter.name}", getattr(parameter, "help", None) or ""
    for name, below in getattr(command, "commands", {}).items():
        yield from helps(below, f"{path} {name}")


def test_no_help_is_markup() -> None:
    """Typer reads it as such."""
    command: Any = typer.main.get_command(app)
    found = dict(helps(command, "smalti"))
    assert len(found) > 100
    assert not [where for where, text in found.items() if Text.from_markup(text).plain != text]
