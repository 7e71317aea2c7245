"""What mkdocs does to the pages: README.md is the first one, and links to files that no page stands for become their names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:(?:\.\./)+|(?=CHANGES|benchmarks))([^)#]+)[^)]*\)")
"""A link out of docs/: its text, and the file from the root on."""


def on_files(files: Any, *, config: Any) -> Any:
    """Add README.md, whose links lead from the root, as the first page."""
    text = (ROOT / "README.md").read_text("utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(text: str, **_: Any) -> str:
    """`[encoder](../src/smalti/encoder.py)` -> encoder (`src/smalti/encoder.py`); one name where both are the same."""

    def named(link: re.Match[str]) -> str:
        said, file = link.groups()
        return f"`{file}`" if said.strip("`") == file else f"{said} (`{file}`)"

    return OUTSIDE.sub(named, text)
