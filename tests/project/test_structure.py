"""The structure of the code: layers, forbidden constructions, sizes of files, settings that are read, and light
imports."""

from __future__ import annotations

import ast
import graphlib
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import smalti
from tests.project.vocabulary import banned_names, banned_text, strings

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "smalti"
FILES = sorted(SOURCE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
TREES = {path: ast.parse(path.read_text("utf-8")) for path in FILES}
LONGEST = 450

LAYERS = {
    "core": 0,
    **dict.fromkeys(("hub", "images", "kernels"), 1),
    **dict.fromkeys(("losses", "prior", "scenes", "tokenizer"), 2),
    **dict.fromkeys(("conditions", "data"), 3),
    **dict.fromkeys(("checkpoints", "generation", "prior_folder"), 4),
    "pipeline": 5,
    "model_loading": 6,
    **dict.fromkeys(("encoding", "evaluation"), 7),
    **dict.fromkeys(("reports", "web"), 8),
    "training": 9,
    **dict.fromkeys(("experiments", "fit"), 10),
    "cli": 11,
    "__main__": 12,
}
"""Package -> layer. A package imports from lower layers and from itself."""


def in_words(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imported(tree: ast.AST, modules: frozenset[str]) -> Iterator[tuple[int, str]]:
    """All imports of smalti in a file, also inside functions: (line, module). A name that is not a module gives its
    home."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            home = node.module or ""
            below = [f"{home}.{alias.name}" for alias in node.names]
            names = [name if name in modules else home for name in below]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "smalti")


def misplaced(package: str, tree: ast.AST, modules: frozenset[str]) -> list[str]:
    """What a file of `package` imports from other packages of its own layer, or from layers above."""
    wrong = []
    for line, name in imported(tree, modules):
        other = name.partition(".")[2].partition(".")[0]
        if other != package and not (other in LAYERS and LAYERS[other] < LAYERS[package]):
            wrong.append(f"line {line}: {name}")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=in_words)
def test_imports_point_down(path: Path) -> None:
    package = module_of(path).partition(".")[2].partition(".")[0]
    if not package:  # `smalti` itself exports names of all layers, and nothing imports from it
        return
    assert package in LAYERS, f"{package} has no layer: add it to LAYERS"
    assert not misplaced(package, TREES[path], frozenset(MODULES)), f"{package} is on layer {LAYERS[package]}"


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("core", "from smalti.images.io import crop"),
        ("tokenizer", "from smalti.losses import objective"),
        ("prior", "import smalti.tokenizer.vqgan"),
        ("images", "from smalti.losses import objective"),
        ("tokenizer", "from smalti import VQGAN"),
        ("data", "from smalti.conditions.base import Condition"),
        ("web", "from smalti.reports import charts"),
        ("pipeline", "def late() -> None:\n    from smalti.cli import main"),
    ],
)
def test_a_wrong_import_would_be_seen(package: str, line: str) -> None:
    modules = frozenset(MODULES) | {"smalti.images.masks", "smalti.cli.main"}
    assert misplaced(package, ast.parse(line), modules)


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("core", "from smalti.core.errors import SmaltiError"),
        ("images", "from smalti.images.io import crop"),
        ("conditions", "from smalti.tokenizer.vqgan import VQGAN"),
        ("web", "from smalti.pipeline import Pipeline"),
        ("cli", "from smalti.cli import data"),
    ],
)
def test_a_right_import_is_not_taken_for_wrong(package: str, line: str) -> None:
    assert not misplaced(package, ast.parse(line), frozenset(MODULES))


def test_no_module_waits_for_itself() -> None:
    modules = frozenset(MODULES)
    graph = {
        name: {other for _, other in imported(TREES[path], modules)} - {name}
        for name, path in MODULES.items()
        if name != "smalti"
    }
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with the cycle


def forbidden(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            yield f"line {node.lineno}: import *"
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"line {node.lineno}: a relative import"
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path":
            yield f"line {node.lineno}: sys.path"
        if isinstance(node, ast.ImportFrom) and node.module == "sys" and "path" in {a.name for a in node.names}:
            yield f"line {node.lineno}: sys.path"
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and re.fullmatch(r"smalti(\.\w+)+\.[A-Z]\w*", node.value)
        ):
            yield f"line {node.lineno}: the class path {node.value!r}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func).split(".")[-1]
            table = ast.unparse(node.args[0]) if node.args else ""
            if called in ("import_module", "__import__") and not table.startswith("_MODULES["):
                yield f"line {node.lineno}: {called}({table}), where modules are named in tables only"
            if isinstance(node.func, ast.Name) and called in ("eval", "exec"):
                yield f"line {node.lineno}: {called}"


@pytest.mark.parametrize("path", FILES, ids=in_words)
def test_nothing_forbidden_is_used(path: Path) -> None:
    assert list(forbidden(TREES[path])) == []


@pytest.mark.parametrize(
    "line",
    [
        "from smalti.core.errors import *",
        "from . import errors",
        "import sys\nsys.path.append('.')",
        "from sys import path",
        "target = 'smalti.tokenizer.vqgan.VQGAN'",
        "importlib.import_module(name)",
        "__import__(name)",
        "eval(text)",
    ],
)
def test_what_is_forbidden_would_be_seen(line: str) -> None:
    assert list(forbidden(ast.parse(line)))


def marked_up(tree: ast.AST) -> Iterator[str]:
    """Where a file prints through rich on its own account, and names could be taken for markup."""
    made = {"Console", "TextColumn", "SpinnerColumn", "Prompt", "Confirm", "Status"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called.split(".")[-1] in made:
                yield f"line {node.lineno}: {called}, which progress.plain_console and plain_column make"
            if called.endswith(".print") and called not in ("CONSOLE.print", "ERRORS.print"):
                yield f"line {node.lineno}: {called}, which progress.say does"
            if called.split(".")[-1] in ("from_markup", "render_markup", "rprint"):
                yield f"line {node.lineno}: {called}"
            if {"markup", "emoji"} & {word.arg for word in node.keywords}:
                yield f"line {node.lineno}: {called} with markup or emoji"
        if (
            isinstance(node, ast.ImportFrom)
            and node.module == "rich"
            and {a.name for a in node.names} & {"print", "print_json"}
        ):
            yield f"line {node.lineno}: print of rich"


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "progress.py"], ids=in_words)
def test_nothing_is_printed_as_markup(path: Path) -> None:
    assert list(marked_up(TREES[path])) == []


@pytest.mark.parametrize(
    "line",
    [
        "CONSOLE = Console(highlight=False)",
        "rich.console.Console()",
        "Progress(TextColumn('{task.description}'))",
        "console.print(name)",
        "self._console.print(name)",
        "CONSOLE.print(name, markup=True)",
        "Text.from_markup(name)",
        "from rich import print",
    ],
)
def test_what_is_printed_as_markup_would_be_seen(line: str) -> None:
    assert list(marked_up(ast.parse(line)))


def test_the_only_table_of_modules_is_that_of_the_public_names() -> None:
    holders = [path for path in FILES if "import_module" in path.read_text("utf-8")]
    assert holders == [SOURCE / "__init__.py"]
    (table,) = [
        node.value
        for node in TREES[holders[0]].body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_MODULES"
    ]
    modules = ast.literal_eval(table)
    assert set(modules) | {"SmaltiError", "__version__"} == set(smalti.__all__)
    for name, module in modules.items():
        assert getattr(smalti, name) is getattr(importlib.import_module(module), name)
    with pytest.raises(AttributeError, match="no attribute 'VQGGAN'"):
        smalti.VQGGAN  # noqa: B018


SCRIPTS = sorted(path for path in SOURCE.rglob("*") if path.suffix in (".js", ".css"))


@pytest.mark.parametrize("path", SCRIPTS, ids=in_words)
def test_lines_of_scripts_fit(path: Path) -> None:
    """Those of Python are checked by ruff."""
    wide = [number for number, line in enumerate(path.read_text("utf-8").splitlines(), 1) if len(line) > 120]
    assert not wide


@pytest.mark.parametrize("path", [*FILES, *TESTS, *SCRIPTS], ids=in_words)
def test_files_can_be_read_in_one_sitting(path: Path) -> None:
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= LONGEST, f"{in_words(path)} has {lines} lines"


@pytest.mark.parametrize("path", FILES, ids=in_words)
def test_every_public_module_says_what_it_is(path: Path) -> None:
    if path.name == "__init__.py" or not path.name.startswith("_") or path.name == "__main__.py":
        assert ast.get_docstring(TREES[path]), f"{in_words(path)} has no docstring"


def test_every_folder_of_modules_is_a_package() -> None:
    assert not [in_words(path.parent) for path in FILES if not (path.parent / "__init__.py").is_file()]


def test_all_that_is_no_python_comes_along_when_smalti_is_installed() -> None:
    listed = re.search(r"^smalti = (\[.*\])$", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert listed is not None
    packed = {path for pattern in ast.literal_eval(listed[1]) for path in SOURCE.glob(pattern)}
    others = {path for path in SOURCE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert not [in_words(path) for path in others - packed]


def test_no_file_knows_a_machine() -> None:
    places = [f"/{folder}/" for folder in ("root", "tmp", "home")]
    texts = {".py", ".md", ".yaml", ".json", ".toml", ".txt", ".css", ".js", ".html", ".svg", ".typed"}
    found = [
        f"{in_words(path)}: {place}"
        for folder in ("src", "docs", "tests")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in texts and not any(part.endswith(".egg-info") for part in path.parts)
        for place in places
        if place in path.read_text("utf-8")
    ]
    assert not found


CODE = [*FILES, *TESTS, *sorted((ROOT / "benchmarks").glob("*.py"))]
TEXTS = [
    *FILES,
    *(path for path in sorted(SOURCE.rglob("*")) if path.suffix in (".yaml", ".html", ".js")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "log.md"),
]


@pytest.mark.parametrize("path", CODE, ids=in_words)
def test_identifiers_are_terms_of_the_field(path: Path) -> None:
    tree = TREES[path] if path in TREES else ast.parse(path.read_text("utf-8"))
    found = list(banned_names(tree))
    assert not found, "docs/glossary.md lists the terms"


@pytest.mark.parametrize("path", TEXTS, ids=in_words)
def test_texts_are_in_terms_of_the_field(path: Path) -> None:
    """Strings and docstrings, recipes, pages and documentation."""
    texts = strings(TREES[path]) if path in TREES else enumerate(path.read_text("utf-8").splitlines(), 1)
    found = [f"line {line}: {word}" for line, text in texts for word in banned_text(text)]
    assert not found, "docs/glossary.md lists the terms"


@pytest.mark.parametrize(
    "code",
    [
        "told_by = 1",
        "def lay(codes): ...",
        "class Keeper: ...",
        "f(beside=1)",
        "from a.telling import b",
        "x.pictures",
        "Work()",
        "_MOST_LINKS = 40",
    ],
)
def test_an_identifier_of_the_older_vocabulary_would_be_seen(code: str) -> None:
    assert list(banned_names(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    ["threshold = 1", "play = 2", "display(delay)", "held_out", "np.clip(x)", "file.tell()", "working", "layout"],
)
def test_other_identifiers_are_not_taken_for_it(code: str) -> None:
    assert not list(banned_names(ast.parse(code)))


@pytest.mark.parametrize(
    "text", ["The model is told nothing.", "codes are laid", "two pictures", "by colour", "3 images a second"]
)
def test_a_text_in_the_older_vocabulary_would_be_seen(text: str) -> None:
    assert list(banned_text(text))


@pytest.mark.parametrize(
    "text", ["beside the mask", "an overlay", "within the threshold", "the layer delays", "an optimal color"]
)
def test_other_texts_are_not_taken_for_it(text: str) -> None:
    assert not list(banned_text(text))


def settings_fields(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(class, field) of all settings in a file, without the tags that can hold one value only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and "settings" in [ast.unparse(item) for item in node.decorator_list]:
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and not re.fullmatch(
                    r"Literal\[[^,]+\]", ast.unparse(field.annotation)
                ):
                    yield node.name, ast.unparse(field.target)


def test_every_setting_is_read_by_something() -> None:
    nodes = [node for tree in TREES.values() for node in ast.walk(tree)]
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    # A format's number is read from the plain values, before they are settings.
    read |= {ast.unparse(node.slice).strip("'") for node in nodes if isinstance(node, ast.Subscript)}
    fields = [field for tree in TREES.values() for field in settings_fields(tree)]
    assert {("TokenizerRun", "images"), ("AutoencoderSettings", "patch_size"), ("PriorTraining", "condition")} <= set(
        fields
    )
    assert not [f"{cls}.{field}" for cls, field in fields if field not in read]


def loaded_after(code: str) -> set[str]:
    """The modules that a fresh Python holds after running `code`."""
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_the_library_is_light() -> None:
    loaded = loaded_after("import smalti\nfor name in smalti.__all__: getattr(smalti, name)")
    assert {"smalti.pipeline", "torch"} <= loaded
    heavy = {
        "uvicorn",
        "starlette",
        "fastapi",
        "lightning_fabric",
        "webdataset",
        "tensorboard",
        "typer",
        "rich",
        "matplotlib",
        "jinja2",
    }
    assert not loaded & heavy


@pytest.mark.parametrize("module", ["smalti", "smalti.cli.main", "smalti.scenes.scene_classes"])
def test_the_command_line_answers_before_torch_is_loaded(module: str) -> None:
    loaded = loaded_after(f"import {module}")
    assert module in loaded
    assert not loaded & {"torch", "lightning_fabric", "tensorboard", "matplotlib"}
