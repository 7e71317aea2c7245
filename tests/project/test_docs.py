"""The pages for people: their links, the names they point to in the code, and the commands they tell one to type."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from smalti.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "smalti"
PIPELINE = ROOT / "docs" / "pipeline.md"
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if page.is_file()]

FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)|\b(?:src|href)=\"([^\"]+)\"")
DEFINED = re.compile(r"^\s*\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
COMMAND = re.compile(r"^\s*(?:\$ )?(?:\S*bin/|\S*python3? -m )?smalti (.*)$")
NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")


def in_words(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def links(text: str) -> Iterator[str]:
    """The relative links of a page, without what follows a #."""
    prose = CODE.sub("", FENCE.sub("", text))
    found = [first or second for first, second in LINK.findall(prose)] + DEFINED.findall(prose)
    for link in found:
        if not re.match(r"[a-z][a-z+.-]*:|#|//", link):
            yield link.partition("#")[0]


def broken_links(text: str, folder: Path) -> list[str]:
    return [link for link in links(text) if not (folder / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=in_words)
def test_links_lead_somewhere(page: Path) -> None:
    assert not broken_links(page.read_text("utf-8"), page.parent)


def test_a_broken_link_would_be_seen() -> None:
    text = (
        '[a](pipeline.md) [b](pipeline.md#data) [c](gone.md) `[d](code.md)` <img src="gone.png"> [e](https://x.org/y)'
    )
    assert broken_links(text, PIPELINE.parent) == ["gone.md", "gone.png"]
    assert len(list(links(PIPELINE.read_text("utf-8")))) > 30


def defined(path: Path) -> set[str]:
    """The functions, classes and constants of a file, and the methods and fields of its classes as `Class.member`."""

    def names(body: list[ast.stmt], prefix: str) -> Iterator[str]:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                yield prefix + node.name
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                yield from (prefix + ast.unparse(target) for target in targets)
            if isinstance(node, ast.ClassDef):
                yield from names(node.body, f"{node.name}.")

    return set(names(ast.parse(path.read_text("utf-8")).body, ""))


def rows(text: str) -> list[tuple[str, str, str]]:
    """The rows of the table under the heading "Paper -> code": what, file, names."""
    section = re.search(r"^## Paper -> code$(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    assert section, "the page has no section 'Paper -> code'"
    lines = [line for line in section[1].splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [(what, file, names) for what, file, names in cells]


def missing_names(file: str, names: str, folder: Path) -> list[str]:
    link = LINKED[file]
    wanted = CODE.findall(names)
    assert wanted, f"no name beside {file}"
    return sorted(set(wanted) - defined(folder / link))


TABLE = rows(PIPELINE.read_text("utf-8"))
LINKED = {
    f"[{text}]": link for text, link in re.findall(r"^\[([^\]]+)\]: (\S+)$", PIPELINE.read_text("utf-8"), re.MULTILINE)
}
"""[file.py] in the table -> the path that a definition below it gives."""


@pytest.mark.parametrize(("what", "file", "names"), TABLE, ids=[what for what, _, _ in TABLE])
def test_the_names_nearby_the_paper_are_in_their_files(what: str, file: str, names: str) -> None:
    assert not missing_names(file, names, PIPELINE.parent)


def test_a_wrong_name_would_be_seen() -> None:
    assert len(TABLE) >= 15
    file = "[vq.py]"
    names = "`kmeans`, `VQ.forward`, `VQSettings.beta_on`, `forward`, `VQ.backward`, `Module`"
    assert missing_names(file, names, PIPELINE.parent) == ["Module", "VQ.backward", "forward"]


ABROAD = {"pkeep", "disc_start"}
"""Names of the original code that the page explains."""


def unknown_names(text: str, words: set[str]) -> set[str]:
    """Names set as code, dotted or not, of which a part stands nowhere in the source."""
    written = {name for name in CODE.findall(FENCE.sub("", text)) if NAME.fullmatch(name)}
    return {name for name in written if not set(name.split(".")) <= words} - ABROAD


def test_names_in_the_text_stand_in_the_source() -> None:
    words = {word for path in SOURCE.rglob("*.py") for word in re.findall(r"\w+", path.read_text("utf-8"))}
    assert unknown_names("`Encoder` `torch.no_grad` `Encodder` `VQ.fourward` `a + b`", words) == {
        "Encodder",
        "VQ.fourward",
    }
    assert not unknown_names(PIPELINE.read_text("utf-8"), words)


def commands(text: str) -> Iterator[str]:
    """What follows `smalti` in the commands of a page: lines of code blocks, and code within the text."""
    blocks = "\n".join(re.findall(r"^(?: {4}|\t).*$", text, re.MULTILINE))
    blocks += "\n" + "\n".join(match[0] for match in FENCE.finditer(text))
    for line in re.sub(r"\s*\\\n\s*", " ", blocks).splitlines() + CODE.findall(FENCE.sub("", text)):
        if match := COMMAND.match(line):
            yield match[1]


ROOT_COMMAND = get_command(app)


def wrong_word(command: str) -> str | None:
    """The first sub-command or option of a command line that there is not; None when all exist."""
    place = ROOT_COMMAND
    for word in shlex.split(command.translate(str.maketrans("[]()", "    ")), comments=True):
        if word in ("|", "||", "&", "&&", ";", ">", ">>"):
            return None
        if word.startswith("-") and not re.fullmatch(r"-|-\d.*", word):
            options = {name for each in place.params for name in (*each.opts, *each.secondary_opts)}
            option = word.partition("=")[0]
            if option not in options | {"-h", "--help"}:
                return option
        elif isinstance(place, TyperGroup) and word != "...":
            if word not in place.commands:
                return word
            place = place.commands[word]
    return None


@pytest.mark.parametrize("page", PAGES, ids=in_words)
def test_commands_can_be_typed(page: Path) -> None:
    wrong = {command: wrong_word(command) for command in commands(page.read_text("utf-8"))}
    assert not {command: word for command, word in wrong.items() if word}


@pytest.mark.parametrize(
    ("command", "word"),
    [
        ("train tokenizer DATA --out RUN [--recipe NAME|FILE] --set a.b=-1  # a remark --nothing", None),
        ("sample MODEL --out DIR -n 4 --seed=3 --size 64x256 | tee --append log", None),
        ("encode TOKENIZER DATA --out CODES --no-flip", None),
        ("train --help", None),
        ("--version", None),
        ("tain tokenizer DATA", "tain"),
        ("train transformer DATA", "transformer"),
        ("sample MODEL --color red", "--color"),
        ("sample MODEL --tempreature=0.5", "--tempreature"),
        ("info PATH --out DIR", "--out"),
        ("--out DIR info PATH", "--out"),
    ],
)
def test_a_wrong_command_would_be_seen(command: str, word: str | None) -> None:
    assert wrong_word(command) == word


def test_commands_are_found_wherever_they_stand() -> None:
    text = "\n".join(
        (
            "Type `smalti info PATH`, or `python -m smalti recipes`; smalti is a word too.",
            "",
            "    $ smalti demo --out \\",
            "        DIR",
            "",
            "```sh",
            ".venv/bin/smalti scenes OUT",
            "import smalti",
            "```",
        )
    )
    assert sorted(commands(text)) == ["demo --out DIR", "info PATH", "recipes", "scenes OUT"]
    assert len(list(commands(PIPELINE.read_text("utf-8")))) >= 5
