"""`make api`: the docstrings of the package -> docs/api/*.md, one page per package. Nothing is imported.

Without a leading underscore a name is public. Methods without a docstring are left out:
they do what their abstract class says.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path

WIDTH = 120
HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "src" / "smalti"
PAGES: dict[str, tuple[str, ...]] = {
    "pipeline": ("pipeline", "model_loading", "core/errors"),
    "images": ("io", "resizing", "masks", "seams", "hole_filling", "label_maps"),
    "tokenizer": ("vqgan", "encoder", "decoder", "quantizers", "tiled"),
    "prior": (
        "base",
        "cache",
        "transformer",
        "gpt",
        "neighborhood",
        "pixelsnail",
        "order",
        "window",
        "code_likelihood",
    ),
    "generation": (
        "request",
        "generation_loop",
        "code_sampler",
        "sliding_window",
        "speculative",
        "partial_images",
        "generation_checkpoint",
    ),
    "conditions": (
        "base",
        "labels",
        "text",
        "coordinates",
        "spatial",
        "layout",
        "layout_codes",
        "keypoints",
        "composite",
        "condition_registry",
    ),
    "data": (
        "config",
        "image_entries",
        "sources",
        "image_tables",
        "file_types",
        "crops",
        "loader",
        "paired",
        "annotations",
        "caption_files",
        "code_shards",
    ),
    "scenes": ("painter", "visible", "captions", "scene_files"),
    "losses": ("pixel", "perceptual", "logits", "discriminator", "adversarial", "objective"),
    "evaluation": (
        "metrics",
        "similarity",
        "distances",
        "nearest_neighbors",
        "protocols",
        "measures",
        "results",
        "rejection_sampling",
    ),
    "training": ("config", "runs", "run_folder", "initialization", "pace", "loop"),
    "fit": ("fit_run", "fit_request", "inspection", "found_conditions"),
}
"""Page, a package of `SOURCE` or the modules outside of packages -> the modules that it documents,
in this order."""


def pages() -> Iterator[tuple[str, str]]:
    """The name of each file and what is to stand in it, README.md first."""
    lines = ["# The Python interface", "", "From the docstrings, by `make api`.", ""]
    yield "README.md", "\n".join([*lines, *(f"- [{name}]({name}.md)" for name in PAGES)]) + "\n"
    for name, modules in PAGES.items():
        package = SOURCE / name if (SOURCE / name).is_dir() else SOURCE
        files = [package / "__init__.py"] if package != SOURCE else []
        for module in modules:
            files += (
                sorted((package / module).glob("*.py")) if (package / module).is_dir() else [package / f"{module}.py"]
            )
        yield f"{name}.md", "\n\n".join([f"# {name}", *(text for file in files for text in _module(file))]) + "\n"


def _public(name: str) -> bool:
    return not name.startswith("_")


def _module(file: Path) -> Iterator[str]:
    tree, path = ast.parse(file.read_text("utf-8")), file.relative_to(SOURCE.parent)
    parts = path.with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    yield f"## `{name}`\n\n[source](../../src/{path.as_posix()})"
    yield from _docstring(tree)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and _public(node.name):
            yield from _class(node)
        elif isinstance(node, ast.FunctionDef) and _public(node.name):
            yield _heading("", _signature(node))
            yield from _docstring(node)


def _class(node: ast.ClassDef) -> Iterator[str]:
    """What it is built from and its docstring; its fields and methods as a list."""
    built = next((each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"), None)
    arguments = _signature(built).removeprefix("__init__").removesuffix(" -> None") if built else ""
    yield _heading("class ", node.name + arguments)
    yield from _docstring(node)
    for each, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(each, ast.AnnAssign) and _public(ast.unparse(each.target)):
            text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            yield _item(ast.unparse(each), str(text))
        elif isinstance(each, ast.FunctionDef) and _public(each.name) and (text := ast.get_docstring(each)):
            value = "property" in [ast.unparse(decorator) for decorator in each.decorator_list] and each.returns
            yield _item(f"{each.name}: {ast.unparse(value)}" if value else _signature(each), text)


def _signature(node: ast.FunctionDef) -> str:
    """`name(arguments) -> result`, without `self` and `cls`."""
    arguments = ast.unparse(node.args)
    for first in ("self", "cls"):
        arguments = arguments.removeprefix(f"{first}, ") if arguments != first else ""
    return f"{node.name}({arguments})" + (f" -> {ast.unparse(node.returns)}" if node.returns else "")


def _heading(kind: str, signature: str) -> str:
    """A heading of one line; a signature that is too long for it goes into a block below."""
    if len(line := f"### {kind}`{signature}`") <= WIDTH:
        return line
    return f"### {kind}`{signature.partition('(')[0]}`\n\n{_block(signature)}"


def _block(signature: str) -> str:
    return "\n".join(["```python", *textwrap.wrap(signature, WIDTH - 10, subsequent_indent="    "), "```"])


def _docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> list[str]:
    text = ast.get_docstring(node)
    return [_text(text)] if text else []


def _item(code: str, text: str) -> str:
    """A line of a list, with its docstring below."""
    text = _text(inspect.cleandoc(text))
    if len(code) > WIDTH - 4:
        code, text = code.partition("(")[0], f"{_block(code)}\n{text}"
    below = "".join(f"\n  {line}".rstrip(" ") for line in text.splitlines())
    return f"- `{code}`{below}"


def _text(text: str) -> str:
    """A docstring as Markdown: outside of code a [ begins no link, and < no tag. Long lines are wrapped."""
    lines = (line if line.startswith("    ") else _prose(line) for line in text.splitlines())
    return "\n".join(part for line in lines for part in _wrapped(line))


def _wrapped(line: str) -> list[str]:
    if len(line) <= WIDTH - 2 or line.startswith(("    ", "|")):
        return [line]
    indent = "  " if line.startswith(("- ", "  ")) else ""
    return textwrap.wrap(line, WIDTH - 2, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _prose(line: str) -> str:
    parts = line.split("`")
    parts[::2] = [part.replace("[", r"\[").replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


if __name__ == "__main__":
    (HERE / "api").mkdir(exist_ok=True)
    for name, text in pages():
        (HERE / "api" / name).write_text(text, "utf-8")
