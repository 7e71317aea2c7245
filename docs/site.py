"""What mkdocs does to the pages: README.md is the first one, and links to files outside
of the site become their names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:(?:\.\./)+|(?=CHANGES|CONTRIBUTING|CITATION|benchmarks/))([^)#]+)[^)]*\)")
"""A link out of docs/: its text, and the path of the file below the root."""
DEFINED = re.compile(r"^\[([^\]]+)\]: (?:\.\./)+(\S+)\n", re.MULTILINE)
"""The same, where a link is defined below a table: [encoder.py]: ../src/smalti/tokenizer/encoder.py"""


def on_files(files: Any, *, config: Any) -> Any:
    """Add README.md, whose links lead from the root, as the first page."""
    text = (ROOT / "README.md").read_text("utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(text: str, **_: Any) -> str:
    """`[encoder](../src/smalti/encoder.py)` -> encoder (`src/smalti/encoder.py`); one name where both are the same."""

    def named(link: re.Match[str]) -> str:
        label, file = link.groups()
        return f"`{file}`" if label.strip("`") == file else f"{label} (`{file}`)"

    files = dict(DEFINED.findall(text))
    text = DEFINED.sub("", text)
    for label, file in files.items():
        text = text.replace(f"[{label}]", f"`{file}`")
    return OUTSIDE.sub(named, text)
